"""Every number of a report, as one value: `result.json`. Derived from the run directory; the HTML shows nothing else.

Verdicts stand in the journal and are judged again here from the raw records; a level whose two verdicts differ says so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from orchestrator.clock import NS_PER_S
from orchestrator.errors import HostError, JournalError
from orchestrator.journal import RunFiles, hash_files
from orchestrator.judge.claims import Bracket
from orchestrator.judge.gaps import Shrunk
from orchestrator.judge.margin import CellVerdict, cell_verdict
from orchestrator.judge.search import Measure, Outcome, Progress, SearchRules, progress
from orchestrator.judge.soak import Soak
from orchestrator.records import (
    Asked,
    AskedCell,
    Cost,
    Demand,
    Sample,
    ServerFailure,
    ServerRecord,
    Slo,
)
from reports.economy import Economy, cards_of, economy
from reports.ledger import Ledger, ledger
from reports.levels import LevelResult, held_at, level_result
from reports.pairs import PairsResult, pairs_results
from reports.reconcile import Lesson, Reconciliation, lesson_of, reconcile
from reports.run import Attempt, Cell, Level, Run, read_run
from reports.timeline import Span, Timeline, best_source, memory_series, source_words, thin, to_seconds
from reports.traffic import Counted, Traffic, traffic

RESULT_SCHEMA = 1
"""Version of result.json. Raised when a reader of the old one would misread the new one."""

Hardware = Literal["gpu", "cpu", "simulated", "unknown"]
CellOutcome = Literal["measured", "cut", "failed", "unfinished", "not started"]
RunOutcome = Literal["complete", "interrupted", "failed", "unfinished"]


class Bill(msgspec.Struct, frozen=True, kw_only=True):
    """Memory of a deployment by item, in bytes, as measured. None = no line of the engine and no sample reports it."""

    weights_bytes: int | None = None
    kv_bytes: int | None = None
    kv_tokens: int | None = None
    """Tokens that the KV pool holds."""
    compute_bytes: int | None = None
    """Compute buffers or activation peak, as the engine names them."""
    graphs_bytes: int | None = None
    ready_bytes: int | None = None
    """In use before the first level."""
    peak_bytes: int | None = None
    """Largest seen."""
    rest_bytes: int | None = None
    """Peak less the items above; negative where memory is reserved but was never touched."""
    source: str = ""
    """What `ready_bytes` and `peak_bytes` were read from, in words."""


class Incident(msgspec.Struct, frozen=True, kw_only=True):
    """A server that did not come up, or died."""

    attempt: int
    failure: ServerFailure
    log_tail: tuple[str, ...]
    """The last lines of its log."""
    ended_cell: bool
    """False: the search went on with a new server."""


class CellResult(msgspec.Struct, frozen=True, kw_only=True):
    """Deployment x workload: what was asked, what may be said, and all the levels."""

    asked: AskedCell
    outcome: CellOutcome
    note: str
    verdict: CellVerdict
    search: str
    """How the search ended, or why that cannot be told; "" if it did not end."""
    hardware: Hardware
    levels: tuple[LevelResult, ...]
    """By concurrency, then in the order of measuring."""
    checks: tuple[LevelResult, ...]
    """The levels of the open-loop check in the order of measuring: prefill probe, rates, replays."""
    unfinished_concurrency: int | None
    """The level that was under way when the run ended; 0 = an open one."""
    servers: tuple[ServerRecord, ...]
    """One for each attempt that started one; the last is the one that counts."""
    bill: Bill
    ledger: Ledger
    reconciliation: Reconciliation
    timeline: Timeline
    traffic: Traffic
    economy: Economy = Economy()
    incidents: tuple[Incident, ...]
    shrunk_to: int | None = None
    """Context that it was served with, tokens, where that is less than was asked."""

    @property
    def cut_to(self) -> int | None:
        """`shrunk_to`, if some requests were longer: then it was asked less than the plan says, and than others."""
        return self.shrunk_to if any(level.stats.clamped for level in self.levels) else None


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """A run of loadproof: the question, and for each cell the answer and what it rests on."""

    schema: int
    run_id: str
    title: str
    loadproof_version: str
    wall_time: str
    """When the run was opened, ISO 8601 with offset."""
    simulated: bool
    """A card was simulated: its times and memory are a model's, and nothing of it was measured."""
    outcome: RunOutcome
    note: str
    openings: int
    slo: Slo
    cost: Cost = Cost()
    budget_minutes: float | None
    demand: Demand = Demand()
    """What the launch needs."""
    host: dict[str, str | float | None]
    plan_sha256: str
    overrides: tuple[str, ...]
    cells: tuple[CellResult, ...]
    comparisons: tuple[PairsResult, ...] = ()
    """Those that the plan asks for, measured in pairs."""
    files: dict[str, str]
    """SHA-256 of each raw file, by path within the run directory."""


