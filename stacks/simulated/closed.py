"""A closed-loop level in virtual time, by the same rules as the real one (METHOD.md: ramp, warm-up, measured, filler).

The records are those of a client beside the engine: an answer arrives when it is made. Each holds the first token and
up to eight events after it at even distances, which is all that TTFT, TPOT, E2E and rates of tokens need: the engine
jumps over single steps, so gaps between tokens are not known.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

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
)
from stacks.simulated.engine import Engine, Sequence

_MULTIPLE = 10
_RETRY_S = 0.1
"""A refused user asks again after this long, or a refusing engine would be asked for ever at one moment."""
SAMPLE_S = 1.0
_EVENTS = 8


class Client(NamedTuple):
    """What the load generator adds of its own: a client that cannot keep up sees everything late."""

    lag_s: Callable[[int], float] = lambda _: 0.0
    """How late it is at a concurrency."""


class VirtualLevel(NamedTuple):
    run: LevelRun
    records: list[RequestRecord]
    samples: list[Sample]
    sent: int
    """Requests that were sent, of all phases."""


StopEarly = Callable[[RequestRecord, int], str | None]
"""(a measured record, its position among the measured ones in issue order, from 0) -> why the level ends, if so."""


class _Sent(NamedTuple):
    """A request under way."""

    seq: int
    position: int
    """Among the measured ones; -1 = not measured."""
    user: int
    phase: Phase
    due_s: float
    sent_s: float
    request: Request


def _ns(s: float) -> int:
    return round(s * NS_PER_S)


class _Level:
    """State of a level while it runs in virtual time."""

    def __init__(
        self,
        engine: Engine,
        spec: LevelSpec,
        measured: Iterator[Request],
        other: Iterator[Request],
        stop_early: StopEarly,
        client: Client,
    ) -> None:
        self.engine = engine
        self.spec = spec
        self.measured, self.other = measured, other
        self.stop_early = stop_early
        self.lag_s = client.lag_s(spec.concurrency)
        self.started_s = engine.now_s
        self.warm_s = self.started_s + spec.ramp_seconds * (1 - 1 / spec.concurrency) + spec.warmup_seconds
        self.ends_s = self.started_s + spec.max_seconds
        self.filler_ends_s = math.inf
        gap = spec.ramp_seconds / spec.concurrency
        self.due = [(self.started_s + user * gap, user) for user in range(spec.concurrency)]
        self.issued = self.completed = self.measured_issued = self.measured_pending = self.in_flight = 0
        self.window_start_s: float | None = None
        self.window_end_s: float | None = None
        self.closed = False
        self.over = False
        self.cut: str | None = None
        self.records: list[RequestRecord] = []
        self.samples: list[Sample] = []
        self.next_sample_s = engine.now_s
        self._changed_s = engine.now_s
        self._integral = self._integral_at_start = self.integral_in_window = 0.0

    # --- the loop ---

    def play(self) -> None:
        engine = self.engine
        while not self.over:
            self._issue_due()
            if self.over:
                break
            ended, failed = engine.advance(self._wake_s())
            self._look()
            for sequence in ended:
                self._finish(sequence, None)
            for sequence in failed:
                failure = Failure(kind="error_in_stream", detail="the KV cache is full")
                self._finish(sequence, failure)
        while not engine.idle:
            ended, failed = engine.advance()
            self._look()
            for sequence in ended:
                self._record(sequence.tag, sequence, None)
            for sequence in failed:
                self._record(sequence.tag, sequence, Failure(kind="error_in_stream", detail="the KV cache is full"))

    def _wake_s(self) -> float:
        """When something happens that is not the engine's own doing."""
        first = self.due[0][0] if self.due else math.inf
        return min(first, self.filler_ends_s, self.ends_s)

    def _issue_due(self) -> None:
        now, due = self.engine.now_s, self.due
        if now >= self.ends_s:
            self._close(f"the time limit of {self.spec.max_seconds:g} s for a level")
        if now >= self.filler_ends_s:
            self.over = True
        while due and due[0][0] <= now and not self.over:
            at, user = heapq.heappop(due)
            self._issue(at, user)

    def _phase(self, now: float) -> Phase:
        if self.closed:
            return "filler"
        if now < self.warm_s - self.spec.warmup_seconds:
            return "ramp"
        enough = self.completed >= self.spec.warmup_generations * self.spec.concurrency
        if self.window_start_s is None and (not enough or now < self.warm_s):
            return "warmup"
        return "measured"

    def _issue(self, due_s: float, user: int) -> None:
        """A user sends, at the present time: an engine does not look at its queue inside a step."""
        now = self.engine.now_s
        phase = self._phase(due_s)
        request = next(self.measured if phase == "measured" else self.other)
        position = self.measured_issued if phase == "measured" else -1
        sent = _Sent(self.issued, position, user, phase, due_s, due_s, request)
        self.issued += 1
        self._count(+1, due_s)
        if phase == "measured":
            self._count_measured(due_s)
        refusal = self.engine.refuses(request.prompt_tokens, request.output_tokens)
        if refusal is None:
            self.engine.submit(request.prompt_tokens, request.output_tokens, sent)
            return
        status = 400 if refusal == "too long" else 429
        self._told(self._failed(sent, now, Failure(kind="status", detail=refusal, status=status)), position)
        heapq.heappush(self.due, (now + _RETRY_S, user))

    def _count_measured(self, at_s: float) -> None:
        self.measured_issued += 1
        self.measured_pending += 1
        if self.window_start_s is None:
            self.window_start_s, self._integral_at_start = at_s, self._integral
        self.window_end_s = at_s
        self.integral_in_window = self._integral - self._integral_at_start
        enough = self.measured_issued >= self.spec.requests and self.measured_issued % _MULTIPLE == 0
        if enough and at_s - self.window_start_s >= self.spec.min_seconds:
            self._close(None)

    def _finish(self, sequence: Sequence, failure: Failure | None) -> None:
        assert isinstance(sequence.tag, _Sent)
        record = self._record(sequence.tag, sequence, failure)
        self._told(record, sequence.tag.position)
        heapq.heappush(self.due, (self.engine.now_s, record.user or 0))

    def _told(self, record: RequestRecord, position: int) -> None:
        self.completed += 1
        if record.phase != "measured":
            return
        self.measured_pending -= 1
        if self.cut is None and (reason := self.stop_early(record, position)):
            self._close(reason)
        if self.closed and self.measured_pending == 0:
            self.over = True

    def _close(self, cut: str | None) -> None:
        if not self.closed:
            self.filler_ends_s = self.engine.now_s + self.spec.filler_seconds
        self.closed = True
        if cut is not None and self.cut is None:
            self.cut = cut
            self.over = True

    # --- what is written down ---

    def _record(self, tag: object, sequence: Sequence, failure: Failure | None) -> RequestRecord:
        assert isinstance(tag, _Sent)
        if failure is not None:
            return self._failed(tag, self.engine.now_s, failure)
        self._count(-1, self.engine.now_s)
        lag = self.lag_s
        assert sequence.first_s is not None
        first, last = _ns(sequence.first_s + lag), _ns(self.engine.now_s + lag)
        out = sequence.output_tokens
        left = out - 1
        events = min(left, _EVENTS)
        record = RequestRecord(
            seq=tag.seq,
            request_id=str(tag.seq),
            phase=tag.phase,
            due_ns=_ns(tag.due_s),
            sent_ns=_ns(tag.sent_s),
            end_ns=_ns(self.engine.now_s),
            asked_in=tag.request.prompt_tokens,
            asked_out=out,
            first_byte_ns=first,
            first_ns=first,
            last_ns=last,
            in_tokens=tag.request.prompt_tokens,
            out_tokens=out,
            tokens_from="usage",
            finish="length",
            clamped=tag.request.clamped,
            user=tag.user,
            token_ns=(first, *(first + (last - first) * i // events for i in range(1, events + 1))),
            token_counts=(1, *(left * i // events - left * (i - 1) // events for i in range(1, events + 1))),
        )
        self.records.append(record)
        return record

    def _failed(self, tag: _Sent, at_s: float, failure: Failure) -> RequestRecord:
        self._count(-1, at_s)
        record = RequestRecord(
            seq=tag.seq,
            request_id=str(tag.seq),
            phase=tag.phase,
            due_ns=_ns(tag.due_s),
            sent_ns=_ns(tag.sent_s),
            end_ns=_ns(at_s),
            asked_in=tag.request.prompt_tokens,
            asked_out=tag.request.output_tokens,
            failure=failure,
            user=tag.user,
        )
        self.records.append(record)
        return record

    def _count(self, step: int, at_s: float) -> None:
        self._integral += self.in_flight * (at_s - self._changed_s)
        self._changed_s = at_s
        self.in_flight += step

    def _look(self) -> None:
        """Once a second of virtual time, what the engine's metrics page would say."""
        engine = self.engine
        if engine.now_s < self.next_sample_s:
            return
        self.next_sample_s = engine.now_s + SAMPLE_S
        self.samples.append(Sample(at_ns=_ns(engine.now_s), source="engine", values=engine_values(engine)))


def engine_values(engine: Engine) -> dict[str, float]:
    """The engine's own figures under their canonical names. Only engines that preempt count preemptions."""
    counters = engine.counters
    values = {
        "running": float(engine.seen.running),
        "waiting": float(engine.seen.waiting),
        "prompt_tokens_total": float(counters.prompt_tokens),
        "output_tokens_total": float(counters.output_tokens),
    }
    if engine.policy.when_full != "fail":
        values["kv_use"] = engine.seen.kv_use
    if engine.policy.when_full == "preempt" and not engine.policy.reserves:
        values["preemptions_total"] = float(counters.preemptions)
    return values


def never(_: RequestRecord, __: int) -> str | None:
    """A level that ends by its own rules alone."""
    return None


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
    level = _Level(engine, spec, measured, other, stop_early, client or Client())
    level.play()
    lag_ms = 1000 * level.lag_s
    run = LevelRun(
        spec=spec,
        started_ns=_ns(level.started_s),
        window_start_ns=None if level.window_start_s is None else _ns(level.window_start_s),
        window_end_ns=None if level.window_end_s is None else _ns(level.window_end_s),
        ended_ns=_ns(engine.now_s),
        in_flight_integral_s=level.integral_in_window,
        health=ClientHealth(
            loop_lag_ms_p99=lag_ms,
            send_lag_ms_p99=0.0,
            cpu_s=0.0,
            wall_s=engine.now_s - level.started_s,
            kernel_share=0.0,
        ),
        cut=level.cut,
    )
    return VirtualLevel(run, level.records, level.samples, level.issued)
