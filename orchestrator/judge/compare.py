"""Comparing two cells: log-ratios of paired runs, their intervals, equivalence, and several claims at once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr

from orchestrator.judge.bounds import student_quantile


class LogRatio(NamedTuple):
    """Mean of r_j = ln(B_j / A_j) over R pairs, and what follows from it."""

    mean: float
    deviation: float
    """Standard deviation of the r_j."""
    pairs: int
    ratio: float
    lower: float
    upper: float
    """Ends of the interval of the ratio."""
    t: float
    p: float
    """Two-sided, against a ratio of 1."""

    def one_sided(self, alpha: float = 0.05) -> tuple[float, float]:
        """One-sided lower and upper bound of the mean log-ratio (criterion S6)."""
        half = student_quantile(1 - alpha, self.pairs - 1) * self.deviation / math.sqrt(self.pairs)
        return self.mean - half, self.mean + half


def log_ratios(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """ln(B_j / A_j) of runs paired by seed, order, level and card."""
    return [math.log(y / x) for x, y in zip(a, b, strict=True)]


def log_ratio(a: Sequence[float], b: Sequence[float], alpha: float = 0.05) -> LogRatio:
    """Ratio B/A of R >= 2 pairs with its two-sided Student interval (no bootstrap: it under-covers below ten runs)."""
    r = np.asarray(log_ratios(a, b))
    mean, deviation, degrees = float(r.mean()), float(r.std(ddof=1)), len(r) - 1
    error = deviation / math.sqrt(len(r))
    half = student_quantile(1 - alpha / 2, degrees) * error
    t = _t(mean, error)
    return LogRatio(
        mean=mean,
        deviation=deviation,
        pairs=len(r),
        ratio=math.exp(mean),
        lower=math.exp(mean - half),
        upper=math.exp(mean + half),
        t=t,
        p=2 * float(stdtr(degrees, -abs(t))),
    )


def _t(difference: float, error: float) -> float:
    if error:
        return difference / error
    return math.copysign(math.inf, difference) if difference else 0.0


class Equivalence(NamedTuple):
    """Two one-sided tests against a margin declared before (Schuirmann 1987)."""

    delta: float
    """ln(1 + margin)."""
    t_not_lower: float
    t_not_higher: float
    p_not_lower: float
    """Of "B is at least A / (1 + margin)"; the only one that counts for "no slower" where more is better."""
    p_not_higher: float

    @property
    def p(self) -> float:
        return max(self.p_not_lower, self.p_not_higher)


def equivalence(r: Sequence[float], margin: float) -> Equivalence:
    """TOST on log-ratios `r` of R >= 2 pairs. A difference that is not significant is not an equivalence."""
    values = np.asarray(r, np.float64)
    degrees = len(values) - 1
    mean, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))
    delta = math.log(1 + margin)
    low, high = _t(mean + delta, error), _t(mean - delta, error)
    return Equivalence(delta, low, high, float(stdtr(degrees, -low)), float(stdtr(degrees, high)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    scaled = (min(1.0, (len(p_values) - rank) * p_values[i]) for rank, i in enumerate(order))
    adjusted = dict(zip(order, itertools.accumulate(scaled, max), strict=True))
    return [adjusted[i] for i in range(len(p_values))]


def pairs_needed(deviation: float, half_width: float, alpha: float = 0.05) -> int:
    """Fewest pairs for an interval of +- `half_width` when log-ratios scatter by `deviation` (both > 0)."""
    if not (deviation > 0 and half_width > 0):
        raise ValueError(f"no number of pairs for a deviation of {deviation} and a half-width of {half_width}")
    return next(
        pairs
        for pairs in itertools.count(2)
        if student_quantile(1 - alpha / 2, pairs - 1) * deviation / math.sqrt(pairs) <= half_width
    )
