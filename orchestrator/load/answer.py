"""What an answer says: its events become token times and totals as they come, and no byte of it is kept."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Sequence
from typing import Any

import httpx
import msgspec

from orchestrator.clock import now_ns
from orchestrator.load.http1 import Arrivals
from orchestrator.load.shape import Shape
from orchestrator.load.sse import EventTooLongError, SseEvent, SseParser
from orchestrator.load.transport import arrivals_of
from orchestrator.records import Failure
from stacks.base import Delta, Wire

MAX_DETAIL_CHARACTERS = 300
AT_ONCE_BYTES, AT_MOST_BYTES = 1024, 64 * 1024
"""A smaller piece is not halved: its events are read one by one. A larger one always is."""


class Answer:
    """The answer to one request, read piece by piece."""

    def __init__(self, wire: Wire) -> None:
        self.arrivals = Arrivals(kernel=False)
        self.status: int | None = None
        self.first_byte_ns: int | None = None
        self.token_ns = array("q")
        """Arrival of each token event."""
        self.finish: str | None = None
        self._first_answer_ns: int | None = None
        self._counts: list[int] = []
        self._all_counted = True
        """Each token event so far said how many tokens it holds."""
        self._totals: dict[str, int] = {}
        """Last value of each total that an event told."""
        self._error: str | None = None
        self._garbage: str | None = None
        self._lost = False
        """An event was too long to follow; what comes after it is not read."""
        self._body = b""
        """Beginning of the body of a refusal."""
        self._taken = 0
        """Bytes of the body that were read."""
        self._wire = wire
        self._events = SseParser()
        self._shape: Shape | None = None
        """Of the text events, as far as it is known."""

    # --- reading ------------------------------------------------------------------------------------------------

    async def read(self, response: httpx.Response) -> None:
        """All of a response. Raises what its transport raises; what came before that has been read.

        Another transport than ours tells no arrivals: then the stamp is taken where its bytes come out.
        """
        self.status = response.status_code
        self.first_byte_ns = response.extensions.get("first_byte_ns")
        stamped = arrivals_of(response)
        if stamped is not None:
            self.arrivals = stamped
        async for piece in response.aiter_raw():
            if stamped is None:
                self.arrivals.stamp(len(piece), now_ns())
            self._take(piece)

    def close(self, *, whole: bool) -> None:
        """Nothing more comes. `whole`: the body ended as it should."""
        if rest := self.arrivals.take():
            self._take(rest)
        if self.status == 200:
            self._read_events(self._events.close(whole=whole))

    def _take(self, piece: bytes) -> None:
        if self.status != 200:
            self._body += piece[: 4 * MAX_DETAIL_CHARACTERS - len(self._body)]
        elif not self._lost:
            self._read(piece)

    def _read(self, piece: bytes) -> None:
        """Many events at once where all are pieces of text; else the same with each half, down to single events."""
        first = piece.find(b"\n\n") + 2 if self._taken == 0 else 0
        if first > 1:  # the first event of a stream mostly tells a role
            self._read_one_by_one(piece[:first])
            piece = piece[first:]
        while 0 < len(piece) <= AT_MOST_BYTES and (read := self._read_texts(piece)):
            piece = piece[read:]
        middle = piece.find(b"\n\n", len(piece) // 2) + 2
        if len(piece) > AT_ONCE_BYTES and 2 <= middle < len(piece) and self._events.at_event:
            self._read(piece[:middle])
            self._read(piece[middle:])
        elif piece:
            self._read_one_by_one(piece)

    def _read_one_by_one(self, piece: bytes) -> None:
        if self._lost:
            return
        try:
            self._read_events(self._events.feed(piece))
        except EventTooLongError as error:
            self._garbage, self._lost = str(error), True
        self._taken += len(piece)

    def _read_texts(self, piece: bytes) -> int:
        """Read the whole events of one line that the piece begins with, if they are a piece of text each; their
        bytes, 0 if they may be anything else."""
        if not self._events.at_event or not piece.startswith(b"data: "):
            return 0
        lengths = self._shape.lengths(piece) if self._shape is not None else []
        if not lengths:
            self._shape = self._shape_of(piece)
            lengths = self._shape.lengths(piece) if self._shape is not None else []
        if not lengths:
            events = piece.split(b"\n\n")
            if events.pop() or not self._are_texts(piece, len(events)):
                return 0
            lengths = [len(event) + 2 for event in events]
        read = sum(lengths)
        self._events.skip(read)
        ends = list(itertools.accumulate(lengths, initial=self._taken))
        del ends[0]
        # The data of an event is there one byte before its end, which is the blank line.
        times = self.arrivals.times_of(ends) or [self.arrivals.time_of(end - 1) for end in ends]
        self._taken = ends[-1]
        self.token_ns.extend(times)
        self._all_counted = False
        if self._first_answer_ns is None:
            self._first_answer_ns = times[0]
        return read

    def _shape_of(self, piece: bytes) -> Shape | None:
        """Of the first two events that differ, if they are pieces of text."""
        first = piece[: piece.find(b"\n\n") + 2]
        if len(first) < 2:
            return None
        place = len(first)
        while piece.startswith(first, place):
            place += len(first)
        other = piece[place : piece.find(b"\n\n", place) + 2]
        if not other.startswith(b"data: ") or not self._are_texts(first + other, 2):
            return None
        return Shape.of(first, other)

    def _are_texts(self, events: bytes, count: int) -> bool:
        """So many events of one line, the first with its ``data: ``, which are a piece of text each."""
        return self._wire.count_texts(b"[" + events[6:-2].replace(b"\n\ndata: ", b",") + b"]") == count

    def _read_events(self, events: Sequence[SseEvent]) -> None:
        read, time_of = self._wire.read, self.arrivals.time_of
        known: Delta | None = None
        for data, end in events:
            if data == b"[DONE]":
                continue
            try:
                delta = read(data)
            except (msgspec.DecodeError, UnicodeDecodeError):
                self._garbage = self._garbage or f"an event is not JSON: {_excerpt(data)[:80]}"
                continue
            except RecursionError:
                self._garbage = self._garbage or f"an event is nested too deeply: {_excerpt(data)[:80]}"
                continue
            if delta.text or delta.reasoning:
                self._token(delta, time_of(end))
            if delta is not known:  # dialects give the same object for the same meaning
                self._total(delta)
                known = delta

    def _token(self, delta: Delta, at_ns: int) -> None:
        self.token_ns.append(at_ns)
        if delta.text and self._first_answer_ns is None:
            self._first_answer_ns = at_ns
        if delta.tokens is None:
            self._all_counted = False
        elif self._all_counted:
            self._counts.append(delta.tokens)

    def _total(self, delta: Delta) -> None:
        """Keep the last of each total, and the first error."""
        for name in ("in_tokens", "out_tokens", "cached_tokens", "reasoning_tokens"):
            if (value := getattr(delta, name)) is not None:
                self._totals[name] = value
        self.finish = delta.finish or self.finish
        self._error = self._error or delta.error

    # --- what was read ------------------------------------------------------------------------------------------

    @property
    def out_tokens(self) -> int | None:
        """As the server counted them in its usage record, or as the events told, or not known."""
        if (told := self._totals.get("out_tokens")) is not None:
            return told
        return sum(self._counts) if self._told_each else None

    @property
    def _told_each(self) -> bool:
        return self._all_counted and bool(self._counts)

    def facts(self) -> dict[str, Any]:
        """The fields of a `RequestRecord` that an answer decides."""
        times = self.token_ns
        told = "out_tokens" in self._totals
        counts = spread_counts(self._counts if self._told_each else None, len(times), self._totals.get("out_tokens"))
        apart = times and self._first_answer_ns not in (None, times[0])
        return {
            "first_byte_ns": self.first_byte_ns,
            "first_ns": times[0] if times else None,
            "first_answer_ns": self._first_answer_ns if apart else None,
            "last_ns": times[-1] if times else None,
            "in_tokens": self._totals.get("in_tokens"),
            "out_tokens": self.out_tokens,
            "cached_tokens": self._totals.get("cached_tokens"),
            "reasoning_tokens": self._totals.get("reasoning_tokens"),
            "tokens_from": "usage" if told else "none" if self.out_tokens is None else "token_ids",
            "finish": self.finish,
            "stamp": "kernel" if self.arrivals.kernel and self.arrivals.stamps else "user",
            "token_ns": tuple(times),
            "token_counts": () if set(counts) <= {1} else counts,
        }

    def failure(self, asked: int, *, forces_length: bool) -> Failure | None:
        """Success needs status 200, no error event, tokens, a finish, and the demanded count where it is forced."""
        if self.status != 200:
            return Failure(kind="status", detail=_excerpt(self._body), status=self.status)
        if self._error is not None:
            return Failure(kind="error_in_stream", detail=self._error[:MAX_DETAIL_CHARACTERS], status=200)
        if self._garbage is not None:
            return Failure(kind="protocol", detail=self._garbage, status=200)
        if not self.token_ns:
            return Failure(kind="truncated", detail="the stream ended without a token", status=200)
        if self.finish is None:
            return Failure(kind="truncated", detail="the stream ended without a finish reason", status=200)
        if forces_length and self.out_tokens is not None and self.out_tokens != asked:
            detail = f"{self.out_tokens} tokens came, {asked} were demanded"
            return Failure(kind="short_output", detail=detail, status=200)
        return None


def spread_counts(counts: Sequence[int] | None, events: int, total: int | None) -> tuple[int, ...]:
    """Tokens of each event. As the events told; else (None) `total` spread evenly over them; else one each."""
    if counts is not None:
        return tuple(counts)
    if total is None or events in (0, total):
        return (1,) * events
    return tuple((i + 1) * total // events - i * total // events for i in range(events))


def _excerpt(body: bytes) -> str:
    return " ".join(body.decode("utf-8", "replace").split())[:MAX_DETAIL_CHARACTERS]
