"""Confidence bounds of a level's figures. Formulas and test vectors: METHOD.md, "How sure a figure is".

`alpha` is the error probability of one side unless said otherwise. Batches are equal runs of requests in issue order,
or equal spans of the steady window: neighbours share a batch of the server, so their outcomes are not independent, and
a plain binomial bound would be wrong about one time in three near a target of 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from scipy.special import bdtr, betaincinv, gammaincinv, ndtri, stdtr, stdtrit

from orchestrator.metrics import percentile

BATCHES = 10
"""k: batches of one run. Pooled replicates take 5 each, so that no batch spans two runs."""


def student_quantile(p: float, degrees: int) -> float:
    """Quantile of Student's t."""
    return float(stdtrit(degrees, p))


def _beta_quantile(p: float, a: float, b: float) -> float:
    return float(betaincinv(a, b, p))


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A figure with its interval. None = no such value, or not bounded on that side."""

    value: float | None = None
    lower: float | None = None
    upper: float | None = None
    n_eff: float | None = None
    """How many independent requests would say as much."""


# --- shares of requests -----------------------------------------------------------------------------------------


class Attainment(NamedTuple):
    """A share of requests with its bounds."""

    observed: float
    lower: float
    upper: float
    design_effect: float | None
    """By how much neighbours' likeness inflates the variance; None where all or none are good."""
    n_eff: float
    """How many independent requests would say as much."""


def _effective_size(good_per_batch: Sequence[int], m: int, tail: float) -> tuple[float | None, float]:
    """Design effect and n_eff; `tail` is the probability beyond the quantiles z and t."""
    k, good = len(good_per_batch), sum(good_per_batch)
    n = k * m
    observed = good / n
    if good in (0, n):
        return None, n / 4  # no variance was seen, so none can be estimated
    variance = sum((g / m - observed) ** 2 for g in good_per_batch) / (k - 1)
    floor = 4 - 3 * min(good, n - good) / 25  # few good or bad requests show no clumping, which proves nothing
    design_effect = max(1.0, m * variance / (observed * (1 - observed)), floor)
    ratio = float(ndtri(1 - tail)) / student_quantile(1 - tail, k - 1)
    return design_effect, n / design_effect * ratio**2


def lower_share_bound(good: float, n: float, alpha: float) -> float:
    """Clopper-Pearson lower bound of a share of `n` (effective, so not whole) requests."""
    return _beta_quantile(alpha, good, n - good + 1) if good > 0 else 0.0


def attainment_bounds(good_per_batch: Sequence[int], m: int, alpha: float) -> Attainment:
    """Bounds of the share of good requests, from the good ones in each of k >= 2 batches of `m` in issue order.

    Clopper-Pearson on an effective sample size (Korn and Graubard 1998), its design effect from batch means.
    """
    if len(good_per_batch) < 2 or m < 1:
        raise ValueError(f"attainment needs two batches of one request, not {len(good_per_batch)} of {m}")
    observed = sum(good_per_batch) / (len(good_per_batch) * m)
    design_effect, n_eff = _effective_size(good_per_batch, m, alpha)
    good, bad = observed * n_eff, n_eff - observed * n_eff
    return Attainment(
        observed=observed,
        lower=lower_share_bound(good, n_eff, alpha),
        upper=_beta_quantile(1 - alpha, good + 1, bad) if observed < 1 else 1.0,
        design_effect=design_effect,
        n_eff=n_eff,
    )


def per_batch(flags: Sequence[bool], k: int = BATCHES) -> tuple[list[int], int]:
    """Trues in each of `k` equal batches in order, and the batch size m; up to k - 1 last flags are left out.

    ([], 0) where there are fewer than `k` flags.
    """
    m = len(flags) // k
    return ([sum(flags[i * m : (i + 1) * m]) for i in range(k)], m) if m else ([], 0)


class Interval(NamedTuple):
    lower: float
    upper: float


def error_bounds(failed: int, n: int, alpha: float) -> Interval:
    """Exact binomial (Clopper-Pearson) bounds of a failure rate."""
    return Interval(
        lower=_beta_quantile(alpha, failed, n - failed + 1) if failed else 0.0,
        upper=_beta_quantile(1 - alpha, failed + 1, n - failed) if failed < n else 1.0,
    )


# --- counters and gauges ----------------------------------------------------------------------------------------


class Preemptions(NamedTuple):
    """Preemptions per request with bounds; `design_effect` is variance over mean of the time batches."""

    per_request: float
    lower: float
    upper: float
    design_effect: float


def preemption_bounds(count_per_batch: Sequence[float], requests: int, alpha: float) -> Preemptions:
    """Poisson bounds of preemptions per request, widened by the overdispersion of their counts in time batches."""
    counts = np.asarray(count_per_batch, np.float64)
    total = float(counts.sum())
    design_effect = max(1.0, float(counts.var(ddof=1) / counts.mean())) if total > 0 else 1.0
    events, size = total / design_effect, requests / design_effect
    return Preemptions(
        per_request=total / requests,
        lower=float(gammaincinv(events, alpha)) / size if total > 0 else 0.0,
        upper=float(gammaincinv(events + 1, 1 - alpha)) / size,
        design_effect=design_effect,
    )


class MeanBounds(NamedTuple):
    mean: float
    lower: float
    upper: float


