"""HTTP proxies, which our own transport does not speak: httpx's does, and its records carry the stamp "user"."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import urllib.request
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import httpx

from orchestrator.errors import HostError
from orchestrator.load.transport import RequestLimits

SCHEMES = ("http", "https")


def proxy_for(url: str, asked: str | None) -> str | None:
    """The proxy through which a server is reached; None = directly.

    As it was `asked` for (a URL, or ``none``); else as the environment says (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, and
    NO_PROXY against them), and never for this machine itself. Raises HostError for a proxy that is not spoken.
    """
    if asked == "none":
        return None
    found = asked or _of_environment(url)
    if found is None:
        return None
    named = found if "://" in found else f"http://{found}"
    if urlsplit(named).scheme not in SCHEMES or not urlsplit(named).hostname:
        where = "--proxy" if asked else "the environment"
        raise HostError(
            f"The proxy {without_password(named)} ({where}) is not one of HTTP, which is all that is spoken.",
            "Give http://HOST:PORT with --proxy, or --proxy none to connect directly.",
        )
    return named


def _of_environment(url: str) -> str | None:
    parts = urlsplit(url)
    host = parts.hostname or ""
    if _is_this_machine(host) or urllib.request.proxy_bypass(host):
        return None
    proxies = urllib.request.getproxies()
    return proxies.get(parts.scheme) or proxies.get("all")


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def without_password(proxy: str) -> str:
    """A proxy as it may be told."""
    parts = urlsplit(proxy)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


class _Body(httpx.AsyncByteStream):
    """The body of a response until its request's last moment."""

    def __init__(self, stream: httpx.AsyncByteStream, deadline: float, total_s: float) -> None:
        self._stream = stream
        self._deadline = deadline
        self._total_s = total_s

    async def __aiter__(self) -> AsyncIterator[bytes]:
        pieces = aiter(self._stream)
        while True:
            async with _until(self._deadline, self._total_s):
                try:
                    piece = await anext(pieces)
                except StopAsyncIteration:
                    return
            yield piece

    async def aclose(self) -> None:
        await self._stream.aclose()


class ProxiedTransport(httpx.AsyncBaseTransport):
    """httpx's own transport through a proxy, behind the limits of our requests.

    It has no cap on connections: that would be admission control.
    """

    def __init__(self, proxy: str, *, verify: bool) -> None:
        unlimited = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self._transport = httpx.AsyncHTTPTransport(proxy=proxy, verify=verify, limits=unlimited)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        limits = request.extensions.get("limits") or RequestLimits()
        quiet_s = min(s for s in (limits.first_byte_s, limits.idle_s, limits.total_s) if s is not None)
        request.extensions["timeout"] = {"connect": limits.connect_s, "read": quiet_s, "write": limits.total_s}
        deadline = asyncio.get_running_loop().time() + limits.total_s
        async with _until(deadline, limits.total_s):
            response = await self._transport.handle_async_request(request)
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _Body(response.stream, deadline, limits.total_s)
        return response

    async def aclose(self) -> None:
        await self._transport.aclose()


@contextlib.asynccontextmanager
async def _until(deadline: float, total_s: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError as error:
        raise httpx.ReadTimeout(f"no end within {total_s:g} s") from error
