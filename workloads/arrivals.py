"""When requests are due in an open loop: pure functions of a rate and a seed, fixed before the first one is sent.

Each gives seconds after the start, in order and without end (a trace ends with its last request). `schedule` cuts them
to what is asked. The same seed gives the same times on every machine: the words come from Python's generator, whose
stream is guaranteed, and the laws are written out here.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence

from orchestrator.clock import NS_PER_S

Law = Callable[[float, int], Iterator[float]]
"""From a mean rate (requests per second) and a seed to times in seconds after the start."""


def constant(rate_per_s: float, _seed: int = 0) -> Iterator[float]:
    """Request i is due at i / rate; the seed means nothing."""
    return (number / rate_per_s for number in itertools.count())


def poisson(rate_per_s: float, seed: int) -> Iterator[float]:
    """Independent arrivals: exponential gaps."""
    return (unit / rate_per_s for unit in _unit_poisson(seed))


def gamma(cv: float) -> Law:
    """Gamma-distributed gaps with this coefficient of variation: 1 is Poisson, more comes in bursts."""
    if not 0 < cv < math.inf:
        raise ValueError(f"a coefficient of variation must be positive, not {cv:g}")
    shape = 1 / cv**2

    def times(rate_per_s: float, seed: int) -> Iterator[float]:
        source = random.Random(f"gamma/{seed}")
        gaps = (source.gammavariate(shape, 1 / (shape * rate_per_s)) for _ in itertools.count())
        return itertools.accumulate(gaps)

    return times


def modulated(weights: Sequence[float], bin_s: float) -> Law:
    """Poisson arrivals whose rate follows `weights` (any unit, one for each `bin_s` seconds), over and over again; the
    mean rate is the asked one. Unit Poisson times are mapped through the inverse of the summed rate."""
    if not weights or min(weights) < 0 or not 0 < sum(weights) < math.inf or bin_s <= 0:
        raise ValueError("a rate needs bins of positive length, and weights of which one is positive and none negative")
    mean = sum(weights) / len(weights)

    def times(rate_per_s: float, seed: int) -> Iterator[float]:
        units = _unit_poisson(seed)
        due = next(units)
        passed = 0.0
        for number in itertools.count():
            expected = weights[number % len(weights)] / mean * rate_per_s * bin_s
            while due < passed + expected:
                yield (number + (due - passed) / expected) * bin_s
                due = next(units)
            passed += expected

    return times


def trace(times_s: Sequence[float]) -> Law:
    """The time stamps of a trace, scaled in time to the asked mean rate; it ends with its last request."""
    if len(times_s) < 2 or list(times_s) != sorted(times_s) or times_s[-1] <= times_s[0]:
        raise ValueError("a trace needs at least two time stamps, in order and not all the same")
    start, span = times_s[0], times_s[-1] - times_s[0]

    def times(rate_per_s: float, _seed: int) -> Iterator[float]:
        scale = (len(times_s) - 1) / (rate_per_s * span)
        return ((at - start) * scale for at in times_s)

    return times


def _unit_poisson(seed: int) -> Iterator[float]:
    source = random.Random(f"poisson/{seed}")
    return itertools.accumulate(-math.log1p(-source.random()) for _ in itertools.count())


def schedule(times_s: Iterable[float], *, requests: int | None = None, seconds: float | None = None) -> tuple[int, ...]:
    """The send times of a run, ns after its start: the first `requests` of them and those before `seconds`."""
    if requests is None and seconds is None:
        raise ValueError("a schedule needs a number of requests or a length")
    chosen: Iterator[float] = itertools.islice(times_s, requests)
    if seconds is not None:
        chosen = itertools.takewhile(lambda at: at < seconds, chosen)
    return tuple(round(at * NS_PER_S) for at in chosen)


def arrivals_named(text: str) -> Law:
    """`constant`, `poisson` or `gamma:CV`. ValueError with the forms that are allowed."""
    kind, _, number = text.strip().lower().partition(":")
    if kind == "gamma" and number:
        try:
            return gamma(float(number))
        except ValueError as error:
            raise ValueError(f"{text!r} is no law of arrivals: {error}") from error
    known: dict[str, Law] = {"constant": constant, "poisson": poisson}
    if kind not in known or number:
        raise ValueError(f"{text!r} is no law of arrivals; write constant, poisson or gamma:CV (e.g. gamma:2)")
    return known[kind]
