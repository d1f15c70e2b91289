"""A server that sends what a script tells it to, byte for byte, over TCP, TLS or a Unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

Script = Callable[[asyncio.StreamWriter], Awaitable[None]]
"""Answers one request; what it leaves open stays open."""


class Requests(list[bytes]):
    """Heads and bodies of the requests that came, and how many connections brought them."""

    connections = 0


@contextlib.asynccontextmanager
async def serving(
    script: Script, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None, unix: Path | None = None
) -> AsyncIterator[tuple[str, Requests]]:
    """(URL, the requests so far). Every request is answered by the script, several on a connection if it lasts."""
    seen = Requests()
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.connections += 1
        writers.append(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head.lower())
                seen.append(head + await reader.readexactly(int(length[1]) if length else 0))
                await script(writer)

    if unix is not None:
        server = await asyncio.start_unix_server(serve, unix)
        url = "http://localhost"
    else:
        server = await asyncio.start_server(serve, host, 0, ssl=tls)
        port = server.sockets[0].getsockname()[1]
        url = f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
    try:
        yield url, seen
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0)


def reset(writer: asyncio.StreamWriter) -> None:
    """Close so that the other side sees a reset: linger for 0 s."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
