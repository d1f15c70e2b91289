"""From the bytes of a TOML file to a plan, or to all of its problems at once.

Plans are not trusted: they are bounded in size, and nothing in them is run while they are read.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.errors import PlanError, Problem
from orchestrator.plan.compare import read_comparisons
from orchestrator.plan.deployments import Surroundings, read_defaults, read_deployment
from orchestrator.plan.expected import expected_traffic
from orchestrator.plan.frontier import frontier_workloads, read_frontier
from orchestrator.plan.overrides import apply_overrides
from orchestrator.plan.plan import Plan
from orchestrator.plan.secrets import secret_places, unset_secrets
from orchestrator.plan.settings import (
    BOUNDS,
    Budget,
    Client,
    Frontier,
    ModelSettings,
    OpenLoop,
    Ramp,
    Soak,
    WorkloadSettings,
)
from orchestrator.plan.simulated import check_together
from orchestrator.plan.tables import Findings, is_deeper_than, nearest, shown
from orchestrator.plan.workloads import read_workload, within_context
from orchestrator.records import Cost, Demand, Slo
from stacks.base import Deployment
from workloads.workload import Workload

LARGEST_PLAN_BYTES = 2**20
DEEPEST = 16
"""Levels of tables and lists in each other; a plan needs four."""
MOST_ENTRIES = 256
"""Deployments, and workloads, of one plan."""

_KEYS = (
    "title", "seed", "model", "slo", "defaults", "deployment", "workload", "frontier", "ramp", "open_loop", "demand",
    "soak", "compare", "budget", "client", "cost",
)  # fmt: skip
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._]|-(?!-)){0,62}[A-Za-z0-9]|[A-Za-z0-9]")


def load_plan(path: Path, overrides: Sequence[str] = (), *, only_shown: bool = False) -> Plan:
    """Read a plan file. Raises PlanError with every problem of it."""
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_PLAN_BYTES + 1)
    except OSError as error:
        problem = Problem(str(path), f"the plan cannot be read: {error.strerror or error}.", "See examples/ for plans.")
        raise PlanError([problem]) from error
    return parse_plan(text, path.name, overrides, base=path.parent, only_shown=only_shown)


def parse_plan(
    text: bytes,
    name: str,
    overrides: Sequence[str] = (),
    *,
    base: Path,
    environ: Mapping[str, str] | None = None,
    only_shown: bool = False,
) -> Plan:
    """A plan out of its bytes. `name` stands in messages; relative paths start at `base`; secrets must be in `environ`,
    unless the plan is `only_shown`: then it names those that are not.

    Raises PlanError with every problem.
    """
    document = _document(text, name)
    findings = Findings(name)
    apply_overrides(document, tuple(overrides), findings)
    if is_deeper_than(document, DEEPEST):
        raise PlanError([*findings.problems, Problem(name, "is nested too deeply for a plan.")])
    for key in secret_places(document):
        remedy = 'Put it into the environment and name it: secrets = ["NAME"].'
        findings.add(key[:100], "holds what looks like a secret, and a plan must not carry one.", remedy)
    around = Surroundings(base.resolve(), os.environ if environ is None else environ)
    plan = _read(document, text, around, name, tuple(overrides), findings)
    if problems := [*findings.problems, *(() if only_shown else plan.lacking)]:
        raise PlanError(problems)
    return plan


def _document(text: bytes, name: str) -> dict[str, Any]:
    if len(text) > LARGEST_PLAN_BYTES:
        raise PlanError([Problem(name, "is larger than 1 MiB, which no plan is.")])
    try:
        return tomllib.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise PlanError([Problem(name, f"is not UTF-8 text (byte {error.start}).")]) from error
    except (ValueError, RecursionError) as error:
        said = str(error) if isinstance(error, tomllib.TOMLDecodeError) else _too_much(error)
        raise PlanError([Problem(name, f"is not a plan in TOML: {said}.", "See examples/ for plans.")]) from error


def _too_much(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else "a number in it has too many digits"


def _read(
    document: dict[str, Any],
    text: bytes,
    around: Surroundings,
    name: str,
    overrides: tuple[str, ...],
    findings: Findings,
) -> Plan:
    """Every table is read, whatever is wrong with the others."""
    findings.unknown_keys(document, _KEYS, "")
    title, seed = _title(document, name, findings), _seed(document, findings)
    model = findings.read_optional(document, ModelSettings, "model")
    slo = findings.read_optional(document, Slo, "slo")
    ramp = findings.read_optional(document, Ramp, "ramp")
    open_loop = findings.read_optional(document, OpenLoop, "open_loop")
    demand = findings.read_optional(document, Demand, "demand")
    soak = findings.read_optional(document, Soak, "soak")
    budget = findings.read_optional(document, Budget, "budget")
    client = findings.read_optional(document, Client, "client")
    deployments = _deployments(document, model, around, findings)
    frontier = read_frontier(document, findings)
    workloads, lengths = _workloads(document, seed, around.base, deployments, frontier, findings)
    _check_ramp(ramp, findings)
    check_together(deployments, slo, findings)
    expected = expected_traffic(open_loop, ramp, workloads, lengths, around.base, findings)
    cost = _cost(document, deployments, findings)
    compare = read_comparisons(document, deployments, workloads, findings)
    return Plan(
        text=text,
        path=around.base / name,
        overrides=overrides,
        title=title,
        seed=seed,
        slo=slo,
        model=model,
        deployments=deployments,
        workloads=workloads,
        ramp=ramp,
        open_loop=open_loop,
        demand=demand,
        soak=soak,
        compare=compare,
        budget=budget,
        client=client,
        frontier=frontier,
        cost=cost,
        lengths=lengths,
        expected=expected,
        lacking=_lacking(deployments, around.environ, name),
    )


def _lacking(deployments: Sequence[Deployment], environ: Mapping[str, str], name: str) -> tuple[Problem, ...]:
    """What of the environment the servers would not get."""
    told = unset_secrets(((d.name, d.secrets) for d in deployments), environ)
    return tuple(Problem(f"{name}: secrets", said, "Export it before the run, or take it out.") for said in told)


def _title(document: Mapping[str, Any], name: str, findings: Findings) -> str:
    """The title; without one the file's name."""
    title = document.get("title", Path(name).stem)
    if isinstance(title, str) and len(title) <= 200:
        return title
    findings.add("title", f"found {shown(title)}, expected a text of at most 200 characters.")
    return ""