# --- verdict ----------------------------------------------------------------------------------------------------


def _progress(cell: Cell) -> Progress | None:
    """How far the cell came, by replaying its search; None where its rules are not known.

    Raises JournalError if this version's search would have taken other steps.
    """
    if not cell.asked.search:
        return None
    history = [Outcome.of(level.commit.run, level.commit.stats, level.commit.verdict) for level in cell.history]
    return progress(history, msgspec.convert(cell.asked.search, SearchRules))


def _verdict(cell: Cell, come: Progress | None, slo: Slo, demand: Demand, soak: Soak | None) -> CellVerdict:
    return cell_verdict(
        [(level.commit.run, level.commit.stats, level.commit.verdict) for level in cell.history],
        come.so_far if come else None,
        slo,
        lengths_forced=cell.asked.lengths_forced,
        failure=cell.finished.failure if cell.finished else None,
        rules=msgspec.convert(cell.asked.search, SearchRules) if cell.asked.search else None,
        pending=come.step if come and isinstance(come.step, Measure) else None,
        demand=demand,
        signable=cell.asked.signable,
        soak=soak,
        shrunk=_shrunk(cell),
    )


def _soak(levels: Sequence[LevelResult]) -> Soak | None:
    """What the last valid soak showed."""
    found = [level for level in levels if level.soak is not None and level.verdict.valid]
    return max(found, key=lambda level: level.level).soak if found else None


def _shrunk(cell: Cell) -> Shrunk | None:
    """The context that was served, where it is less than the plan asked."""
    asked, server = cell.asked.context_tokens, cell.server
    served = server.context_tokens if server is not None else None
    return Shrunk(asked, served) if served is not None and (asked is None or served < asked) else None


# --- memory -----------------------------------------------------------------------------------------------------


def _fact(server: ServerRecord | None, *names: str) -> int | None:
    """The first of the named facts that the engine's log told, in whole units."""
    facts = server.facts if server else {}
    for name in names:
        value = facts.get(name)
        if isinstance(value, int | float):
            return round(value)
    return None


def _bill(server: ServerRecord | None, timeline: Timeline) -> Bill:
    weights, kv = _fact(server, "weights_bytes"), _fact(server, "kv_bytes")
    compute, graphs = _fact(server, "compute_bytes", "activation_bytes"), _fact(server, "graphs_bytes")
    rest = None
    if timeline.peak_bytes is not None and weights is not None and kv is not None:
        rest = timeline.peak_bytes - weights - kv - (compute or 0) - (graphs or 0)
    return Bill(
        weights_bytes=weights,
        kv_bytes=kv,
        kv_tokens=_fact(server, "kv_tokens"),
        compute_bytes=compute,
        graphs_bytes=graphs,
        ready_bytes=timeline.ready_bytes,
        peak_bytes=timeline.peak_bytes,
        rest_bytes=rest,
        source=timeline.source,
    )


def _attempt_end_ns(attempt: Attempt, levels: Sequence[Level], series: dict[str, list[tuple[int, float]]]) -> int:
    ends = [attempt.started_ns, attempt.ready_ns or 0, attempt.stopped_ns or 0]
    ends += [level.commit.at_ns for level in levels]
    ends += [points[-1][0] for points in series.values()]
    return max(ends)


