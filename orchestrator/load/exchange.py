"""One response being read: what its reads tell, its deadlines, its ends."""

from __future__ import annotations

import asyncio
import ssl

import httpx
import msgspec

from orchestrator.clock import NS_PER_S, now_ns
from orchestrator.load.connection import Connection
from orchestrator.load.http1 import ProtocolError, ResponseParser
from orchestrator.load.reads import KEPT_READS, Kept, Poller
from orchestrator.records import FailureKind

PIECE_BYTES = 16 * 1024
"""A body is given out in pieces of at least this size: some 80 token events, read in a tenth of a millisecond."""


class RequestLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Time limits of one request, s; None = not limited."""

    connect_s: float = 30.0
    first_byte_s: float | None = None
    """From the send to the first byte of the answer."""
    idle_s: float | None = None
    """Between two reads of an answer that has begun."""
    total_s: float = 600.0


class TransportFailure(httpx.TransportError):
    """A request that got no whole answer; `kind` is its failure class."""

    def __init__(self, kind: FailureKind, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


class Exchange:
    """One response being read, on a connection whose socket a poller reads."""

    __slots__ = (
        "_connection", "_failure", "_head", "_kept", "_last_ns", "_limits", "_loop", "_piece", "_poller", "_sent_ns",
        "_timer", "ended", "parser",
    )  # fmt: skip

    def __init__(
        self, connection: Connection, poller: Poller, parser: ResponseParser, limits: RequestLimits, sent_ns: int
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        self._poller = poller
        self.parser = parser
        self._limits = limits
        self._sent_ns = sent_ns
        self._last_ns = sent_ns
        self._failure: TransportFailure | None = None
        self._head: asyncio.Future[None] = self._loop.create_future()
        self._piece: asyncio.Future[None] | None = None
        self.ended = False
        self._timer: asyncio.TimerHandle | None = None
        self._kept = Kept(connection.recvmsg, self)
        poller.watch(connection.sock, self._kept)
        self._arm()

    # --- what the poller tells ----------------------------------------------------------------------------------

    def on_reads(self) -> None:
        if (wrong := self._looked()) is not None:
            self._fail("protocol", wrong)
            return
        if self.parser.done:
            self._finish()
            return
        if self.parser.head_done and not self._head.done():
            self._head.set_result(None)
        if len(self.parser.arrivals.body) >= PIECE_BYTES:
            self._wake()

    def on_error(self, error: OSError) -> None:
        if isinstance(error, ssl.SSLError):
            self._fail("tls", f"the encrypted stream broke: {error.reason or error}")
        else:
            self._fail("reset", f"the connection was reset ({why(error)})")

    def on_end(self) -> None:
        if self.ended:
            return
        if self.parser.end_of_stream():
            self._finish()
        elif self.parser.first_byte_ns is None:
            self._fail("reset", "the server closed the connection without an answer")
        else:
            self._fail("truncated", "the server closed the connection before the answer was complete")

    def _look(self) -> None:
        """The parser takes the reads that were kept. Raises ProtocolError."""
        if self._kept.pieces:
            data, sizes, at_ns, kernel = self._poller.take(self._kept)
            self._last_ns = at_ns[-1]
            if not kernel:
                self.parser.arrivals.kernel = False
            self.parser.feed(data, sizes, at_ns)
            self._kept.at_most = KEPT_READS if self.parser.at_chunk else 1

    def _looked(self) -> str | None:
        """Why the reads that were kept are no answer that can be read, if so. Whatever goes wrong with them costs this
        answer alone, and not those that are read in the same round."""
        try:
            self._look()
        except ProtocolError as error:
            return str(error)
        except Exception as error:
            return f"the answer could not be read: {type(error).__name__}: {error}"[:300]
        return None

    def _wake(self) -> None:
        """Whoever waits for a piece may take what there is."""
        if self._piece is not None:
            if not self._piece.done():
                self._piece.set_result(None)
            self._piece = None

    # --- ends ---------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        self._stop()
        self.ended = True
        if not self._head.done():
            self._head.set_result(None)
        self._wake()

    def _fail(self, kind: FailureKind, detail: str) -> None:
        if self.ended:
            return
        if (wrong := self._looked()) is not None:
            kind, detail = "protocol", wrong
        self._failure = TransportFailure(kind, detail)
        self._finish()

    def _stop(self) -> None:
        self._poller.ignore(self._connection.sock)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def abandon(self) -> None:
        """Nobody waits any more: stop reading and close."""
        self._stop()
        self._looked()  # what came before counts, and this answer has failed already
        self._poller.close_socket(self._connection.sock)

    # --- deadlines ----------------------------------------------------------------------------------------------

    def _next_deadline(self) -> tuple[int, str]:
        limits = self._limits
        deadline, which = self._sent_ns + round(limits.total_s * NS_PER_S), f"no end within {limits.total_s:g} s"
        quiet = limits.first_byte_s if self.parser.first_byte_ns is None else limits.idle_s
        if quiet is not None and (soon := self._seen_ns() + round(quiet * NS_PER_S)) < deadline:
            word = "no answer" if self.parser.first_byte_ns is None else "nothing more"
            return soon, f"{word} within {quiet:g} s"
        return deadline, which

    def _seen_ns(self) -> int:
        """When bytes came last, as far as is known without a look at them."""
        return self._kept.rounds[-1].begun_ns if self._kept.rounds else self._last_ns

    def _arm(self) -> None:
        """The timer is not moved at every read: it looks again when it goes off, after an idle limit at the latest."""
        deadline, which = self._next_deadline()
        left_s = (deadline - now_ns()) / NS_PER_S
        if left_s <= 0:
            self._fail("timeout", which)
        else:
            idle_s = self._limits.idle_s
            self._timer = self._loop.call_later(left_s if idle_s is None else min(left_s, idle_s), self._arm)

    # --- what the transport awaits ------------------------------------------------------------------------------

    async def head(self) -> None:
        await self._head
        if self._failure is not None and not self.parser.head_done:
            raise self._failure

    async def piece(self) -> bytes:
        """At least `PIECE_BYTES` of the body, or what there is at its end; empty = all was given out."""
        if not self.ended and len(self.parser.arrivals.body) < PIECE_BYTES:
            self._piece = self._loop.create_future()
            await self._piece
        return self.parser.arrivals.take()

    def check(self) -> None:
        """Raises what the answer failed of."""
        if self._failure is not None:
            raise self._failure


def why(error: OSError) -> str:
    """What the system says of it."""
    return error.strerror or str(error) or type(error).__name__
