"""The requests of a level by their place in its lists: whoever issues the k-th measured request sends the k-th of the
list, whichever worker that is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from orchestrator.records import Request


class Supply(Protocol):
    """A list of requests without end."""

    async def at(self, place: int) -> Request:
        """The request at a place, from 0. Each is asked for once."""
        ...


class Drawn:
    """Drawn from an iterator as they are asked for, in whatever order."""

    def __init__(self, requests: Iterator[Request]) -> None:
        self._requests = requests
        self._drawn = 0
        self._waiting: dict[int, Request] = {}

    async def at(self, place: int) -> Request:
        while self._drawn <= place:
            self._waiting[self._drawn] = next(self._requests)
            self._drawn += 1
        return self._waiting.pop(place)
