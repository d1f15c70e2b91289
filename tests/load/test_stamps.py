"""Arrival times: right where the kernel stamps, and refused where they cannot be trusted."""

from __future__ import annotations

import itertools
import socket
import struct
import sys
import time

import pytest

from orchestrator.clock import now_ns
from orchestrator.host import SO_TIMESTAMPNS
from orchestrator.load import stamps
from orchestrator.load.stamps import (
    CONTROL_BYTES,
    RealClock,
    StampsKept,
    arrivals,
    clock_offset_ns,
    stamp_reads,
    user_stamp,
)

NOW, OFFSET = 5_000_000_000, 1_700_000_000_000_000_000
"""Monotonic now, and real-time minus monotonic, in ns."""


class Clocks:
    """Both clocks, in our hands: each look costs `look_ns`; interruptions come before the looks that they name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, interruptions: dict[int, int] | None = None) -> None:
        self.mono, self.offset, self.looks = NOW, OFFSET, 0
        self.interruptions = interruptions or {}
        monkeypatch.setattr(stamps, "now_ns", self.look)
        monkeypatch.setattr(time, "time_ns", lambda: self.look() + self.offset)

    def look(self) -> int:
        self.mono += 100 + self.interruptions.get(self.looks, 0)
        self.looks += 1
        return self.mono


class Stamped:
    """A socket whose kernel stamps each read with the next of `stamps_real`."""

    family = socket.AF_INET

    def __init__(self, *stamps_real: int) -> None:
        self.stamps_real = iter(stamps_real)

    def setsockopt(self, *_: int) -> None: ...

    def recvmsg(self, _size: int, _space: int) -> tuple[bytes, list[tuple[int, int, bytes]], int, None]:
        stamp = struct.pack("@qq", *divmod(next(self.stamps_real), 1_000_000_000))
        return b"data", [(socket.SOL_SOCKET, SO_TIMESTAMPNS, stamp)], 0, None


class Reading:
    """Reads of one socket, each in a round of its own."""

    def __init__(self, sock: Stamped | socket.socket) -> None:
        self.recvmsg, self.clock = sock.recvmsg, RealClock()

    def read(self) -> tuple[bytes, int, bool]:
        """What came, when, and whether the kernel says so."""
        reads = self.clock.begin()
        piece, control, _, _ = self.recvmsg(1024, CONTROL_BYTES)
        self.clock.see(reads)
        (arrival,), kernel = arrivals(control[0][2] if control else user_stamp(), [reads])
        return piece, arrival, kernel


def reader(*came: int) -> Reading:
    return Reading(Stamped(*(at + OFFSET for at in came)))


@pytest.fixture(autouse=True)
def linux() -> None:
    if sys.platform != "linux":
        pytest.skip("kernel receive times are Linux's")


def test_a_stamp_is_moved_to_the_monotonic_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    Clocks(monkeypatch)
    _, arrival, by_kernel = reader(NOW - 3_000_000).read()
    assert by_kernel
    assert abs(arrival - (NOW - 3_000_000)) <= 100


@pytest.mark.parametrize("look", [1, 2, 3])
def test_an_interruption_between_the_clocks_moves_no_stamp(monkeypatch: pytest.MonkeyPatch, look: int) -> None:
    """10 ms without the processor between two looks would put the arrival 10 ms too early: before it was sent."""
    Clocks(monkeypatch, {look: 10_000_000})
    _, arrival, by_kernel = reader(NOW - 3_000_000).read()
    assert by_kernel
    assert abs(arrival - (NOW - 3_000_000)) <= stamps._WINDOW_NS


def test_interrupted_each_time_it_takes_the_time_of_the_read(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = Clocks(monkeypatch, dict.fromkeys(range(1, 20), 10_000_000))
    _, arrival, by_kernel = reader(NOW - 3_000_000).read()
    assert (by_kernel, NOW < arrival <= clocks.mono) == (False, True)


@pytest.mark.parametrize("step_ns", [-50_000_000, 50_000_000, 3_600_000_000_000])
def test_a_clock_that_was_set_gives_no_stamp(monkeypatch: pytest.MonkeyPatch, step_ns: int) -> None:
    clocks = Clocks(monkeypatch)
    reading = reader(NOW - 1_000, NOW, NOW + 2_000)
    assert reading.read()[2]
    clocks.offset += step_ns
    _, arrival, by_kernel = reading.read()
    assert (by_kernel, NOW <= arrival <= NOW + 10_000) == (False, True)


def test_a_slew_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = Clocks(monkeypatch)
    came = [NOW + n * 1_000_000_000 for n in range(1, 60)]
    slewed = Reading(Stamped(*(at + OFFSET + n * 500_000 for n, at in enumerate(came, 1))))
    for n, at in enumerate(came, 1):
        clocks.mono, clocks.offset = at + 20_000, OFFSET + n * 500_000
        _, arrival, by_kernel = slewed.read()
        assert by_kernel
        assert abs(arrival - at) <= 200


def test_no_arrival_is_later_than_its_read(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = Clocks(monkeypatch)
    _, arrival, by_kernel = reader(NOW + 2_000).read()
    assert (by_kernel, NOW < arrival <= clocks.mono) == (True, True)


def test_the_real_clocks_offset_is_steady() -> None:
    """Two looks 100 microseconds apart, on this machine's clocks: within the window, unless one was set between."""
    found = [offset for _ in range(200) if (offset := clock_offset_ns()) is not None]
    assert len(found) > 100
    steps = [abs(b - a) for a, b in itertools.pairwise(found)]
    assert sorted(steps)[len(steps) // 2] <= stamps._WINDOW_NS


def test_over_loopback_an_arrival_lies_between_send_and_read() -> None:
    kept = StampsKept()
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as end:
        assert stamp_reads(end)
        reading = Reading(end)
        accepted, _ = listener.accept()
        with accepted:
            for _ in range(200):
                sent = now_ns()
                accepted.sendall(b"x")
                data, arrival, _ = reading.read()
                assert data == b"x"
                assert sent - stamps._WINDOW_NS <= arrival <= now_ns()
    kept.close()


def test_reads_of_several_rounds_are_told_as_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once where all is as usual, one by one where a stamp is missing; the offset differs from round to round."""
    clocks, clock = Clocks(monkeypatch), RealClock()
    rounds, came = [], []
    for _ in range(20):
        clocks.mono += 20_000_000
        clocks.offset += 2_000
        came.append(clocks.mono - 1_000_000)
        rounds.append(clock.begin())
        clock.see(rounds[-1])
    offsets = [OFFSET + 2_000 * n for n in range(1, 21)]
    raw = [struct.pack("@qq", *divmod(at + offset, 1_000_000_000)) for at, offset in zip(came, offsets, strict=True)]
    assert len({reads.offset_ns for reads in rounds}) == 20
    at_once, by_kernel = arrivals(b"".join(raw), rounds)
    assert by_kernel
    assert all(abs(found - at) <= 100 for found, at in zip(at_once, came, strict=True))
    own = user_stamp()
    assert arrivals(b"".join([*raw[:-1], own]), rounds) == ([*at_once[:-1], clocks.mono], False)
