"""Recorded streams of real servers: the body as it came, with its status (`tests/data/samples/streams`)."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parents[1] / "data" / "samples" / "streams"


class Sample(NamedTuple):
    path: str
    status: int
    body: bytes


def sample(name: str) -> Sample:
    """A recording: the request as lines that begin with ">", the head of the answer, the body with its chunking
    undone."""
    text = (FOLDER / f"{name}.txt").read_bytes()
    start = text.index(b"HTTP/1.1 ")
    path = text.split(b"\n", 1)[0].split()[2].decode()
    head, body = text[start:].split(b"\n\n", 1)
    return Sample(path, int(head.split()[1]), body)


NAMES = sorted(file.stem for file in FOLDER.glob("*.txt"))
