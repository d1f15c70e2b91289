"""The criteria of one level, S1 to S5 and S7: value, limit, bounds, verdict. None is averaged with another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from orchestrator.judge.bounds import (
    BATCHES,
    COMPLETED_SHARE,
    batch_mean_bounds,
    error_bounds,
    grows,
    growth,
    preemption_bounds,
    requests_needed,
)
from orchestrator.judge.looks import Look, Word, deciding_look
from orchestrator.judge.rules import LevelRules
from orchestrator.metrics import (
    Floats,
    Limit,
    Series,
    Window,
    broken_limits,
    flow,
    measured_records,
    steady_window,
)
from orchestrator.records import Criterion, LevelRun, LevelSpec, LevelStats, RequestRecord, Sample, Slo

LIMIT_NAMES: dict[Limit, str] = {"ttft": "TTFT", "tpot": "TPOT", "gap": "largest gap", "e2e": "end-to-end time"}


class Outcomes(NamedTuple):
    """What each measured request broke of the SLO, in issue order."""

    broken: tuple[tuple[Limit, ...], ...]
    given_up: int
    """Requests that loadproof itself cancelled: they say nothing of the server."""

    @classmethod
    def of(cls, records: Sequence[RequestRecord], slo: Slo, *, from_due: bool = False) -> Outcomes:
        measured = measured_records(records)
        return cls(
            broken=tuple(broken_limits(r, slo, from_due=from_due) for r in measured),
            given_up=sum(r.failure is not None and r.failure.kind == "cancelled" for r in measured),
        )

    @property
    def missed(self) -> int:
        """Requests that missed the SLO by what they did, not because they were given up."""
        return sum(map(bool, self.broken)) - self.given_up

    def kept(self, limit: Limit) -> float:
        """Share of the offered requests that kept one limit; a failure kept none."""
        return sum(limit not in b and "failure" not in b for b in self.broken) / len(self.broken)


# --- S1: the SLO ------------------------------------------------------------------------------------------------


def slo_look(outcomes: Outcomes, spec: LevelSpec, slo: Slo) -> Look | None:
    """The look that S1 is judged by: the level's own looks, or one at everything; None with too few requests."""
    flags = [not b for b in outcomes.broken]
    looks = spec.looks or (len(flags) // BATCHES * BATCHES,)
    return deciding_look(flags, looks, slo.attainment, spec.alpha) if looks[0] else None


def slo_criterion(outcomes: Outcomes, spec: LevelSpec, slo: Slo, rules: LevelRules, *, decided: bool) -> Criterion:
    """S1. `decided`: the level ended early because the target was out of reach, so there is no interval."""
    n = len(outcomes.broken)
    look = None if decided else slo_look(outcomes, spec, slo)
    value = sum(not b for b in outcomes.broken) / n if n else None
    verdict: Word
    note = _misses(outcomes)
    if decided:
        verdict, note = "FAIL", f"ended early, as the target was out of reach; {note}"
    elif spec.looks or rules.by == "bound":
        verdict = look.verdict if look else "UNDECIDED"
        if look:
            value = look.bounds.observed
            note = f"by the bounds of the first {look.size} requests; {note}" if look.size < n else note
        if look and verdict == "UNDECIDED":
            needed = requests_needed(look.bounds, look.size, slo.attainment, spec.alpha / max(1, len(spec.looks)))
            note += _how_many_more(needed)
    elif value is None or n < rules.minimum:
        verdict, note = "UNDECIDED", f"{n} measured requests, and {rules.minimum} are the least for a verdict; {note}"
    else:
        verdict = "PASS" if value >= slo.attainment else "FAIL"
    return Criterion(
        id="S1",
        name="SLO attainment",
        verdict=verdict,
        value=value,
        limit=slo.attainment,
        lower=look.bounds.lower if look else None,
        upper=look.bounds.upper if look else None,
        note=note,
    )


def _misses(outcomes: Outcomes) -> str:
    n = len(outcomes.broken)
    counts = {name: sum(key in b for b in outcomes.broken) for key, name in LIMIT_NAMES.items()}
    counts["failed"] = sum("failure" in b for b in outcomes.broken)
    told = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
    return f"{sum(map(bool, outcomes.broken))} of {n} missed it" + (f" ({told})" if told else "")


def _how_many_more(needed: int | None) -> str:
    return "; no number of requests would decide this value" if needed is None else f"; about {needed} would decide it"


def limit_criteria(outcomes: Outcomes, slo: Slo) -> Iterator[Criterion]:
    """S1 limit by limit, for information: which of them broke it."""
    limits: dict[Limit, float | None] = {
        "ttft": slo.ttft_ms,
        "tpot": slo.tpot_ms,
        "gap": slo.gap_ms,
        "e2e": slo.e2e_ms,
    }
    for limit, ms in limits.items():
        if ms is None or not outcomes.broken:
            continue
        kept = outcomes.kept(limit)
        yield Criterion(
            id=f"S1-{limit}",
            name=f"{LIMIT_NAMES[limit]} within {ms:g} ms",
            verdict="PASS" if kept >= slo.attainment else "FAIL",
            value=kept,
            limit=slo.attainment,
            binding=False,
        )


# --- S2 and S3: errors and preemptions --------------------------------------------------------------------------


def error_criterion(stats: LevelStats, outcomes: Outcomes, slo: Slo, rules: LevelRules) -> Criterion:
    """S2: failures that loadproof did not cause, of the requests that it did not give up."""
    failed, n = stats.failed - outcomes.given_up, stats.offered - outcomes.given_up
    name = "failed requests"
    if n <= 0:
        return Criterion(id="S2", name=name, verdict="UNDECIDED", limit=slo.error_budget)
    lower, upper = error_bounds(failed, n, rules.alpha)
    kinds = ", ".join(f"{kind} {count}" for kind, count in stats.failures.items())
    return Criterion(
        id="S2",
        name=name,
        verdict=_over(lower, upper, slo.error_budget),
        value=failed / n,
        limit=slo.error_budget,
        lower=lower,
        upper=upper,
        note=f"{failed} of {n} failed" + (f" ({kinds})" if kinds else ""),
    )


def _over(lower: float, upper: float, limit: float) -> Word:
    """Which side of its largest value a rate is on, by its bounds."""
    if lower > limit:
        return "FAIL"
    return "PASS" if upper < limit else "UNDECIDED"


def preemption_criterion(run: LevelRun, stats: LevelStats, samples: Sequence[Sample], rules: LevelRules) -> Criterion:
    """S3: preemptions per measured request, from the engine's counter over ten time batches of the window."""
    name, limit, window = "preemptions per request", rules.preemptions_per_request, steady_window(run)
    if stats.preemptions is None or window is None or not stats.offered:
        return Criterion(id="S3", name=name, verdict="not reported", limit=limit)
    edges = np.linspace(window[0], window[1], BATCHES + 1).astype(np.int64)
    counts = np.diff(Series.of(samples, "engine", "preemptions_total").at(edges))
    found = preemption_bounds(np.maximum(counts, 0).tolist(), stats.offered, rules.alpha)
    return Criterion(
        id="S3",
        name=name,
        verdict=_over(found.lower, found.upper, limit),
        value=found.per_request,
        limit=limit,
        lower=found.lower,
        upper=found.upper,
    )


# --- S4 and S5: the engine's gauges -----------------------------------------------------------------------------


class _Gauge(NamedTuple):
    """Mean of a gauge over the window, with bounds where every time batch has a sample."""

    mean: float
    lower: float | None
    upper: float | None


def _gauge(series: Series, values: Floats, window: Window, alpha: float) -> _Gauge | None:
    """`values` are the series' own, or what was made of them one by one."""
    if not len(values):
        return None
    batch = ((series.at_ns - window[0] - 1) * BATCHES // (window[1] - window[0])).clip(0, BATCHES - 1)
    sizes = np.bincount(batch, minlength=BATCHES)
    if not sizes.all():
        return _Gauge(float(values.mean()), None, None)
    bounds = batch_mean_bounds((np.bincount(batch, values, BATCHES) / sizes).tolist(), alpha)
    return _Gauge(*bounds)


def kv_criterion(run: LevelRun, samples: Sequence[Sample], rules: LevelRules) -> Criterion:
    """S4, a warning: the share of the time in which the KV pool is full."""
    name = f"time with the KV pool {rules.kv_full:.0%} full"
    window = steady_window(run)
    gauge = None
    if window is not None:
        kv = Series.of(samples, "engine", "kv_use").within(window)
        gauge = _gauge(kv, (kv.values >= rules.kv_full).astype(np.float64), window, rules.alpha)
    if gauge is None:
        return Criterion(id="S4", name=name, verdict="not reported", limit=rules.kv_full_share, binding=False)
    bounded = gauge.lower is not None and gauge.upper is not None
    return Criterion(
        id="S4",
        name=name,
        verdict=_over(gauge.lower or 0.0, gauge.upper or 0.0, rules.kv_full_share) if bounded else "UNDECIDED",
        value=gauge.mean,
        limit=rules.kv_full_share,
        lower=gauge.lower,
        upper=gauge.upper,
        binding=False,
    )


def admission_criterion(run: LevelRun, samples: Sequence[Sample], rules: LevelRules) -> Criterion:
    """S5, information: the engine keeps requests waiting though it runs fewer than c. Value: mean waiting over c."""
    c, window = run.spec.concurrency, steady_window(run)
    name = "requests waiting in the engine"
    waiting = running = None
    if window is not None:
        waiting, running = (_per_user(samples, gauge, c, window, rules) for gauge in ("waiting", "running"))
    if waiting is None or running is None:
        return Criterion(id="S5", name=name, verdict="not reported", limit=rules.waiting_share, binding=False)
    return Criterion(
        id="S5",
        name=name,
        verdict=_admission(waiting, running, rules),
        value=waiting.mean,
        limit=rules.waiting_share,
        lower=waiting.lower,
        upper=waiting.upper,
        binding=False,
        note=f"running {running.mean * c:.1f}, waiting {waiting.mean * c:.1f} of {c} on average",
    )


def _per_user(samples: Sequence[Sample], gauge: str, c: int, window: Window, rules: LevelRules) -> _Gauge | None:
    series = Series.of(samples, "engine", gauge).within(window)
    return _gauge(series, series.values / c, window, rules.alpha)


def _admission(waiting: _Gauge, running: _Gauge, rules: LevelRules) -> Word:
    if waiting.lower is None or waiting.upper is None or running.lower is None or running.upper is None:
        return "UNDECIDED"
    if waiting.lower > rules.waiting_share and running.upper < rules.running_share:
        return "FAIL"
    return "PASS" if waiting.upper < rules.waiting_share or running.lower > rules.running_share else "UNDECIDED"


# --- S7: does the queue grow? -----------------------------------------------------------------------------------


def stability_criterion(run: LevelRun, records: Sequence[RequestRecord]) -> Criterion:
    """S7 of an open level: in-flight rises from batch to batch, and fewer requests end than come. Value: that ratio."""
    name, limit, window = "requests ended per request that came", COMPLETED_SHARE, steady_window(run)
    if window is None:
        return Criterion(id="S7", name=name, verdict="UNDECIDED", limit=limit)
    found = flow(records, window, BATCHES)
    slope = growth(found.in_flight)
    return Criterion(
        id="S7",
        name=name,
        verdict="FAIL" if grows(slope, found.completed_per_arrival) else "PASS",
        value=found.completed_per_arrival,
        limit=limit,
        note=f"in flight {found.in_flight[0]:.1f} in the first tenth, {found.in_flight[-1]:.1f} in the last",
    )
