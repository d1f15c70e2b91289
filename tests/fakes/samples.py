"""Recordings of real servers in tests/data/samples (see the README there), as the product would read them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parents[1] / "data" / "samples"


class Answer(NamedTuple):
    path: str
    """That was asked; empty where the recording does not hold the request."""
    status: int
    body: bytes


def text(name: str) -> str:
    """A file with its line ends as they are."""
    with (FOLDER / name).open(encoding="utf-8", newline="") as file:
        return file.read()


def lines(name: str) -> list[str]:
    """Lines of a log, cut at line feeds alone, as a pipe gives them."""
    return text(name).split("\n")


def sections(name: str) -> dict[str, list[str]]:
    """The parts of a constructed log by the ``# comment`` above each; the first is about the file."""
    found: dict[str, list[str]] = {}
    heading = ""
    for line in text(name).splitlines():
        if line.startswith("# "):
            heading = line[2:]
            found[heading] = []
        else:
            found[heading].append(line)
    return {heading: content for heading, content in found.items() if content}


def answer(name: str) -> Answer:
    """The recorded answer to a request: what stands behind its status line and its head."""
    recorded = text(name)
    found = re.search(r"^HTTP/1\.1 (?P<status>\d+).*?(?:\n\n(?P<body>.*)|\Z)", recorded, re.MULTILINE | re.DOTALL)
    assert found is not None, name
    asked = re.match(r"> [A-Z]+ (\S+)", recorded)
    return Answer(asked[1] if asked else "", int(found["status"]), (found["body"] or "").encode())


def names(stack: str, pattern: str) -> list[str]:
    """Files of a stack, as they are named here."""
    return sorted(f"{stack}/{path.name}" for path in (FOLDER / stack).glob(pattern))


def streams() -> dict[str, Answer]:
    """Every recorded stream of a real server, as ``stack-what``."""
    return {
        f"{path.parent.name}-{path.stem.removeprefix('stream-')}": answer(f"{path.parent.name}/{path.name}")
        for path in sorted(FOLDER.glob("*/stream-*.txt"))
    }
