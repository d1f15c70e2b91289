"""The traffic that is expected at launch: how requests come, and where it is known, what each of them asks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from orchestrator.records import Request
from workloads.arrivals import Law, modulated, schedule
from workloads.rows import Rows
from workloads.strata import Pairs
from workloads.streams import Stream, distinct_words
from workloads.traces import arrivals_of
from workloads.workload import Arrivals, clamp_pairs

_MOST_ROWS = 1 << 20
"""Of a trace that comes again and again, looked at together."""


class Replay(NamedTuple):
    """A stretch of the expected traffic."""

    due_ns: tuple[int, ...]
    """When each request is due, ns after the start."""
    pairs: Pairs | None
    """What each asks; None: as the workload has it."""

    def requests(self, seed: int, context_tokens: int | None) -> Iterator[Request]:
        """The requests of a trace in its order, cut to the context as a workload's are."""
        assert self.pairs is not None
        cut, clamped = clamp_pairs(self.pairs, context_tokens)
        rows = zip(cut.tolist(), clamped.tolist(), distinct_words(seed, len(cut)).tolist(), strict=True)
        for seq, ((prompt, output), was_cut, word) in enumerate(rows):
            yield Request(seq=seq, prompt_tokens=prompt, output_tokens=output, prompt_seed=word, clamped=was_cut)


@dataclass(frozen=True, kw_only=True, eq=False)
class Expected:
    """Exactly one of `law`, `rows` and `arrivals` alone says how requests come; `arrivals` tells of `rows` too."""

    name: str
    """In words, for the report."""
    law: Law | None = None
    rows: Rows | None = None
    """Requests with their time stamps."""
    arrivals: Arrivals | None = None
    """Requests and tokens per bin."""

    def replay(self, rate_per_s: float, seed: int, seconds: float) -> Replay:
        """The traffic at a mean rate, for `seconds`: its busiest stretch where it is longer, over and over where it is
        shorter.

        Time stamps are scaled in time; a trace that is faster than asked is thinned at random instead, because
        scaling also stretches its swings. Bins keep their length, and their rates are scaled (Poisson inside a bin).
        """
        if self.law is not None:
            return Replay(schedule(self.law(rate_per_s, seed), seconds=seconds), None)
        if self.rows is not None and self.rows.times_s is not None:
            return _stamps(self.rows.times_s, self.rows.pairs, rate_per_s, seed, seconds)
        assert self.arrivals is not None
        return Replay(_bins(self.arrivals, rate_per_s, seed, seconds), None)

    def sha256(self) -> str:
        """Hash of what is known of it: two with the same hash are replayed alike."""
        digest = hashlib.sha256(self.name.encode())
        if self.rows is not None and self.rows.times_s is not None:
            digest.update(self.rows.times_s.astype("<f8").tobytes() + self.rows.pairs.astype("<i8").tobytes())
        digest.update(repr(self.arrivals).encode())
        return digest.hexdigest()

    def length_s(self, rate_per_s: float) -> float:
        """Of all of it at a mean rate; 0 = a law has no length."""
        if self.rows is not None and self.rows.times_s is not None:
            own = _own_rate(self.rows.times_s)
            return float(self.rows.times_s[-1]) * min(1.0, own / rate_per_s)
        if self.arrivals is not None:
            return len(self.arrivals.requests_per_bin) * self.arrivals.bin_s
        return 0.0


def expected_rows(name: str, rows: Rows) -> Expected | None:
    """Rows of a trace; None where they have no times, or all within a second."""
    arrivals = arrivals_of(rows)
    return None if arrivals is None or arrivals.span_s < 1.0 else Expected(name=name, rows=rows, arrivals=arrivals)


def expected_bins(name: str, arrivals: Arrivals | None) -> Expected | None:
    """A table of bins; None where there is none."""
    if arrivals is None or not sum(arrivals.requests_per_bin):
        return None
    return Expected(name=name, arrivals=arrivals)


def _own_rate(times_s: NDArray[np.float64]) -> float:
    return (len(times_s) - 1) / float(times_s[-1])


def _bins(arrivals: Arrivals, rate_per_s: float, seed: int, seconds: float) -> tuple[int, ...]:
    bins, size = np.array(arrivals.requests_per_bin), arrivals.bin_s
    most = int(np.ceil(seconds / size))
    chosen = bins
    if most < len(bins):
        sums = np.convolve(bins, np.ones(most), "valid")
        first = int(sums.argmax())
        chosen = bins[first : first + most]
    mean = rate_per_s * float(chosen.mean() / bins.mean())
    return schedule(modulated(chosen.tolist(), size)(mean, seed), seconds=seconds)


def _stamps(times_s: NDArray[np.float64], pairs: Pairs, rate_per_s: float, seed: int, seconds: float) -> Replay:
    own = _own_rate(times_s)
    scale = min(1.0, own / rate_per_s)
    span = float(times_s[-1]) * scale + scale / own
    at, rows = _repeated(times_s * scale, span, seconds, min(1.0, rate_per_s / own), Stream(seed, "thin"))
    first = 0
    if span > seconds and len(at):
        first = int((np.searchsorted(at, at + seconds) - np.arange(len(at))).argmax())
        at = at - at[first]
    inside = (np.arange(len(at)) >= first) & (at < seconds)
    return Replay(schedule(at[inside].tolist(), requests=int(inside.sum())), pairs[rows[inside]])


def _repeated(
    times_s: NDArray[np.float64], span: float, seconds: float, kept: float, stream: Stream
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """When requests are due in as many repetitions of a trace as `seconds` take, of which a share is kept, and which
    row each is. In blocks: a dense second that stands for an hour has thousands of times the rows that are kept."""
    times, rows = [], []
    repetitions, block = int(np.ceil(seconds / span)), max(1, _MOST_ROWS // len(times_s))
    for start in range(0, repetitions, block):
        again = np.arange(start, min(start + block, repetitions))
        at = (times_s + span * again[:, None]).ravel()
        chosen = np.flatnonzero(stream.uniforms(len(at)) < kept) if kept < 1.0 else np.arange(len(at))
        times.append(at[chosen])
        rows.append(chosen % len(times_s))
    return np.concatenate(times), np.concatenate(rows)
