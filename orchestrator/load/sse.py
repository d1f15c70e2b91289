"""Server-sent events, piece by piece, each with the offset at which its data was complete."""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_EVENT_BYTES = 4 * 1024 * 1024
_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


class EventTooLongError(Exception):
    """An event or a line longer than any server has reason to send."""


class SseEvent(NamedTuple):
    data: bytes
    """The data lines, joined by a newline."""
    end: int
    """Offset in the body behind the last data line: the event's data had arrived when this many bytes had."""


class SseParser:
    """The events of a body (WHATWG HTML, section 9.2): LF, CRLF and CR, comments, several data lines, a BOM.

    Any split of the body into pieces gives the same events.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._position = 0
        """Offset in the body at which `_rest` begins."""
        self._started = False
        self._data: list[bytes] = []
        self._data_end = 0
        self._data_bytes = 0

    @property
    def at_event(self) -> bool:
        """The next byte begins an event."""
        return not self._rest and not self._data

    def skip(self, length: int) -> None:
        """So many bytes of whole events were read elsewhere, the first of them without a BOM."""
        self._started = True
        self._position += length

    def feed(self, piece: bytes) -> list[SseEvent]:
        """The events that the piece completes. Raises EventTooLongError."""
        text = self._rest + piece if self._rest else piece
        if not self._started:
            if len(text) < len(_BOM) and _BOM.startswith(text):
                self._rest = text
                return []
            self._started = True
            if text.startswith(_BOM):
                text, self._position = text[len(_BOM) :], len(_BOM)
        return self._lines(text) if b"\r" in text else self._lines_of_lf(text)

    def close(self, *, whole: bool) -> list[SseEvent]:
        """What is left at the end. `whole`: the body ended as it should, so an event that lacks its closing blank line
        counts; else it is dropped, since its data may be cut."""
        events: list[SseEvent] = []
        if whole:
            rest = self._rest.rstrip(b"\r")
            self._line(rest, self._position + len(rest), events)
            self._line(b"", 0, events)
        self._rest, self._data = b"", []
        return events

    def _lines_of_lf(self, text: bytes) -> list[SseEvent]:
        events: list[SseEvent] = []
        lines = text.split(b"\n")
        rest = lines.pop()
        position = self._position
        for line in lines:
            position += len(line) + 1
            self._line(line, position, events)
        self._keep(rest, position)
        return events

    def _lines(self, text: bytes) -> list[SseEvent]:
        events: list[SseEvent] = []
        done = 0
        for end in _LINE_END.finditer(text):
            if end.end() == len(text) and end[0] == b"\r":
                break  # a newline may follow in the next piece
            self._line(text[done : end.start()], self._position + end.end(), events)
            done = end.end()
        self._keep(text[done:], self._position + done)
        return events

    def _keep(self, rest: bytes, position: int) -> None:
        if len(rest) > MAX_EVENT_BYTES:
            raise EventTooLongError(f"a line of the stream is longer than {MAX_EVENT_BYTES} bytes")
        self._rest, self._position = rest, position

    def _line(self, line: bytes, end: int, events: list[SseEvent]) -> None:
        if not line:
            if self._data:
                events.append(SseEvent(b"\n".join(self._data), self._data_end))
                self._data, self._data_bytes = [], 0
        elif line.startswith(b"data:"):
            self._data_bytes += len(line)
            if self._data_bytes > MAX_EVENT_BYTES:
                raise EventTooLongError(f"an event of the stream is longer than {MAX_EVENT_BYTES} bytes")
            self._data.append(line[6:] if line[5:6] == b" " else line[5:])
            self._data_end = end
        elif line == b"data":
            self._data.append(b"")
            self._data_end = end
