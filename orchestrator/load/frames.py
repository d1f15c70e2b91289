"""What a fleet and its workers say to each other: msgpack messages over a socket, each behind its length."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Generic, Literal, Self, TypeVar

import msgspec

from orchestrator.records import ClientHealth, LevelSpec, Request, RequestRecord

_LENGTH = struct.Struct("<I")
BLOCK = 256
"""Requests of a list that are sent at once."""
STREAM_BYTES = 4 * 1024 * 1024

Which = Literal["measured", "other"]


class Message(msgspec.Struct, frozen=True, array_like=True):
    """One message; its class is its tag."""


# --- to a worker ------------------------------------------------------------------------------------------------


class Hello(Message, frozen=True, tag=1):
    """The first one: the `Target`, pickled (it holds a dialect, which may be anybody's class)."""

    target: bytes


class Level(Message, frozen=True, tag=2):
    """The next level, and which part of it is this worker's."""

    spec: LevelSpec
    number: int
    of: int
    due: tuple[int, ...]
    most_in_flight: int


class Requests(Message, frozen=True, tag=3):
    """The requests of a list from a place on."""

    which: Which
    first: int
    requests: tuple[Request, ...]


class Go(Message, frozen=True, tag=4):
    """The level starts when its tally says."""


class Abort(Message, frozen=True, tag=5):
    """End at once; what is in flight is cancelled."""

    reason: str


# --- in both directions -----------------------------------------------------------------------------------------


class Over(Message, frozen=True, tag=6):
    """Nothing more is issued by anyone; with a reason the level was cut."""

    cut: str | None


# --- from a worker ----------------------------------------------------------------------------------------------


class Ready(Message, frozen=True, tag=7):
    """For the first level, or for the one that was named last."""


class Need(Message, frozen=True, tag=8):
    """More requests of a list."""

    which: Which


class Ended(Message, frozen=True, tag=9):
    """A request."""

    record: RequestRecord


class Tick(Message, frozen=True, tag=10):
    """Every record that ended before this time has been told."""

    at_ns: int


class Done(Message, frozen=True, tag=11):
    """The worker's part of the level is over."""

    health: ClientHealth
    cut: str | None


class Broken(Message, frozen=True, tag=12):
    """An exception that should not have been."""

    traceback: str


ToWorker = Hello | Level | Requests | Go | Abort | Over
FromWorker = Over | Ready | Need | Ended | Tick | Done | Broken

Incoming = TypeVar("Incoming")


class Channel(Generic[Incoming]):
    """One end of the socket."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, decoder: msgspec.msgpack.Decoder[Incoming]
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._decode = decoder.decode
        self._encode = msgspec.msgpack.Encoder().encode

    @classmethod
    async def over(cls, sock: socket.socket, decoder: msgspec.msgpack.Decoder[Incoming]) -> Self:
        reader, writer = await asyncio.open_unix_connection(sock=sock, limit=STREAM_BYTES)
        return cls(reader, writer, decoder)

    async def receive(self) -> Incoming | None:
        """The next message; None: the other end is gone."""
        try:
            (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            return self._decode(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    def send(self, message: Message) -> None:
        """Put it behind what has not left yet; to an end that is gone nothing is said."""
        if not self._writer.is_closing():
            data = self._encode(message)
            self._writer.write(_LENGTH.pack(len(data)) + data)

    def close(self) -> None:
        self._writer.close()
