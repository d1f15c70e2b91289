"""When bytes reached this machine: the kernel's receive time, moved to the monotonic clock.

The kernel stamps packets with the real-time clock (SO_TIMESTAMPNS); arrival = stamp - (real now - monotonic now). Reads
come in rounds (reads.py), and both clocks are looked at before and after each round. While they stand as far apart as
they did (`_STEADY_NS`), the known offset holds. Otherwise it is measured as a network clock is: the real-time clock
between two looks at the monotonic one, again when we were interrupted between them, so it is wrong by at most half of
`_WINDOW_NS`. A slew is followed that way. If the offset moved by more than a slew can, the real-time clock was set: no
stamp of that round, and none from before that moment, is used. A read without a usable stamp takes the time of its
round's end, or the monotonic now where the kernel gives none, and says so.

A socket keeps one stamp for all that waits in it, that of the last packet. So the stamp of an event is its own if the
event was read before its successor came.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import time
from array import array
from collections.abc import Sequence

from orchestrator.clock import now_ns
from orchestrator.host import SO_TIMESTAMPNS

_TIMESPEC = struct.Struct("@qq")
CONTROL_BYTES = socket.CMSG_SPACE(_TIMESPEC.size) if hasattr(socket, "CMSG_SPACE") else 0
"""Room for a stamp, as `recvmsg` takes it."""
_STEADY_NS = 1_000
"""Two looks that follow each other lie 0.1 to 0.3 us apart, so clocks that seem this much apart more have not moved."""
_STEP_NS = 100_000
"""More than the clocks can drift apart between two looks by slewing (500 ppm over 100 ms is 50 us), plus scheduling."""
_MAX_SLEW = 0.001
_WINDOW_NS = 5_000
"""The two looks at the monotonic clock lie this close together; undisturbed they are 0.1 to 0.3 us apart."""
_LOOKS = 4

_USER = -1
"""In place of the seconds of a stamp that is none of the kernel's."""


def user_stamp() -> bytes:
    """The monotonic now in the form of a stamp, for a read that the kernel did not stamp."""
    return _TIMESPEC.pack(_USER, now_ns())


class Round:
    """Reads that were made one after another, between two looks at the clocks."""

    __slots__ = ("begun_ns", "offset_ns", "seen_ns", "set_ns")

    def __init__(self, begun_ns: int, offset_ns: int | None, set_ns: int) -> None:
        self.begun_ns = begun_ns
        self.offset_ns = offset_ns
        """Real-time clock minus monotonic clock; None = not known, or the clock was set meanwhile."""
        self.set_ns = set_ns
        """No kernel stamp from before this is worth anything."""
        self.seen_ns = begun_ns
        """The last look at the clocks: its reads up to then were made by then."""

    def arrival(self, seconds: int, nanoseconds: int) -> tuple[int, bool]:
        """Arrival of one of its reads by its stamp, ns of CLOCK_MONOTONIC, and whether the kernel told it."""
        if seconds == _USER:
            return nanoseconds, False
        if self.offset_ns is None:
            return self.seen_ns, False
        at_ns = seconds * 1_000_000_000 + nanoseconds - self.offset_ns
        if self.set_ns <= at_ns <= self.seen_ns:
            return at_ns, True
        return self.seen_ns, self.set_ns < self.seen_ns < at_ns <= self.seen_ns + _WINDOW_NS


class RealClock:
    """How far the real-time clock stands before the monotonic one, as far as stamps need to know."""

    __slots__ = ("_offset_ns", "_seen_ns", "_set_ns")

    def __init__(self) -> None:
        self._offset_ns: int | None = None
        self._seen_ns = 0
        """When the offset was last seen to hold."""
        self._set_ns = 0
        """When it was last seen that the clock had been set."""

    def begin(self) -> Round:
        """A round of reads begins now."""
        mono = now_ns()
        offset = self._offset_ns
        if offset is not None and -_STEADY_NS < time.time_ns() - mono - offset < _STEADY_NS:
            self._seen_ns = mono
        else:
            offset = self._look(mono)
        return Round(mono, offset, self._set_ns)

    def see(self, reads: Round) -> None:
        """Its reads so far are over: did the clocks stay as they were?"""
        mono = reads.seen_ns = now_ns()
        offset = reads.offset_ns
        if offset is None or -_STEADY_NS < time.time_ns() - mono - offset < _STEADY_NS:
            return
        if self._look(mono) is None or self._set_ns > reads.set_ns:
            reads.offset_ns = None

    def _look(self, mono: int) -> int | None:
        """Measure the offset anew; None if that did not succeed."""
        offset = clock_offset_ns()
        if offset is None:
            return None
        known, since = self._offset_ns, mono - self._seen_ns
        if known is not None and abs(offset - known) > _STEP_NS + since * _MAX_SLEW:
            self._set_ns = mono
        self._offset_ns, self._seen_ns = offset, mono
        return offset


def arrivals(stamps: bytes, rounds: Sequence[Round]) -> tuple[list[int], bool]:
    """Arrival of each read, ns of CLOCK_MONOTONIC, and whether the kernel told them all.

    `stamps`: of one read behind the other, as the kernel gives them (a timespec of the real-time clock) or as
    `user_stamp` does; `rounds`: in which each was made.
    """
    last = rounds[-1]
    parts = array("q", stamps)
    with contextlib.suppress(TypeError):  # an offset that is not known
        at_ns = [
            s * 1_000_000_000 + ns - reads.offset_ns  # type: ignore[operator]
            for s, ns, reads in zip(parts[::2], parts[1::2], rounds, strict=True)
        ]
        if last.set_ns <= min(at_ns) and max(at_ns) <= last.seen_ns:
            return at_ns, True
    found = [reads.arrival(*stamp) for *stamp, reads in zip(parts[::2], parts[1::2], rounds, strict=True)]
    return [at for at, _ in found], all(kernel for _, kernel in found)


def clock_offset_ns() -> int | None:
    """Real-time clock minus monotonic clock, now, right to `_WINDOW_NS` / 2; None if we were interrupted each time."""
    for _ in range(_LOOKS):
        before = now_ns()
        real = time.time_ns()
        after = now_ns()
        if after - before <= _WINDOW_NS:
            return real - (before + after) // 2
    return None


class StampsKept:
    """Keeps the kernel's stamping switched on. The kernel switches it on for all with the first socket that asks, but a
    moment later: without this the first answers of a run would have no stamp."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        if sys.platform == "linux" and stamp_reads(self._socket):
            self._await_first()

    def _await_first(self) -> None:
        """Send ourselves datagrams until one comes back stamped: that is the only way to see it; 50 ms at most."""
        self._socket.bind(("127.0.0.1", 0))
        self._socket.settimeout(0.01)
        give_up_ns = now_ns() + 50_000_000
        while now_ns() < give_up_ns:
            try:
                self._socket.sendto(b"?", self._socket.getsockname())
                _, ancillary, _, _ = self._socket.recvmsg(1, CONTROL_BYTES)
            except OSError:  # no loopback, or nothing came: the records will say which stamps they have
                return
            if ancillary:
                return

    def close(self) -> None:
        self._socket.close()


def stamp_reads(sock: socket.socket) -> bool:
    """Ask the kernel to stamp what comes; False if it does not for such a socket."""
    if sys.platform != "linux" or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    except OSError:
        return False
    return True
