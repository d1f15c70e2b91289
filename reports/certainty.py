"""How sure the figures of one level are: two-sided 95 % intervals from the level's own requests.

They hold within one run of one server. How much a fresh run differs is another question, which takes paired runs
(`orchestrator.judge.claims`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from orchestrator.clock import NS_PER_S
from orchestrator.judge.bounds import (
    BATCHES,
    Estimate,
    attainment_bounds,
    batch_mean_bounds,
    least_n_eff,
    per_batch,
    percentile_interval,
)
from orchestrator.metrics import (
    Arrivals,
    is_good,
    measured_records,
    steady_window,
    tpot_values_ms,
    ttft_values_ms,
)
from orchestrator.records import LevelRun, RequestRecord, Slo

ALPHA = 0.05
"""Shared by both sides."""
P95 = 9500
"""In basis points."""


class Certainty(msgspec.Struct, frozen=True, kw_only=True):
    """The intervals of a level; an empty estimate where there are fewer than ten requests, or no steady window."""

    attainment: Estimate = Estimate()
    design_effect: float | None = None
    """By how much the likeness of neighbouring requests inflates the variance of the attainment."""
    ttft_p95_ms: Estimate = Estimate()
    tpot_p95_ms: Estimate = Estimate()
    output_tokens_per_s: Estimate = Estimate()


NEEDED = least_n_eff(P95, two_sided=True, alpha=ALPHA)
"""n_eff from which a p95 has an interval that is bounded on both sides."""


def certainty(run: LevelRun, records: Sequence[RequestRecord], slo: Slo, arrivals: Arrivals | None) -> Certainty:
    """The intervals of a level, from its records of all phases and the arrivals of its output tokens."""
    measured = measured_records(records)
    good, size = per_batch([is_good(r, slo, from_due=run.spec.is_open) for r in measured])
    share = attainment_bounds(good, size, ALPHA / 2) if size else None
    return Certainty(
        attainment=Estimate(value=share.observed, lower=share.lower, upper=share.upper, n_eff=share.n_eff)
        if share
        else Estimate(),
        design_effect=share.design_effect if share else None,
        ttft_p95_ms=_p95(ttft_values_ms(measured, from_due=run.spec.is_open)),
        tpot_p95_ms=_p95(tpot_values_ms(measured)),
        output_tokens_per_s=_throughput(run, arrivals),
    )


def _p95(values: Sequence[float]) -> Estimate:
    if len(values) < BATCHES:
        return Estimate()
    found = percentile_interval(values, P95, ALPHA)
    return Estimate(
        value=found.value if math.isfinite(found.value) else None,
        lower=found.lower if found.lower is not None and math.isfinite(found.lower) else None,
        upper=found.upper,
        n_eff=found.n_eff,
    )


def _throughput(run: LevelRun, arrivals: Arrivals | None) -> Estimate:
    """Output tokens a second over ten equal spans of the steady window."""
    window = steady_window(run)
    if window is None or arrivals is None:
        return Estimate()
    inside = arrivals.within(window)
    tokens, _ = np.histogram(inside.at_ns, bins=np.linspace(window[0], window[1], BATCHES + 1), weights=inside.tokens)
    found = batch_mean_bounds((tokens / ((window[1] - window[0]) / BATCHES / NS_PER_S)).tolist(), ALPHA / 2)
    return Estimate(value=found.mean, lower=max(0.0, found.lower), upper=found.upper)
