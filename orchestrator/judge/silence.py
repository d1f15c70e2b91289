"""A hang: requests are in flight and nothing comes back on any stream."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from orchestrator.clock import seconds
from orchestrator.metrics import Ints
from orchestrator.records import RequestRecord

_OUR_ENDS = ("timeout", "cancelled", "dropped")


def longest_silence_s(records: Sequence[RequestRecord]) -> float:
    """Longest time in which at least one request was in flight and no stream brought a token or an answer's end.

    A request that we gave up (timeout, cancelled) or never sent (dropped) ended without a sign of life.
    """
    signs = _signs_of_life(records)
    longest = 0
    for start, end in _busy(records):
        inside = signs[np.searchsorted(signs, start) : np.searchsorted(signs, end, side="right")]
        longest = max(longest, int(np.diff(np.concatenate([[start], inside, [end]])).max()))
    return seconds(longest)


def _signs_of_life(records: Sequence[RequestRecord]) -> Ints:
    """Arrivals of tokens and ends of answers, in order."""
    arrived = np.fromiter(itertools.chain.from_iterable(r.token_ns for r in records), np.int64)
    ended = [r.end_ns for r in records if r.failure is None or r.failure.kind not in _OUR_ENDS]
    return np.sort(np.concatenate([arrived, np.array(ended, np.int64)]))


def _busy(records: Sequence[RequestRecord]) -> Iterator[tuple[int, int]]:
    """The times with at least one request in flight, as disjoint intervals."""
    spans = sorted((r.sent_ns, r.end_ns) for r in records)
    if not spans:
        return
    start, until = spans[0]
    for sent, end in spans[1:]:
        if sent > until:
            yield start, until
            start = sent
        until = max(until, end)
    yield start, until
