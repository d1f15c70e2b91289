"""Reproduce it: exact commands, images, versions, the host, the lists of requests."""

from __future__ import annotations

import shlex
from collections import Counter
from typing import NamedTuple

from orchestrator.records import ServerRecord
from reports.figures import NONE, count, duration, significant, size
from reports.result import Result


class Started(NamedTuple):
    """What was started for a deployment."""

    deployment: str
    rows: tuple[tuple[str, str], ...]
    command: str
    facts: tuple[tuple[str, str], ...]


class Draw(NamedTuple):
    """The list of requests of one level."""

    deployment: str
    workload: str
    concurrency: int
    purpose: str
    seed: int
    sha256: str


def started(result: Result) -> tuple[Started, ...]:
    """The server of each deployment that counts (the last one of its first measured cell)."""
    found: dict[str, Started] = {}
    for cell in result.cells:
        if cell.servers and cell.asked.deployment not in found:
            found[cell.asked.deployment] = _started(cell.asked.model, cell.servers[-1])
    return tuple(found.values())


def _started(model: str, server: ServerRecord) -> Started:
    how = {
        "external": "not started by loadproof",
        "docker": "container",
        "process": "process",
        "simulated": "not started: simulated in virtual time",
    }[server.launch]
    rows = [
        ("Stack", f"{server.stack} {server.version or '(version not reported)'}"),
        ("Started as", how),
        ("Model", model),
        ("Model as listed", server.model_listed),
        ("Image", server.image),
        ("Image digest", server.image_digest),
        ("Address", server.base_url),
        ("Environment", " ".join(f"{name}={value}" for name, value in sorted(server.env.items()))),
        ("Secrets, by name", ", ".join(server.secret_env)),
        ("Ready after", duration(server.ready_s)),
    ]
    return Started(
        deployment=server.deployment,
        rows=tuple((name, value) for name, value in rows if value and value != NONE),
        command=shlex.join(server.argv),
        facts=tuple((fact_name(name), fact_text(name, value)) for name, value in sorted(server.facts.items())),
    )


_CAPITALS = {"kv": "KV", "cpu": "CPU", "cpus": "CPUs", "gpu": "GPU", "os": "OS", "numa": "NUMA"}


def fact_name(name: str) -> str:
    """A fact's name in words, without the unit that its value is shown with."""
    words = name.removesuffix("_bytes").removesuffix("_s").split("_")
    return " ".join(_CAPITALS.get(word, word) for word in words)


def fact_text(name: str, value: float | str | None) -> str:
    """A fact with the unit that its name carries."""
    if value is None:
        return "not known"
    if isinstance(value, str):
        return value
    if name.endswith("_bytes"):
        return size(value)
    if name.endswith("_s"):
        return duration(value)
    return count(value) if float(value).is_integer() else significant(value)


def host_rows(result: Result) -> tuple[tuple[str, str], ...]:
    return tuple((fact_name(name), fact_text(name, value)) for name, value in result.host.items())


def gpus(result: Result) -> dict[str, int]:
    """The machine's cards by name, with their number."""
    facts = [str(value) for name, value in result.host.items() if name.startswith("gpu:") and value]
    return dict(Counter(fact.partition(", index ")[0] for fact in facts))


def draws(result: Result) -> tuple[Draw, ...]:
    return tuple(
        Draw(
            cell.asked.deployment,
            cell.asked.workload,
            level.concurrency,
            level.purpose,
            level.seed,
            level.workload_sha256,
        )
        for cell in result.cells
        for level in cell.levels
    )


def command(result: Result) -> str:
    """How the run is repeated from the plan below."""
    return shlex.join(["loadproof", "run", "plan.toml", *(part for o in result.overrides for part in ("--set", o))])
