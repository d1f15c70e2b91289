"""The soak: hours at the recommended point. Does the tail get slower, does the memory grow?

A trend is the least-squares slope over the means of ten equal spans, with its Student interval of 8 degrees: batch
means, because neighbouring seconds are not independent (a line through 1 s samples calls 13 to 42 % of stable runs a
trend, the one through batches 0 to 5 %; METHOD.md).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec
import numpy as np

from orchestrator.clock import NS_PER_MS, NS_PER_S, seconds
from orchestrator.judge.bounds import BATCHES, growth, student_quantile
from orchestrator.judge.steps import SIGNABLE_SHARE, Measure, Outcome, Script, SearchRules, Stop
from orchestrator.metrics import (
    MEMORY_SOURCES,
    Floats,
    Series,
    Window,
    measured_records,
    percentile,
    steady_window,
    tpot_ns,
    ttft_ns,
)
from orchestrator.records import LevelRun, RequestRecord, Sample

MOST_RISE = 0.10
"""By so much may a p95 rise over the whole soak."""
MOST_LEAK_PER_HOUR = 0.01
"""By so much of itself may the memory grow in an hour ..."""
LEAST_LEAK_BYTES = 1 << 20
"""... or by this over the whole soak, if that is more: less says nothing of hours."""
_LEAST_PER_BATCH = 20
"""Requests of a batch from which its p95 is one."""

Word = Literal["PASS", "FAIL", "UNDECIDED"]


class Trend(msgspec.Struct, frozen=True, kw_only=True):
    """How a quantity moved, with its two-sided 95 % interval and its limit."""

    value: float
    lower: float
    upper: float
    limit: float

    @property
    def verdict(self) -> Word:
        """FAIL if even the lower end is over the limit, PASS if even the upper one is under it."""
        return "FAIL" if self.lower > self.limit else "PASS" if self.upper < self.limit else "UNDECIDED"


class Soak(msgspec.Struct, frozen=True, kw_only=True):
    """One soak. The lists hold (seconds from the start of the level, value)."""

    concurrency: int
    window_s: float
    ttft_rise: Trend | None = None
    """Of p95, over the whole soak, relative to its mean. None = too few requests, or more than 5 % failed at a time."""
    tpot_rise: Trend | None = None
    leak_bytes_per_hour: Trend | None = None
    """None = the memory is not read, or not often enough."""
    ttft_p95_ms: tuple[tuple[float, float], ...] = ()
    """By minutes, or by tenths of a shorter soak."""
    tpot_p95_ms: tuple[tuple[float, float], ...] = ()
    memory_bytes: tuple[tuple[float, float], ...] = ()


# --- the phase --------------------------------------------------------------------------------------------------


def soak(rules: SearchRules, stop: Stop, history: Sequence[Outcome]) -> Script:
    """The phase: one long level at the recommended point; once more if it was INVALID."""
    if rules.soak_seconds is None or rules.levels or stop.c_ok is None:
        return stop
    c = recommended(stop)
    for _ in range(2):
        replicate = sum(o.concurrency == c for o in history)
        outcome = yield Measure(concurrency=c, purpose="soak", replicate=replicate, min_seconds=rules.soak_seconds)
        history = [*history, outcome]
        if outcome.valid:
            break
    return msgspec.structs.replace(stop, soaked=outcome.verdict if outcome.valid else "INVALID")


def recommended(stop: Stop) -> int:
    """Users at which the soak is made: 80 % of c_ok, or what was in flight in the replay if that is less."""
    most = math.floor(SIGNABLE_SHARE * (stop.c_ok or 0))
    replayed = None if stop.open_loop is None else stop.open_loop.users_replayed
    return max(1, most if replayed is None else min(most, replayed))


# --- what it showed ---------------------------------------------------------------------------------------------


def soak_of(run: LevelRun, records: Sequence[RequestRecord], samples: Sequence[Sample]) -> Soak | None:
    """What a long level shows, from its records and the samples taken meanwhile; None without a steady window."""
    window = steady_window(run)
    if window is None:
        return None
    measured = measured_records(records)
    sent = np.array([r.sent_ns for r in measured], np.int64)
    ttft = _values([ttft_ns(r) for r in measured], [r.failure is not None for r in measured])
    tpot = _values([tpot_ns(r) for r in measured], [r.failure is not None for r in measured])
    length_s = seconds(window[1] - window[0])
    parts = max(BATCHES, round(length_s / 60))
    return Soak(
        concurrency=run.spec.concurrency,
        window_s=length_s,
        ttft_rise=_rise(_p95s(sent, ttft, window, BATCHES)),
        tpot_rise=_rise(_p95s(sent, tpot, window, BATCHES)),
        leak_bytes_per_hour=_leak(_memory_means(samples, window, BATCHES), length_s / BATCHES),
        ttft_p95_ms=_points(_p95s(sent, ttft, window, parts), window, run.started_ns, 1 / NS_PER_MS),
        tpot_p95_ms=_points(_p95s(sent, tpot, window, parts), window, run.started_ns, 1 / NS_PER_MS),
        memory_bytes=_points(_memory_means(samples, window, parts), window, run.started_ns, 1.0),
    )


def _values(values: Sequence[float | None], failed: Sequence[bool]) -> Floats:
    """In ns; failures as +inf, what is not defined (the TPOT of one token) as NaN."""
    return np.array(
        [math.inf if bad else math.nan if v is None else v for v, bad in zip(values, failed, strict=True)], np.float64
    )


def _edges(window: Window, parts: int) -> list[int]:
    return [int(edge) for edge in np.linspace(window[0], window[1], parts + 1)]


def _p95s(sent: np.ndarray, values: Floats, window: Window, parts: int) -> list[float | None]:
    """p95 of the requests that were sent in each part; None where they are too few, or more than 5 % failed."""
    found: list[float | None] = []
    for start, end in itertools.pairwise(_edges(window, parts)):
        inside = np.sort(values[(sent >= start) & (sent < end) & ~np.isnan(values)])
        value = percentile(inside, 9500) if len(inside) >= _LEAST_PER_BATCH else math.inf
        found.append(value if math.isfinite(value) else None)
    return found


def _memory_means(samples: Sequence[Sample], window: Window, parts: int) -> list[float | None]:
    """Mean of the server's memory in each part, several cards added up; None where nothing was read."""
    for prefix, name, _ in MEMORY_SOURCES:
        sources = sorted({s.source for s in samples if s.source.startswith(prefix) and name in s.values})
        if sources:
            lines = [_means(Series.of(samples, source, name), window, parts) for source in sources]
            return [None if None in part else sum(v or 0.0 for v in part) for part in zip(*lines, strict=True)]
    return [None] * parts


