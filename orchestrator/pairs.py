"""Two deployments measured in pairs: a server for every turn, a sentinel and a level on it. `judge.pairs` decides.

Both sides of a pair are the same level to the last number: list, order and seed, users, warm-up, load processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

from orchestrator.asked import level_seed, level_spec, search_rules, turns
from orchestrator.clock import NS_PER_S
from orchestrator.errors import StackError
from orchestrator.judge.pairs import (
    SENTINEL_REQUESTS,
    SIDES,
    Taken,
    gave_up,
    held,
    is_last_of_its_side,
    next_turn,
    reference,
)
from orchestrator.judge.search import Measure, Outcome
from orchestrator.known import Known, commits, outcomes
from orchestrator.level import load_processes
from orchestrator.plan import Cell, Paired, Plan
from orchestrator.records import (
    AnyEvent,
    CellFinished,
    CellStarted,
    LevelSpec,
    ServerFailure,
    ServerStopped,
    Side,
    Turn,
)
from orchestrator.room import as_served
from orchestrator.serving import Climb, Ended, Serving, Standing, starts


def taken(events: Sequence[AnyEvent], comparison: str) -> list[Taken]:
    """The turns that were taken, in their order: those of an interruption were not, and are taken again."""
    levels = {
        commit.attempt: Outcome.of(commit.run, commit.stats, commit.verdict)
        for commit in commits(events, comparison)
        if commit.run.spec.purpose == "pair"
    }
    failures = {stopped.attempt for stopped in _deaths(events, comparison)}
    return [
        Taken(start.turn, levels.get(start.attempt))
        for start in starts(events, comparison)
        if start.turn is not None and (start.attempt in levels or start.attempt in failures)
    ]


def _deaths(events: Sequence[AnyEvent], comparison: str) -> list[ServerStopped]:
    return [e for e in events if isinstance(e, ServerStopped) and e.cell == comparison and e.failure is not None]


class Pairing:
    """One comparison of a plan, after the searches of its two cells."""

    def __init__(self, paired: Paired, serving: Serving) -> None:
        self._paired = paired
        self._serving = serving
        self._plan: Plan = serving.plan
        self._turns = turns(self._plan, paired)

    @property
    def _events(self) -> Sequence[AnyEvent]:
        return self._serving.journal.events

    def _next(self) -> Turn | None:
        return next_turn(self._turns, taken(self._events, self._paired.id))

    def concurrency(self) -> int | None:
        """As the plan says, else c_ref of the two searches; None: one of them holds nothing."""
        if self._paired.settings.concurrency is not None:
            return self._paired.settings.concurrency
        return reference(*(self._held(self._paired.cell(side)) for side in SIDES))

    def _held(self, cell: Cell) -> int | None:
        return held(outcomes(self._events, cell.id), search_rules(self._plan, cell))

    async def measure(self, deadline_ns: int | None) -> CellFinished:
        """Turn after turn, until all are taken, it is given up, or the budget ends: how it ended."""
        concurrency = self.concurrency()
        if concurrency is None:
            return self._finished("failed", self._nothing_held())
        while (turn := self._next()) is not None:
            if deadline_ns is not None and self._serving.site.now_ns() + self._expected_ns(turn) > deadline_ns:
                return self._finished("cut", f"the time budget has no room for pair {turn.pair}")
            try:
                await self._serving.serve(self._cell(turn.side), self._play(turn, concurrency), turn)
            except StackError as error:
                self._serving.progress.note(f"{self._paired.id}: pair {turn.pair} is void. {error}")
        if not gave_up(taken(self._events, self._paired.id)):
            return self._finished("measured")
        failures = [stopped.failure for stopped in _deaths(self._events, self._paired.id)]
        note = "a side did not come up, or broke, twice in a row"
        return self._finished("failed", note, failures[-1] if failures else None)

    def _finished(
        self, outcome: Literal["measured", "cut", "failed"], note: str = "", failure: ServerFailure | None = None
    ) -> CellFinished:
        return CellFinished(
            at_ns=self._serving.site.now_ns(),
            cell=self._paired.id,
            outcome=outcome,
            failure=failure,
            note=note,
        )

    def _nothing_held(self) -> str:
        cells = [self._paired.cell(side) for side in SIDES]
        names = " and ".join(cell.deployment.name for cell in cells if self._held(cell) is None)
        return f"{names} held no level, so there is none to compare at; name a concurrency under [[compare]]"

    # --- a turn -------------------------------------------------------------------------------------------------

    def _cell(self, side: Side) -> Cell:
        """A side with the context that it was served with in its search; both are asked what fits the shorter one."""
        paired, events = self._paired, self._events
        served = {name: as_served(paired.cell(name), events) for name in SIDES}
        contexts = [cell.workload.context_tokens for cell in served.values()]
        shortest = min((context for context in contexts if context is not None), default=None)
        return Cell(
            id=paired.id,
            fingerprint=paired.fingerprint,
            deployment=served[side].deployment,
            workload=msgspec.structs.replace(paired.a.workload, context_tokens=shortest),
        )

    def _expected_ns(self, turn: Turn) -> int:
        """For the turn, and for that of the other side too where a pair begins: by the longest so far, at first by the
        plan's estimate."""
        past = list(self._past_ns())
        estimates = (self._plan.expected_turn_seconds(self._paired.cell(s), self._paired.settings) for s in SIDES)
        each = max(past) if past else round(max(estimates) * NS_PER_S)
        begun = any(one.turn.pair == turn.pair for one in taken(self._events, self._paired.id))
        return each if begun else 2 * each

    def _past_ns(self) -> Iterator[int]:
        began: dict[int, int] = {}
        for event in self._events:
            if isinstance(event, CellStarted) and event.cell == self._paired.id:
                began[event.attempt] = event.at_ns
            elif isinstance(event, ServerStopped) and event.cell == self._paired.id:
                yield event.at_ns - began[event.attempt]

    def _play(self, turn: Turn, concurrency: int) -> Climb:
        async def play(standing: Standing) -> Ended:
            known = Known.of(self._events, self._paired.cell(turn.side).id)
            for spec in self._specs(turn, concurrency):
                await standing.measure(spec, known.seconds(spec))
                if standing.death is not None:
                    return Ended(failure=standing.death)
            return Ended()

        return play

    def _specs(self, turn: Turn, concurrency: int) -> Iterator[LevelSpec]:
        """A sentinel, the level, and after the last level of a side a sentinel once more."""
        yield self._sentinel(turn, "before")
        yield self._level(turn, concurrency)
        if is_last_of_its_side(self._turns, turn):
            yield self._sentinel(turn, "after")

    def _sentinel(self, turn: Turn, when: str) -> LevelSpec:
        step = Measure(concurrency=1, purpose="sentinel", replicate=turn.pair, looks=(SENTINEL_REQUESTS,))
        return self._spec(step, when)

    def _level(self, turn: Turn, concurrency: int) -> LevelSpec:
        """Of just so many requests: the faster side is asked for no more, and the slower one has the time for them."""
        step = Measure(concurrency=concurrency, purpose="pair", replicate=turn.pair, min_seconds=0.0)
        requests = self._paired.settings.requests_at(concurrency)
        spec = msgspec.structs.replace(self._spec(step, "pair"), requests=requests)
        needed_s = max(known.whole_seconds(spec) for known in self._known())
        return msgspec.structs.replace(spec, max_seconds=max(spec.max_seconds, 2 * needed_s))

    def _spec(self, step: Measure, tag: str) -> LevelSpec:
        """The same for both sides: by the slower one's requests, and the larger load of the two."""
        known, cell = self._known(), self._paired.a
        seed = level_seed(self._plan.seed, cell.workload.name, step.concurrency, tag, step.replicate)
        spec = level_spec(step, self._plan.ramp, seed, max(one.e2e_s(step.concurrency) for one in known))
        workers = max(load_processes(self._plan, cell, one.closed(step.concurrency)) for one in known)
        return msgspec.structs.replace(spec, workers=workers)

    def _known(self) -> list[Known]:
        """What the searches of both sides tell."""
        return [Known.of(self._events, self._paired.cell(side).id) for side in SIDES]
