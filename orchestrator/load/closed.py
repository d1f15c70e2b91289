"""A closed-loop level: c users, each with one request in flight (METHOD.md: ramp, warm-up, measured, filler, drain)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from asyncio_throttle import Throttler  # type: ignore[attr-defined]

from orchestrator.clock import NS_PER_S, now_ns
from orchestrator.load.health import SelfWatch
from orchestrator.load.window import Window, never
from orchestrator.load.wire import Send
from orchestrator.records import LevelRun, LevelSpec, Phase, Request, RequestRecord

_MULTIPLE = 10
"""The measured set closes on a multiple of this if one was asked for, so that it cuts into equal batches."""


class _Level:
    """State of a level while it runs; one thread, so no locks."""

    def __init__(self, spec: LevelSpec) -> None:
        self.spec = spec
        self.window = Window()
        self.ramp_end_ns: int | None = None
        self.issued = 0
        self.completed = 0
        self.measured_issued = 0
        self.measured_pending = 0
        self.measured_closed = False
        self.cut: str | None = None
        self.over = asyncio.Event()

    def phase(self) -> Phase:
        """Of the request that is issued now."""
        now = now_ns()
        if self.window.start_ns is not None and not self.measured_closed:
            self._close_if_complete(now)
        if self.measured_closed:
            return "filler"
        if self.ramp_end_ns is None:
            return "ramp"
        warm_ns = self.ramp_end_ns + round(self.spec.warmup_seconds * NS_PER_S)
        generations = self.spec.warmup_generations * self.spec.concurrency
        if self.window.start_ns is None and (self.completed < generations or now < warm_ns):
            return "warmup"
        return "measured"

    def issue(self, phase: Phase, at_ns: int) -> int:
        """Count a request that is sent now; its sequence number."""
        self.window.count(+1, at_ns)
        seq = self.issued
        self.issued += 1
        if phase == "measured":
            self.measured_issued += 1
            self.measured_pending += 1
            self.window.measured_issue(at_ns)
            self._close_if_complete(at_ns)
        return seq

    def finish(self, record: RequestRecord) -> None:
        self.window.count(-1, record.end_ns)  # not now: reading the answer is no load
        self.completed += 1
        self.window.records.append(record)
        if record.phase == "measured":
            self.measured_pending -= 1
        self.end_if_done()

    async def pause(self, until_ns: int) -> None:
        """A user thinks; the end of the level wakes it."""
        if (left_s := (until_ns - now_ns()) / NS_PER_S) > 0 and self.spec.think_seconds:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.over.wait(), left_s)

    def close(self, cut: str | None = None) -> None:
        """No more measured requests."""
        self.measured_closed = True
        self.cut = self.cut or cut
        self.end_if_done()

    def end_if_done(self) -> None:
        """All measured ones have ended, or the level was cut: the users stop issuing."""
        if self.measured_closed and (self.measured_pending == 0 or self.cut is not None):
            self.over.set()

    def _close_if_complete(self, at_ns: int) -> None:
        assert self.window.start_ns is not None
        step = _MULTIPLE if self.spec.requests % _MULTIPLE == 0 else 1
        enough = self.measured_issued >= self.spec.requests and self.measured_issued % step == 0
        if enough and at_ns - self.window.start_ns >= self.spec.min_seconds * NS_PER_S:
            self.close()


async def run_closed(
    spec: LevelSpec,
    *,
    measured: Iterator[Request],
    other: Iterator[Request],
    send: Send,
    prepare: Callable[[Request], bytes],
    on_record: Callable[[RequestRecord], None],
    stop_early: Callable[[RequestRecord], str | None] = never,
    abort: asyncio.Future[str] | None = None,
) -> LevelRun:
    """Run one level. `measured` yields its measured requests, `other` those of ramp, warm-up and filler.

    `stop_early` is asked after each measured record: a reason ends the level. `prepare` makes a body before its issue.
    When `abort` is done the level ends at once, what is in flight recorded as cancelled. What `on_record` raises ends
    the level and is raised. Without filler time no filler is sent, and exactly `spec.requests` are measured unless
    `min_seconds` asks for more.
    """
    level = _Level(spec)
    watch = SelfWatch()

    def finished(record: RequestRecord) -> None:
        level.finish(record)
        on_record(record)
        if record.phase == "measured" and level.cut is None and (reason := stop_early(record)):
            level.close(cut=reason)

    async def user(number: int) -> None:
        due_ns = now_ns()
        while not level.over.is_set():
            phase = level.phase()
            if phase == "filler" and not spec.filler_seconds:
                return
            request = next(measured if phase == "measured" else other)
            body = prepare(request)
            seq = level.issue(phase, now_ns())
            record = await send(request, seq=seq, phase=phase, due_ns=due_ns, user=number, body=body)
            finished(record)
            due_ns = record.end_ns + round(spec.think_seconds * NS_PER_S)
            await level.pause(due_ns)

    async with watch.watching():
        await _drive(level, user, abort)
    return level.window.run(spec, watch, level.cut)


User = Callable[[int], Coroutine[Any, Any, None]]


async def _drive(level: _Level, user: User, abort: asyncio.Future[str] | None) -> None:
    """Admit the users, hold the load, stop issuing, drain; whatever happens no task is left."""
    users: list[asyncio.Task[None]] = []
    admission = asyncio.create_task(_admit(level, user, users))
    limit = asyncio.create_task(_time_limit(level))
    try:
        await _hold(level, users, admission, abort)
        await _drain(level, users, abort)
    finally:
        tasks = [admission, limit, *users]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _admit(level: _Level, user: User, users: list[asyncio.Task[None]]) -> None:
    """User i starts at i * R / c. The throttle lets one through per R / c; it polls, so it is told how finely."""
    spec = level.spec
    gap_s = spec.ramp_seconds / spec.concurrency
    retry_s = max(0.001, min(0.01, gap_s / 20))
    throttler = Throttler(rate_limit=1, period=gap_s, retry_interval=retry_s) if gap_s else None
    for number in range(spec.concurrency):
        if throttler is not None:
            await throttler.acquire()  # type: ignore[no-untyped-call]
        users.append(asyncio.create_task(user(number)))
    level.ramp_end_ns = now_ns()


async def _time_limit(level: _Level) -> None:
    await asyncio.sleep(level.spec.max_seconds)
    level.close(cut=f"the time limit of {level.spec.max_seconds:g} s for a level")


async def _hold(
    level: _Level, users: list[asyncio.Task[None]], admission: asyncio.Task[None], abort: asyncio.Future[str] | None
) -> None:
    """Until the measured set has closed and ended (at most the filler time later), or the abort."""
    over = asyncio.create_task(level.over.wait())
    filler_ends: float | None = None
    loop = asyncio.get_running_loop()
    try:
        while not level.over.is_set():
            if level.measured_closed and filler_ends is None:
                filler_ends = loop.time() + level.spec.filler_seconds
            if filler_ends is not None and loop.time() >= filler_ends:
                level.over.set()
                break
            waits: set[asyncio.Future[Any]] = {
                over,
                *([abort] if abort else []),
                *(user for user in users if not user.done()),
            }
            if not admission.done():
                waits.add(admission)
            await asyncio.wait(waits, timeout=0.25, return_when=asyncio.FIRST_COMPLETED)
            if abort is not None and abort.done():
                level.close(cut=abort.result())
            _raise_first(users)
    finally:
        over.cancel()


async def _drain(level: _Level, users: list[asyncio.Task[None]], abort: asyncio.Future[str] | None) -> None:
    """Wait for what is in flight: up to the request deadline, not at all if the server is gone."""
    if not users or (abort is not None and abort.done()):
        return
    patience_s = level.spec.deadline_seconds if level.cut is None else level.spec.filler_seconds
    waits: set[asyncio.Future[Any]] = {asyncio.gather(*users)}
    if abort is not None:
        waits.add(abort)
    await asyncio.wait(waits, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
    _raise_first(users)


def _raise_first(users: list[asyncio.Task[None]]) -> None:
    for task in users:
        if task.done() and not task.cancelled() and (error := task.exception()) is not None:
            raise error
