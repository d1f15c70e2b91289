"""An open-loop level: requests are sent when they are due, however many are under way (METHOD.md: open loop)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from orchestrator.clock import NS_PER_S, now_ns
from orchestrator.load.health import SelfWatch
from orchestrator.load.window import Window, never
from orchestrator.load.wire import Send
from orchestrator.records import Failure, LevelRun, LevelSpec, Phase, Request, RequestRecord


class _Level:
    """State of a level while it runs; one thread, so no locks."""

    def __init__(
        self,
        spec: LevelSpec,
        send: Send,
        on_record: Callable[[RequestRecord], None],
        stop_early: Callable[[RequestRecord], str | None],
    ) -> None:
        self.spec = spec
        self.window = Window()
        self.enough: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Done with the reason why it ends early."""
        self._send = send
        self._on_record = on_record
        self._stop_early = stop_early
        self._under_way: set[asyncio.Task[None]] = set()
        self._drained = False

    def start(self, group: asyncio.TaskGroup, request: Request, seq: int, phase: Phase, due: Due) -> None:
        task = group.create_task(self._one(request, seq, phase, due))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _one(self, request: Request, seq: int, phase: Phase, due: Due) -> None:
        sent_ns = now_ns()
        self.window.count(+1, sent_ns)
        if phase == "measured":
            self.window.measured_issue(sent_ns)
        record = await self._send(request, seq=seq, phase=phase, due_ns=due.at_ns, body=due.body)
        self.window.count(-1, record.end_ns)
        self.keep(record)

    def keep(self, record: RequestRecord) -> None:
        if self._drained and record.failure is not None and record.failure.kind == "cancelled":
            detail = f"no end within {self.spec.drain_seconds:g} s after the last request was due"
            record = msgspec.structs.replace(record, failure=Failure(kind="timeout", detail=detail))
        self.window.records.append(record)
        self._on_record(record)
        if record.phase == "measured" and not self.enough.done() and (reason := self._stop_early(record)):
            self.enough.set_result(reason)

    async def drain(self) -> None:
        """All have been sent: what does not end in time has failed."""
        if self.spec.drain_seconds is None or not self._under_way:
            return
        await asyncio.wait(self._under_way, timeout=self.spec.drain_seconds)
        self._drained = True
        for task in self._under_way:
            task.cancel()


class Due(NamedTuple):
    """When a request is sent, and what."""

    at_ns: int
    body: bytes


async def run_open(
    spec: LevelSpec,
    due: Sequence[int],
    *,
    requests: Iterator[Request],
    send: Send,
    prepare: Callable[[Request], bytes],
    on_record: Callable[[RequestRecord], None],
    most_in_flight: int,
    stop_early: Callable[[RequestRecord], str | None] = never,
    abort: asyncio.Future[str] | None = None,
) -> LevelRun:
    """Send a request at each of the `due` times (ns after the start, in order), then wait for all of them.

    The last `spec.requests` of them are measured, what comes before is warm-up. What is unfinished `spec.drain_seconds`
    after the last was due has failed. `stop_early` is asked after each measured record: a reason ends the level.

    `most_in_flight` keeps this machine from running out of sockets and memory; it is no admission control: a request
    that is due beyond it is not sent but recorded as failed (``dropped``), so it counts against the level.
    At `spec.max_seconds`, or when `abort` is done, nothing more is sent and what is in flight is recorded as cancelled.
    What `on_record` raises ends the level and is raised.
    """
    watch = SelfWatch()
    level = _Level(spec, send, on_record, stop_early)
    warm_up = len(due) - spec.requests

    async def issue() -> None:
        async with asyncio.TaskGroup() as group:
            for seq, (offset_ns, request) in enumerate(zip(due, requests, strict=False)):
                one = Due(level.window.started_ns + offset_ns, prepare(request))
                phase: Phase = "warmup" if seq < warm_up else "measured"
                await _until(one.at_ns)
                if level.window.in_flight < most_in_flight:
                    level.start(group, request, seq, phase, one)
                else:
                    level.keep(_dropped(request, seq, phase, one.at_ns, most_in_flight))
                await asyncio.sleep(0)  # it is sent before the next body is made
            await level.drain()

    async with watch.watching():
        cut = await _until_over(issue(), spec.max_seconds, [level.enough, *([abort] if abort else [])])
    return level.window.run(spec, watch, cut)


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


def _dropped(request: Request, seq: int, phase: Phase, due_ns: int, most: int) -> RequestRecord:
    at_ns = now_ns()
    return RequestRecord(
        seq=seq,
        request_id=f"dropped-{seq}",
        phase=phase,
        due_ns=due_ns,
        sent_ns=at_ns,
        end_ns=at_ns,
        asked_in=request.prompt_tokens,
        asked_out=request.output_tokens,
        clamped=request.clamped,
        failure=Failure(kind="dropped", detail=f"{most} requests were in flight, as many as this client allows itself"),
    )
