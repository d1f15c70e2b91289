"""A server's log: to disk as it comes, without secrets; its last lines in memory, bounded, for the classification."""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Self

MAX_FILE_BYTES = 256 * 1024 * 1024
"""More than any healthy server writes in a run; what comes after it is kept in memory only, and its end is added."""
MAX_LINE_BYTES = 64 * 1024
"""A longer line, or output without line ends, is cut into pieces of this size."""
MAX_KEPT_CHARACTERS = 4 * 1024 * 1024
MAX_KEPT_LINE = 32 * 1024
MIN_SECRET_BYTES = 4
"""A shorter value would blank out ordinary text and protect nothing."""

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-_])")
_LINE_ENDS = re.compile(rb"\r\n|\n|\r")
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def plain_lines(data: bytes) -> list[str]:
    """Non-empty lines of a log as people read them: no ANSI codes, no control characters, and progress bars (which end
    in a carriage return) line by line."""
    lines = (_UNPRINTABLE.sub("", _ANSI.sub("", part.decode("utf-8", "replace"))) for part in _LINE_ENDS.split(data))
    return [line[:MAX_KEPT_LINE].rstrip() for line in lines if line.strip()]


class Secrets:
    """Values that must never be written: ``[NAME]`` stands in the place of each."""

    def __init__(self, values: Mapping[str, str]) -> None:
        """`values`: name -> value."""
        known = {name: value.strip().encode() for name, value in values.items()}
        self._names = sorted(
            ((value, f"[{name}]".encode()) for name, value in known.items() if len(value) >= MIN_SECRET_BYTES),
            key=lambda pair: -len(pair[0]),
        )
        self.longest_bytes = max((len(value) for value, _ in self._names), default=0)

    def hidden(self, data: bytes) -> bytes:
        """The same without the values."""
        for value, name in self._names:
            data = data.replace(value, name)
        return data


class ServerLog:
    """Takes the output of a server chunk by chunk, in one thread; may be read from any other."""

    def __init__(self, path: Path, secrets: Secrets) -> None:
        self.path = path
        self._file: BinaryIO = path.open("wb", buffering=0)
        self._secrets = secrets
        self._pending = b""
        self._written = 0
        self._lines: deque[str] = deque()
        self._kept = 0
        self._lock = threading.Lock()

    def feed(self, chunk: bytes) -> None:
        """Take what the server wrote. Whole lines go on at once; the rest waits for its end."""
        data = self._pending + chunk
        # A carriage return at the very end may be the first half of a line end.
        cut = max(data.rfind(b"\n"), data.rfind(b"\r", 0, -1)) + 1
        if not cut and len(data) > MAX_LINE_BYTES:
            # Cut without a line end, but never through a secret: what may be its beginning waits.
            data = self._secrets.hidden(data)
            cut = len(data) - max(0, self._secrets.longest_bytes - 1)
        self._pending = data[cut:]
        if cut:
            self._take(data[:cut])

    def pump(self, chunks: Iterable[bytes]) -> None:
        """Feed until the source ends."""
        for chunk in chunks:
            self.feed(chunk)

    def lines(self) -> list[str]:
        """The last lines, oldest first, at most 4 MiB of them, and what has come of the one that is being written."""
        with self._lock:
            kept, pending = list(self._lines), self._pending
        return kept + plain_lines(self._secrets.hidden(pending))

    def close(self) -> None:
        """The end of the output."""
        if self._file.closed:
            return
        self._take(self._pending)
        self._pending = b""
        if self._written > MAX_FILE_BYTES:
            tail = "\n".join(self.lines()[-1000:])
            with suppress(OSError):
                self._file.write(f"\n[the log is cut here: its last lines follow]\n{tail}\n".encode())
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self, data: bytes) -> None:
        data = self._secrets.hidden(data)
        self._written += len(data)
        if self._written <= MAX_FILE_BYTES:
            try:
                self._file.write(data)
            except OSError:  # the disk is full: the run's own next commit says so; the server's output must flow on
                self._written = MAX_FILE_BYTES + 1
        with self._lock:
            for line in plain_lines(data):
                self._lines.append(line)
                self._kept += len(line) + 1
            while self._kept > MAX_KEPT_CHARACTERS:
                self._kept -= len(self._lines.popleft()) + 1
