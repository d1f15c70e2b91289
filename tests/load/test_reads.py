"""The poller on real sockets: every byte, its end, and when it looks again."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Awaitable, Callable

import pytest

from orchestrator.clock import NS_PER_MS, now_ns
from orchestrator.load.reads import LONG_ROOM, MOST_READS, WAITS, Kept, Poller
from orchestrator.load.stamps import RealClock

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="epoll is Linux's")


class Reader:
    """Takes what the poller read of one end of a connection, and wakes whoever waits for it."""

    def __init__(self, poller: Poller, sock: socket.socket) -> None:
        self.poller, self.kept = poller, Kept(sock.recvmsg, self)
        self.data = b""
        self.ended = False
        self.looks = 0
        self.news = asyncio.Event()

    def on_reads(self) -> None:
        data, sizes, at_ns, _ = self.poller.take(self.kept)
        assert len(sizes) == len(at_ns) > 0
        assert sum(sizes) == len(data)
        self.data += data
        self.looks += 1
        self.news.set()

    def on_end(self) -> None:
        self.ended = True
        self.news.set()

    def on_error(self, error: OSError) -> None:
        raise error

    async def until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not done():
                self.news.clear()
                await self.news.wait()


Scenario = Callable[[Poller, Reader, socket.socket, socket.socket], Awaitable[None]]


def play(scenario: Scenario) -> None:
    """One connection, our end not watched yet."""

    async def run() -> None:
        poller = Poller(asyncio.get_running_loop(), RealClock())
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ours = socket.create_connection(listener.getsockname())
            theirs, _ = listener.accept()
        with ours, theirs:
            ours.setblocking(False)
            await scenario(poller, Reader(poller, ours), ours, theirs)
            poller.close()

    asyncio.run(run())


def test_what_came_before_and_its_end_are_told_once() -> None:
    async def scenario(poller: Poller, reader: Reader, ours: socket.socket, theirs: socket.socket) -> None:
        theirs.sendall(b"all of it")
        theirs.shutdown(socket.SHUT_WR)
        poller.watch(ours, reader.kept)
        await reader.until(lambda: reader.ended)
        assert reader.data == b"all of it"

    play(scenario)


def test_more_than_one_turn_reads_is_read_in_several() -> None:
    size = 3 * MOST_READS * LONG_ROOM

    async def scenario(poller: Poller, reader: Reader, ours: socket.socket, theirs: socket.socket) -> None:
        poller.watch(ours, reader.kept)
        theirs.setblocking(False)
        sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(theirs, bytes(size)))
        await reader.until(lambda: len(reader.data) == size)
        await sending

    play(scenario)


def test_reads_are_kept_until_there_are_enough_or_one_may_be_the_end() -> None:
    async def scenario(poller: Poller, reader: Reader, ours: socket.socket, theirs: socket.socket) -> None:
        reader.kept.at_most = 3
        poller.watch(ours, reader.kept)
        for number, looks in ((1, 0), (2, 0), (3, 1), (4, 1)):
            theirs.sendall(b"an event\n\n")
            while len(reader.data) + 10 * len(reader.kept.pieces) < 10 * number:  # noqa: ASYNC110 - it is not told
                await asyncio.sleep(0)
            assert reader.looks == looks
        theirs.sendall(b"0\r\n\r\n")
        await reader.until(lambda: reader.looks == 2)
        assert reader.data == b"an event\n\n" * 4 + b"0\r\n\r\n"

    play(scenario)


def test_a_socket_that_nobody_reads_keeps_its_bytes_for_the_next() -> None:
    async def scenario(poller: Poller, reader: Reader, ours: socket.socket, theirs: socket.socket) -> None:
        poller.watch(ours, reader.kept)
        theirs.sendall(b"first")
        await reader.until(lambda: reader.data == b"first")
        poller.ignore(ours)
        theirs.sendall(b"second")
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert reader.data == b"first"
        poller.watch(ours, reader.kept)
        await reader.until(lambda: reader.data == b"firstsecond")

    play(scenario)


@pytest.mark.parametrize(("gap_ms", "pause_ms"), [(2, 0), (7, 0), (9, 1), (40, 2), (400, 2)])
def test_the_pause_is_a_small_part_of_the_gap_between_tokens(gap_ms: int, pause_ms: int) -> None:
    async def scenario(poller: Poller, reader: Reader, ours: socket.socket, theirs: socket.socket) -> None:
        del WAITS[:]
        clock = RealClock()
        for _ in range(100):
            reads = clock.begin()
            clock.see(reads)
            assert reads.offset_ns is not None
            real = reads.seen_ns + reads.offset_ns - 40 * gap_ms * NS_PER_MS
            for n in range(40):
                stamp = divmod(real + n * gap_ms * NS_PER_MS, 1_000_000_000)
                reader.kept.pieces.append(b"x")
                reader.kept.stamps.append(b"".join(part.to_bytes(8, sys.byteorder) for part in stamp))
                reader.kept.rounds.append(reads)
            poller.take(reader.kept)
        assert poller.pause_ms == pause_ms
        assert len(WAITS) == 100
        assert min(WAITS) >= gap_ms * NS_PER_MS  # the last of them had waited since then

    play(scenario)


def test_with_a_pause_nothing_is_lost() -> None:
    async def scenario(poller: Poller, reader: Reader, ours: socket.socket, theirs: socket.socket) -> None:
        poller._gap_ns = 1_000 * NS_PER_MS
        poller.watch(ours, reader.kept)
        began = now_ns()
        for number in range(1, 30):
            theirs.sendall(b"x" * 100)
            await asyncio.sleep(0.003 if number % 10 == 0 else 0)
        await reader.until(lambda: len(reader.data) == 2900)
        theirs.shutdown(socket.SHUT_WR)
        await reader.until(lambda: reader.ended)
        assert now_ns() > began

    play(scenario)
