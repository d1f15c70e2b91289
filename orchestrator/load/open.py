"""An open-loop level: requests are sent when they are due, however many are under way (METHOD.md: open loop)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from orchestrator.clock import NS_PER_S, now_ns
from orchestrator.load.health import SelfWatch
from orchestrator.load.supply import Supply
from orchestrator.load.tally import Part
from orchestrator.load.wire import Send
from orchestrator.records import Failure, LevelRun, LevelSpec, Request, RequestRecord


async def run_open(
    spec: LevelSpec,
    due: Sequence[int],
    *,
    requests: Supply,
    send: Send,
    prepare: Callable[[Request], bytes],
    on_record: Callable[[RequestRecord], None],
    most_in_flight: int,
    abort: asyncio.Future[str] | None = None,
    part: Part | None = None,
) -> LevelRun:
    """Send a request at each of the `due` times (ns after the start, in order), then wait for all of them; of a part of
    a level, at every `part.of`-th.

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
    level = _Level(due, send, prepare, on_record, most_in_flight, part, watch)
    async with watch.watching():
        part.cut = await _until_over(level.issue_all(requests), spec.max_seconds, abort)
    return part.tally.run(spec, watch.health(), part.cut)


class _Level:
    """A level while it runs."""

    def __init__(
        self,
        due: Sequence[int],
        send: Send,
        prepare: Callable[[Request], bytes],
        on_record: Callable[[RequestRecord], None],
        most_in_flight: int,
        part: Part,
        watch: SelfWatch,
    ) -> None:
        self._due = due
        self._send = send
        self._prepare = prepare
        self._on_record = on_record
        self._most = most_in_flight
        self._part = part
        self._tally = part.tally
        self._watch = watch

    async def issue_all(self, requests: Supply) -> None:
        """Every one when it is due; back when all have ended."""
        async with asyncio.TaskGroup() as group:
            for seq in range(self._part.number, len(self._due), self._part.of):
                request = await requests.at(seq)
                body, due_ns = self._prepare(request), self._tally.started_ns + self._due[seq]
                await _until(due_ns)
                group.create_task(self._talk(request, seq, due_ns, body))
                await asyncio.sleep(0)  # it is sent before the next body is made

    async def _talk(self, request: Request, seq: int, due_ns: int, body: bytes) -> None:
        """A request and its later turns."""
        record = await self._issue(request, seq, due_ns, body)
        for turn in request.later:
            if _cancelled(record):
                return
            body, due_ns = self._prepare(turn), record.end_ns + round(turn.think_s * NS_PER_S)
            await _until(due_ns)
            with self._part.lock:
                seq = len(self._due) + self._tally.issued
                self._tally.issued += 1
            record = await self._issue(turn, seq, due_ns, body)

    async def _issue(self, request: Request, seq: int, due_ns: int, body: bytes) -> RequestRecord:
        if self._tally.in_flight >= self._most:
            record = _dropped(request, seq, due_ns, self._most)
        else:
            record = await self._exchange(request, seq, due_ns, body)
        self._watch.see(record)
        self._on_record(record)
        return record

    async def _exchange(self, request: Request, seq: int, due_ns: int, body: bytes) -> RequestRecord:
        with self._part.lock:
            sent_ns = now_ns()
            self._tally.count(+1, sent_ns)
            self._tally.measured_issue(sent_ns)
        record = await self._send(request, seq=seq, phase="measured", due_ns=due_ns, body=body)
        with self._part.lock:
            self._tally.count(-1, record.end_ns)
            self._tally.undrained += _cancelled(record)
        return record


def _cancelled(record: RequestRecord) -> bool:
    return record.failure is not None and record.failure.kind == "cancelled"


async def _until(due_ns: int) -> None:
    """Not before: a loop whose timers count whole milliseconds wakes early, and then looks again."""
    while (left_ns := due_ns - now_ns()) > 0:  # noqa: ASYNC110 - time passes by itself, there is no event
        await asyncio.sleep(left_ns / NS_PER_S)


async def _until_over(
    issue: Coroutine[Any, Any, None], max_seconds: float, abort: asyncio.Future[str] | None
) -> str | None:
    """Run to the end, or to the time limit or the abort: then the reason. Nothing is left running."""
    issuing = asyncio.create_task(issue)
    waits: set[asyncio.Future[Any]] = {issuing, *([abort] if abort else [])}
    try:
        await asyncio.wait(waits, timeout=max_seconds, return_when=asyncio.FIRST_COMPLETED)
        ended = issuing.done()
    finally:
        issuing.cancel()
        await asyncio.wait({issuing})
    if not ended:
        return abort.result() if abort and abort.done() else f"the time limit of {max_seconds:g} s for a level"
    try:
        issuing.result()
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    return None


def _dropped(request: Request, seq: int, due_ns: int, most: int) -> RequestRecord:
    at_ns = now_ns()
    return RequestRecord(
        seq=seq,
        request_id=f"dropped-{seq}",
        phase="measured",
        due_ns=due_ns,
        sent_ns=at_ns,
        end_ns=at_ns,
        asked_in=request.prompt_tokens,
        asked_out=request.output_tokens,
        clamped=request.clamped,
        session=request.session,
        turn=request.turn,
        failure=Failure(kind="dropped", detail=f"{most} requests were in flight, as many as this client allows itself"),
    )
