"""The hot path: what is ready is read, stamped and kept; everything else happens later, for many reads at once.

One epoll for all connections of a transport, known to the event loop as one file that becomes readable: a turn of the
loop reads every socket that is ready, with no handle, no context and no call of ours between two reads. It tells only
of new bytes (edge-triggered), so a socket is read until it is empty. Waking up costs more than a read, and a stamp of
the kernel does not mind a late one: where the tokens of a stream come slowly enough, a round is followed by a pause of
a small part of the gap between them. A stream that is fast, or of which nothing is known yet, is read at once.

A response looks at its reads when one of them may be its end, when it has kept `KEPT_READS`, or at each one as long as
it asked for that.
"""

from __future__ import annotations

import asyncio
import operator
import select
import socket
from array import array
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from orchestrator.clock import NS_PER_MS
from orchestrator.load.stamps import CONTROL_BYTES, RealClock, Round, arrivals, user_stamp

KEPT_READS = 64
"""A response looks at this many reads at once, at most: a tenth of a millisecond's work."""
SHORT_BYTES = 4
"""A read of no more is looked at when it comes."""
SMALL_ROOM, USUAL_ROOM, LONG_ROOM = 479, 2048, 64 * 1024
"""Bytes that are asked for: the least while the reads of a stream stay below it (Python's allocator for small objects
serves those), the most by a read that follows one which filled its room."""
MOST_READS = 16
"""So many long reads are made of one socket before the others have their turn."""
AT_ONCE = 256
"""So many sockets are read before the loop does something else: one or two milliseconds' work."""
WAITS = array("q")
"""How long bytes had waited in their socket when they were read, ns: a sample, the last read of those looked at
together. Without a kernel stamp, how long since the round began: its known part."""
PAUSE_GAPS, LONGEST_PAUSE_MS = 8, 2
"""A pause between two rounds is this part of the gap between a stream's tokens, in whole ms, none below one."""
TELLING_READS = 32
"""So many reads that are looked at together tell the gap."""
_CR = 13
_READABLE = 1
"""EPOLLIN, and nothing else: no end, no error."""

ReadMessage = Callable[[int, int], tuple[bytes, Sequence[tuple[int, int, bytes]], int, Any]]
"""As `socket.recvmsg`."""


class Reader(Protocol):
    """Whose reads they are."""

    def on_reads(self) -> None:
        """There are reads to look at, none of them empty."""

    def on_end(self) -> None:
        """The server closed."""

    def on_error(self, error: OSError) -> None:
        """The connection broke."""


class Kept:
    """Reads of one response that it has not looked at, oldest first."""

    __slots__ = ("at_most", "pieces", "reader", "recvmsg", "room", "rounds", "stamps")

    def __init__(self, recvmsg: ReadMessage, reader: Reader) -> None:
        self.recvmsg = recvmsg
        self.reader = reader
        self.pieces: list[bytes] = []
        self.stamps: list[bytes] = []
        """As `stamps.arrivals` takes them."""
        self.rounds: list[Round] = []
        self.room = USUAL_ROOM
        self.at_most = 1
        """It looks at its reads when there are so many."""

    def read(self, size: int, reads: Round) -> int:
        """One read; its length. Raises as `socket.recvmsg` does."""
        piece, control, _, _ = self.recvmsg(size, CONTROL_BYTES)
        if piece:
            self.pieces.append(piece)
            self.stamps.append(control[0][2] if control else user_stamp())
            self.rounds.append(reads)
        return len(piece)

    @property
    def is_due(self) -> bool:
        """The last read may be the end of the response or is a long one, or there are enough of them."""
        last = self.pieces[-1]
        return not SHORT_BYTES < len(last) < USUAL_ROOM or last[-4] == _CR or len(self.pieces) >= self.at_most


