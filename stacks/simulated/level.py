"""What every level in virtual time has: an engine that is advanced, requests in flight over time, records, samples.

The records are those of a client beside the engine: an answer arrives when it is made. Each holds the first token and
up to eight events after it at even distances, which is all that TTFT, TPOT, E2E and rates of tokens need: the engine
jumps over single steps, so gaps between tokens are not known.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from orchestrator.clock import NS_PER_S
from orchestrator.records import (
    ClientHealth,
    Failure,
    LevelRun,
    LevelSpec,
    Phase,
    Request,
    RequestRecord,
    Sample,
    StopEarly,
)
from stacks.simulated.engine import Engine, Sequence

SAMPLE_S = 1.0
_EVENTS = 8


class Client(NamedTuple):
    """What the load generator adds of its own: a client that cannot keep up sees everything late."""

    lag_s: Callable[[int], float] = lambda _: 0.0
    """How late it is at a concurrency (0 in an open loop)."""


class VirtualLevel(NamedTuple):
    run: LevelRun
    records: list[RequestRecord]
    samples: list[Sample]
    sent: int
    """Requests that were sent, of all phases."""


class Sent(NamedTuple):
    """A request under way."""

    seq: int
    position: int
    """Among the measured ones; -1 = not measured."""
    user: int | None
    phase: Phase
    due_s: float
    sent_s: float
    request: Request


def ns(s: float) -> int:
    return round(s * NS_PER_S)


KV_FULL = Failure(kind="error_in_stream", detail="the KV cache is full")


class Level(abc.ABC):
    """State of a level while it runs in virtual time. What is sent when is the subclasses' part."""

    def __init__(self, engine: Engine, spec: LevelSpec, stop_early: StopEarly, client: Client) -> None:
        self.engine = engine
        self.spec = spec
        self.stop_early = stop_early
        self.lag_s = client.lag_s(spec.concurrency)
        self.started_s = engine.now_s
        self.ends_s = self.started_s + spec.max_seconds
        self.issued = self.completed = self.measured_issued = self.measured_pending = self.in_flight = 0
        self.closed = False
        """No more measured requests."""
        self.over = False
        """Nothing more is sent."""
        self.cut: str | None = None
        self.records: list[RequestRecord] = []
        self.samples: list[Sample] = []
        self._next_sample_s = engine.now_s
        self._window_start_s: float | None = None
        self._window_end_s: float | None = None
        self._changed_s = engine.now_s
        self._integral = self._integral_at_start = self._integral_in_window = 0.0

    # --- the subclasses' part ---

    @abc.abstractmethod
    def issue_due(self) -> None:
        """Send what is due now, or end the level."""

    @abc.abstractmethod
    def wake_s(self) -> float:
        """When something happens that is not the engine's own doing."""

    @abc.abstractmethod
    def ended(self, record: RequestRecord) -> None:
        """A request has its record."""

    def drain(self) -> None:
        """Nothing more is sent; by default what is under way comes to its end."""
        while not self.engine.idle:
            self.advance(math.inf)

    # --- the loop ---

    def play(self) -> VirtualLevel:
        while not self.over:
            self.issue_due()
            if not self.over:
                self.advance(self.wake_s())
        self.drain()
        return VirtualLevel(self._run(), self.records, self.samples, self.issued)

    def advance(self, until_s: float) -> None:
        """To the next event, with a look every second of virtual time at what the metrics page would say."""
        engine = self.engine
        ended, failed = engine.advance(until_s)
        if engine.now_s >= self._next_sample_s:
            self._look()
        for sequence in ended:
            self._finish(sequence, None)
        for sequence in failed:
            self._finish(sequence, KV_FULL)

    def _look(self) -> None:
        """At each second that has passed: the engine is at its next event, and was so all the while."""
        values = _told(self.engine)
        while self._next_sample_s <= self.engine.now_s:
            self.samples.append(Sample(at_ns=ns(self._next_sample_s), source="engine", values=values))
            self._next_sample_s += SAMPLE_S

    def send(self, request: Request, phase: Phase, due_s: float, user: int | None = None) -> Sequence | None:
        """At the present time (an engine does not look at its queue inside a step). None if it was refused."""
        sent = self._sent(request, phase, due_s, user)
        self._count(+1, due_s)
        if phase == "measured":
            if self._window_start_s is None:
                self._window_start_s, self._integral_at_start = due_s, self._integral
            self._window_end_s = due_s
            self._integral_in_window = self._integral - self._integral_at_start
        refusal = self.engine.refuses(request.prompt_tokens, request.output_tokens)
        if refusal is None:
            return self.engine.submit(request.prompt_tokens, request.output_tokens, sent)
        failure = Failure(kind="status", detail=refusal, status=400 if refusal == "too long" else 429)
        self._end(_record(sent, self.engine.now_s, failure=failure), sent)
        return None

    def drop(self, request: Request, phase: Phase, due_s: float, failure: Failure) -> None:
        """It is due and not sent."""
        sent = self._sent(request, phase, due_s, None)
        self._keep(_record(sent, self.engine.now_s, failure=failure), sent)

    def lose(self, sequence: Sequence, failure: Failure) -> None:
        """Nobody waits for it any more."""
        self.engine.cancel(sequence)
        self._finish(sequence, failure)

    def _sent(self, request: Request, phase: Phase, due_s: float, user: int | None) -> Sent:
        measured = phase == "measured"
        position = self.measured_issued if measured else -1
        self.measured_issued += measured
        self.measured_pending += measured
        self.issued += 1
        return Sent(self.issued - 1, position, user, phase, due_s, due_s, request)

    @property
    def window_start_s(self) -> float | None:
        """Issue of the first measured request."""
        return self._window_start_s

    def measured_in_all(self, at_s: float) -> int | None:
        """See `LevelSpec`."""
        start_s = at_s if self._window_start_s is None else self._window_start_s
        return self.spec.measured_in_all(self.measured_issued, at_s - start_s)

    def cut_short(self, reason: str) -> None:
        """Nothing more is sent."""
        self.closed = self.over = True
        self.cut = self.cut or reason

    # --- what is written down ---

    def _finish(self, sequence: Sequence, failure: Failure | None) -> None:
        sent = sequence.tag
        assert isinstance(sent, Sent)
        if failure is None:
            self._end(self._answered(sent, sequence), sent)
        else:
            self._end(_record(sent, self.engine.now_s, failure=failure), sent)

    def _end(self, record: RequestRecord, sent: Sent) -> None:
        self._count(-1, self.engine.now_s)
        self._keep(record, sent)

    def _keep(self, record: RequestRecord, sent: Sent) -> None:
        self.records.append(record)
        self.completed += 1
        if record.phase == "measured":
            self.measured_pending -= 1
            if self.cut is None and not self.over:
                reason = self.stop_early(record, sent.position, self.measured_in_all(self.engine.now_s))
                if reason is not None:
                    self.cut_short(reason)
        self.ended(record)

    def _answered(self, sent: Sent, sequence: Sequence) -> RequestRecord:
        assert sequence.first_s is not None
        first, last = ns(sequence.first_s + self.lag_s), ns(self.engine.now_s + self.lag_s)
        out = sequence.output_tokens
        left = out - 1
        events = min(left, _EVENTS)
        return _record(
            sent,
            self.engine.now_s,
            first_byte_ns=first,
            first_ns=first,
            last_ns=last,
            in_tokens=sent.request.prompt_tokens,
            out_tokens=out,
            tokens_from="usage",
            finish="length",
            token_ns=(first, *(first + (last - first) * i // events for i in range(1, events + 1))),
            token_counts=(1, *(left * i // events - left * (i - 1) // events for i in range(1, events + 1))),
        )

    def _count(self, step: int, at_s: float) -> None:
        self._integral += self.in_flight * (at_s - self._changed_s)
        self._changed_s = at_s
        self.in_flight += step

    def _run(self) -> LevelRun:
        engine, start_s, end_s = self.engine, self._window_start_s, self._window_end_s
        return LevelRun(
            spec=self.spec,
            started_ns=ns(self.started_s),
            window_start_ns=None if start_s is None else ns(start_s),
            window_end_ns=None if end_s is None else ns(end_s),
            ended_ns=ns(engine.now_s),
            in_flight_integral_s=self._integral_in_window,
            health=ClientHealth(
                loop_lag_ms_p99=1000 * self.lag_s,
                send_lag_ms_p99=0.0,
                cpu_s=0.0,
                wall_s=engine.now_s - self.started_s,
                kernel_share=0.0,
            ),
            cut=self.cut,
        )


def _record(sent: Sent, ended_s: float, **answer: Any) -> RequestRecord:
    return RequestRecord(
        seq=sent.seq,
        request_id=str(sent.seq),
        phase=sent.phase,
        due_ns=ns(sent.due_s),
        sent_ns=ns(sent.sent_s),
        end_ns=ns(ended_s),
        asked_in=sent.request.prompt_tokens,
        asked_out=sent.request.output_tokens,
        clamped=sent.request.clamped,
        user=sent.user,
        **answer,
    )


def _told(engine: Engine) -> dict[str, float]:
    """The engine's own figures under their canonical names. Only engines that preempt count preemptions. Tokens are not
    counted: the stamps of the answers' tokens are laid out evenly here, so a count of them would be compared with that.
    """
    values = {"running": float(engine.seen.running), "waiting": float(engine.seen.waiting)}
    if engine.policy.when_full != "fail":
        values["kv_use"] = engine.seen.kv_use
    if engine.policy.when_full == "preempt" and not engine.policy.reserves:
        values["preemptions_total"] = float(engine.counters.preemptions)
    return values