def _seed(document: Mapping[str, Any], findings: Findings) -> int:
    seed = document.get("seed", 0)
    if type(seed) is int and 0 <= seed < 2**63:
        return seed
    findings.add("seed", f"found {shown(seed)}, expected a whole number from 0.")
    return 0


def _deployments(
    document: Mapping[str, Any], model: ModelSettings, around: Surroundings, findings: Findings
) -> tuple[Deployment, ...]:
    tables = findings.tables(document.get("deployment"), "deployment", MOST_ENTRIES)
    defaults = read_defaults(findings.table(document.get("defaults"), "defaults"), findings)
    read = [read_deployment(t, f"deployment[{i}]", model, defaults, around, findings) for i, t in enumerate(tables)]
    _check_names(((f"deployment[{i}]", d.name if d else None) for i, d in enumerate(read)), findings)
    return tuple(deployment for deployment in read if deployment is not None)


def _workloads(
    document: Mapping[str, Any],
    seed: int,
    base: Path,
    deployments: Sequence[Deployment],
    frontier: Frontier | None,
    findings: Findings,
) -> tuple[tuple[WorkloadSettings, ...], dict[str, Workload]]:
    """Those of the plan, which may be none where there is a frontier, and then those of the frontier."""
    none_needed = "frontier" in document and "workload" not in document
    tables = [] if none_needed else findings.tables(document.get("workload"), "workload", MOST_ENTRIES)
    read = [read_workload(t, f"workload[{i}]", seed, base, findings) for i, t in enumerate(tables)]
    fitted = [
        (within_context(*entry, deployments, f"workload[{i}]", findings), entry[1])
        for i, entry in enumerate(read)
        if entry is not None
    ]
    along = [] if frontier is None else frontier_workloads(frontier, deployments, findings)
    own = [(f"workload[{i}]", w[0].name if w else None) for i, w in enumerate(read)]
    _check_names([*own, *(("frontier", settings.name) for settings, _ in along)], findings)
    every = [*fitted, *along]
    return tuple(settings for settings, _ in every), {settings.name: workload for settings, workload in every}


def _cost(document: Mapping[str, Any], deployments: Sequence[Deployment], findings: Findings) -> Cost:
    cost = findings.read_optional(document, Cost, "cost")
    if not 0 < len(cost.currency) <= 8 or not cost.currency.isprintable():
        findings.add("cost.currency", f"found {shown(cost.currency)}, expected a short name.", 'Write it like "EUR".')
    names = [deployment.name for deployment in deployments]
    for name, price in cost.hour.items():
        if name not in names:
            findings.add(f"cost.hour.{name[:60]}", "there is no such deployment.", nearest(name, names))
        elif not BOUNDS["gpu_hour"].holds(price):
            findings.add(f"cost.hour.{name}", f"found {shown(price)}, allowed is {BOUNDS['gpu_hour']}.")
    return cost


def _check_names(named: Iterable[tuple[str, str | None]], findings: Findings) -> None:
    """Names become folders and containers: safe everywhere, and different even where case does not count.

    `named`: (whose, name); None = it has none that could be read.
    """
    seen: dict[str, str] = {}
    for whose, name in named:
        where = f"{whose}.name"
        if name is None or findings.told(where):
            continue
        if not _NAME.fullmatch(name):
            rule = 'use letters, digits, ".", "_" and single "-", at most 64, a letter or digit at both ends'
            findings.add(where, f"found {shown(name)}: {rule}.")
        first = seen.setdefault(name.lower(), whose)
        if first != whose:
            findings.add(where, f"{shown(name)} is the name of {first} too.", "Give each a name of its own.")


def _check_ramp(ramp: Ramp, findings: Findings) -> None:
    if ramp.start > ramp.max:
        findings.add("ramp.start", f"is {ramp.start}, above ramp.max, which is {ramp.max}.")
    if ramp.min_seconds > ramp.longest_s:
        findings.add("ramp.min_seconds", f"is {ramp.min_seconds:g}, above ramp.max_seconds ({ramp.longest_s:g}).")
