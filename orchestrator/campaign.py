"""The loop of a run: for each cell start the server, climb, journal, stop. Decisions are `judge`'s; acts are here.

A resumed run is the same loop over the same history: committed levels stand in the journal and are never measured
again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator, Sequence

import psutil

from orchestrator import __version__
from orchestrator.asked import asked, search_rules
from orchestrator.clock import NS_PER_S, wall_now
from orchestrator.errors import HostError, JournalError, StackError
from orchestrator.host import host_facts
from orchestrator.journal import Journal
from orchestrator.judge.search import Measure, Outcome, Stop, next_step
from orchestrator.launch.orphans import find_orphans, remove
from orchestrator.launch.server import Owner, Server
from orchestrator.level import Bench
from orchestrator.machine import Machine
from orchestrator.plan import Cell, Plan
from orchestrator.progress import Progress
from orchestrator.records import (
    SCHEMA,
    AnyEvent,
    CellFinished,
    CellStarted,
    LevelCommitted,
    LevelStarted,
    RunClosed,
    RunOpened,
    ServerFailure,
    ServerReady,
    ServerRecord,
    ServerStarting,
    ServerStopped,
)
from orchestrator.room import as_served
from orchestrator.simulation import Simulation
from orchestrator.site import Attendance, Site
from stacks.base import Stack
from stacks.catalog import stack as stack_named


def outcomes(events: Sequence[AnyEvent], cell: str) -> list[Outcome]:
    """What the search has learnt of a cell so far, in the order of its commits."""
    return [
        Outcome.of(event.run, event.stats, event.verdict)
        for event in events
        if isinstance(event, LevelCommitted) and event.cell == cell
    ]


def finished_cells(events: Sequence[AnyEvent]) -> dict[str, CellFinished]:
    return {event.cell: event for event in events if isinstance(event, CellFinished)}


def _started(events: Sequence[AnyEvent], cell: str) -> list[CellStarted]:
    return [event for event in events if isinstance(event, CellStarted) and event.cell == cell]


def _half_measured(events: Sequence[AnyEvent]) -> set[str]:
    """Cells with levels that others are still to be compared with."""
    return {event.cell for event in events if isinstance(event, LevelCommitted)} - set(finished_cells(events))


def failed(error: StackError) -> ServerFailure:
    """A StackError as the result that it is."""
    return ServerFailure(
        failure_class=error.failure_class,
        message=error.message,
        remedy=error.remedy,
        evidence=error.evidence,
        fits_tokens=error.fits_tokens,
    )


def site_of(plan: Plan, events: Sequence[AnyEvent]) -> Site:
    """This machine, or cards that are not there; their clock goes on where an interrupted run's stood."""
    if not plan.simulated:
        return Machine()
    return Simulation(plan.seed, max((event.at_ns for event in events), default=0))


