"""What is counted while a level runs, by one process or by several in memory that they share.

A level's rules look at all of its requests: how many have completed, which are the next N in issue order, how many are
in flight. So the workers of a level do not each follow them with a part of the numbers; they count in one `Tally`,
under one lock, and a level of three workers issues what a level of one would.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import mmap
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Self

from orchestrator.clock import NS_PER_S, now_ns
from orchestrator.errors import HostError
from orchestrator.records import ClientHealth, LevelRun, LevelSpec


class Tally(ctypes.Structure):
    """Integers only, so that they can lie in shared memory. Times are ns of CLOCK_MONOTONIC, 0 = not yet.

    The steady window runs from the first measured issue to the last.
    """

    started_ns: int
    issued: int
    """Requests that have a sequence number."""
    completed: int
    admitted: int
    """Users that have started."""
    ramp_end_ns: int
    measured_issued: int
    measured_pending: int
    measured_closed: int
    """1: no more measured requests."""
    first_measured: int
    """Sequence number of the first measured request."""
    start_ns: int
    end_ns: int
    in_flight: int
    changed_ns: int
    integral: int
    """Of the requests in flight over time, request-ns, until `changed_ns`."""
    integral_at_start: int
    integral_at_end: int
    undrained: int
    """Measured requests that were cancelled."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            *("started_ns", "issued", "completed", "admitted", "ramp_end_ns"),
            *("measured_issued", "measured_pending", "measured_closed", "first_measured", "start_ns", "end_ns"),
            *("in_flight", "changed_ns", "integral", "integral_at_start", "integral_at_end", "undrained"),
        )
    ]

    def begin(self, at_ns: int) -> None:
        """A new level, which starts at this time."""
        ctypes.memset(ctypes.addressof(self), 0, ctypes.sizeof(self))
        self.started_ns = self.changed_ns = at_ns

    def count(self, step: int, at_ns: int) -> None:
        """A request was sent (+1) or has ended (-1)."""
        self.integral += self.in_flight * (at_ns - self.changed_ns)
        self.changed_ns = at_ns
        self.in_flight += step

    def measured_issue(self, at_ns: int) -> None:
        """The request that was counted last is a measured one."""
        if not self.start_ns:
            self.start_ns, self.integral_at_start = at_ns, self.integral
        self.end_ns, self.integral_at_end = at_ns, self.integral

    def measured_in_all(self, spec: LevelSpec, at_ns: int) -> int | None:
        """See `LevelSpec`."""
        return spec.measured_in_all(self.measured_issued, (at_ns - (self.start_ns or at_ns)) / NS_PER_S)

    def run(self, spec: LevelSpec, health: ClientHealth, cut: str | None) -> LevelRun:
        """The level as it was run, now that it is over."""
        return LevelRun(
            spec=spec,
            started_ns=self.started_ns,
            window_start_ns=self.start_ns or None,
            window_end_ns=self.end_ns or None,
            ended_ns=now_ns(),
            in_flight_integral_s=(self.integral_at_end - self.integral_at_start) / NS_PER_S,
            health=health,
            cut=cut,
            undrained=self.undrained,
        )


@dataclass
class Part:
    """A worker's part of a level: every `of`-th user or send time from `number` on is its own. The whole, if alone."""

    number: int = 0
    of: int = 1
    tally: Tally = field(default_factory=Tally)
    lock: AbstractContextManager[object] = field(default_factory=contextlib.nullcontext)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Nothing more is issued."""
    cut: str | None = None
    """Why the level ended early."""

    def begin(self) -> None:
        """The level starts now, unless those who share it have said when."""
        if not self.tally.started_ns:
            self.tally.begin(now_ns())

    def measured_in_all(self, spec: LevelSpec) -> int | None:
        """See `LevelSpec`."""
        with self.lock:
            return self.tally.measured_in_all(spec, now_ns())

    def end(self, cut: str | None = None) -> None:
        """No more measured requests; with a reason the level is cut, and ends as soon as what is in flight has."""
        with self.lock:
            self.tally.measured_closed = 1
            pending = self.tally.measured_pending
        self.cut = self.cut or cut
        if not pending or self.cut is not None:
            self.over.set()


class SharedTally:
    """A tally in memory of several processes, which take turns by a file lock.

    The kernel lets go of the lock of a process that dies: nobody waits for the dead.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.tally = Tally.from_buffer(mmap.mmap(fd, mmap.PAGESIZE))

    @classmethod
    def create(cls) -> Self:
        fd = os.memfd_create("loadproof-tally") if sys.platform == "linux" else _unlinked_file()
        os.ftruncate(fd, mmap.PAGESIZE)
        return cls(fd)

    @property
    def lock(self) -> AbstractContextManager[None]:
        """A worker's: it waits for as long as it takes. Who waits for one that is frozen is lost with it."""
        return _FileLock(self.fd)

    def lock_within(self, most_s: float) -> AbstractContextManager[None]:
        """The fleet's, which must go on to find out who is frozen: TallyHeldError after so long."""
        return _FileLock(self.fd, most_s)

    def close(self) -> None:
        """The memory goes with the last who looks at it."""
        os.close(self.fd)


def _unlinked_file() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class TallyHeldError(HostError):
    """A load process holds the numbers that all of them share, and does not let go."""


_AGAIN_S = 0.001
"""Between two tries for a lock that is waited for within a time: the kernel knows no wait with an end."""


class _FileLock(AbstractContextManager[None]):
    """A POSIX record lock: held by a process, some microseconds at a time."""

    def __init__(self, fd: int, most_s: float | None = None) -> None:
        import fcntl  # not on Windows, where one process is all there is

        self._fd, self._lockf, self._leave, self._most_s = fd, fcntl.lockf, fcntl.LOCK_UN, most_s
        self._take = fcntl.LOCK_EX if most_s is None else fcntl.LOCK_EX | fcntl.LOCK_NB

    def __enter__(self) -> None:
        if self._most_s is None:
            self._lockf(self._fd, self._take)
            return
        until_ns = now_ns() + round(self._most_s * NS_PER_S)
        while True:
            try:
                self._lockf(self._fd, self._take)
            except (BlockingIOError, PermissionError):
                if now_ns() > until_ns:
                    told = f"a load process held what all of them count in for over {self._most_s:g} s"
                    raise TallyHeldError(told, "Run with one: --workers 1.") from None
                time.sleep(_AGAIN_S)
            else:
                return

    def __exit__(self, *_: object) -> None:
        self._lockf(self._fd, self._leave)


def users_of(part: Part, concurrency: int) -> Iterator[int]:
    """The users that are a part's own."""
    return iter(range(part.number, concurrency, part.of))