def _timeline(cell: Cell, watched: dict[int, list[Sample]]) -> Timeline:
    """Attempts are set one after another: the clock of a resumed run may have started anew between them."""
    series = {number: memory_series(samples) for number, samples in watched.items()}
    peaks: dict[str, float] = {}
    for by_source in series.values():
        for name, points in by_source.items():
            peaks[name] = max([peaks.get(name, 0.0), *(value for _, value in points)])
    source = best_source(peaks)
    lines: list[tuple[tuple[float, float], ...]] = []
    spans: list[Span] = []
    ready: int | None = None
    offset_s = 0.0
    for attempt in cell.attempts:
        levels = [level for level in cell.history if level.commit.attempt == attempt.number]
        points = series[attempt.number].get(source or "", [])
        lines.append(thin(to_seconds(points, attempt.started_ns, offset_s)))
        spans += [_span(level, attempt.started_ns, offset_s) for level in levels]
        if levels:
            ready = _ready_bytes(points, levels[0].commit.run.started_ns) or ready
        offset_s += (_attempt_end_ns(attempt, levels, series[attempt.number]) - attempt.started_ns) / NS_PER_S
    return Timeline(
        source=source_words(source),
        servers=tuple(lines),
        levels=tuple(spans),
        peak_bytes=round(peaks[source]) if source else None,
        ready_bytes=ready,
        on_gpu=any(s.source.startswith("gpu:") for samples in watched.values() for s in samples),
    )


def _span(level: Level, started_ns: int, offset_s: float) -> Span:
    run = level.commit.run
    start, end = (round(offset_s + (at - started_ns) / NS_PER_S, 3) for at in (run.started_ns, run.ended_ns))
    return Span(start_s=start, end_s=end, concurrency=run.spec.concurrency)


def _ready_bytes(points: Sequence[tuple[int, float]], first_level_ns: int) -> int | None:
    before = [value for at_ns, value in points if at_ns < first_level_ns]
    return round(before[-1]) if before else None


# --- cells ------------------------------------------------------------------------------------------------------


def _hardware(cell: Cell, timeline: Timeline, host: Mapping[str, object]) -> Hardware:
    """What the server ran on. A process that was told of no GPU may still take the ones that the host has."""
    server = cell.server
    if cell.asked.simulated or (server is not None and server.facts.get("simulated")):
        return "simulated"
    if timeline.on_gpu or cell.asked.gpus:
        return "gpu"
    if server is None or server.launch == "external" or any(name.startswith("gpu") for name in host):
        return "unknown"
    return "cpu"


def _outcome(cell: Cell) -> CellOutcome:
    if cell.finished is not None:
        return cell.finished.outcome
    return "unfinished" if cell.attempts else "not started"


def _incidents(cell: Cell) -> Iterator[Incident]:
    final = cell.finished.failure if cell.finished else None
    for attempt in cell.attempts:
        if attempt.failure is not None:
            last = attempt is cell.attempts[-1]
            yield Incident(
                attempt=attempt.number,
                failure=attempt.failure,
                log_tail=attempt.log_tail(),
                ended_cell=last and final is not None,
            )
    if final is not None and not (cell.attempts and cell.attempts[-1].failure):
        yield Incident(attempt=len(cell.attempts), failure=final, log_tail=(), ended_cell=True)


def _counting_attempt(cell: Cell) -> Attempt | None:
    """The one whose life is told: the last that measured a level, else the last."""
    measured = {level.commit.attempt for level in cell.levels}
    found = [attempt for attempt in cell.attempts if attempt.number in measured] or list(cell.attempts)
    return found[-1] if found else None


def _ledger(cell: Cell, watched: dict[int, list[Sample]], levels: Sequence[LevelResult]) -> Ledger:
    attempt = _counting_attempt(cell)
    if attempt is None:
        return Ledger()
    own = [level for level in cell.levels if level.commit.attempt == attempt.number]
    return ledger(attempt, watched[attempt.number], own, {level.level: level.kv_held_tokens for level in levels})


def break_of(cell: CellResult) -> LevelResult | None:
    """The level that the verdict names as the break."""
    return next((level for level in cell.levels if level.level == cell.verdict.break_level), None)


def broke_at(cell: CellResult) -> int | None:
    """Users at which it was shown to break; None also where the level above the last that held was not decided."""
    level = break_of(cell)
    return level.concurrency if level is not None and level.verdict.verdict == "FAIL" else None


def _economy(
    cell: Cell, verdict: CellVerdict, levels: Sequence[LevelResult], watched: dict[int, list[Sample]], cost: Cost
) -> Economy:
    """At the point that may be signed if it was measured, else at the most that held."""
    signed = held_at(levels, verdict.c_sign)
    at = signed or held_at(levels, verdict.c_ok)
    seen = {s.source for samples in watched.values() for s in samples if s.source.startswith("gpu:")}
    return economy(
        at.stats if at else None,
        at.concurrency if at else None,
        at.power_w if at else None,
        signed=signed is not None,
        asked=cell.asked,
        cost=cost,
        cards=cards_of(cell.asked, len(seen)),
    )


