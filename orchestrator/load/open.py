"""An open-loop level: requests are sent when they are due, however many are under way (METHOD.md: open loop)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple

import msgspec

from orchestrator.clock import NS_PER_S, now_ns
from orchestrator.load.health import SelfWatch
from orchestrator.load.supply import Supply
from orchestrator.load.tally import Part
from orchestrator.load.wire import Send
from orchestrator.records import Failure, LevelRun, LevelSpec, Phase, Request, RequestRecord, StopEarly, never


async def run_open(
    spec: LevelSpec,
    due: Sequence[int],
    *,
    requests: Supply,
    send: Send,
    prepare: Callable[[Request], bytes],
    on_record: Callable[[RequestRecord], None],
    most_in_flight: int,
    stop_early: StopEarly = never,
    abort: asyncio.Future[str] | None = None,
    part: Part | None = None,
) -> LevelRun:
    """Send a request at each of the `due` times (ns after the start, in order), then wait for all of them; of a part of
    a level, at every `part.of`-th.

    The last `spec.requests` of them are measured, what comes before is warm-up. What is unfinished `spec.drain_seconds`
    after the last was due has failed. `stop_early` is asked after each measured record: a reason ends the level.

    A request with later turns is a conversation: each of them is due its think time after the answer to the one before,
    and is sent whatever that answer was. First turns are numbered as they are due, the others behind them as they are
    issued.

    `most_in_flight` keeps this machine from running out of sockets and memory; it is no admission control: a request
    that is due beyond it is not sent but recorded as failed (``dropped``), so it counts against the level.
    At `spec.max_seconds`, or when `abort` is done, nothing more is sent and what is in flight is recorded as cancelled.
    What `on_record` raises ends the level and is raised.
    """
    part = part or Part()
    part.begin()
    watch = SelfWatch()

    def keep(record: RequestRecord) -> None:
        watch.see(record)
        on_record(record)

    level = _Level(spec, due, _Client(send, prepare, keep, stop_early, most_in_flight), part)
    async with watch.watching():
        ends = [level.enough, *([abort] if abort else [])]
        part.cut = await _until_over(level.issue_all(requests), spec.max_seconds, ends)
    return part.tally.run(spec, watch.health(), part.cut)


class _Client(NamedTuple):
    """What `run_open` was given to send with."""

    send: Send
    prepare: Callable[[Request], bytes]
    keep: Callable[[RequestRecord], None]
    stop_early: StopEarly
    most_in_flight: int


class _Due(NamedTuple):
    """A request that is sent, and when."""

    request: Request
    seq: int
    phase: Phase
    at_ns: int
    body: bytes


class _Level:
    """A level while it runs."""

    def __init__(self, spec: LevelSpec, due: Sequence[int], client: _Client, part: Part) -> None:
        self.enough: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Done with the reason why it ends early."""
        self._spec = spec
        self._due = due
        self._client = client
        self._part = part
        self._tally = part.tally
        self._tally.first_measured = max(0, len(due) - spec.requests)
        self._under_way: set[asyncio.Task[None]] = set()
        self._drained = False

    async def issue_all(self, requests: Supply) -> None:
        """Every one when it is due; back when all have ended."""
        async with asyncio.TaskGroup() as group:
            for seq in range(self._part.number, len(self._due), self._part.of):
                request = await requests.at(seq)
                phase: Phase = "warmup" if seq < self._tally.first_measured else "measured"
                at_ns = self._tally.started_ns + self._due[seq]
                one = _Due(request, seq, phase, at_ns, self._client.prepare(request))
                await _until(at_ns)
                task = group.create_task(self._talk(one))
                self._under_way.add(task)
                task.add_done_callback(self._under_way.discard)
                await asyncio.sleep(0)  # it is sent before the next body is made
            await self._drain()

    async def _drain(self) -> None:
        """All have been sent: what does not end in time has failed."""
        if self._spec.drain_seconds is None or not self._under_way:
            return
        last_ns = self._tally.started_ns + self._due[-1]
        left_s = self._spec.drain_seconds - (now_ns() - last_ns) / NS_PER_S
        await asyncio.wait(self._under_way, timeout=max(0.0, left_s))
        self._drained = True
        for task in self._under_way:
            task.cancel()

    async def _talk(self, one: _Due) -> None:
        """A request and its later turns."""
        record = await self._issue(one)
        for turn in one.request.later:
            if _cancelled(record) or self._drained:
                return
            body, at_ns = self._client.prepare(turn), record.end_ns + round(turn.think_s * NS_PER_S)
            await _until(at_ns)
            with self._part.lock:
                seq = len(self._due) + self._tally.issued
                self._tally.issued += 1
            record = await self._issue(_Due(turn, seq, one.phase, at_ns, body))

    async def _issue(self, one: _Due) -> RequestRecord:
        if self._tally.in_flight >= self._client.most_in_flight:
            record = _dropped(one, self._client.most_in_flight)
        else:
            record = await self._exchange(one)
        self._client.keep(record)
        if record.phase == "measured" and not self.enough.done():
            place = record.seq - self._tally.first_measured
            if (reason := self._client.stop_early(record, place, self._part.measured_in_all(self._spec))) is not None:
                self.enough.set_result(reason)
        return record

    async def _exchange(self, one: _Due) -> RequestRecord:
        with self._part.lock:
            sent_ns = now_ns()
            self._tally.count(+1, sent_ns)
            if one.phase == "measured":
                self._tally.measured_issue(sent_ns)
        record = await self._client.send(one.request, seq=one.seq, phase=one.phase, due_ns=one.at_ns, body=one.body)
        with self._part.lock:
            self._tally.count(-1, record.end_ns)
            self._tally.undrained += one.phase == "measured" and _cancelled(record)
        if self._drained and _cancelled(record):
            detail = f"no end within {self._spec.drain_seconds:g} s after the last request was due"
            record = msgspec.structs.replace(record, failure=Failure(kind="timeout", detail=detail))
        return record


