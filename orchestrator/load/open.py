"""An open-loop level: requests are sent when they are due, however many are under way (METHOD.md: open loop)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

from orchestrator.clock import NS_PER_S, now_ns
from orchestrator.load.health import SelfWatch
from orchestrator.load.window import Window
from orchestrator.load.wire import Send
from orchestrator.records import Failure, LevelRun, LevelSpec, Request, RequestRecord


async def run_open(
    spec: LevelSpec,
    due: Sequence[int],
    *,
    requests: Iterator[Request],
    send: Send,
    prepare: Callable[[Request], bytes],
    on_record: Callable[[RequestRecord], None],
    most_in_flight: int,
    abort: asyncio.Future[str] | None = None,
) -> LevelRun:
    """Send a request at each of the `due` times (ns after the start, in order), then wait for all of them.

    `most_in_flight` keeps this machine from running out of sockets and memory; it is no admission control: a request
    that is due beyond it is not sent but recorded as failed (``dropped``), so it counts against the level.
    At `spec.max_seconds`, or when `abort` is done, nothing more is sent and what is in flight is recorded as cancelled.
    What `on_record` raises ends the level and is raised.
    """
    watch = SelfWatch()
    window = Window()

    def keep(record: RequestRecord) -> None:
        window.records.append(record)
        on_record(record)

    async def one(request: Request, seq: int, due_ns: int, body: bytes) -> None:
        sent_ns = now_ns()
        window.count(+1, sent_ns)
        window.measured_issue(sent_ns)
        record = await send(request, seq=seq, phase="measured", due_ns=due_ns, body=body)
        window.count(-1, record.end_ns)
        keep(record)

    async def issue() -> None:
        async with asyncio.TaskGroup() as group:
            for seq, (offset_ns, request) in enumerate(zip(due, requests, strict=False)):
                body, due_ns = prepare(request), window.started_ns + offset_ns
                await _until(due_ns)
                if window.in_flight < most_in_flight:
                    group.create_task(one(request, seq, due_ns, body))
                else:
                    keep(_dropped(request, seq, due_ns, most_in_flight))
                await asyncio.sleep(0)  # it is sent before the next body is made

    async with watch.watching():
        cut = await _until_over(issue(), spec.max_seconds, abort)
    return window.run(spec, watch, cut)


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
        failure=Failure(kind="dropped", detail=f"{most} requests were in flight, as many as this client allows itself"),
    )
