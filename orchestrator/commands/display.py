"""What a person sees while a run goes: a live panel on a terminal, plain lines elsewhere, JSON lines, or nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import click
import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orchestrator.clock import NS_PER_S, now_ns, seconds
from orchestrator.metrics import percentile, ttft_ns
from orchestrator.plan import Cell, Paired, Plan
from orchestrator.progress import Progress
from orchestrator.records import CellFinished, LevelCommitted, LevelSpec, RequestRecord, ServerRecord, Turn

_MIB = 1 << 20


def duration(s: float) -> str:
    """Seconds as ``9 s``, ``3:07``, ``1:02:03``."""
    whole = round(s)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def extent(plan: Plan) -> str:
    """How much a plan measures: ``12 cells and 1 comparison in pairs``."""
    cells, pairs = len(plan.cells()), len(plan.comparisons())
    told = f"{cells} cell{'' if cells == 1 else 's'}"
    return f"{told} and {pairs} comparison{'' if pairs == 1 else 's'} in pairs" if pairs else told


_COMPARED = ("sentinel", "prefill", "recovery", "pair")
"""Levels that are there to be compared: whether they met the SLO says nothing."""


def level_line(commit: LevelCommitted) -> str:
    """A committed level in one line."""
    stats, verdict = commit.stats, commit.verdict
    asked_for = commit.run.spec.purpose not in _COMPARED
    parts = [
        f"{commit.run.spec.purpose} {at(commit.run.spec)}",
        *(["INVALID"] if not verdict.valid else [verdict.verdict] if asked_for else []),
        f"{stats.good}/{stats.offered} good",
        f"TTFT p95 {_ms(stats.ttft_ms.p95)}",
        f"TPOT p95 {_ms(stats.tpot_ms.p95)}",
    ]
    if stats.output_tokens_per_s is not None:
        parts.append(f"{stats.output_tokens_per_s:.0f} tok/s")
    if stats.memory_peak_bytes is not None:
        parts.append(f"{stats.memory_peak_bytes / _MIB:.0f} MiB")
    if verdict.hard_break:
        parts.append(verdict.hard_break)
    return "  ".join(parts)


def at(spec: LevelSpec) -> str:
    """Where a level is measured: ``c=8``, or ``3.2/s`` of an open one."""
    return f"c={spec.concurrency}" if spec.rate_per_s is None else f"{spec.rate_per_s:.3g}/s"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"


class LevelSoFar:
    """Running figures of the level under measurement."""

    def __init__(self, spec: LevelSpec, expected_s: float) -> None:
        self.spec = spec
        self.expected_s = expected_s
        self._started_ns = now_ns()
        self._ttft_ms: list[float] = []
        self._tokens = 0
        self.done = 0
        self.failed = 0

    def add(self, record: RequestRecord) -> None:
        self.done += record.phase == "measured"
        self.failed += record.failure is not None
        self._tokens += record.out_tokens or 0
        if (ttft := ttft_ns(record)) is not None:
            self._ttft_ms.append(ttft / 1e6)

    @property
    def elapsed_s(self) -> float:
        return seconds(now_ns() - self._started_ns)

    @property
    def ttft_p95_ms(self) -> float | None:
        return percentile(sorted(self._ttft_ms), 9500) if self._ttft_ms else None

    @property
    def tokens_per_s(self) -> float:
        return self._tokens / max(self.elapsed_s, 1e-9)


class Quiet:
    """Nothing; the base of the others."""

    def run_opened(self, plan: Plan, cells: Sequence[Cell], resumed: bool) -> None: ...
    def cell_started(self, cell: Cell, attempt: int, turn: Turn | None = None) -> None: ...
    def server_says(self, text: str) -> None: ...
    def server_ready(self, server: ServerRecord) -> None: ...
    def level_started(self, cell: Cell, spec: LevelSpec, expected_s: float) -> None: ...
    def record(self, record: RequestRecord) -> None: ...
    def memory(self, source: str, memory_bytes: float) -> None: ...
    def level_committed(self, cell: Cell, commit: LevelCommitted) -> None: ...
    def cell_finished(self, cell: Cell | Paired, event: CellFinished) -> None: ...
    def note(self, text: str) -> None: ...


class Plain(Quiet):
    """One line for every thing that happened, to stderr."""

    def __init__(self) -> None:
        self._said_ns = now_ns()

    def _say(self, text: str) -> None:
        click.echo(text, err=True)

    def run_opened(self, plan: Plan, cells: Sequence[Cell], resumed: bool) -> None:
        expected = duration(plan.expected_total_seconds())
        told = f"which real cards would take about {expected} for" if plan.simulated else f"about {expected}"
        self._say(f"{'resuming' if resumed else 'measuring'} {extent(plan)}, {told}")

    def cell_started(self, cell: Cell, attempt: int, turn: Turn | None = None) -> None:
        self._said_ns = now_ns()
        if turn is not None:
            self._say(f"[{cell.id}] pair {turn.pair}: starting {cell.deployment.name}")
        else:
            self._say(f"[{cell.id}] starting" + (f" (attempt {attempt})" if attempt > 1 else ""))

    def server_says(self, text: str) -> None:
        """One line in ten seconds: enough to see that a long start or a pull goes on."""
        if now_ns() - self._said_ns >= 10 * NS_PER_S:
            self._said_ns = now_ns()
            self._say(f"  {text}")

    def server_ready(self, server: ServerRecord) -> None:
        self._say(f"  ready in {duration(server.ready_s or 0)} at {server.base_url}")

    def level_started(self, cell: Cell, spec: LevelSpec, expected_s: float) -> None:
        about = f": about {duration(expected_s)}" if expected_s >= 1 else ""  # less: it is not known yet
        by = f", by {spec.workers} processes" if spec.workers > 1 else ""
        self._say(f"  {spec.purpose} {at(spec)}{by}{about}")

    def level_committed(self, cell: Cell, commit: LevelCommitted) -> None:
        self._say(f"  {level_line(commit)}")

    def cell_finished(self, cell: Cell | Paired, event: CellFinished) -> None:
        detail = event.failure.message if event.failure else event.note
        self._say(f"[{cell.id}] {event.outcome}" + (f": {detail}" if detail else ""))

    def note(self, text: str) -> None:
        self._say(f"note: {text}")


class JsonLines(Quiet):
    """One JSON object a line on stdout, for programs."""

    def _put(self, what: str, **values: object) -> None:
        click.echo(json.dumps({"event": what, **values}, default=msgspec.to_builtins))

    def run_opened(self, plan: Plan, cells: Sequence[Cell], resumed: bool) -> None:
        self._put("run-opened", title=plan.title, cells=[cell.id for cell in cells], resumed=resumed)

    def cell_started(self, cell: Cell, attempt: int, turn: Turn | None = None) -> None:
        self._put("cell-started", cell=cell.id, attempt=attempt, turn=turn)

    def server_ready(self, server: ServerRecord) -> None:
        self._put("server-ready", ready_s=server.ready_s, base_url=server.base_url)

    def level_started(self, cell: Cell, spec: LevelSpec, expected_s: float) -> None:
        self._put(
            "level-started",
            cell=cell.id,
            concurrency=spec.concurrency,
            rate_per_s=spec.rate_per_s,
            purpose=spec.purpose,
            workers=spec.workers,
            expected_s=expected_s,
        )

    def level_committed(self, cell: Cell, commit: LevelCommitted) -> None:
        self._put(
            "level-committed",
            cell=cell.id,
            concurrency=commit.run.spec.concurrency,
            rate_per_s=commit.run.spec.rate_per_s,
            purpose=commit.run.spec.purpose,
            stats=commit.stats,
            verdict=commit.verdict,
        )

    def cell_finished(self, cell: Cell | Paired, event: CellFinished) -> None:
        self._put("cell-finished", cell=cell.id, outcome=event.outcome, failure=event.failure, note=event.note)

    def note(self, text: str) -> None:
        self._put("note", text=text)


class LivePanel(Plain):
    """Plain lines that scroll away, and beneath them a panel of the level under measurement."""

    def __init__(self, live: Live) -> None:
        super().__init__()
        self._live = live
        self._started_ns = now_ns()
        self._expected_s = 0.0
        self._cell = ""
        self._level: LevelSoFar | None = None
        self._memory: tuple[str, float] | None = None

    def _say(self, text: str) -> None:
        self._live.console.print(Text(text))

    def run_opened(self, plan: Plan, cells: Sequence[Cell], resumed: bool) -> None:
        super().run_opened(plan, cells, resumed)
        self._expected_s = 0.0 if plan.simulated else plan.expected_total_seconds()  # virtual time is no waiting time

    def cell_started(self, cell: Cell, attempt: int, turn: Turn | None = None) -> None:
        super().cell_started(cell, attempt, turn)
        self._cell, self._level, self._memory = cell.id, None, None

    def level_started(self, cell: Cell, spec: LevelSpec, expected_s: float) -> None:
        self._level = LevelSoFar(spec, expected_s)

    def record(self, record: RequestRecord) -> None:
        if self._level is not None:
            self._level.add(record)

    def memory(self, source: str, memory_bytes: float) -> None:
        self._memory = (source, memory_bytes)

    def level_committed(self, cell: Cell, commit: LevelCommitted) -> None:
        super().level_committed(cell, commit)
        self._level = None

    def __rich__(self) -> Group:
        elapsed = seconds(now_ns() - self._started_ns)
        rows = Table.grid(padding=(0, 2))
        rows.add_row("cell", self._cell or "-")
        of = f" of about {duration(self._expected_s)}" if self._expected_s else ""
        rows.add_row("run", f"{duration(elapsed)}{of}")
        if (level := self._level) is not None:
            by = f", by {level.spec.workers} processes" if level.spec.workers > 1 else ""
            rows.add_row("level", f"{level.spec.purpose}, {at(level.spec)}{by}")
            of = f" of about {duration(level.expected_s)}" if level.expected_s >= 1 else ""
            rows.add_row("time", f"{duration(level.elapsed_s)}{of}")
            rows.add_row("requests", f"{level.done} of {level.spec.requests} measured, {level.failed} failed")
            rows.add_row("TTFT p95", _ms(level.ttft_p95_ms))
            rows.add_row("output", f"{level.tokens_per_s:.0f} tokens/s")
        if self._memory is not None:
            rows.add_row("memory", f"{self._memory[1] / _MIB:,.0f} MiB ({self._memory[0]})")
        return Group(Text(""), rows)


@contextmanager
def display(*, quiet: bool, as_json: bool) -> Iterator[Progress]:
    """The display that fits: JSON or nothing if asked for, a live panel on a terminal, plain lines otherwise."""
    if as_json:
        yield JsonLines()
    elif quiet:
        yield Quiet()
    elif not sys.stderr.isatty():
        yield Plain()
    else:
        with Live(console=Console(stderr=True), refresh_per_second=4) as live:
            panel = LivePanel(live)
            live.update(panel)
            yield panel
