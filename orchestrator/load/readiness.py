"""Who is told when a socket can be read.

On Linux all sockets of a transport hang in one epoll of their own, of which the event loop sees a single descriptor:
a wake-up then costs a dictionary look-up for each socket instead of a scheduled callback, and the clocks are compared
once for all of them. Elsewhere the event loop watches each socket.
"""

from __future__ import annotations

import asyncio
import select
import sys
from collections.abc import Callable
from typing import Protocol

_MOST_EVENTS = 4096


class Readiness(Protocol):
    def add(self, fd: int, readable: Callable[[], None]) -> None: ...
    def remove(self, fd: int) -> None: ...
    def close(self) -> None: ...


class EpollReadiness:
    """One epoll for all sockets; `before` is called ahead of each batch."""

    def __init__(self, loop: asyncio.AbstractEventLoop, before: Callable[[], None]) -> None:
        self._loop = loop
        self._before = before
        self._epoll = select.epoll()
        self._readable: dict[int, Callable[[], None]] = {}
        loop.add_reader(self._epoll.fileno(), self._serve)

    def add(self, fd: int, readable: Callable[[], None]) -> None:
        self._readable[fd] = readable
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLRDHUP)

    def remove(self, fd: int) -> None:
        if self._readable.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def close(self) -> None:
        if not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()

    def _serve(self) -> None:
        ready = self._epoll.poll(0, _MOST_EVENTS)
        self._before()
        find = self._readable.get
        for fd, _ in ready:
            # One served before may have closed it.
            if (readable := find(fd)) is not None:
                readable()


class LoopReadiness:
    """The event loop watches each socket."""

    def __init__(self, loop: asyncio.AbstractEventLoop, before: Callable[[], None]) -> None:
        self._loop = loop
        self._before = before
        self._watched: set[int] = set()

    def add(self, fd: int, readable: Callable[[], None]) -> None:
        def served() -> None:
            self._before()
            readable()

        self._watched.add(fd)
        self._loop.add_reader(fd, served)

    def remove(self, fd: int) -> None:
        if fd in self._watched:
            self._watched.discard(fd)
            self._loop.remove_reader(fd)

    def close(self) -> None:
        for fd in tuple(self._watched):
            self.remove(fd)


def readiness(loop: asyncio.AbstractEventLoop, before: Callable[[], None]) -> Readiness:
    """What this platform has."""
    return EpollReadiness(loop, before) if sys.platform == "linux" else LoopReadiness(loop, before)