def _cancelled(record: RequestRecord) -> bool:
    return record.failure is not None and record.failure.kind == "cancelled"


async def _until(due_ns: int) -> None:
    """Not before: a loop whose timers count whole milliseconds wakes early, and then looks again."""
    while (left_ns := due_ns - now_ns()) > 0:  # noqa: ASYNC110 - time passes by itself, there is no event
        await asyncio.sleep(left_ns / NS_PER_S)


async def _until_over(
    issue: Coroutine[Any, Any, None], max_seconds: float, ends: Sequence[asyncio.Future[str]]
) -> str | None:
    """Run to the end, or to the time limit or one of the other `ends`: then the reason. Nothing is left running."""
    issuing = asyncio.create_task(issue)
    waits: set[asyncio.Future[Any]] = {issuing, *ends}
    try:
        await asyncio.wait(waits, timeout=max_seconds, return_when=asyncio.FIRST_COMPLETED)
        ended = issuing.done()
    finally:
        issuing.cancel()
        await asyncio.wait({issuing})
    if not ended:
        told = (end.result() for end in ends if end.done())
        return next(told, f"the time limit of {max_seconds:g} s for a level")
    try:
        issuing.result()
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    return None


def _dropped(one: _Due, most: int) -> RequestRecord:
    at_ns = now_ns()
    return RequestRecord(
        seq=one.seq,
        request_id=f"dropped-{one.seq}",
        phase=one.phase,
        due_ns=one.at_ns,
        sent_ns=at_ns,
        end_ns=at_ns,
        asked_in=one.request.prompt_tokens,
        asked_out=one.request.output_tokens,
        clamped=one.request.clamped,
        session=one.request.session,
        turn=one.request.turn,
        failure=Failure(kind="dropped", detail=f"{most} requests were in flight, as many as this client allows itself"),
    )
