"""A lean HTTP/1.1 transport for httpx that knows when every byte arrived.

Non-blocking sockets, `recvmsg` with the kernel's receive time, TLS through a memory BIO over the same reads. A response
is handed over when its head is there, its body in large pieces (or what there is at the end), so that
nothing is parsed when an event comes and no body is kept. `response.extensions["arrivals"]` holds the stamps of all.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

import httpx

from orchestrator.clock import now_ns
from orchestrator.load.connection import Connection
from orchestrator.load.exchange import Exchange, RequestLimits, TransportFailure, why
from orchestrator.load.http1 import ONLY_HTTP2, Arrivals, ResponseParser
from orchestrator.load.reads import Poller
from orchestrator.load.stamps import RealClock, StampsKept

__all__ = ["RequestLimits", "StampingTransport", "TransportFailure", "arrivals_of"]

MAX_BODY_BYTES = 64 * 1024 * 1024


class _Origin(NamedTuple):
    scheme: str
    host: str
    port: int


class _Address(NamedTuple):
    family: socket.AddressFamily
    place: object
    """As `socket.connect` takes it."""


class _Body(httpx.AsyncByteStream):
    """The body of a response; after the last piece it raises what the answer failed of."""

    def __init__(self, exchange: Exchange, release: Callable[[], None]) -> None:
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
        self._poller: Poller | None = None
        self._idle: dict[_Origin, list[Connection]] = {}
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
        self, connection: Connection, origin: _Origin, request: httpx.Request, data: bytes, limits: RequestLimits
    ) -> httpx.Response:
        parser = ResponseParser(head_request=request.method == "HEAD", max_body_bytes=self._max_body_bytes)
        exchange = Exchange(connection, self._polling(), parser, limits, now_ns())
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

    def _polling(self) -> Poller:
        """Of the loop that runs."""
        if self._poller is None:
            self._poller = Poller(asyncio.get_running_loop(), RealClock())
        return self._poller

    # --- connections --------------------------------------------------------------------------------------------

    def _take_idle(self, origin: _Origin) -> Connection | None:
        idle = self._idle.get(origin, [])
        while idle:
            connection = idle.pop()
            if not connection.is_stale():
                return connection
            self._close(connection)
        return None

    def _close(self, connection: Connection) -> None:
        self._polling().close_socket(connection.sock)

    def _release(self, connection: Connection, origin: _Origin, parser: ResponseParser) -> None:
        if parser.keep_alive:
            self._idle.setdefault(origin, []).append(connection)
        else:
            self._close(connection)

    async def _connect(self, origin: _Origin, limits: RequestLimits) -> Connection:
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
            raise TransportFailure("connect", f"no connection to {origin.host}:{origin.port} ({why(error)})") from error

    async def _open(self, origin: _Origin) -> Connection:
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
            connection.sock.close()
            raise
        return connection

    async def _open_at(self, address: _Address) -> Connection:
        sock = socket.socket(address.family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            if address.family in (socket.AF_INET, socket.AF_INET6):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().sock_connect(sock, address.place)  # type: ignore[arg-type]
        except BaseException:
            sock.close()
            raise
        return Connection(sock, kernel_stamps=self._kernel_stamps)

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
                self._close(connection)
        self._idle.clear()
        if self._poller is not None:
            self._poller.close()
            self._poller = None
        if self._stamps is not None:
            self._stamps.close()


def arrivals_of(response: httpx.Response) -> Arrivals | None:
    """The stamps of a response, if its transport took them."""
    found = response.extensions.get("arrivals")
    return found if isinstance(found, Arrivals) else None


async def _send(connection: Connection, data: bytes) -> None:
    try:
        await connection.send(data)
    except (BrokenPipeError, ConnectionResetError) as error:
        # The answer may say why; without one the reader reports the reset.
        if error.errno not in (errno.EPIPE, errno.ECONNRESET):
            raise
    except OSError as error:
        raise TransportFailure("reset", f"the request could not be sent ({why(error)})") from error


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
