"""A small HTTP proxy: forwards requests in absolute form, and tunnels CONNECT."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit


@contextlib.asynccontextmanager
async def proxying(
    *, to: str | None = None, refuses: bytes | None = None, port: int = 0
) -> AsyncIterator[tuple[str, list[bytes]]]:
    """(URL, request lines that came). `to`: where every request goes, whatever host it names; `refuses`: the status
    line of every answer."""
    seen: list[bytes] = []
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            seen.append(head.split(b"\r\n")[0])
            if refuses is not None:
                writer.write(refuses + b"\r\ncontent-length: 0\r\n\r\n")
                return
            method, place, _ = head.split(b" ", 2)
            host, _, number = (place.decode() if method == b"CONNECT" else urlsplit(place.decode()).netloc).partition(
                ":"
            )
            if to is not None:
                host, _, number = urlsplit(to).netloc.partition(":")
            there, onward = await asyncio.open_connection(host, int(number or 80))
            writers.append(onward)
            if method == b"CONNECT":
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                onward.write(head.replace(place, urlsplit(place.decode()).path.encode(), 1))
            await asyncio.gather(_copy(reader, onward), _copy(there, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", seen
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()