def batch_mean_bounds(values: Sequence[float], alpha: float) -> MeanBounds:
    """Student bounds of a mean from k >= 2 batch means."""
    means = np.asarray(values, np.float64)
    mean, k = float(means.mean()), len(means)
    half = student_quantile(1 - alpha, k - 1) * float(means.std(ddof=1)) / math.sqrt(k)
    return MeanBounds(mean, mean - half, mean + half)


class Growth(NamedTuple):
    """Slope of the in-flight over time batches (open loop)."""

    slope: float
    """Requests per batch."""
    standard_error: float
    t: float
    p: float
    """One-sided, against a slope of zero."""


def growth(batch_means: Sequence[float]) -> Growth:
    """Least-squares slope over k >= 3 batch means, with its one-sided t test of k - 2 degrees."""
    y = np.asarray(batch_means, np.float64)
    x = np.arange(1, len(y) + 1, dtype=np.float64)
    spread = float(((x - x.mean()) ** 2).sum())
    slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread
    residual = y - y.mean() - slope * (x - x.mean())
    error = math.sqrt(float((residual**2).sum()) / (len(y) - 2) / spread)
    t = slope / error if error else math.copysign(math.inf, slope) if slope else 0.0
    return Growth(slope, error, t, float(stdtr(len(y) - 2, -t)))


COMPLETED_SHARE = 0.97
"""Of the requests that came; where fewer end and in-flight rises, the queue grows."""


def grows(found: Growth, completed_per_arrival: float) -> bool:
    """S7: the queue grows without limit. Both signs together; either alone alarms on stable runs."""
    return found.p < 0.01 and completed_per_arrival < COMPLETED_SHARE


# --- percentiles ------------------------------------------------------------------------------------------------


class Ranks(NamedTuple):
    """Ranks (from 1) of a percentile's bounds among n_eff ordered values; None = not bounded above."""

    lower: int
    upper: int | None


def _binomial_quantile(p: float, n: int, q: float) -> int:
    return int(np.searchsorted(bdtr(np.arange(n + 1), n, q), p))


def order_statistics(n_eff: int, q: float, alpha: float = 0.05) -> Ranks:
    """Distribution-free two-sided bounds of the quantile `q`; `alpha` is shared by both sides."""
    upper = _binomial_quantile(1 - alpha / 2, n_eff, q) + 1
    return Ranks(_binomial_quantile(alpha / 2, n_eff, q), upper if upper <= n_eff else None)


def least_n_eff(basis_points: int, *, two_sided: bool, alpha: float = 0.05) -> int:
    """n_eff from which a percentile may be printed: with an interval, or (one-sided) as "at most x"."""
    tail = alpha / 2 if two_sided else alpha
    return math.ceil(math.log(tail) / math.log(basis_points / 10_000))


class PercentileInterval(NamedTuple):
    """A percentile and the values at the ranks of its bounds."""

    value: float
    lower: float | None
    """None where even the smallest value is above the lower bound's rank."""
    upper: float | None
    """None where the percentile is not bounded above, or a bound falls on a failure."""
    n_eff: int
    needed: int
    """n_eff from which the interval has an upper end."""


def percentile_interval(
    values: Sequence[float], basis_points: int, alpha: float = 0.05, k: int = BATCHES
) -> PercentileInterval:
    """Two-sided interval of a percentile, from values in *issue order* with failures as +inf; needs k of them."""
    n, q = len(values), basis_points / 10_000
    ordered = sorted(values)
    value = percentile(ordered, basis_points)
    flags, m = per_batch([x <= value for x in values], k)
    if not m:
        raise ValueError(f"an interval needs {k} values, not {n}")
    n_eff = math.floor(_effective_size(flags, m, alpha / 2)[1])
    ranks = order_statistics(n_eff, q, alpha) if n_eff else Ranks(0, None)
    low = math.floor(ranks.lower * n / n_eff) if n_eff else 0
    upper = math.inf if ranks.upper is None else ordered[min(n, math.ceil(ranks.upper * n / n_eff)) - 1]
    return PercentileInterval(
        value=value,
        lower=ordered[low - 1] if low else None,
        upper=upper if math.isfinite(upper) else None,
        n_eff=n_eff,
        needed=least_n_eff(basis_points, two_sided=True, alpha=alpha),
    )


# --- how many requests ------------------------------------------------------------------------------------------


def looks(concurrency: int) -> tuple[int, ...]:
    """Sizes at which a growing level is looked at: from max(400, 10 c), doubling, the last max(3200, 20 c).

    With K looks each is judged at alpha / K.
    """
    sizes, largest = [max(400, 10 * concurrency)], max(3200, 20 * concurrency)
    while sizes[-1] < largest:
        sizes.append(min(2 * sizes[-1], largest))
    return tuple(sizes)


def requests_needed(found: Attainment, n: int, target: float, alpha: float) -> int | None:
    """About how many requests (multiples of `n`, powers of two) would put a bound on one side of the target.

    The observed share and the design effect are taken as they are. None if even 2^12 times as many would not.
    """
    for doubling in range(13):
        n_eff = found.n_eff * (1 << doubling)
        good, bad = found.observed * n_eff, n_eff * (1 - found.observed)
        if found.observed > 0 and _beta_quantile(alpha, good, bad + 1) > target:
            return n << doubling
        if found.observed < 1 and _beta_quantile(1 - alpha, good + 1, bad) < target:
            return n << doubling
    return None
