"""A lean HTTP/1.1 transport for httpx that knows when every byte arrived.

Non-blocking sockets, `recvmsg` with the kernel's receive time, TLS through a memory BIO over the same reads. A response
is handed over when its head is there, its body in large pieces (`PIECE_BYTES`, or what there is at the end), so that
nothing is parsed when an event comes and no body is kept. `response.extensions["arrivals"]` holds the stamps of all.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

import httpx
import msgspec

from orchestrator.clock import NS_PER_S, now_ns
from orchestrator.load.http1 import ONLY_HTTP2, Arrivals, ProtocolError, ResponseParser
from orchestrator.load.stamps import Read, RealClock, StampedReader, StampsKept
from orchestrator.records import FailureKind

MAX_BODY_BYTES = 64 * 1024 * 1024
PIECE_BYTES = 16 * 1024
"""A body is given out in pieces of at least this size: some 80 token events, read in a quarter of a millisecond."""


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


class _Origin(NamedTuple):
    scheme: str
    host: str
    port: int


class _Address(NamedTuple):
    family: socket.AddressFamily
    place: object
    """As `socket.connect` takes it."""


class _Connection:
    """One socket to the server, used by one request at a time."""

    __slots__ = ("_read_raw", "incoming", "outgoing", "read", "sock", "tls")

    def __init__(self, sock: socket.socket, *, kernel_stamps: bool, clock: RealClock | None = None) -> None:
        self.sock = sock
        self._read_raw = StampedReader(sock, kernel=kernel_stamps, clock=clock).read
        self.read = self._read_raw
        """Plain bytes of one read with their stamp; raises BlockingIOError when there are none yet."""
        self.tls: ssl.SSLObject | None = None
        self.incoming: ssl.MemoryBIO
        self.outgoing: ssl.MemoryBIO

    def is_stale(self) -> bool:
        """The server closed it, or sent what nobody asked for, while it was idle."""
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def close(self) -> None:
        self.sock.close()

    async def send(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        if self.tls is None:
            await loop.sock_sendall(self.sock, data)
            return
        self.tls.write(data)
        await loop.sock_sendall(self.sock, self.outgoing.read())

    async def handshake(self, context: ssl.SSLContext, host: str) -> None:
        loop = asyncio.get_running_loop()
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.read = self._read_encrypted
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=host)
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await loop.sock_sendall(self.sock, self.outgoing.read())
                data = await loop.sock_recv(self.sock, 65536)
                if not data:
                    raise ssl.SSLEOFError(8, "the server closed during the handshake") from None
                self.incoming.write(data)
            else:
                await loop.sock_sendall(self.sock, self.outgoing.read())
                return

    def _read_encrypted(self) -> Read:
        data, stamp, kernel = self._read_raw()
        if not data:
            self.incoming.write_eof()
        else:
            self.incoming.write(data)
        return self._decrypt(), stamp, kernel

    def _decrypt(self) -> bytes:
        assert self.tls is not None
        plain = bytearray()
        while True:
            try:
                piece = self.tls.read(65536)
            except ssl.SSLWantReadError:
                if plain:
                    return bytes(plain)
                raise BlockingIOError from None
            except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
                return bytes(plain)
            if not piece:
                return bytes(plain)
            plain += piece


class _Exchange:
    """One response being read: the socket's callback, the parser, the deadlines."""

    __slots__ = (
        "_connection", "_failure", "_feed", "_head", "_last_ns", "_limits", "_loop", "_piece", "_read", "_reading",
        "_sent_ns", "_timer", "ended", "parser",
    )  # fmt: skip

    def __init__(self, connection: _Connection, parser: ResponseParser, limits: RequestLimits, sent_ns: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        self._read = connection.read
        self.parser = parser
        self._feed = parser.feed
        self._limits = limits
        self._sent_ns = sent_ns
        self._last_ns = sent_ns
        self._failure: TransportFailure | None = None
        self._head: asyncio.Future[None] = self._loop.create_future()
        self._piece: asyncio.Future[None] | None = None
        self.ended = False
        self._timer: asyncio.TimerHandle | None = None
        self._reading = True
        self._loop.add_reader(connection.sock.fileno(), self._on_readable)
        self._arm()

    # --- the hot path -------------------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        try:
            data, stamp, kernel = self._read()
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._on_error(error)
            return
        if not data:
            self._on_eof()
            return
        self._last_ns = stamp
        try:
            if self._feed(data, stamp, kernel):
                self._advance()
        except ProtocolError as error:
            self._fail("protocol", str(error))

    def _advance(self) -> None:
        if self.parser.done:
            self._finish()
            return
        if self.parser.head_done and not self._head.done():
            self._head.set_result(None)
        if len(self.parser.arrivals.body) >= PIECE_BYTES:
            self._wake()

    def _wake(self) -> None:
        """Whoever waits for a piece may take what there is."""
        if self._piece is not None:
            if not self._piece.done():
                self._piece.set_result(None)
            self._piece = None

    def _on_error(self, error: OSError) -> None:
        if isinstance(error, ssl.SSLError):
            self._fail("tls", f"the encrypted stream broke: {error.reason or error}")
        else:
            self._fail("reset", f"the connection was reset ({_why(error)})")

    def _on_eof(self) -> None:
        try:
            proper = self.parser.end_of_stream()
        except ProtocolError as error:
            self._fail("protocol", str(error))
            return
        if proper:
            self._finish()
        elif self.parser.first_byte_ns is None:
            self._fail("reset", "the server closed the connection without an answer")
        else:
            self._fail("truncated", "the server closed the connection before the answer was complete")

    # --- ends ---------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        self._stop()
        self.ended = True
        if not self._head.done():
            self._head.set_result(None)
        self._wake()

    def _fail(self, kind: FailureKind, detail: str) -> None:
        try:
            self.parser.settle()
        except ProtocolError as error:
            kind, detail = "protocol", str(error)
        self._failure = TransportFailure(kind, detail)
        self._finish()

    def _stop(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._connection.sock.fileno())
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def abandon(self) -> None:
        """Nobody waits any more: stop reading and close."""
        self._stop()
        with contextlib.suppress(ProtocolError):  # what came before counts, and this answer has failed already
            self.parser.settle()
        self._connection.close()

    # --- deadlines ----------------------------------------------------------------------------------------------

    def _next_deadline(self) -> tuple[int, str]:
        limits = self._limits
        deadline, which = self._sent_ns + round(limits.total_s * NS_PER_S), f"no end within {limits.total_s:g} s"
        quiet = limits.first_byte_s if self.parser.first_byte_ns is None else limits.idle_s
        if quiet is not None and (soon := self._last_ns + round(quiet * NS_PER_S)) < deadline:
            word = "no answer" if self.parser.first_byte_ns is None else "nothing more"
            return soon, f"{word} within {quiet:g} s"
        return deadline, which

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


class _Body(httpx.AsyncByteStream):
    """The body of a response; after the last piece it raises what the answer failed of."""

    def __init__(self, exchange: _Exchange, release: Callable[[], None]) -> None:
        self._exchange = exchange
        self._release = release
        self._ended = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await self._exchange.piece():
            yield piece
        self._exchange.check()
        self._ended = True
        self._release()

    async def aclose(self) -> None:
        if not self._ended:
            self._exchange.abandon()


class StampingTransport(httpx.AsyncBaseTransport):
    """HTTP/1.1 over TCP, TLS and Unix sockets, with a stamp for every arrival.

    Refuses what it does not speak (proxies, HTTP/2): use httpx's own transport for those, and its records carry the
    stamp "user". Limits come from the request's extension ``limits`` (`RequestLimits`). Each failure is a
    `TransportFailure`. A request is sent again only if the reused connection was closed before any byte of an answer.
    """

    def __init__(
        self,
        *,
        verify: ssl.SSLContext | bool = True,
        unix_socket: str | None = None,
        kernel_stamps: bool = True,
        max_body_bytes: int = MAX_BODY_BYTES,
    ) -> None:
        self._verify = verify
        self._context: ssl.SSLContext | None = verify if isinstance(verify, ssl.SSLContext) else None
        self._unix_socket = unix_socket
        self._kernel_stamps = kernel_stamps
        self._max_body_bytes = max_body_bytes
        self._stamps = StampsKept() if kernel_stamps else None
        self._clock = RealClock()
        self._idle: dict[_Origin, list[_Connection]] = {}
        self._addresses: dict[tuple[str, int], list[_Address]] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        origin = _origin(request.url)
        limits = request.extensions.get("limits") or RequestLimits()
        data = _head(request) + await request.aread()
        reused = self._take_idle(origin)
        if reused is not None:
            try:
                return await self._exchange(reused, origin, request, data, limits)
            except TransportFailure as failure:
                if failure.kind != "reset" or request.extensions.get("answered"):
                    raise
        connection = await self._connect(origin, limits)
        return await self._exchange(connection, origin, request, data, limits)

    async def _exchange(
        self, connection: _Connection, origin: _Origin, request: httpx.Request, data: bytes, limits: RequestLimits
    ) -> httpx.Response:
        parser = ResponseParser(head_request=request.method == "HEAD", max_body_bytes=self._max_body_bytes)
        exchange = _Exchange(connection, parser, limits, now_ns())
        try:
            await _send(connection, data)
            await exchange.head()
        except BaseException:
            request.extensions["answered"] = parser.first_byte_ns is not None
            exchange.abandon()
            raise
        return httpx.Response(
            parser.status,
            headers=parser.headers,
            stream=_Body(exchange, lambda: self._release(connection, origin, parser)),
            extensions={
                "http_version": b"HTTP/" + parser.version,
                "reason_phrase": parser.reason,
                "arrivals": parser.arrivals,
                "first_byte_ns": parser.first_byte_ns,
            },
        )

    # --- connections --------------------------------------------------------------------------------------------

    def _take_idle(self, origin: _Origin) -> _Connection | None:
        idle = self._idle.get(origin, [])
        while idle:
            connection = idle.pop()
            if not connection.is_stale():
                return connection
            connection.close()
        return None

    def _release(self, connection: _Connection, origin: _Origin, parser: ResponseParser) -> None:
        if parser.keep_alive:
            self._idle.setdefault(origin, []).append(connection)
        else:
            connection.close()

    async def _connect(self, origin: _Origin, limits: RequestLimits) -> _Connection:
        try:
            async with asyncio.timeout(limits.connect_s):
                return await self._open(origin)
        except TimeoutError as error:
            raise TransportFailure("timeout", f"no connection within {limits.connect_s:g} s") from error
        except ConnectionRefusedError as error:
            raise TransportFailure("refused", f"{origin.host}:{origin.port} refused the connection") from error
        except ssl.SSLError as error:
            if "no application protocol" in str(error).lower().replace("_", " "):
                raise TransportFailure("protocol", ONLY_HTTP2) from error
            raise TransportFailure("tls", f"no encrypted connection ({error.reason or error})") from error
        except OSError as error:
            raise TransportFailure(
                "connect", f"no connection to {origin.host}:{origin.port} ({_why(error)})"
            ) from error

    async def _open(self, origin: _Origin) -> _Connection:
        """A connection to the first of the server's addresses that takes it."""
        addresses = await self._addresses_of(origin)
        for place, address in enumerate(addresses):
            try:
                connection = await self._open_at(address)
            except OSError:
                if place == len(addresses) - 1:
                    raise
            else:
                addresses[0], addresses[place] = addresses[place], addresses[0]
                break
        try:
            if origin.scheme == "https":
                await connection.handshake(self._tls_context(), origin.host)
        except BaseException:
            connection.close()
            raise
        return connection

    async def _open_at(self, address: _Address) -> _Connection:
        sock = socket.socket(address.family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            if address.family in (socket.AF_INET, socket.AF_INET6):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().sock_connect(sock, address.place)  # type: ignore[arg-type]
        except BaseException:
            sock.close()
            raise
        return _Connection(sock, kernel_stamps=self._kernel_stamps, clock=self._clock)

    async def _addresses_of(self, origin: _Origin) -> list[_Address]:
        if self._unix_socket is not None:
            return [_Address(socket.AF_UNIX, self._unix_socket)]
        key = (origin.host, origin.port)
        if key not in self._addresses:
            found = await asyncio.get_running_loop().getaddrinfo(*key, type=socket.SOCK_STREAM)
            self._addresses[key] = [_Address(family, place) for family, _, _, _, place in found]
        return self._addresses[key]

    def _tls_context(self) -> ssl.SSLContext:
        if self._context is None:
            self._context = httpx.create_ssl_context(verify=bool(self._verify))
            self._context.set_alpn_protocols(["http/1.1"])
        return self._context

    async def aclose(self) -> None:
        for idle in self._idle.values():
            for connection in idle:
                connection.close()
        self._idle.clear()
        if self._stamps is not None:
            self._stamps.close()


def arrivals_of(response: httpx.Response) -> Arrivals | None:
    """The stamps of a response, if its transport took them."""
    found = response.extensions.get("arrivals")
    return found if isinstance(found, Arrivals) else None


async def _send(connection: _Connection, data: bytes) -> None:
    try:
        await connection.send(data)
    except (BrokenPipeError, ConnectionResetError) as error:
        # The answer may say why; without one the reader reports the reset.
        if error.errno not in (errno.EPIPE, errno.ECONNRESET):
            raise
    except OSError as error:
        raise TransportFailure("reset", f"the request could not be sent ({_why(error)})") from error


def _why(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__


def _origin(url: httpx.URL) -> _Origin:
    if url.scheme not in ("http", "https"):
        raise TransportFailure("connect", f"the scheme {url.scheme!r} is not http or https")
    return _Origin(url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80))


def _head(request: httpx.Request) -> bytes:
    """Request line and headers; httpx has set Host and the body's length."""
    lines = [request.method.encode("ascii") + b" " + request.url.raw_path + b" HTTP/1.1"]
    lines += [name + b": " + value for name, value in request.headers.raw]
    head = b"\r\n".join(lines)
    if b"\n" in head.replace(b"\r\n", b""):
        raise TransportFailure("protocol", "a header of the request holds a line break")
    return head + b"\r\n\r\n"