class Poller:
    """Reads every socket that it watches when bytes come, for the one whose response it is."""

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: RealClock) -> None:
        self._loop = loop
        self._pause: asyncio.TimerHandle | None = None
        self._gap_ns = 0
        """Between the reads of a stream, as they were of late; 0 = not known."""
        self._clock = clock
        self._kept: dict[int, Kept] = {}
        self._known: set[int] = set()
        self._epoll = select.epoll() if hasattr(select, "epoll") else None
        if self._epoll is not None:
            self._flags = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
            loop.add_reader(self._epoll.fileno(), self._on_ready)

    def watch(self, sock: socket.socket, kept: Kept) -> None:
        """From now on its reads are kept there; bytes that wait in it are told too."""
        descriptor = sock.fileno()
        self._kept[descriptor] = kept
        if self._epoll is None:
            self._loop.add_reader(descriptor, self._read_all, [(descriptor, _READABLE)])
        elif descriptor in self._known:
            self._epoll.modify(descriptor, self._flags)
        else:
            self._known.add(descriptor)
            self._epoll.register(descriptor, self._flags)

    def ignore(self, sock: socket.socket) -> None:
        """Nobody reads it now."""
        if self._kept.pop(sock.fileno(), None) is not None and self._epoll is None:
            self._loop.remove_reader(sock.fileno())

    def close_socket(self, sock: socket.socket) -> None:
        """Close it; its number may come again."""
        self.ignore(sock)
        self._known.discard(sock.fileno())
        sock.close()

    def close(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
        if self._epoll is not None:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()

    def take(self, kept: Kept) -> tuple[bytes, Sequence[int], Sequence[int], bool]:
        """The bytes of all reads, the length of each, its arrival (ns of CLOCK_MONOTONIC), and whether the kernel
        stamped them all."""
        last = kept.rounds[-1]
        self._clock.see(last)
        at_ns, kernel = arrivals(b"".join(kept.stamps), kept.rounds)
        WAITS.append(last.seen_ns - (at_ns[-1] if kernel else last.begun_ns))
        if kernel and len(at_ns) >= TELLING_READS:
            gaps = sorted(map(operator.sub, at_ns[1:], at_ns))
            self._gap_ns += (gaps[len(gaps) // 8] - self._gap_ns) // 8
        data, sizes = b"".join(kept.pieces), list(map(len, kept.pieces))
        kept.pieces.clear()
        kept.stamps.clear()
        kept.rounds.clear()
        kept.room = SMALL_ROOM if max(sizes) < SMALL_ROOM else USUAL_ROOM
        return data, sizes, at_ns, kernel

    # --- a round ------------------------------------------------------------------------------------------------

    @property
    def pause_ms(self) -> int:
        """Between two rounds; 0 = a round whenever bytes come."""
        return min(LONGEST_PAUSE_MS, self._gap_ns // (PAUSE_GAPS * NS_PER_MS))

    def _on_ready(self) -> None:
        assert self._epoll is not None
        self._read_all(self._epoll.poll(0, AT_ONCE))
        if pause_ms := self.pause_ms:
            self._loop.remove_reader(self._epoll.fileno())
            self._pause = self._loop.call_later(pause_ms / 1000, self._on_pause_over)

    def _on_pause_over(self) -> None:
        """Pauses go on as long as each lets several reads gather."""
        assert self._epoll is not None
        ready = self._epoll.poll(0, AT_ONCE)
        if ready:
            self._read_all(ready)
        pause_ms = self.pause_ms if len(ready) > 1 else 0
        if pause_ms:
            pause_s = 0.0 if len(ready) == AT_ONCE else pause_ms / 1000
            self._pause = self._loop.call_later(pause_s, self._on_pause_over)
        else:
            self._pause = None
            self._loop.add_reader(self._epoll.fileno(), self._on_ready)

    def _read_all(self, ready: list[tuple[int, int]]) -> None:
        """The hot path. Inlined: what is called here is called for every token of every stream."""
        reads = self._clock.begin()
        kept_of = self._kept.get
        for descriptor, events in ready:
            kept = kept_of(descriptor)
            if kept is None:
                continue
            room = kept.room
            try:
                piece, control, _, _ = kept.recvmsg(room, CONTROL_BYTES)
            except (BlockingIOError, InterruptedError):
                continue
            except OSError as error:
                kept.reader.on_error(error)
                continue
            length = len(piece)
            if length:
                pieces = kept.pieces
                pieces.append(piece)
                kept.stamps.append(control[0][2] if control else user_stamp())
                kept.rounds.append(reads)
                if (
                    SHORT_BYTES < length < room
                    and events == _READABLE
                    and piece[-4] != _CR
                    and len(pieces) < kept.at_most
                ):
                    continue
            drained = length < room and events == _READABLE
            self._read_on(descriptor, kept, reads, ended=not length, drained=drained)
        self._clock.see(reads)

    def _read_on(self, descriptor: int, kept: Kept, reads: Round, *, ended: bool, drained: bool) -> None:
        """Read the socket until it is empty, then let the reader look if it should."""
        error: OSError | None = None
        if not ended and not drained:
            try:
                ended = self._read_rest(descriptor, kept, reads)
            except OSError as broken:
                error = broken
        if kept.pieces and (ended or error is not None or kept.is_due):
            kept.reader.on_reads()
        if error is not None:
            kept.reader.on_error(error)
        elif ended:
            kept.reader.on_end()

    def _read_rest(self, descriptor: int, kept: Kept, reads: Round) -> bool:
        """Whether the end of the stream came. Raises OSError."""
        room = kept.room = USUAL_ROOM
        for _ in range(MOST_READS):
            try:
                if not kept.read(room, reads):
                    return True
            except (BlockingIOError, InterruptedError):
                return False
            room = LONG_ROOM
        if self._epoll is not None:
            self._epoll.modify(descriptor, self._flags)  # tell again of what is left
        return False
