"""An open-loop level in virtual time, by the same rules as the real one (METHOD.md: one level, open loop)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from orchestrator.clock import NS_PER_S
from orchestrator.records import Failure, LevelSpec, Phase, Request, RequestRecord, StopEarly, never
from stacks.simulated import engine as engines
from stacks.simulated.engine import Engine
from stacks.simulated.level import Client, Level, VirtualLevel


class _Open(Level):
    def __init__(
        self,
        engine: Engine,
        spec: LevelSpec,
        due_ns: Sequence[int],
        requests: Iterator[Request],
        stop_early: StopEarly,
        client: Client,
        most_in_flight: int | None,
    ) -> None:
        super().__init__(engine, spec, stop_early, client)
        self.due = iter([self.started_s + at / NS_PER_S for at in due_ns])
        self.next_s = next(self.due, math.inf)
        self.warm_up = len(due_ns) - spec.requests
        self.requests = requests
        self.most_in_flight = math.inf if most_in_flight is None else most_in_flight
        self.under_way: dict[int, engines.Sequence] = {}

    def wake_s(self) -> float:
        return min(self.next_s, self.ends_s)

    def issue_due(self) -> None:
        now = self.engine.now_s
        if now >= self.ends_s:
            self.cut_short(f"the time limit of {self.spec.max_seconds:g} s for a level")
        while self.next_s <= now and not self.over:
            due_s, self.next_s = self.next_s, next(self.due, math.inf)
            self._issue(next(self.requests), due_s)
        if self.next_s == math.inf:
            self.over = True

    def _issue(self, request: Request, due_s: float) -> None:
        phase: Phase = "warmup" if self.issued < self.warm_up else "measured"
        if self.in_flight >= self.most_in_flight:
            detail = f"{self.most_in_flight} requests were in flight, as many as this client allows itself"
            self.drop(request, phase, due_s, Failure(kind="dropped", detail=detail))
            return
        seq = self.issued
        if (sequence := self.send(request, phase, due_s)) is not None:
            self.under_way[seq] = sequence

    def ended(self, record: RequestRecord) -> None:
        self.under_way.pop(record.seq, None)

    def drain(self) -> None:
        """What is still under way after the drain has failed; where the level was cut, nothing is waited for."""
        patience_s = math.inf if self.spec.drain_seconds is None else self.spec.drain_seconds
        until_s = self.engine.now_s + (0.0 if self.cut else patience_s)
        while not self.engine.idle and self.engine.now_s < until_s:
            self.advance(until_s)
        failure = (
            Failure(kind="cancelled", detail="the level ended before the answer did")
            if self.cut
            else Failure(kind="timeout", detail=f"no end within {patience_s:g} s after the last request was due")
        )
        for sequence in list(self.under_way.values()):
            self.lose(sequence, failure)


def run_virtual_open(
    engine: Engine,
    spec: LevelSpec,
    due_ns: Sequence[int],
    requests: Iterator[Request],
    *,
    stop_early: StopEarly = never,
    client: Client | None = None,
    most_in_flight: int | None = None,
) -> VirtualLevel:
    """Run one level on an idle engine: a request at each of the `due_ns` (ns after the start, in order).

    The last `spec.requests` of them are measured, what comes before is warm-up. Beyond `most_in_flight` a request is
    not sent but recorded as dropped. `stop_early` is asked after each measured record: a reason ends the level.
    """
    return _Open(engine, spec, due_ns, requests, stop_early, client or Client(), most_in_flight).play()