def _cell(cell: Cell, asked: Asked, host: Mapping[str, object], lessons: dict[str, Lesson]) -> CellResult:
    watched = {attempt.number: attempt.samples() for attempt in cell.attempts}
    started = {attempt.number: attempt.started_ns for attempt in cell.attempts}
    timeline = _timeline(cell, watched)
    counted = Counted()
    levels = tuple(
        level_result(level, started[level.commit.attempt], watched[level.commit.attempt], asked.slo, counted)
        for level in cell.levels
    )
    checks = tuple(
        level_result(level, started[level.commit.attempt], watched[level.commit.attempt], asked.slo, Counted())
        for level in cell.checks
    )
    try:
        come = _progress(cell)
        search = come.so_far.why if come and come.so_far else ""
    except JournalError as error:
        come, search = None, str(error)
    verdict = _verdict(cell, come, asked.slo, asked.demand, _soak(levels))
    life = _ledger(cell, watched, levels)
    shrunk = _shrunk(cell)
    bill = reconcile(cell.asked.predicted, cell.asked.unpredicted, cell.server, life, lessons)
    if bill.key and (lesson := lesson_of(bill)):
        lessons.setdefault(bill.key, lesson)
    return CellResult(
        asked=cell.asked,
        outcome=_outcome(cell),
        note=cell.finished.note if cell.finished else "",
        verdict=verdict,
        search=search,
        hardware=_hardware(cell, timeline, host),
        levels=levels,
        checks=checks,
        unfinished_concurrency=cell.unfinished.concurrency if cell.unfinished else None,
        servers=tuple(attempt.server for attempt in cell.attempts if attempt.server is not None),
        bill=_bill(cell.server, timeline),
        ledger=life,
        reconciliation=bill,
        timeline=timeline,
        traffic=traffic(counted, cell.asked),
        economy=_economy(cell, verdict, levels, watched, asked.cost),
        incidents=tuple(_incidents(cell)),
        shrunk_to=shrunk.served if shrunk is not None else None,
    )


def _is_raw(name: str) -> bool:
    """Part of the format, not something that was laid beside it."""
    return name in ("plan.toml", "journal.jsonl") or name.startswith("cells/")


def result(run: Run) -> Result:
    """Every number of a run's report. Levels are read and judged one by one: memory is bounded by the largest level."""
    opened = run.opened
    lessons: dict[str, Lesson] = {}
    cells = tuple(_cell(cell, run.asked, opened.host, lessons) for cell in run.cells)
    return Result(
        schema=RESULT_SCHEMA,
        run_id=opened.run_id,
        title=run.asked.title or opened.run_id,
        loadproof_version=opened.loadproof_version,
        wall_time=opened.wall_time,
        simulated=any(cell.hardware == "simulated" for cell in cells),
        outcome=run.closed.outcome if run.closed else "unfinished",
        note=run.closed.note if run.closed else "",
        openings=run.openings,
        slo=run.asked.slo,
        cost=run.asked.cost,
        budget_minutes=run.asked.budget_minutes,
        demand=run.asked.demand,
        host=dict(sorted(opened.host.items())),
        plan_sha256=opened.plan_sha256,
        overrides=opened.overrides,
        cells=cells,
        comparisons=pairs_results(
            run.comparisons,
            {c.asked.cell: (c.asked, Bracket(c.verdict.c_ok, broke_at(c))) for c in cells},
            run.asked.slo,
        ),
        files={name: digest for name, digest in hash_files(run.path) if _is_raw(name)},
    )


def schema() -> dict[str, Any]:
    """JSON Schema of result.json, generated from the types above."""
    return msgspec.json.schema(Result)


def encode(value: Result | dict[str, Any]) -> bytes:
    """Readable JSON with a newline at its end; the same bytes for the same value."""
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"


def write_result(run_dir: Path) -> Result:
    """Write `result.json` into a run directory and return what it says.

    Raises JournalError for what is no run directory and HostError if the file cannot be written.
    """
    found = result(read_run(run_dir))
    write_derived(RunFiles(run_dir).result, encode(found))
    return found


def write_derived(path: Path, data: bytes) -> None:
    """Write a derived file whole: beside its place first, so that no half of one ever stands there."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise HostError(f"{path} cannot be written: {error.strerror}.", "Check the folder and the disk.") from error
