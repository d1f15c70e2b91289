"""Memory over time: which source tells it, the line to draw, the peak, and what was used before the first level."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

import msgspec

from orchestrator.clock import NS_PER_S
from orchestrator.records import Sample

POINTS = 240
"""Most points of a line; each keeps the largest value of its stretch, so that no peak is lost."""

_NAMES = ("memory_ours_bytes", "memory_used_bytes", "pss_bytes", "rss_bytes")
_RANK = {"engine": 0, "gpu": 1, "container": 2, "tree": 3}
"""An engine tells its memory only where its card is simulated: then the host's memory says nothing."""
_WORDS = {
    "engine": "memory of the simulated card, as it reports",
    "gpu": "GPU memory (fullest card)",
    "container": "memory of the container",
    "tree": "memory of the process tree",
}


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of the time line, in seconds from the start of the cell's first server."""

    start_s: float
    end_s: float
    concurrency: int
    """Users of the level; 0 = the life of a server, or an open level."""


class Timeline(msgspec.Struct, frozen=True, kw_only=True):
    """Memory of a cell's servers over time, servers set one after another."""

    source: str
    """What was read, in words; "" if nothing was."""
    servers: tuple[tuple[tuple[float, float], ...], ...] = ()
    """For each server its line: (seconds, bytes)."""
    levels: tuple[Span, ...] = ()
    peak_bytes: int | None = None
    ready_bytes: int | None = None
    """Just before the first level: what the server holds when it is ready and nobody asks."""
    on_gpu: bool = False


def memory_series(samples: Iterable[Sample]) -> dict[str, list[tuple[int, float]]]:
    """(at_ns, bytes) by source, for the sources that tell the server's memory.

    A source's line is of one quantity throughout: readings that lack it are passed over, never filled in with another
    (PSS is read less often than RSS, and a card's own memory is not told before its process is there).
    """
    found: defaultdict[str, dict[str, list[tuple[int, float]]]] = defaultdict(lambda: {name: [] for name in _NAMES})
    for sample in samples:
        if sample.source.partition(":")[0] in _RANK:
            for name in found[sample.source].keys() & sample.values.keys():
                found[sample.source][name].append((sample.at_ns, sample.values[name]))
    best = {source: next((line for line in lines.values() if line), []) for source, lines in found.items()}
    return {source: line for source, line in best.items() if line}


def best_source(peaks: dict[str, float]) -> str | None:
    """Simulated card before GPU before container before process tree; the fullest of several cards."""
    return min(peaks, key=lambda s: (_RANK[s.partition(":")[0]], -peaks[s], s), default=None)


def source_words(source: str | None) -> str:
    return _WORDS[source.partition(":")[0]] if source else ""


def thin(points: Sequence[tuple[float, float]], most: int = POINTS) -> tuple[tuple[float, float], ...]:
    """At most `most` points of a line, each the largest value of its stretch at the time when it was read."""
    if len(points) <= most:
        return tuple(points)
    edges = [len(points) * i // most for i in range(most + 1)]
    return tuple(max(points[a:b], key=lambda point: point[1]) for a, b in pairwise(edges))


def to_seconds(series: Sequence[tuple[int, float]], started_ns: int, offset_s: float) -> list[tuple[float, float]]:
    return [(round(offset_s + (at_ns - started_ns) / NS_PER_S, 3), value) for at_ns, value in series]
