"""HTTP/1.1 responses: a bounded push parser of many reads at once that keeps when each piece of the body came."""

from __future__ import annotations

import itertools
import re
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from typing import Literal

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 256
MAX_CHUNK_LINE_BYTES = 1024
_HEAD_END = re.compile(rb"\r?\n\r?\n")
"""The first blank line, however its ends are written."""
_HTTP2 = re.compile(rb"\x00.{2}\x04[\x00\x01]", re.DOTALL)
"""Begin of a SETTINGS frame, the first thing that an HTTP/2 server says (RFC 9113, section 3.4)."""
ONLY_HTTP2 = "the server speaks only HTTP/2, and loadproof HTTP/1.1: put a proxy that speaks both in front of it"

Framing = Literal["chunked", "length", "close", "none"]


class ProtocolError(Exception):
    """The server does not speak HTTP/1.1; the message says what was seen."""


_LARGEST = 4096
_CHUNK_SIZES = {line: size for size in range(1, _LARGEST + 1) for line in (b"%x" % size, b"%X" % size)}
"""The size of a usual chunk by its line. A line that says more is read with care."""
_FRAMED = [size + len(b"%x" % size) + 4 for size in range(_LARGEST + 1)]
"""A chunk's length with its frame, by its size."""


class Arrivals:
    """A body as it comes, with the time at which each piece of it arrived."""

    __slots__ = ("body", "ends", "kernel", "size", "stamps")

    def __init__(self, *, kernel: bool = True) -> None:
        self.body = bytearray()
        """What has come and was not taken."""
        self.size = 0
        """Bytes of the whole body so far."""
        self.ends = array("q")
        """Size of the body after each piece."""
        self.stamps = array("q")
        """Arrival of each piece, ns of CLOCK_MONOTONIC."""
        self.kernel = kernel
        """Every stamp so far comes from the kernel."""

    def stamp(self, length: int, at_ns: int) -> None:
        """`length` more bytes of the body came at this time."""
        self.size += length
        self.ends.append(self.size)
        self.stamps.append(at_ns)

    def add(self, pieces: Sequence[bytes], lengths: Sequence[int], times: Sequence[int]) -> None:
        """Pieces of the body, none empty."""
        ends = list(itertools.accumulate(lengths, initial=self.size))
        self.body += b"".join(pieces)
        self.size = ends[-1]
        del ends[0]
        self.ends.extend(ends)
        self.stamps.extend(times)

    def take(self) -> bytes:
        """What has come since the last call."""
        taken = bytes(self.body)
        self.body.clear()
        return taken

    def times_of(self, ends: list[int]) -> Sequence[int] | None:
        """`time_of` each, at once, if each of these ends is the end of the next piece; None if not."""
        first = bisect_left(self.ends, ends[0])
        last = first + len(ends)
        return self.stamps[first:last] if self.ends[first:last].tolist() == ends else None

    def time_of(self, end: int) -> int:
        """When the body had become `end` bytes long."""
        return self.stamps[bisect_left(self.ends, end)]


