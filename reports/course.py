"""The course of one level: what was in flight, when tokens came, how long the first ones took, what the watch saw.

Times are seconds from the start of the level. Everything is thinned to what a small picture can show.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from orchestrator.clock import NS_PER_MS, NS_PER_S
from orchestrator.metrics import Arrivals, Floats, Ints, steady_window, ttft_ns
from orchestrator.records import LevelRun, RequestRecord, Sample
from reports.timeline import best_source, memory_series, thin

BINS = 40
DOTS = 80
POINTS = 60

Points = tuple[tuple[float, float], ...]
"""(seconds, value)."""

_GAUGES = (("engine", "kv_use"), ("engine", "waiting"), ("gpu:", "power_w"), ("gpu:", "throttled"))
_THROTTLES = ("sw_power_cap", "hw_slowdown", "sw_thermal", "hw_thermal", "hw_power_brake")


class Course(msgspec.Struct, frozen=True, kw_only=True):
    """A level over time. Bins are equal spans of it."""

    length_s: float
    window_s: tuple[float, float] | None
    """The steady window, from which every rate is taken."""
    in_flight: tuple[float, ...] = ()
    """Mean requests in flight in each bin, all phases."""
    output_tokens_per_s: tuple[float, ...] = ()
    """In each bin; () where the server does not tell its tokens."""
    ttft_ms: Points = ()
    """The slowest of each stretch of requests, at the time of sending."""
    failed_s: tuple[float, ...] = ()
    """When requests failed, at most as many as there are bins."""
    memory_bytes: Points = ()
    gauges: dict[str, Points] = {}
    """What the engine and the card told: ``kv_use``, ``waiting``, ``power_w`` (all cards), ``throttled`` (0 or 1)."""


def course(
    run: LevelRun, records: Sequence[RequestRecord], samples: Sequence[Sample], arrivals: Arrivals | None
) -> Course:
    """The course of a level, from its records of all phases, the arrivals of its tokens and what was sampled."""
    start, end = run.started_ns, max(run.ended_ns, run.started_ns + 1)
    edges = np.linspace(start, end, BINS + 1)
    window = steady_window(run)
    first = sorted((r.sent_ns, ns / NS_PER_MS) for r in records if (ns := ttft_ns(r)) is not None)
    return Course(
        length_s=_s(end - start),
        window_s=(_s(window[0] - start), _s(window[1] - start)) if window else None,
        in_flight=_numbers(_in_flight(records, edges)),
        output_tokens_per_s=()
        if arrivals is None
        else _numbers(_per_bin(arrivals.at_ns, arrivals.tokens, edges) / ((end - start) / BINS / NS_PER_S)),
        ttft_ms=_points(first, start, DOTS),
        failed_s=_failures(records, start),
        memory_bytes=_memory(samples, start),
        gauges={name: line for source, name in _GAUGES if (line := _gauge(samples, source, name, start))},
    )


def _s(ns: float) -> float:
    return round(ns / NS_PER_S, 3)


def _numbers(values: Floats) -> tuple[float, ...]:
    return tuple(float(f"{value:.4g}") for value in values.tolist())


def _points(line: Sequence[tuple[int, float]], start: int, most: int) -> Points:
    return tuple((_s(at - start), float(f"{value:.4g}")) for at, value in thin(line, most))


def _in_flight(records: Sequence[RequestRecord], edges: Floats) -> Floats:
    """Mean in flight between successive edges: what each request adds up to an edge is clip(edge - sent, 0, length)."""
    sent = np.array([r.sent_ns for r in records], np.float64)
    length = np.array([r.end_ns for r in records], np.float64) - sent
    held = np.array([np.clip(edge - sent, 0, length).sum() for edge in edges])
    return np.diff(held) / np.diff(edges)


def _per_bin(at_ns: Ints, weights: Floats, edges: Floats) -> Floats:
    found, _ = np.histogram(at_ns, bins=edges, weights=weights)
    return found


def _failures(records: Sequence[RequestRecord], start: int) -> tuple[float, ...]:
    ends = sorted(r.end_ns for r in records if r.failure is not None)
    return tuple(_s(end - start) for end in ends[:: -(-len(ends) // BINS) or 1])


def _memory(samples: Sequence[Sample], start: int) -> Points:
    series = memory_series(samples)
    source = best_source({name: max(value for _, value in line) for name, line in series.items()})
    return _points(series[source], start, POINTS) if source else ()


def _gauge(samples: Sequence[Sample], source: str, name: str, start: int) -> Points:
    """One value over time; of several cards the sum, and of `throttled` the worst."""
    found: dict[int, float] = {}
    for sample in samples:
        if not sample.source.startswith(source) or (value := _value(sample, name)) is None:
            continue
        second = sample.at_ns // NS_PER_S if source == "gpu:" else sample.at_ns
        known = found.get(second, 0.0)
        found[second] = max(known, value) if name == "throttled" else known + value
    scale = NS_PER_S if source == "gpu:" else 1
    return _points([(max(at * scale, start), value) for at, value in sorted(found.items())], start, POINTS)


def _value(sample: Sample, name: str) -> float | None:
    if name != "throttled":
        return sample.values.get(name)
    reasons = [sample.values[f"throttle_{reason}"] for reason in _THROTTLES if f"throttle_{reason}" in sample.values]
    return max(reasons) if reasons else None
