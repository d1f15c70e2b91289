"""A stack as a reader looks it up: what it takes, what it says, how it fails. Drawn from its data sheet alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from stacks.base import Capabilities, Deployment, FailurePattern, LaunchKind, Stack
from stacks.command import options
from stacks.logs import SHARED_FAILURES
from stacks.settings import Release, Values, dotted
from stacks.sheet import DataSheet

MODEL = "MODEL"
EXAMPLES: dict[str, Any] = {
    "served_name": "my-model",
    "revision": "main",
    "dtype": "bfloat16",
    "context_tokens": 4096,
    "max_concurrency": 64,
    "max_batched_tokens": 1024,
    "memory_fraction": 0.85,
    "kv_cache_bytes": 8 * 2**30,
    "kv_cache_tokens": 65_536,
    "tensor_parallel": 2,
    "shm_bytes": 2**30,
}
"""A value for each setting of a deployment that ends on a server's command line, and none that is a default."""


class SettingRow(msgspec.Struct, frozen=True):
    key: str
    example: str
    given_as: tuple[str, ...]
    """Words of the command line for the example; () where nothing says it there."""
    refused: str = ""
    """Why it is refused and what to do instead."""


class ValueRow(msgspec.Struct, frozen=True):
    value: str
    accepted: bool
    """In the release that is looked up."""
    releases: str = ""
    """Which releases have it, where not all have."""
    on_load: bool = False
    """Quantizes a 16-bit checkpoint while it loads; else the checkpoint must be quantized already."""


class FailureRow(msgspec.Struct, frozen=True):
    failure_class: str
    sentence: str
    """The pattern that its log is searched for."""
    remedy: str


class WireRow(msgspec.Struct, frozen=True):
    api: str
    path: str
    token_ids: bool


class About(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    title: str
    homepage: str
    status: str
    versions: tuple[str, str] | None
    """Oldest and newest release that is known."""
    release: str | None
    """The one that is looked up; None = the newest known, or no releases at all."""
    image: str | None
    command: tuple[str, ...]
    launches: tuple[LaunchKind, ...]
    wires: tuple[WireRow, ...]
    ready: tuple[str, ...]
    """What it must answer before it is measured."""
    metrics_path: str | None
    capabilities: Capabilities
    settings: tuple[SettingRow, ...] = ()
    quantizations: tuple[ValueRow, ...] = ()
    kv_dtypes: tuple[ValueRow, ...] = ()
    metrics: dict[str, tuple[str, ...]] = {}
    """Canonical value -> the names that it has in the stack's releases."""
    log_facts: tuple[str, ...] = ()
    failures: tuple[FailureRow, ...] = ()
    shared_failures: tuple[FailureRow, ...] = ()
    """Those of torch, the hub, the driver and the machine: the same for every stack."""
    notes: tuple[str, ...] = ()


def about(stack: Stack, number: Release | None = None) -> About:
    """All that is known of a stack, in a release (None = the newest). A stack that is no data sheet tells less."""
    told = About(
        name=stack.name,
        title=stack.title,
        homepage=stack.homepage,
        status=stack.status,
        versions=None,
        release=dotted(number) if number else None,
        image=stack.default_image,
        command=stack.default_command,
        launches=stack.launches,
        wires=tuple(WireRow(wire.name, wire.path, wire.takes_token_ids) for wire in stack.wires),
        ready=_ready(stack),
        metrics_path=stack.metrics_path,
        capabilities=stack.capabilities,
        settings=tuple(_settings(stack, number)),
        notes=tuple(note for note in stack.notes(_deployment(stack, number)) if note != stack.status),
    )
    if not isinstance(stack, DataSheet):
        return told
    shared = () if stack.launches == ("external",) else SHARED_FAILURES
    return msgspec.structs.replace(
        told,
        versions=stack.versions,
        quantizations=tuple(_values(stack.quantizations, number, stack)),
        kv_dtypes=tuple(_values(stack.kv_dtypes, number)),
        metrics={name: tuple(metric.name for metric in found) for name, found in stack.metrics.items()},
        log_facts=tuple(dict.fromkeys(fact.name for fact in stack.facts)),
        failures=tuple(map(_failure, (*stack.failures, *stack.last_failures))),
        shared_failures=tuple(map(_failure, shared)),
    )


def _failure(row: FailurePattern) -> FailureRow:
    return FailureRow(row.failure_class, row.pattern.pattern, row.remedy)


def _deployment(stack: Stack, number: Release | None, **settings: Any) -> Deployment:
    version = dotted(number) if number else None
    return Deployment(name="d", stack=stack.name, model=MODEL, launch=stack.launches[0], version=version, **settings)


def _ready(stack: Stack) -> tuple[str, ...]:
    health, models = stack.readiness.health_path, stack.readiness.models_path
    steps = [f"{health} answers 200" if health else "", f"{models} lists the model" if models else ""]
    return (*(step for step in steps if step), "a completion of two tokens comes back")


def _settings(stack: Stack, number: Release | None) -> Iterator[SettingRow]:
    """Found out by asking: what each setting changes in what would be started."""
    if stack.launches == ("external",):
        return
    bare = _deployment(stack, number)
    port = stack.container_port(bare)
    plain = options(stack.launch(bare, "HOST", port).argv)
    for key, value in EXAMPLES.items():
        asked = _deployment(stack, number, **{key: value})
        refusals = [problem for problem in stack.problems(asked) if problem.key == key]
        if refusals:
            yield SettingRow(key, str(value), (), f"{refusals[0].message} {refusals[0].remedy}".strip())
            continue
        changed = (words for words in options(stack.launch(asked, "HOST", port).argv) if words not in plain)
        yield SettingRow(key, str(value), tuple(word for words in changed for word in words))


def _values(values: Values, number: Release | None, sheet: DataSheet | None = None) -> Iterator[ValueRow]:
    """Every value that any release has, those of the release that is looked up first."""
    now = values.at(number)
    others = dict.fromkeys(value for _, row in reversed(values.rows) for value in row if value not in now)
    for value in (*now, *others):
        on_load = sheet is not None and sheet.quantizes_on_load(value, number)
        yield ValueRow(value, value in now, values.span(value), on_load)