class Campaign:
    """One run of a plan into one run directory."""

    def __init__(
        self,
        plan: Plan,
        journal: Journal,
        progress: Progress,
        overrides: Sequence[str] = (),
        site: Site | None = None,
    ) -> None:
        """`site`: where its servers stand; None = where the plan says."""
        self.plan = plan
        self.journal = journal
        self.progress = progress
        self.overrides = tuple(overrides)
        self.site = site or site_of(plan, journal.events)
        self.run_id = journal.files.root.name
        self.started_ns = self.site.now_ns()
        self._warned: set[str] = set()

    # --- the run ------------------------------------------------------------------------------------------------

    async def run(self) -> list[HostError]:
        """Measure every cell that is not finished. Returns what the machine lacked, cell by cell ([] = nothing).

        Ends with a `run-closed` line whatever happens, short of our own death. Raises HostError when the disk is full.
        """
        resumed = bool(self.journal.events)
        self._check_same_plan()
        if resumed:
            await self._stop_orphans()
        self._open(resumed)
        cells = self.plan.cells()
        self.progress.run_opened(self.plan, cells, resumed)
        lacking: list[HostError] = []
        try:
            for position, cell in enumerate(cells):
                if cell.id in finished_cells(self.journal.events):
                    continue
                try:
                    await self._measure_cell(cell, self._cell_deadline(cells[position:]))
                except HostError as error:
                    lacking.append(error)
                    self.progress.note(f"{cell.id}: {error}")
        except BaseException:
            self.journal.commit(RunClosed(at_ns=self.site.now_ns(), outcome="interrupted"))
            raise
        self.journal.commit(RunClosed(at_ns=self.site.now_ns(), outcome="failed" if lacking else "complete"))
        return lacking

    def _check_same_plan(self) -> None:
        opened = next((event for event in self.journal.events if isinstance(event, RunOpened)), None)
        if opened is not None and (opened.plan_sha256, opened.overrides) != (self.plan.sha256, self.overrides):
            raise JournalError(
                f"{self.journal.files.root} was measured with another plan.",
                "Resume it without naming a plan, or start a new run.",
            )
        now = {cell.id: cell.fingerprint for cell in self.plan.cells()}
        for name in sorted(_half_measured(self.journal.events)):
            if any(e.fingerprint != now.get(name) for e in _started(self.journal.events, name)):
                raise JournalError(
                    f"What {name} rests on has changed since it was begun: a trace, a model file, or loadproof itself.",
                    "Put back what it was, or start a new run.",
                )

    def _open(self, resumed: bool) -> None:
        facts = host_facts()
        gpus = self.site.gpus()
        for gpu in gpus:
            facts[f"gpu:{gpu.uuid}"] = f"{gpu.name}, index {gpu.index}, driver {gpu.driver}"
        self.journal.commit(
            RunOpened(
                schema=SCHEMA,
                at_ns=self.site.now_ns(),
                run_id=self.run_id,
                wall_time=wall_now().isoformat(timespec="milliseconds"),
                loadproof_version=__version__,
                plan_sha256=self.plan.sha256,
                plan_path=str(self.plan.path.absolute()),
                overrides=self.overrides,
                host=facts,
                asked=asked(self.plan, gpus),
                pid=os.getpid(),
                pid_started=psutil.Process().create_time(),
                resumed=resumed,
            )
        )

    async def _stop_orphans(self) -> None:
        """What a dead process of this run left behind goes first."""
        orphans = await asyncio.to_thread(find_orphans, self.run_id)
        if orphans:
            self.progress.note(f"stopping {len(orphans)} left over from the interrupted run")
            await asyncio.to_thread(remove, orphans)

    def _cell_deadline(self, remaining: Sequence[Cell]) -> int | None:
        """When the first of the remaining cells must end, the budget shared by expected cost; None = no budget."""
        if self.plan.budget.minutes is None:
            return None
        left_ns = self.started_ns + round(self.plan.budget.minutes * 60 * NS_PER_S) - self.site.now_ns()
        costs = [self.plan.expected_seconds(cell) for cell in remaining]
        return self.site.now_ns() + round(max(0, left_ns) * costs[0] / sum(costs))

    # --- a cell -------------------------------------------------------------------------------------------------

    def _next(self, cell: Cell) -> Measure | Stop:
        return next_step(outcomes(self.journal.events, cell.id), search_rules(self.plan, cell))

    async def _measure_cell(self, cell: Cell, deadline_ns: int | None) -> None:
        """Server after server until the search stops: a server that dies is replaced for the next step, and one that
        has no room for its context by one that has, where the plan allows it."""
        finish = CellFinished(at_ns=0, cell=cell.id, outcome="measured")
        while isinstance(self._next(cell), Measure):
            served = as_served(cell, self.journal.events)
            try:
                note = await self._serve(served, deadline_ns)
            except StackError as error:
                shrunk = as_served(cell, self.journal.events).deployment.context_tokens
                if shrunk != served.deployment.context_tokens:
                    self.progress.note(f"{cell.id}: {error.message} Trying a context of {shrunk:,} tokens.")
                    continue
                finish = CellFinished(at_ns=0, cell=cell.id, outcome="failed", failure=failed(error))
                break
            if note is not None:
                finish = CellFinished(at_ns=0, cell=cell.id, outcome="cut", note=note)
                break
        event = CellFinished(
            at_ns=self.site.now_ns(), cell=cell.id, outcome=finish.outcome, failure=finish.failure, note=finish.note
        )
        self.journal.commit(event)
        self.progress.cell_finished(cell, event)

    async def _serve(self, cell: Cell, deadline_ns: int | None) -> str | None:
        """One server's life. Returns why the time budget cut the search, or None (search done, or the server died)."""
        attempt = len(_started(self.journal.events, cell.id)) + 1
        around = await asyncio.to_thread(self.site.neighbours, cell.deployment)
        self.journal.commit(
            CellStarted(
                at_ns=self.site.now_ns(), cell=cell.id, fingerprint=cell.fingerprint, attempt=attempt, neighbours=around
            )
        )
        self.progress.cell_started(cell, attempt)
        stack = stack_named(cell.deployment.stack)
        directory = self.journal.files.attempt(cell.id, attempt)
        directory.mkdir(parents=True, exist_ok=True)
        samples = self.journal.files.samples(cell.id, attempt)
        async with self.site.attending(stack, cell.deployment, samples) as life:
            return await self._live(cell, attempt, stack, life, deadline_ns)

    async def _live(
        self, cell: Cell, attempt: int, stack: Stack, life: Attendance, deadline_ns: int | None
    ) -> str | None:
        """From the start of a server to its end."""
        directory = self.journal.files.attempt(cell.id, attempt)
        failure: ServerFailure | None = None
        try:
            async with self.site.open_server(
                stack,
                cell.deployment,
                directory=directory,
                owner=Owner.current(self.run_id, cell.id),
                on_starting=self._starting(cell, attempt),
                on_progress=self.progress.server_says,
                on_running=life.grows,
            ) as server:
                await life.is_ready(server)
                self.journal.commit(
                    ServerReady(at_ns=self.site.now_ns(), cell=cell.id, attempt=attempt, server=server.record)
                )
                self.progress.server_ready(server.record)
                for name in ("version_note", "path_note"):
                    self._warn_once(cell, server.record.facts.get(name))
                samples = self.journal.files.samples(cell.id, attempt)
                async with self.site.loading(server, stack, self.plan, cell, samples, self.progress) as load:
                    bench = Bench(load, self.plan, cell, self.journal, attempt, self.progress)
                    with contextlib.closing(bench):
                        note, failure = await self._climb(bench, cell, attempt, server, deadline_ns)
                if failure is None:
                    await life.look(server)
        except StackError as error:
            failure = failed(error)
            raise
        finally:
            with contextlib.suppress(HostError):  # a full disk is told by the commit that hit it first
                self.journal.commit(
                    ServerStopped(at_ns=self.site.now_ns(), cell=cell.id, attempt=attempt, failure=failure)
                )
        return note

    def _warn_once(self, cell: Cell, note: str | float | None) -> None:
        """Of a release that is not known, or of another kernel than was asked for; not of every server of it."""
        if isinstance(note, str) and note not in self._warned:
            self._warned.add(note)
            self.progress.note(f"{cell.id}: {note}")

    def _starting(self, cell: Cell, attempt: int) -> Callable[[ServerRecord], None]:
        def starting(record: ServerRecord) -> None:
            self.journal.commit(ServerStarting(at_ns=self.site.now_ns(), cell=cell.id, attempt=attempt, server=record))

        return starting

    async def _climb(
        self, bench: Bench, cell: Cell, attempt: int, server: Server, deadline_ns: int | None
    ) -> tuple[str | None, ServerFailure | None]:
        """Level after level until the search stops, the budget ends or the server dies."""
        with _death(server) as died:
            while True:
                step = self._next(cell)
                if isinstance(step, Stop):
                    return None, None
                history = outcomes(self.journal.events, cell.id)
                spec = bench.spec(step)
                expected_ns = round(bench.expected_seconds(spec) * NS_PER_S)
                if deadline_ns is not None and self.site.now_ns() + expected_ns > deadline_ns:
                    return f"the time budget has no room for the step {step}", None
                self.journal.commit(
                    LevelStarted(at_ns=self.site.now_ns(), cell=cell.id, attempt=attempt, level=len(history), spec=spec)
                )
                self.progress.level_started(cell, spec, bench.expected_seconds(spec))
                commit = await bench.measure(spec, died, level=len(history))
                self.progress.level_committed(cell, commit)
                if died.done():
                    return None, died.result()


@contextlib.contextmanager
def _death(server: Server) -> Iterator[asyncio.Task[ServerFailure]]:
    """A task that ends when the server is gone though nobody stopped it."""
    task = asyncio.ensure_future(server.died())
    try:
        yield task
    finally:
        task.cancel()
