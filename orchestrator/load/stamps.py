"""When bytes reached this machine: the kernel's receive time, moved to the monotonic clock.

The kernel stamps packets with the real-time clock (SO_TIMESTAMPNS); arrival = stamp - (real now - monotonic now). Both
clocks are looked at in every read. While they stand as far apart as they did (`_STEADY_NS`), the known offset holds.
Otherwise it is measured as a network clock is: the real-time clock between two looks at the monotonic one, again when
we were interrupted between them, so it is wrong by at most half of `_WINDOW_NS`. A slew is followed that way. If the
offset moved by more than a slew can since the last read, the real-time clock was set: no stamp from before that moment
is used. A read without a usable stamp takes the monotonic now, as it does where the kernel gives none, and says so.

A socket keeps one stamp for all that waits in it, that of the last packet. So the stamp of an event is its own if the
event was read before its successor came.
"""

from __future__ import annotations

import socket
import struct
import sys
import time

from orchestrator.clock import now_ns
from orchestrator.host import SO_TIMESTAMPNS

_TIMESPEC = struct.Struct("@qq")
_unpack = _TIMESPEC.unpack
_SPACE = socket.CMSG_SPACE(_TIMESPEC.size) if hasattr(socket, "CMSG_SPACE") else 0
READ_BYTES = 16 * 1024
_STEADY_NS = 1_000
"""Two looks that follow each other lie 0.1 to 0.3 us apart, so clocks that seem this much apart more have not moved."""
_STEP_NS = 100_000
"""More than the clocks can drift apart between two reads by slewing (500 ppm over 100 ms is 50 us), plus scheduling."""
_MAX_SLEW = 0.001
_WINDOW_NS = 5_000
"""The two looks at the monotonic clock lie this close together; undisturbed they are 0.1 to 0.3 us apart."""
_LOOKS = 4

Read = tuple[bytes, int, bool]
"""Data (empty at the end of the stream), arrival in ns of CLOCK_MONOTONIC, and whether the kernel stamped it."""


class RealClock:
    """How far the real-time clock stands before the monotonic one, as far as stamps need to know."""

    __slots__ = ("offset_ns", "seen_ns", "set_ns")

    def __init__(self) -> None:
        self.offset_ns: int | None = None
        self.seen_ns = 0
        """When the offset was last seen to hold."""
        self.set_ns = 0
        """When it was last seen that the clock had been set: no stamp from before is worth anything."""

    def look(self, mono: int) -> int | None:
        """Measure the offset anew; None if that did not succeed."""
        offset = clock_offset_ns()
        if offset is None:
            return None
        known, since = self.offset_ns, mono - self.seen_ns
        if known is not None and abs(offset - known) > _STEP_NS + since * _MAX_SLEW:
            self.set_ns = mono
        self.offset_ns, self.seen_ns = offset, mono
        return offset


class StampedReader:
    """Non-blocking reads from one socket. `kernel=False` never asks the kernel (to compare with)."""

    __slots__ = ("_clock", "_kernel", "_recvmsg", "_sock")

    def __init__(self, sock: socket.socket, *, kernel: bool = True, clock: RealClock | None = None) -> None:
        self._sock = sock
        self._clock = clock or RealClock()
        self._kernel = kernel and _enable(sock)
        self._recvmsg = sock.recvmsg if self._kernel else None

    def read(self) -> Read:
        """Raises BlockingIOError when there is nothing, and OSError as recv does."""
        if self._recvmsg is None:
            data = self._sock.recv(READ_BYTES)
            return data, now_ns(), False
        data, ancillary, _, _ = self._recvmsg(READ_BYTES, _SPACE)
        mono = now_ns()
        if not ancillary or ancillary[0][1] != SO_TIMESTAMPNS:
            return data, mono, False
        clock = self._clock
        offset = clock.offset_ns
        if offset is not None and -_STEADY_NS < time.time_ns() - mono - offset < _STEADY_NS:
            clock.seen_ns = mono
        else:
            offset = clock.look(mono)
            if offset is None:
                return data, mono, False
        seconds, nanoseconds = _unpack(ancillary[0][2])
        stamp = seconds * 1_000_000_000 + nanoseconds - offset
        if clock.set_ns <= stamp <= mono:
            return data, stamp, True
        return data, mono, clock.set_ns < mono < stamp <= mono + _WINDOW_NS


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
        if sys.platform == "linux" and _enable(self._socket):
            self._await_first()

    def _await_first(self) -> None:
        """Send ourselves datagrams until one comes back stamped: that is the only way to see it; 50 ms at most."""
        self._socket.bind(("127.0.0.1", 0))
        self._socket.settimeout(0.01)
        give_up_ns = now_ns() + 50_000_000
        while now_ns() < give_up_ns:
            try:
                self._socket.sendto(b"?", self._socket.getsockname())
                _, ancillary, _, _ = self._socket.recvmsg(1, _SPACE)
            except OSError:  # no loopback, or nothing came: the records will say which stamps they have
                return
            if ancillary:
                return

    def close(self) -> None:
        self._socket.close()


def _enable(sock: socket.socket) -> bool:
    if sys.platform != "linux" or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    except OSError:
        return False
    return True
