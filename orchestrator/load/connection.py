"""One socket to a server, plain or encrypted, with the reads that the hot path makes of it."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Sequence

from orchestrator.load.reads import LONG_ROOM, ReadMessage
from orchestrator.load.stamps import stamp_reads


class Connection:
    """One socket to the server, used by one request at a time."""

    __slots__ = ("_incoming", "_outgoing", "_tls", "recvmsg", "sock")

    def __init__(self, sock: socket.socket, *, kernel_stamps: bool) -> None:
        self.sock = sock
        if kernel_stamps:
            stamp_reads(sock)
        self.recvmsg: ReadMessage = sock.recvmsg
        """Plain bytes of one read with their stamp; raises BlockingIOError when there are none yet."""
        self._tls: ssl.SSLObject | None = None
        self._incoming: ssl.MemoryBIO
        self._outgoing: ssl.MemoryBIO

    def is_stale(self) -> bool:
        """The server closed it, or sent what nobody asked for, while it was idle."""
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    async def send(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        if self._tls is None:
            await loop.sock_sendall(self.sock, data)
            return
        self._tls.write(data)
        await loop.sock_sendall(self.sock, self._outgoing.read())

    # --- TLS ----------------------------------------------------------------------------------------------------

    async def handshake(self, context: ssl.SSLContext, host: str) -> None:
        loop = asyncio.get_running_loop()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.recvmsg = self._recvmsg_encrypted
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await loop.sock_sendall(self.sock, self._outgoing.read())
                data = await loop.sock_recv(self.sock, 65536)
                if not data:
                    raise ssl.SSLEOFError(8, "the server closed during the handshake") from None
                self._incoming.write(data)
            else:
                await loop.sock_sendall(self.sock, self._outgoing.read())
                return

    def _recvmsg_encrypted(
        self, _size: int, control_bytes: int
    ) -> tuple[bytes, Sequence[tuple[int, int, bytes]], int, None]:
        """What could be decrypted of the next bytes, and their stamp; empty at the end."""
        while True:
            data, control, _, _ = self.sock.recvmsg(LONG_ROOM, control_bytes)
            if data:
                self._incoming.write(data)
            else:
                self._incoming.write_eof()
            plain = self._decrypt()
            if plain is not None:
                return plain, control, 0, None

    def _decrypt(self) -> bytes | None:
        """None: not a whole record yet."""
        assert self._tls is not None
        plain = bytearray()
        while True:
            try:
                piece = self._tls.read(65536)
            except ssl.SSLWantReadError:
                return bytes(plain) or None
            except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
                return bytes(plain)
            if not piece:
                return bytes(plain)
            plain += piece
