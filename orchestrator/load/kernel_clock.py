"""Receive times of the kernel, moved to the monotonic clock.

The kernel stamps packets with CLOCK_REALTIME. Both clocks are slewed alike, so their difference is constant until
somebody *sets* the real-time clock. `KernelClock.refresh` looks at the difference before every batch of reads and when
a response ends: one reading of the real-time clock between two of the monotonic clock bounds it, and if the known
difference lies outside, the clock was set. Whoever was being timed then uses the times of its reads instead, so no
clock step can enter a result.
"""

from __future__ import annotations

import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable

from orchestrator.clock import NS_PER_S, now_ns

SO_TIMESTAMPNS = 35
"""Linux, asm-generic/socket.h; Python's socket module does not name it."""
_TIMESPEC = struct.Struct("@ll")
CONTROL_BYTES = socket.CMSG_SPACE(_TIMESPEC.size) if hasattr(socket, "CMSG_SPACE") else 0
_TOLERANCE_NS = 2_000
"""Two reads of a clock may come out this much apart for no reason; a smaller step harms no result."""
_FIRST_READINGS = 15


def wall_ns() -> int:
    """CLOCK_REALTIME in ns, as the kernel stamps packets with it."""
    return time.clock_gettime_ns(time.CLOCK_REALTIME)


class KernelClock:
    """Turns a receive stamp of the kernel into ns of CLOCK_MONOTONIC. `steps` counts how often the clock was set."""

    __slots__ = ("_monotonic", "_real", "offset_ns", "steps")

    def __init__(self, monotonic: Callable[[], int] = now_ns, real: Callable[[], int] = wall_ns) -> None:
        self._monotonic = monotonic
        self._real = real
        self.steps = 0
        self.offset_ns = self._measure()
        """CLOCK_REALTIME - CLOCK_MONOTONIC."""

    def refresh(self) -> None:
        """Notice whether the real-time clock was set since the last call."""
        low, high = self._bracket()
        if low - _TOLERANCE_NS <= self.offset_ns <= high + _TOLERANCE_NS:
            return
        self.steps += 1
        self.offset_ns = self._measure()

    def _bracket(self) -> tuple[int, int]:
        before = self._monotonic()
        real = self._real()
        return real - self._monotonic(), real - before

    def _measure(self) -> int:
        low, high = min((self._bracket() for _ in range(_FIRST_READINGS)), key=lambda b: b[1] - b[0])
        return (low + high) // 2


def stamp_of(control: Iterable[tuple[int, int, bytes]]) -> int | None:
    """The receive stamp in the control messages of a read, ns of CLOCK_REALTIME; None if there is none."""
    for level, kind, data in control:
        if kind == SO_TIMESTAMPNS and level == socket.SOL_SOCKET and len(data) == _TIMESPEC.size:
            whole, fraction = _TIMESPEC.unpack(data)
            return int(whole * NS_PER_S + fraction)
    return None


def ask_for_stamps(connection: socket.socket) -> bool:
    """Ask the kernel to stamp what this socket receives. False where it cannot."""
    if sys.platform != "linux":
        return False
    try:
        connection.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    except OSError:
        return False
    return True


class StampsKept:
    """Keeps the kernel's stamping switched on. It is switched on with the first socket that asks, but a moment later:
    without this the first packets of a run would have no stamp."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.possible = ask_for_stamps(self._socket)

    def close(self) -> None:
        self._socket.close()
