"""A closed-loop level in virtual time, by the same rules as the real one (METHOD.md: one level, closed loop)."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator

from orchestrator.records import LevelSpec, Phase, Request, RequestRecord, StopEarly, never
from stacks.simulated.engine import Engine
from stacks.simulated.level import Client, Level, VirtualLevel

_RETRY_S = 0.1
"""A refused user asks again after this long, or a refusing engine would be asked for ever at one moment."""


class _Closed(Level):
    def __init__(
        self,
        engine: Engine,
        spec: LevelSpec,
        measured: Iterator[Request],
        other: Iterator[Request],
        stop_early: StopEarly,
        client: Client,
    ) -> None:
        super().__init__(engine, spec, stop_early, client)
        self.measured, self.other = measured, other
        self.ramp_ends_s = self.started_s + spec.ramp_seconds * (1 - 1 / spec.concurrency)
        self.warm_s = self.ramp_ends_s + spec.warmup_seconds
        self.filler_ends_s = math.inf
        gap = spec.ramp_seconds / spec.concurrency
        self.due = [(self.started_s + user * gap, user) for user in range(spec.concurrency)]

    def wake_s(self) -> float:
        first = self.due[0][0] if self.due else math.inf
        return min(first, self.filler_ends_s, self.ends_s)

    def issue_due(self) -> None:
        now, due = self.engine.now_s, self.due
        if now >= self.ends_s:
            self.cut_short(f"the time limit of {self.spec.max_seconds:g} s for a level")
        if now >= self.filler_ends_s:
            self.over = True
        while due and due[0][0] <= now and not self.over:
            at, user = heapq.heappop(due)
            self._issue(at, user)

    def _phase(self, now: float) -> Phase:
        if self.closed:
            return "filler"
        if now < self.ramp_ends_s:
            return "ramp"
        enough = self.completed >= self.spec.warmup_generations * self.spec.concurrency
        if self.window_start_s is None and (not enough or now < self.warm_s):
            return "warmup"
        return "measured"

    def _issue(self, due_s: float, user: int) -> None:
        self._close_if_complete(due_s)  # the shortest time may have passed since the last one
        if self.over:
            return
        phase = self._phase(due_s)
        self.send(next(self.measured if phase == "measured" else self.other), phase, due_s, user)
        if phase == "measured":
            self._close_if_complete(due_s)

    def _close_if_complete(self, at_s: float) -> None:
        if not self.closed and self.measured_issued == self.measured_in_all(at_s):
            self.closed = True
            self.filler_ends_s = self.engine.now_s + self.spec.filler_seconds
            self._end_if_done()

    def ended(self, record: RequestRecord) -> None:
        """Its user sends the next one."""
        assert record.user is not None
        refused = record.failure is not None and record.failure.kind == "status"
        heapq.heappush(self.due, (self.engine.now_s + (_RETRY_S if refused else 0.0), record.user))
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self.closed and self.measured_pending == 0:
            self.over = True


def run_virtual(
    engine: Engine,
    spec: LevelSpec,
    *,
    measured: Iterator[Request],
    other: Iterator[Request],
    stop_early: StopEarly = never,
    client: Client | None = None,
) -> VirtualLevel:
    """Run one level on an idle engine. `stop_early` is asked after each measured record: a reason ends the level."""
    return _Closed(engine, spec, measured, other, stop_early, client or Client()).play()
