"""Several load processes on this machine that run a level together (METHOD.md: several processes).

This process sends nothing itself: it hands out the lists of requests, merges the records by their ends, and watches
over the workers. What must be decided over all requests at once is decided in the tally that they share.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from itertools import islice
from pathlib import Path

import msgspec

from orchestrator.clock import now_ns
from orchestrator.errors import HostError
from orchestrator.load.engine import Load, OnRecord, Target
from orchestrator.load.frames import (
    BLOCK,
    Abort,
    Broken,
    Channel,
    Done,
    Ended,
    FromWorker,
    Go,
    Hello,
    Level,
    Message,
    Need,
    Over,
    Ready,
    Requests,
    Tick,
    Which,
)
from orchestrator.load.health import together
from orchestrator.load.merge import Merge
from orchestrator.load.tally import Part, SharedTally, TallyHeldError
from orchestrator.records import ClientHealth, LevelRun, Request, RequestRecord, StopEarly, never

START_S = 30.0
"""A process that has not started by then does not."""
SILENT_S = 30.0
"""A worker tells something every 0.1 s; one that is silent for so long is lost."""
HELD_S = 5.0
"""A lock that is held for microseconds is waited for so long; who holds it then is frozen, and found by its silence."""
_LEAD_NS = 20_000_000
"""The level starts so long after all were told: each then has heard of it."""


class Worker:
    """One process, as the fleet sees it."""

    def __init__(self, process: subprocess.Popen[bytes], channel: Channel[FromWorker]) -> None:
        self.process = process
        self.send = channel.send
        self._channel = channel

    @classmethod
    async def start(cls, target: bytes, shared: SharedTally) -> Worker:
        ours, theirs = socket.socketpair()
        package = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
        with theirs:
            process = subprocess.Popen(  # noqa: ASYNC220 - at the start, when nothing is timed
                [sys.executable, "-P", "-m", "orchestrator.load.worker", str(theirs.fileno()), str(shared.fd)],
                pass_fds=(theirs.fileno(), shared.fd),
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path},
                process_group=0,  # Ctrl-C is ours to understand
            )
        worker = cls(process, await Channel.over(ours, msgspec.msgpack.Decoder(FromWorker)))
        worker.send(Hello(target))
        return worker

    async def receive(self, within_s: float) -> FromWorker | None:
        """The next message; None: it died, or was silent for too long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                return await self._channel.receive()
        return None

    async def fate(self) -> str:
        """How it went: it ended, or is ended now."""
        self._channel.close()
        try:
            async with asyncio.timeout(1.0):
                code = await asyncio.to_thread(self.process.wait, 1.0)
        except (TimeoutError, subprocess.TimeoutExpired):
            self.process.kill()
            await asyncio.to_thread(self.process.wait)
            return "did not answer any more"
        return f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


class _Lists:
    """The lists of requests of a level, drawn in blocks; each worker gets every block."""

    def __init__(self, load: Load, workers: int) -> None:
        self._sources: dict[Which, Iterator[Request]] = {"measured": load.measured, "other": load.other}
        self._blocks: dict[Which, dict[int, tuple[Request, ...]]] = {"measured": {}, "other": {}}
        self._next: dict[Which, list[int]] = {"measured": [0] * workers, "other": [0] * workers}

    def block(self, which: Which, worker: int) -> Requests:
        """The next one for a worker. What all have got is forgotten."""
        blocks, following = self._blocks[which], self._next[which]
        number = following[worker]
        if number not in blocks:
            blocks[number] = tuple(islice(self._sources[which], BLOCK))
        found = blocks[number]
        following[worker] += 1
        if number < min(following):
            del blocks[number]
        return Requests(which, number * BLOCK, found)


