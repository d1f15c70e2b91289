"""When bytes reached this machine: the kernel's receive time, moved to the monotonic clock.

The kernel stamps packets with the real-time clock (SO_TIMESTAMPNS); arrival = stamp - (real now - monotonic now). That
offset is measured anew at every read, so a slew cannot add up. It is measured as a network clock is: the real-time
clock between two looks at the monotonic one, again when we were interrupted between them, so it is wrong by at most
half of `_WINDOW_NS`. If it moved by more than a slew can between two reads, or the stamp lies after the read, the
real-time clock was set meanwhile: that read takes the monotonic now instead, as it does when no undisturbed look at
both clocks was to be had.
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
                return self._moved(data, mono, seconds * 1_000_000_000 + nanoseconds)
        return data, mono, False

    def _moved(self, data: bytes, mono: int, stamp_real: int) -> Read:
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
