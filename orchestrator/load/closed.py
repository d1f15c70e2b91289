"""A closed-loop level: c users, each with one request in flight (METHOD.md: ramp, warm-up, measured, filler, drain)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from asyncio_throttle import Throttler  # type: ignore[attr-defined]

from orchestrator.clock import NS_PER_S, now_ns
from orchestrator.load.health import SelfWatch
from orchestrator.load.supply import Supply
from orchestrator.load.tally import Part, users_of
from orchestrator.load.wire import Send
from orchestrator.records import LevelRun, LevelSpec, Phase, Request, RequestRecord, StopEarly, never


class _Claim(NamedTuple):
    """The next request of the level, taken by a user."""

    phase: Phase
    seq: int
    place: int
    """In the list of the measured requests, or in that of all others."""


class _Level:
    """A level while it runs. What all of its workers count lies in the tally; one thread each."""

    def __init__(self, spec: LevelSpec, part: Part) -> None:
        self.spec = spec
        self.part = part
        self.tally = part.tally
        self.over = part.over

    def claim(self) -> _Claim | None:
        """Take the next request in issue order; None: there is none, and no filler is to be sent."""
        with self.part.lock:
            claim = self._claim(now_ns())
            done = self._done
        if done:
            self.part.end()
        return claim

    def _claim(self, now: int) -> _Claim | None:
        tally = self.tally
        phase = self._phase(now)
        if phase == "filler" and not self.spec.filler_seconds:
            return None
        seq = tally.issued
        tally.issued += 1
        if phase != "measured":
            return _Claim(phase, seq, seq - tally.measured_issued)
        place = tally.measured_issued
        tally.first_measured = tally.first_measured if place else seq
        tally.measured_issued += 1
        tally.measured_pending += 1
        self._close_if_complete(now)
        return _Claim(phase, seq, place)

    @property
    def _done(self) -> bool:
        """The measured set has closed, and all of it has ended."""
        return bool(self.tally.measured_closed and not self.tally.measured_pending)

    def _phase(self, now: int) -> Phase:
        """Of the request that is taken now."""
        tally = self.tally
        if tally.start_ns and not tally.measured_closed:
            self._close_if_complete(now)
        if tally.measured_closed:
            return "filler"
        if self.spec.ramp_seconds and not tally.ramp_end_ns:
            return "ramp"
        warm_ns = (tally.ramp_end_ns or tally.started_ns) + round(self.spec.warmup_seconds * NS_PER_S)
        generations = self.spec.warmup_generations * self.spec.concurrency
        if not tally.measured_issued and (tally.completed < generations or now < warm_ns):
            return "warmup"
        return "measured"

    def _close_if_complete(self, at_ns: int) -> None:
        if self.tally.measured_issued == self.tally.measured_in_all(self.spec, at_ns):
            self.tally.measured_closed = 1

    def issue(self, phase: Phase) -> None:
        """Count a request that is sent now."""
        with self.part.lock:
            at_ns = now_ns()
            self.tally.count(+1, at_ns)
            if phase == "measured":
                self.tally.measured_issue(at_ns)

    def finish(self, record: RequestRecord) -> None:
        with self.part.lock:
            tally = self.tally
            tally.count(-1, record.end_ns)  # not now: reading the answer is no load
            tally.completed += 1
            if record.phase == "measured":
                tally.measured_pending -= 1
                tally.undrained += record.failure is not None and record.failure.kind == "cancelled"
            done = self._done
        if done:
            self.part.end()

    def admitted(self) -> None:
        """A user has started; with the last one the ramp ends."""
        with self.part.lock:
            self.tally.admitted += 1
            if self.tally.admitted == self.spec.concurrency:
                self.tally.ramp_end_ns = now_ns()

    async def pause(self, until_ns: int) -> None:
        """A user thinks; the end of the level wakes it."""
        if (left_s := (until_ns - now_ns()) / NS_PER_S) > 0 and self.spec.think_seconds:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.over.wait(), left_s)


async def run_closed(
    spec: LevelSpec,
    *,
    measured: Supply,
    other: Supply,
    send: Send,
    prepare: Callable[[Request], bytes],
    on_record: Callable[[RequestRecord], None],
    stop_early: StopEarly = never,
    abort: asyncio.Future[str] | None = None,
    part: Part | None = None,
) -> LevelRun:
    """Run one level, or a worker's part of it. `measured` has its measured requests, `other` those of ramp, warm-up and
    filler.

    `prepare` makes a body before its issue. When `abort` is done the level ends at once, what is in flight recorded as
    cancelled. What `on_record` raises ends the level and is raised. Without filler time no filler is sent, and exactly
    `spec.requests` are measured unless `min_seconds` asks for more.
    """
    part = part or Part()
    part.begin()
    level = _Level(spec, part)
    watch = SelfWatch()

    def finished(record: RequestRecord) -> None:
        level.finish(record)
        watch.see(record)
        on_record(record)
        if record.phase == "measured" and part.cut is None:
            place = record.seq - part.tally.first_measured
            if (reason := stop_early(record, place, part.measured_in_all(spec))) is not None:
                part.end(reason)

    async def user(number: int) -> None:
        due_ns = now_ns()
        while not level.over.is_set() and (claim := level.claim()) is not None:
            request = await (measured if claim.phase == "measured" else other).at(claim.place)
            body = prepare(request)
            level.issue(claim.phase)
            record = await send(request, seq=claim.seq, phase=claim.phase, due_ns=due_ns, user=number, body=body)
            finished(record)
            due_ns = record.end_ns + round(spec.think_seconds * NS_PER_S)
            await level.pause(due_ns)

    async with watch.watching():
        await _drive(level, user, abort)
    return part.tally.run(spec, watch.health(), part.cut)


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
    """User i starts at i * R / c. The throttle lets one through per R / c (a worker's own: per W * R / c, the first at
    its turn); it polls, so it is told how finely."""
    spec, part = level.spec, level.part
    gap_s = spec.ramp_seconds / spec.concurrency
    retry_s = max(0.001, min(0.01, gap_s / 20))
    throttler = Throttler(rate_limit=1, period=gap_s * part.of, retry_interval=retry_s) if gap_s else None
    first_ns = part.tally.started_ns + round(part.number * gap_s * NS_PER_S)
    await asyncio.sleep(max(0, first_ns - now_ns()) / NS_PER_S)
    for number in users_of(part, spec.concurrency):
        if throttler is not None:
            await throttler.acquire()  # type: ignore[no-untyped-call]
        users.append(asyncio.create_task(user(number)))
        level.admitted()


async def _time_limit(level: _Level) -> None:
    await asyncio.sleep(level.spec.max_seconds)
    level.part.end(f"the time limit of {level.spec.max_seconds:g} s for a level")


async def _hold(
    level: _Level, users: list[asyncio.Task[None]], admission: asyncio.Task[None], abort: asyncio.Future[str] | None
) -> None:
    """Until the measured set has closed and ended (at most the filler time later), or the abort."""
    over = asyncio.create_task(level.over.wait())
    filler_ends: float | None = None
    loop = asyncio.get_running_loop()
    try:
        while not level.over.is_set():
            if level.tally.measured_closed and filler_ends is None:
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
                level.part.end(abort.result())
            _raise_first(users)
    finally:
        over.cancel()


async def _drain(level: _Level, users: list[asyncio.Task[None]], abort: asyncio.Future[str] | None) -> None:
    """Wait for what is in flight: up to the request deadline, not at all if the server is gone."""
    if not users or (abort is not None and abort.done()):
        return
    patience_s = level.spec.deadline_seconds if level.part.cut is None else level.spec.filler_seconds
    waits: set[asyncio.Future[Any]] = {asyncio.gather(*users)}
    if abort is not None:
        waits.add(abort)
    await asyncio.wait(waits, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
    _raise_first(users)


def _raise_first(users: list[asyncio.Task[None]]) -> None:
    for task in users:
        if task.done() and not task.cancelled() and (error := task.exception()) is not None:
            raise error