def _means(series: Series, window: Window, parts: int) -> list[float | None]:
    pieces = [series.within((start, end)).values for start, end in itertools.pairwise(_edges(window, parts))]
    return [float(piece.mean()) if len(piece) else None for piece in pieces]


def _points(
    values: Sequence[float | None], window: Window, start_ns: int, scale: float
) -> tuple[tuple[float, float], ...]:
    """Each part's value at its middle."""
    length = (window[1] - window[0]) / len(values)
    return tuple(
        (round((window[0] - start_ns + (i + 0.5) * length) / NS_PER_S, 1), float(f"{value * scale:.6g}"))
        for i, value in enumerate(values)
        if value is not None
    )


def _slope(values: Sequence[float | None]) -> tuple[float, float] | None:
    """(slope a part, half of its 95 % interval); None where a part has no value."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    found = growth(known)
    return found.slope, student_quantile(0.975, len(known) - 2) * found.standard_error


def _rise(values: Sequence[float | None]) -> Trend | None:
    found, known = _slope(values), [value for value in values if value]
    if found is None or not known:
        return None
    slope, half = (part * len(values) * len(known) / sum(known) for part in found)
    return Trend(value=slope, lower=slope - half, upper=slope + half, limit=MOST_RISE)


def _leak(values: Sequence[float | None], part_s: float) -> Trend | None:
    found, known = _slope(values), [value for value in values if value]
    if found is None or not known or not part_s:
        return None
    slope, half = (part * 3600 / part_s for part in found)
    hours = part_s * len(values) / 3600
    limit = max(MOST_LEAK_PER_HOUR * sum(known) / len(known), LEAST_LEAK_BYTES / hours)
    return Trend(value=slope, lower=slope - half, upper=slope + half, limit=limit)


# --- in words ---------------------------------------------------------------------------------------------------


def soak_sentence(found: Soak) -> str:
    """What the soak showed, in one sentence."""
    told = [_rise_told(f"p95 {name}", trend) for name, trend in _rises(found) if trend is not None]
    if (leak := found.leak_bytes_per_hour) is not None:
        value, lower, upper = (_signed(part / 2**20, "") for part in (leak.value, leak.lower, leak.upper))
        told.append(f"memory {value} MiB/h ({lower} to {upper})")
    users = f"{found.concurrency} user{'' if found.concurrency == 1 else 's'}"
    listed = ", ".join(told) or "no trend could be told"
    length = f"{found.window_s / 60:,.0f} min" if found.window_s >= 90 else f"{found.window_s:.0f} s"
    return f"Soak of {length} at {users}: {listed}{_word(found)}."


def _rises(found: Soak) -> tuple[tuple[str, Trend | None], ...]:
    return (("TTFT", found.ttft_rise), ("TPOT", found.tpot_rise))


def _rise_told(name: str, trend: Trend) -> str:
    value, lower, upper = (_signed(100 * part, " %") for part in (trend.value, trend.lower, trend.upper))
    return f"{name} {value} ({lower} to {upper})"


def _signed(value: float, unit: str) -> str:
    return f"{round(value, 1) + 0.0:+.1f}{unit}".replace("-", "\u2212")


def _word(found: Soak) -> str:
    words = [t.verdict for t in (found.ttft_rise, found.tpot_rise, found.leak_bytes_per_hour) if t is not None]
    if "FAIL" in words:
        return "; that is no steady state"
    if not words:
        return ""
    return "; steady" if set(words) == {"PASS"} else "; whether it is steady was not decided"


def soak_gaps(found: Soak | None, stop: Stop | None, *, asked: bool) -> Iterator[str]:
    """What stands in the way of signing. `asked`: the plan wants a soak."""
    if not asked or stop is None or stop.c_ok is None:
        return
    if stop.soaked is None:
        yield "The soak was not made."
    elif stop.soaked == "INVALID":
        yield "The soak is INVALID, twice: whether the server stays as it is over hours is not known."
    elif stop.soaked == "FAIL":
        yield f"The soak did not hold the SLO at {recommended(stop)} users."
    for name, trend in () if found is None else _rises(found):
        if trend is not None and trend.verdict == "FAIL":
            least, most = 100 * trend.lower, 100 * trend.limit
            yield f"During the soak p95 {name} rose by at least {least:.0f} %, and {most:.0f} % is allowed."
    leak = None if found is None else found.leak_bytes_per_hour
    if leak is not None and leak.verdict == "FAIL":
        yield (
            f"During the soak the memory grew by at least {leak.lower / 2**20:,.1f} MiB/h, and "
            f"{leak.limit / 2**20:,.1f} is allowed ({100 * MOST_LEAK_PER_HOUR:.0f} % of it, or 1 MiB over the soak)."
        )
