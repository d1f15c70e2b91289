"""The text events of a stream mostly differ in one string of their JSON: then one look tells many of them."""

from __future__ import annotations

import itertools
import re
from typing import NamedTuple, Self

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
_ESCAPE = re.compile(rb'\\(?:["\\/bfnrt]|u(?:[0-9abcefABCEF][0-9a-fA-F]|[dD][0-7])[0-9a-fA-F]{2})')
"""Of a JSON string, without halves of a surrogate pair: those are left to whoever reads every event."""
_NOT_IN_STRING = bytes(range(0x20)) + b'"\\'


class Shape(NamedTuple):
    """What the text events of one stream have in common; where they differ stands a string that is not empty."""

    head: bytes
    """Up to and with the quote that opens the string."""
    tail: bytes
    """From the quote that closes it, with the blank line."""

    @classmethod
    def of(cls, one: bytes, other: bytes) -> Self | None:
        """Of two events that mean a piece of text, each with its blank line. None if they do not differ, or in more
        than the value of one string."""
        same = _common(one, other)
        for string in _STRING.finditer(one):
            if string.start() < same < string.end():
                shape = cls(one[: string.start() + 1], one[string.end() - 1 :])
                is_key = shape.tail[1:].lstrip().startswith(b":")
                return shape if not is_key and shape.lengths(other) == [len(other)] else None
        return None

    def lengths(self, events: bytes) -> list[int]:
        """Of the events of this shape that `events` begins with."""
        if not events.startswith(self.head):
            return []
        texts = events[len(self.head) :].split(self.tail + self.head)
        texts[-1], closed, _ = texts[-1].partition(self.tail)
        if not closed:
            texts.pop()
        if not _are_texts(texts):
            texts = list(itertools.takewhile(lambda text: _are_texts([text]), texts))
        return [len(text) + len(self.head) + len(self.tail) for text in texts]


def _are_texts(texts: list[bytes]) -> bool:
    """Each is the inside of a JSON string, and none is empty."""
    joined = b" ".join(texts)
    if len(joined.translate(None, _NOT_IN_STRING)) != len(joined):
        joined = _ESCAPE.sub(b"", joined)
        if len(joined.translate(None, _NOT_IN_STRING)) != len(joined):
            return False
    if not joined.isascii():
        try:
            joined.decode()
        except UnicodeDecodeError:
            return False
    return all(texts)


def _common(one: bytes, other: bytes) -> int:
    """How many bytes they begin with alike."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
