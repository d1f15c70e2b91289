"""`loadproof run`: measure what a plan asks for, then build the report."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from orchestrator.asked import open_rules, turns
from orchestrator.campaign import Campaign
from orchestrator.clock import wall_now
from orchestrator.commands.display import display, duration, extent
from orchestrator.commands.loop import run_loop
from orchestrator.commands.show import summary
from orchestrator.errors import HostError, JournalError, LoadproofError, StackError
from orchestrator.host import raise_file_limit, require_free, usable_cpus
from orchestrator.journal import Journal, RunFiles, read_events
from orchestrator.judge.gaps import traffic_gaps
from orchestrator.judge.pairs import blocks_in_words
from orchestrator.load.capacity import expected, workers_needed
from orchestrator.plan import Cell, Paired, Plan, load_plan, parse_plan
from orchestrator.records import CellFinished, RunOpened
from reports.html import write_report
from reports.result import write_result
from stacks.catalog import stack as stack_named

LEAST_FREE_BYTES = 64 << 20
"""A day's run writes about as much; one that starts with less is refused."""


@click.command("run")
@click.argument("plan_file", metavar="PLAN.toml", required=False, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Run directory to make (default: runs/TIME-TITLE).")
@click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Override a value of the plan; repeatable.")
@click.option(
    "--dry-run", is_flag=True, help="Print the cells, the exact commands and the expected duration; start nothing."
)
@click.option("--resume", type=click.Path(path_type=Path), metavar="RUN_DIR", help="Go on with an interrupted run.")
@click.option("--open", "open_report", is_flag=True, help="Open the report in the browser.")
@click.option("--quiet", is_flag=True, help="Print the summary alone.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line on stdout.")
def run(
    plan_file: Path | None,
    out: Path | None,
    overrides: tuple[str, ...],
    dry_run: bool,
    resume: Path | None,
    open_report: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Measure what PLAN.toml asks for: start each deployment, raise the concurrency until it breaks, write the report.

    Exits 0 when everything asked for was measured (a breaking point found is success), 4 when a server did not come
    up or did not stay up, 3 when the machine lacks something, 2 when the plan is wrong.
    """
    if out is not None and resume is not None:
        raise click.UsageError("A resumed run goes on in its own directory: leave --out away.")
    plan, overrides = _plan_of(plan_file, overrides, resume, only_shown=dry_run)
    if dry_run:
        click.echo(describe_json(plan) if as_json else describe(plan))
        return
    journal = new_journal(plan, out) if resume is None else Journal.resume(resume)
    measure(plan, journal, overrides, quiet=quiet, as_json=as_json, open_report=open_report)


def _plan_of(
    plan_file: Path | None, overrides: tuple[str, ...], resume: Path | None, *, only_shown: bool
) -> tuple[Plan, tuple[str, ...]]:
    """The plan and its overrides: as named, or as the interrupted run has them."""
    if plan_file is not None and resume is not None:
        raise click.UsageError("A resumed run has its plan: name PLAN.toml or --resume RUN_DIR, not both.")
    if plan_file is not None:
        return load_plan(plan_file, overrides, only_shown=only_shown), overrides
    if resume is None:
        raise click.UsageError("Name a plan: loadproof run PLAN.toml (or --resume RUN_DIR).")
    if overrides:
        raise JournalError("A resumed run keeps its plan.", "Leave --set away, or start a new run.")
    opened = next(event for event in read_events(resume) if isinstance(event, RunOpened))
    path = Path(opened.plan_path)
    text = RunFiles(resume).plan.read_bytes()
    plan = parse_plan(text, path.name, opened.overrides, base=path.parent, only_shown=only_shown)
    return plan, opened.overrides


def new_journal(plan: Plan, out: Path | None) -> Journal:
    """A new run directory. Raises HostError if it exists, cannot be made, or the disk is about to be full."""
    root = out or default_directory(plan)
    require_free(root, LEAST_FREE_BYTES)
    return Journal.create(root, plan.text)


def default_directory(plan: Plan) -> Path:
    """``runs/20261123-130511-title``, below the working directory."""
    slug = re.sub(r"[^a-z0-9]+", "-", plan.title.lower()).strip("-")[:40]
    return Path("runs") / f"{wall_now():%Y%m%d-%H%M%S}-{slug or 'run'}"


# --- the dry run ------------------------------------------------------------------------------------------------


def _command(cell: Cell) -> dict[str, Any]:
    """What would be started for a cell, as plain data; secrets by name."""
    deployment = cell.deployment
    if deployment.launch == "external":
        return {"url": deployment.url}
    if deployment.launch == "simulated":
        return {"simulated": deployment.card}
    stack = stack_named(deployment.stack)
    if deployment.launch == "docker":
        container: dict[str, Any] = msgspec.to_builtins(
            stack.launch(deployment, "0.0.0.0", stack.container_port(deployment))
        )
        return container
    spec: dict[str, Any] = msgspec.to_builtins(stack.launch(deployment, "127.0.0.1", 1))
    other = stack.launch(deployment, "127.0.0.1", 2).argv
    # The port is chosen at the start: it stands where two ports give two command lines.
    spec["argv"] = [part if part == same else "<free port>" for part, same in zip(spec["argv"], other, strict=True)]
    return spec


def describe_json(plan: Plan) -> str:
    """The dry run for programs: one JSON object."""
    cells = [
        {"cell": cell.id, "expected_s": plan.expected_seconds(cell), "start": _command(cell)} for cell in plan.cells()
    ]
    client = {"workers": plan.client.workers, "workers_expected": _most_workers(plan)}
    comparisons = [
        {"id": one.id, "order": blocks_in_words(turns(plan, one)), "expected_s": plan.expected_pairs_seconds(one)}
        for one in plan.comparisons()
    ]
    document = {"title": plan.title, "plan_sha256": plan.sha256, "client": client, "cells": cells}
    document |= {"lacking": [str(problem) for problem in plan.lacking], "not_signed": _not_signed(plan)}
    document |= {"comparisons": comparisons} if comparisons else {}
    return json.dumps(document, indent=1)


def _most_workers(plan: Plan) -> int:
    """Load processes of the largest level that the plan may come to."""
    levels = [c for cell in plan.cells() for c in cell.workload.levels] or [plan.ramp.max]
    levels += [one.concurrency for one in plan.compare if one.concurrency is not None]
    return plan.client.workers or workers_needed(expected(max(levels)), usable_cpus())


def load_processes(plan: Plan) -> str:
    """Who loads, in words."""
    most = _most_workers(plan)
    if plan.client.workers is not None:
        return f"{most} {'process' if most == 1 else 'processes'}, as the plan says"
    if most == 1:
        return "one process for every level"
    return f"one process, and up to {most} where the number of users or the server's token rate asks for more"


def describe(plan: Plan) -> str:
    """The dry run for people: what a deployment starts is shown once, and named by its other cells."""
    cells = plan.cells()
    length = duration(plan.expected_total_seconds())
    simulated = all(cell.deployment.launch == "simulated" for cell in cells)
    whole = f"which real cards would take about {length} for" if simulated else f"about {length}"
    lines = [f"{plan.title}: {extent(plan)}, {whole}", ""]
    first: dict[str, str] = {}
    for cell in cells:
        lines.append(f"{cell.id}  (about {duration(plan.expected_seconds(cell))})")
        shown = "\n".join(_described(_command(cell), cell.deployment.stack))
        same = first.setdefault(shown, cell.id)
        if (needed_s := plan.fresh_run_cut_seconds(cell)) is not None:
            lines.append(
                f"  a fresh run of it may take {duration(needed_s)}, and a level is cut, and INVALID, after "
                f"{duration(plan.ramp.longest_s)}: raise ramp.max_seconds, or nothing may be confirmed"
            )
        lines.append(shown if same == cell.id or "\n" not in shown else f"  as {same}")
    lines += [line for one in plan.comparisons() for line in _compared(plan, one)]
    lines += ["", f"Load: {load_processes(plan)}."]
    lines += [f"PROVISIONAL at best: {said}" for said in _not_signed(plan)]
    lines += [f"A run would be refused: {problem}" for problem in plan.lacking]
    return "\n".join([*lines, "Nothing was started."])


def _not_signed(plan: Plan) -> list[str]:
    """Why no cell of a workload may be signed by the full method, as far as the plan tells: ``WORKLOAD: why``."""
    checks = [(cell.workload.name, open_rules(plan, cell)) for cell in plan.cells()]
    told = (f"{name}: {said}" for name, own in checks if own is not None for said in traffic_gaps(own))
    return list(dict.fromkeys(told))


def _compared(plan: Plan, one: Paired) -> Iterator[str]:
    settings = one.settings
    at = "the most users that both hold" if settings.concurrency is None else f"{settings.concurrency:,} users"
    yield f"{one.id}  (about {duration(plan.expected_pairs_seconds(one))})"
    yield (
        f"  {settings.b} against {settings.a} at {at}: {settings.pairs} pairs in the order "
        f"{blocks_in_words(turns(plan, one))}, each side on a server started for it"
    )


def _described(spec: dict[str, Any], stack: str) -> Iterator[str]:
    if "url" in spec:
        yield f"  measures {spec['url']}, which is not ours: never started, never stopped"
        return
    if "simulated" in spec:
        yield f"  simulates {stack} on {spec['simulated']}, which is not there; its times are virtual"
        return
    if spec.get("image"):
        yield f"  image    {spec['image']}"
    if spec.get("entrypoint"):
        yield f"  entry    {shlex.join(spec['entrypoint'])}"
    yield f"  command  {shlex.join(spec['argv'])}"
    env = [f"{name}={value}" for name, value in spec.get("env", {}).items()]
    env += [f"{name}=(from your environment)" for name in spec.get("secret_env", ())]
    if env:
        yield f"  env      {' '.join(env)}"
    yield from _resources(spec)


def _resources(spec: dict[str, Any]) -> Iterator[str]:
    """What of the machine it gets."""
    if spec.get("gpus"):
        yield f"  gpus     {' '.join(spec['gpus'])}"
    for key, label in (("shm_bytes", "shm"), ("memory_limit_bytes", "memory")):
        if spec.get(key):
            yield f"  {label:<8} {spec[key] / 2**30:.3g} GiB"
    for host, container, read_only in spec.get("mounts", ()):
        yield f"  mount    {host}:{container}{':ro' if read_only else ''}"


# --- the run ----------------------------------------------------------------------------------------------------


def measure(
    plan: Plan, journal: Journal, overrides: Sequence[str], *, quiet: bool, as_json: bool, open_report: bool
) -> None:
    """Run a plan into a journal, then report whatever was measured, also after an interruption or a full disk."""
    raise_file_limit(8192)
    root = journal.files.root
    lacking: list[HostError] = []
    stopped: BaseException | None = None
    with journal:
        try:
            with display(quiet=quiet, as_json=as_json) as progress:
                lacking = run_loop(Campaign(plan, journal, progress, overrides).run())
        except (KeyboardInterrupt, LoadproofError) as error:
            stopped = error
        finished = [event for event in journal.events if isinstance(event, CellFinished)]
    try:
        _report(root, as_json=as_json, open_report=open_report)
    except HostError as error:  # a full disk stops the run and its report: the first is told
        stopped = stopped or next(iter(lacking), error)
    if isinstance(stopped, KeyboardInterrupt):
        click.echo(f"Interrupted. Go on with: loadproof run --resume {shlex.quote(str(root))}", err=True)
        raise click.exceptions.Abort
    if stopped is not None:
        raise stopped
    _raise_for(lacking, finished, "cells and comparisons" if plan.compare else "cells")


def _report(root: Path, *, as_json: bool, open_report: bool) -> None:
    found = write_result(root)
    report = write_report(root, found=found)
    if as_json:
        click.echo(json.dumps({"event": "report", "path": str(report)}))
    else:
        click.echo(summary(root, found))
        click.echo(f"\nReport: {report}")
    if open_report:
        click.launch(report.resolve().as_uri())


def _raise_for(lacking: Sequence[HostError], finished: Sequence[CellFinished], kinds: str) -> None:
    """The exit code of a run that went to its end but could not measure everything."""
    if lacking:
        raise lacking[0]
    failures = [event for event in finished if event.failure is not None]
    if failures:
        names = ", ".join(event.cell for event in failures)
        raise StackError(
            f"{len(failures)} of {len(finished)} {kinds} could not be measured: {names}.", "The report says why."
        )
