"""The loop of a run: for each cell start the server, climb, journal, stop. Decisions are `judge`'s; acts are here.

A resumed run is the same loop over the same history: committed levels stand in the journal and are never measured
again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

import psutil

from orchestrator import __version__
from orchestrator.asked import asked, search_rules
from orchestrator.clock import NS_PER_S, wall_now
from orchestrator.errors import HostError, JournalError, StackError
from orchestrator.host import host_facts
from orchestrator.journal import Journal
from orchestrator.judge.search import Measure, Stop, next_step
from orchestrator.known import outcomes
from orchestrator.launch.orphans import find_orphans, remove
from orchestrator.machine import Machine
from orchestrator.pairs import Pairing
from orchestrator.plan import Cell, Paired, Plan
from orchestrator.progress import Progress
from orchestrator.records import SCHEMA, AnyEvent, CellFinished, LevelCommitted, RunClosed, RunOpened
from orchestrator.room import as_served
from orchestrator.serving import Climb, Ended, Serving, Standing, failed, starts
from orchestrator.simulation import Simulation
from orchestrator.site import Site


def finished_cells(events: Sequence[AnyEvent]) -> dict[str, CellFinished]:
    """Comparisons too, by their ids."""
    return {event.cell: event for event in events if isinstance(event, CellFinished)}


def _half_measured(events: Sequence[AnyEvent]) -> set[str]:
    """Cells, and comparisons, with levels that others are still to be compared with."""
    return {event.cell for event in events if isinstance(event, LevelCommitted)} - set(finished_cells(events))


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
        self._serving = Serving(plan, journal, progress, self.site)

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
        todo = self._all()
        self.progress.run_opened(self.plan, self.plan.cells(), resumed)
        lacking: list[HostError] = []
        try:
            for position, one in enumerate(todo):
                if one.id in finished_cells(self.journal.events):
                    continue
                try:
                    await self._measure(one, self._deadline(todo[position:]))
                except HostError as error:
                    lacking.append(error)
                    self.progress.note(f"{one.id}: {error}")
        except BaseException:
            self.journal.commit(RunClosed(at_ns=self.site.now_ns(), outcome="interrupted"))
            raise
        self.journal.commit(RunClosed(at_ns=self.site.now_ns(), outcome="failed" if lacking else "complete"))
        return lacking

    def _all(self) -> tuple[Cell | Paired, ...]:
        """What is measured, in this order: a comparison needs what the searches found."""
        return (*self.plan.cells(), *self.plan.comparisons())

    def _check_same_plan(self) -> None:
        opened = next((event for event in self.journal.events if isinstance(event, RunOpened)), None)
        if opened is not None and (opened.plan_sha256, opened.overrides) != (self.plan.sha256, self.overrides):
            raise JournalError(
                f"{self.journal.files.root} was measured with another plan.",
                "Resume it without naming a plan, or start a new run.",
            )
        now = {one.id: one.fingerprint for one in self._all()}
        for name in sorted(_half_measured(self.journal.events)):
            if any(e.fingerprint != now.get(name) for e in starts(self.journal.events, name)):
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

    def _deadline(self, remaining: Sequence[Cell | Paired]) -> int | None:
        """When the first of what remains must end, the budget shared by expected cost; None = no budget."""
        if self.plan.budget.minutes is None:
            return None
        left_ns = self.started_ns + round(self.plan.budget.minutes * 60 * NS_PER_S) - self.site.now_ns()
        costs = [self._expected_seconds(one) for one in remaining]
        return self.site.now_ns() + round(max(0, left_ns) * costs[0] / sum(costs))

    def _expected_seconds(self, one: Cell | Paired) -> float:
        if isinstance(one, Paired):
            return self.plan.expected_pairs_seconds(one)
        return self.plan.expected_seconds(one)

    async def _measure(self, one: Cell | Paired, deadline_ns: int | None) -> None:
        """A cell, or a comparison whose two cells are finished; one of them may lack something of this machine."""
        if isinstance(one, Cell):
            event = await self._measure_cell(one, deadline_ns)
        elif {one.a.id, one.b.id} <= finished_cells(self.journal.events).keys():
            event = await Pairing(one, self._serving).measure(deadline_ns)
        else:
            self.progress.note(f"{one.id}: not compared, for one of the two was not measured to its end")
            return
        self.journal.commit(event)
        self.progress.cell_finished(one, event)

    # --- a cell -------------------------------------------------------------------------------------------------

    def _next(self, cell: Cell) -> Measure | Stop:
        return next_step(outcomes(self.journal.events, cell.id), search_rules(self.plan, cell))

    async def _measure_cell(self, cell: Cell, deadline_ns: int | None) -> CellFinished:
        """Server after server until the search stops: a server that dies is replaced for the next step, and one that
        has no room for its context by one that has, where the plan allows it."""
        while isinstance(self._next(cell), Measure):
            served = as_served(cell, self.journal.events)
            try:
                note = await self._serving.serve(served, self._climbing(served, deadline_ns))
            except StackError as error:
                shrunk = as_served(cell, self.journal.events).deployment.context_tokens
                if shrunk != served.deployment.context_tokens:
                    self.progress.note(f"{cell.id}: {error.message} Trying a context of {shrunk:,} tokens.")
                    continue
                return CellFinished(at_ns=self.site.now_ns(), cell=cell.id, outcome="failed", failure=failed(error))
            if note is not None:
                return CellFinished(at_ns=self.site.now_ns(), cell=cell.id, outcome="cut", note=note)
        return CellFinished(at_ns=self.site.now_ns(), cell=cell.id, outcome="measured")

    def _climbing(self, cell: Cell, deadline_ns: int | None) -> Climb:
        """Level after level until the search stops, the budget ends or the server dies."""

        async def climb(standing: Standing) -> Ended:
            while isinstance(step := self._next(cell), Measure):
                spec = standing.bench.spec(step)
                expected_s = standing.bench.expected_seconds(spec)
                if deadline_ns is not None and self.site.now_ns() + round(expected_s * NS_PER_S) > deadline_ns:
                    return Ended(note=f"the time budget has no room for the step {step}")
                await standing.measure(spec, expected_s)
                if standing.death is not None:
                    return Ended(failure=standing.death)
            return Ended()

        return climb
