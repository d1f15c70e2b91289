"""When bytes reached this machine: the kernel's receive time, moved to the monotonic clock.

The kernel stamps packets with the real-time clock (SO_TIMESTAMPNS); arrival = stamp - (real now - monotonic now). Both
clocks are looked at in every read; while they stand as far apart as they did (`_STEADY_NS`) the known offset holds, so
neither a slew nor a step goes unseen for longer than a read. Otherwise it is measured as a network clock is: the
real-time clock between two looks at the monotonic one, again when we were interrupted between them, so it is wrong by
at most half of `_WINDOW_NS`. If it moved by more than a slew can between two reads, or the stamp lies after the read,
the real-time clock was set meanwhile: that read takes the monotonic now instead, as it does when no undisturbed look
at both clocks was to be had.

A socket keeps one stamp for all that waits in it, the last one. So a stamp is the arrival of an event only if each
event is read before its successor comes; `orchestrator.load.health` counts the reads for which that may not hold.
"""

from __future__ import annotations

import socket
import struct
import sys
import time

from orchestrator.clock import now_ns
from orchestrator.host import SO_TIMESTAMPNS

_TIMESPEC = struct.Struct("@qq")
_SPACE = socket.CMSG_SPACE(_TIMESPEC.size) if hasattr(socket, "CMSG_SPACE") else 0
READ_BYTES = 64 * 1024
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


class StampedReader:
    """Non-blocking reads from one socket. `kernel=False` never asks the kernel (to compare with)."""

    def __init__(self, sock: socket.socket, *, kernel: bool = True) -> None:
        self._sock = sock
        self._offset_ns: int | None = None
        self._offset_at_ns = 0
        self._kernel = kernel and _enable(sock)

    def read(self) -> Read:
        """Raises BlockingIOError when there is nothing, and OSError as recv does."""
        if not self._kernel:
            data = self._sock.recv(READ_BYTES)
            return data, now_ns(), False
        data, ancillary, _, _ = self._sock.recvmsg(READ_BYTES, _SPACE)
        mono = now_ns()
        for level, kind, value in ancillary:
            if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS and len(value) >= _TIMESPEC.size:
                seconds, nanoseconds = _TIMESPEC.unpack_from(value)
                stamp_real = seconds * 1_000_000_000 + nanoseconds
                known = self._offset_ns
                if known is not None and -_STEADY_NS < time.time_ns() - mono - known < _STEADY_NS:
                    self._offset_at_ns = mono
                    stamp = stamp_real - known
                    if stamp <= mono:
                        return data, stamp, True
                return self._moved(data, mono, stamp_real)
        return data, mono, False

    def _moved(self, data: bytes, mono: int, stamp_real: int) -> Read:
        """The read after a new look at both clocks."""
        offset = clock_offset_ns()
        if offset is None:
            return data, mono, False
        known, since = self._offset_ns, mono - self._offset_at_ns
        self._offset_ns, self._offset_at_ns = offset, mono
        stamp = stamp_real - offset
        if stamp > mono + _WINDOW_NS or (known is not None and abs(offset - known) > _STEP_NS + since * _MAX_SLEW):
            return data, mono, False
        return data, min(stamp, mono), True


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