class _Run:
    """A level under way."""

    def __init__(self, load: Load, workers: list[Worker], shared: SharedTally, keep: OnRecord, stop: StopEarly) -> None:
        self._load = load
        self._workers = workers
        self._keep = keep
        self._stop = stop
        self._part = Part(tally=shared.tally, lock=shared.lock_within(HELD_S))
        self._lists = _Lists(load, len(workers))
        self._merge = Merge(len(workers))
        self._health: list[ClientHealth] = []
        self._lost: str | None = None
        self._told_over = False

    async def run(self, abort: asyncio.Future[str] | None) -> LevelRun:
        started_s = time.process_time()
        await asyncio.gather(*(self._prepare(number) for number in range(len(self._workers))))
        with self._part.lock:
            self._part.tally.begin(now_ns() + _LEAD_NS)
        self._tell_all(Go())
        if abort is not None:
            abort.add_done_callback(self._on_abort)
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(len(self._workers)):
                    group.create_task(self._follow(number))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            if abort is not None:
                abort.remove_done_callback(self._on_abort)
        self._release()
        health = together(self._health, self._lost)
        own_s = time.process_time() - started_s
        health = msgspec.structs.replace(health, workers=len(self._workers), cpu_s=health.cpu_s + own_s)
        return self._part.tally.run(self._load.spec, health, self._part.cut)

    async def _prepare(self, number: int) -> None:
        worker = self._workers[number]
        load = self._load
        worker.send(Level(load.spec, number, len(self._workers), load.due, load.most_in_flight))
        for which in ("measured", "other"):
            worker.send(self._lists.block(which, number))
        if not isinstance(await worker.receive(START_S), Ready):
            raise HostError(f"A load process {await worker.fate()} before its level.", "Run with one: --workers 1.")

    async def _follow(self, number: int) -> None:
        """Until its part of the level is over."""
        worker = self._workers[number]
        while True:
            message = await worker.receive(SILENT_S)
            if isinstance(message, Ended):
                self._merge.add(message.record)
            elif isinstance(message, Tick):
                self._merge.told_until(number, message.at_ns)
                self._release()
            elif isinstance(message, Need):
                worker.send(self._lists.block(message.which, number))
            elif isinstance(message, Over):
                self._over(message.cut)
            elif isinstance(message, Broken):
                raise RuntimeError(  # noqa: TRY004 - it is no wrong type of ours
                    f"load worker {number + 1} failed:\n{message.traceback}"
                )
            else:
                break
        self._merge.close(number)
        if isinstance(message, Done):
            self._health.append(message.health)
            self._part.cut = self._part.cut or message.cut
        else:
            self._lose(f"load worker {number + 1} of {len(self._workers)} {await worker.fate()}")

    def _release(self) -> None:
        """Hand over the records whose turn has come."""
        for record in self._merge.take():
            self._keep(record)
            if record.phase == "measured" and self._part.cut is None:
                try:
                    self._look_at(record)
                except TallyHeldError as error:
                    self._lose(error.message)

    def _look_at(self, record: RequestRecord) -> None:
        """Whether a measured record ends the level."""
        place = record.seq - self._part.tally.first_measured
        if (reason := self._stop(record, place, self._part.measured_in_all(self._load.spec))) is not None:
            self._part.end(reason)
            self._tell_all(Abort(reason) if self._load.due else Over(reason))

    def _lose(self, how: str) -> None:
        """What it had in flight is unknown: the level is worth nothing any more, and ends."""
        self._lost = self._part.cut = self._lost or how
        self._tell_all(Abort(how))

    def _on_abort(self, abort: asyncio.Future[str]) -> None:
        if not abort.cancelled():
            self._part.cut = self._part.cut or abort.result()
            self._tell_all(Abort(abort.result()))

    def _over(self, cut: str | None) -> None:
        if not self._told_over:
            self._told_over = True
            self._part.cut = self._part.cut or cut
            self._tell_all(Over(cut))

    def _tell_all(self, message: Message) -> None:
        for worker in self._workers:
            worker.send(message)


class Fleet:
    """Workers that stay from level to level. See `engine.Engine`."""

    def __init__(self, target: Target) -> None:
        self._target = pickle.dumps(target)
        self._shared = SharedTally.create()
        self._workers: list[Worker] = []

    async def run(
        self,
        load: Load,
        *,
        on_record: OnRecord,
        stop_early: StopEarly = never,
        abort: asyncio.Future[str] | None = None,
    ) -> LevelRun:
        """See `engine.Engine`. After whatever went wrong no worker of this level goes on."""
        workers = await self._hire(load.spec.workers)
        try:
            return await _Run(load, workers, self._shared, on_record, stop_early).run(abort)
        except BaseException:
            await self._dismiss()
            raise

    async def _hire(self, number: int) -> list[Worker]:
        """So many living workers: the dead are replaced."""
        self._workers = [worker for worker in self._workers if worker.process.poll() is None]
        living = len(self._workers)
        while len(self._workers) < number:  # ours from its start on: the next one may not start
            self._workers.append(await Worker.start(self._target, self._shared))
        for worker in self._workers[living:]:
            if not isinstance(await worker.receive(START_S), Ready):
                raise HostError(f"A load process {await worker.fate()} at its start.", "Run with one: --workers 1.")
        return self._workers[:number]

    async def _dismiss(self) -> None:
        """Blocking as little as it can, and to the end even if we are cancelled."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.process.kill()
        for worker in workers:
            worker.process.wait()
            await worker.fate()

    async def close(self) -> None:
        await self._dismiss()
        self._shared.close()


@contextlib.asynccontextmanager
async def open_fleet(target: Target) -> AsyncIterator[Fleet]:
    """No worker is left afterwards."""
    if sys.platform == "win32":
        raise HostError("Several load processes need POSIX, and this is Windows.", "Run with one: --workers 1.")
    fleet = Fleet(target)
    try:
        yield fleet
    finally:
        await fleet.close()