class ResponseParser:
    """One response. `feed` the bytes of the reads; `done` tells the end, `surplus` what came behind it."""

    __slots__ = (
        "_chunk_state", "_head_request", "_left", "_max_body_bytes", "_pending", "arrivals", "at_chunk", "done",
        "first_byte_ns", "framing", "head_done", "headers", "reason", "status", "surplus", "version",
    )  # fmt: skip

    def __init__(self, *, head_request: bool = False, max_body_bytes: int) -> None:
        self.status = 0
        self.reason = b""
        self.version = b"1.1"
        self.headers: list[tuple[bytes, bytes]] = []
        self.arrivals = Arrivals()
        self.first_byte_ns: int | None = None
        self.head_done = False
        self.done = False
        self.surplus = False
        self.framing: Framing = "none"
        self._head_request = head_request
        self._max_body_bytes = max_body_bytes
        self._pending = bytearray()
        self._left = 0
        self._chunk_state: Literal["size", "data", "end", "trailer"] = "size"
        self.at_chunk = False
        """The next byte begins a chunk-size line; the body has not ended."""

    def feed(self, data: bytes, sizes: Sequence[int], stamps: Sequence[int]) -> None:
        """Take the bytes of reads, none of them empty: how long each was, and when it came. Raises ProtocolError."""
        if self.first_byte_ns is None and stamps:
            self.first_byte_ns = stamps[0]
        taken = self._feed_chunks(data, sizes, stamps) if self.at_chunk else 0
        begin = 0
        for size, stamp_ns in zip(sizes, stamps, strict=True):
            end = begin + size
            if end > taken:
                self._feed_one(data[max(begin, taken) : end], stamp_ns)
            begin = end

    def _feed_chunks(self, data: bytes, sizes: Sequence[int], stamps: Sequence[int]) -> int:
        """Take the usual chunks that the data begins with, none of which came in two reads; their bytes."""
        parts = data.split(b"\r\n")
        count = (len(parts) - 1) // 2
        chunks = parts[1 : 2 * count : 2]
        lengths = list(map(len, chunks))
        told = list(map(_CHUNK_SIZES.get, parts[0 : 2 * count : 2]))
        if told != lengths:
            count = next(place for place, told_one in enumerate(told) if told_one != lengths[place])
            del chunks[count:], lengths[count:]
        if not count:
            return 0
        framed = list(map(_FRAMED.__getitem__, lengths))
        times: Sequence[int] = stamps
        taken = sum(framed)
        if framed != sizes:
            ends = list(itertools.accumulate(framed))
            reads = list(itertools.accumulate(sizes))
            if not {end for end in reads if end < taken}.issubset(ends):
                return 0
            times = [stamps[bisect_left(reads, end)] for end in ends]
        self.arrivals.add(chunks, lengths, times)
        self._check_size()
        return taken

    def _feed_one(self, data: bytes, stamp_ns: int) -> None:
        if self.done:
            self.surplus = True
            return
        if not self.head_done:
            self._pending += data
            self._read_head()
            if not self.head_done:
                return
            data = bytes(self._pending)
            self._pending.clear()
            self.surplus = self.done and bool(data)
        if data and not self.done:
            self._take(data, stamp_ns)

    def _check_size(self) -> None:
        if self.arrivals.size > self._max_body_bytes:
            raise ProtocolError(f"the body is longer than {self._max_body_bytes} bytes")

    def _take(self, data: bytes, stamp_ns: int) -> None:
        arrivals = self.arrivals
        before = len(arrivals.body)
        try:
            self._read_body(data)
        finally:  # what came before the fault came at its time
            if (length := len(arrivals.body) - before) > 0:
                arrivals.stamp(length, stamp_ns)
        self.at_chunk = (
            self.framing == "chunked" and self._chunk_state == "size" and not self._pending and not self.done
        )
        self._check_size()

    def end_of_stream(self) -> bool:
        """The server closed. True if that is a proper end of the response."""
        if self.head_done and self.framing == "close":
            self.done = True
        return self.done

    @property
    def keep_alive(self) -> bool:
        """The connection may carry another request."""
        if not self.done or self.surplus or self.framing == "close":
            return False
        connection = self.header(b"connection").lower()
        return b"close" not in connection and (self.version != b"1.0" or b"keep-alive" in connection)

    def header(self, name: bytes) -> bytes:
        """Value of a header (lower-case name), several joined by a comma; empty if absent."""
        return b",".join(value for key, value in self.headers if key.lower() == name)

    # --- the head -----------------------------------------------------------------------------------------------

    def _read_head(self) -> None:
        while not self.head_done:
            end = _HEAD_END.search(self._pending)
            if end is None:
                if len(self._pending) > MAX_HEAD_BYTES:
                    raise ProtocolError(f"the headers are longer than {MAX_HEAD_BYTES} bytes")
                if len(self._pending) >= 5 and not self._pending.startswith(b"HTTP/"):
                    if _HTTP2.match(self._pending):
                        raise ProtocolError(ONLY_HTTP2)
                    raise ProtocolError(f"the answer is not HTTP: it begins with {bytes(self._pending[:20])!r}")
                return
            head = bytes(self._pending[: end.start()])
            del self._pending[: end.end()]
            self._parse_head(head)
            if 100 <= self.status < 200 and self.status != 101:
                self.headers = []
                continue
            self.head_done = True
        self._choose_framing()

    def _parse_head(self, head: bytes) -> None:
        if len(head) > MAX_HEAD_BYTES:
            raise ProtocolError(f"the headers are longer than {MAX_HEAD_BYTES} bytes")
        lines = head.replace(b"\r\n", b"\n").split(b"\n")
        if len(lines) > MAX_HEADERS + 1:
            raise ProtocolError(f"there are more than {MAX_HEADERS} headers")
        parts = lines[0].split(b" ", 2)
        if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not (parts[1].isdigit() and len(parts[1]) == 3):
            raise ProtocolError(f"the status line is {lines[0][:60]!r}")
        self.version, self.status = parts[0][5:], int(parts[1])
        self.reason = parts[2] if len(parts) == 3 else b""
        for line in lines[1:]:
            name, colon, value = line.partition(b":")
            if not colon or not name or name != name.strip():
                raise ProtocolError(f"a header line is {line[:60]!r}")
            self.headers.append((name, value.strip()))

    def _choose_framing(self) -> None:
        if self._head_request or self.status in (204, 304) or self.status == 101:
            self.framing, self.done = "none", True
        elif b"chunked" in self.header(b"transfer-encoding").lower():
            self.framing = "chunked"
        elif length := self.header(b"content-length"):
            values = set(length.replace(b" ", b"").split(b","))
            if len(values) != 1 or not (value := values.pop()).isdigit() or len(value) > 18:
                raise ProtocolError(f"the content length is {length[:40]!r}")
            self.framing, self._left = "length", int(value)
            self.done = self._left == 0
        else:
            self.framing = "close"

    # --- the body -----------------------------------------------------------------------------------------------

    def _read_body(self, data: bytes) -> None:
        if self.framing == "chunked":
            self._read_chunks(data)
        elif self.framing == "length":
            self.arrivals.body += data[: self._left]
            self.surplus = len(data) > self._left
            self._left -= min(self._left, len(data))
            self.done = self._left == 0
        else:
            self.arrivals.body += data

    def _read_chunks(self, data: bytes) -> None:
        if self._pending:
            data = bytes(self._pending) + data
            self._pending.clear()
        position, length = 0, len(data)
        while position < length and not self.done:
            if self._chunk_state == "data":
                take = min(self._left, length - position)
                self.arrivals.body += data[position : position + take]
                position += take
                self._left -= take
                if self._left == 0:
                    self._chunk_state = "end"
                continue
            newline = data.find(b"\n", position)
            if newline < 0:
                if length - position > MAX_CHUNK_LINE_BYTES:
                    raise ProtocolError("a chunk-size line does not end")
                self._pending += data[position:]
                return
            self._chunk_line(data[position:newline].rstrip(b"\r"))
            position = newline + 1
        self.surplus = self.surplus or position < length

    def _chunk_line(self, line: bytes) -> None:
        if self._chunk_state == "end":
            if line:
                raise ProtocolError(f"a chunk is longer than its size: {line[:20]!r} follows")
            self._chunk_state = "size"
        elif self._chunk_state == "trailer":
            self.done = not line
        else:
            self._left = _chunk_size(line)
            self._chunk_state = "data" if self._left else "trailer"


def _chunk_size(line: bytes) -> int:
    digits = line.split(b";", 1)[0].strip()
    if not digits or len(digits) > 15 or digits.strip(b"0123456789abcdefABCDEF"):
        raise ProtocolError(f"a chunk size is {line[:20]!r}")
    return int(digits, 16)
