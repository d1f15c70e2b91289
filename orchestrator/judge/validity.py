"""Is the measurement any good? INVALID says nothing about the card, and can never be a break; a flag is told beside."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from orchestrator.clock import seconds
from orchestrator.judge.rules import LevelRules
from orchestrator.metrics import Series, Window, output_tokens_in, steady_window
from orchestrator.records import LevelRun, LevelStats, RequestRecord, Sample, Slo

THROTTLES = ("sw_power_cap", "hw_slowdown", "sw_thermal", "hw_thermal", "hw_power_brake")
"""NVML's reasons for a clock below the asked one, as the samples name them."""


BUSY = 0.5
"""A load process that took over half of a core was late for its own work's sake."""


def invalid_reasons(
    run: LevelRun,
    stats: LevelStats,
    records: Sequence[RequestRecord],
    samples: Sequence[Sample],
    slo: Slo,
    rules: LevelRules,
    *,
    decided: bool,
) -> tuple[str, ...]:
    """Rules I1 to I6 that are broken, one sentence each with its remedy. `decided`: ended early with a sure FAIL."""
    found = (
        worker_lost(run),
        client_lag(run, slo, rules),
        _load_not_held(run, stats, rules),
        _audit(stats, rules),
        _token_counts(run, records, samples, rules),
        _disturbed(run, samples, rules),
        None if decided else _cut_short(run, stats),
    )
    return tuple(reason for reason in found if reason is not None)


def worker_lost(run: LevelRun) -> str | None:
    """I6, however sure the rest is: what a lost load process had in flight is not known."""
    if run.health.lost is None:
        return None
    return (
        f"I6: the level was cut short: {run.health.lost}, and what it had in flight is not known. Run it again, a new "
        "process takes its place; if the kernel ended it for want of memory, load with fewer processes or users."
    )


def client_lag(run: LevelRun, slo: Slo, rules: LevelRules) -> str | None:
    """I1: whether loadproof itself was too slow to be believed."""
    limits = [ms for ms in (slo.ttft_ms, slo.tpot_ms, slo.gap_ms, slo.e2e_ms) if ms is not None]
    if not limits:
        return None
    tightest, health = min(limits), run.health
    late = (rules.send_lag_share, slo.ttft_ms or tightest) if run.spec.is_open else (rules.lag_share, tightest)
    lags = [
        ("its loop lagged", health.loop_lag_ms_p99, rules.lag_share, tightest),
        ("it sent late", health.send_lag_ms_p99, *late),
    ]
    if health.kernel_share <= 0.5 and health.read_backlog_ms_p99 is not None:  # the kernel's stamps do not mind
        lags.append(("it read late", health.read_backlog_ms_p99, rules.lag_share, tightest))
    told = [
        f"{what} by {ms:.1f} ms (p99), and {share * limit:.1f} ms are allowed ({share:.0%} of the {limit:g} ms limit)"
        for what, ms, share, limit in lags
        if ms > share * limit
    ]
    if not told:
        return None
    return (
        f"I1: loadproof was too slow itself: {'; '.join(told)}. "
        f"{_more_workers(run)}Give it cores of its own, run it on another host, or set a limit that this machine "
        "can time."
    )


def _more_workers(run: LevelRun) -> str:
    """A remedy where load processes were busy and there are cores for more of them; one core is left to the rest."""
    health = run.health
    busy = health.wall_s > 0 and health.cpu_s / health.wall_s / health.workers > BUSY
    more = min(2, math.floor(health.cores or 0) - 1 - health.workers)
    if not busy or more < 1:
        return ""
    named = "two more workers" if more == 2 else "one more worker"
    total = health.workers + more
    return f"Load with {named} (--workers {total}, or workers = {total} under [client] in the plan). "


def _load_not_held(run: LevelRun, stats: LevelStats, rules: LevelRules) -> str | None:
    c, mean = run.spec.concurrency, stats.mean_in_flight
    if run.spec.is_open or mean is None or mean >= rules.in_flight_share * c:
        return None
    return (
        f"I2: the load was not held: {mean:.2f} requests in flight on average where {c} were asked for "
        f"({rules.in_flight_share:.0%} are needed). Give loadproof more CPU, or use longer requests."
    )


def _audit(stats: LevelStats, rules: LevelRules) -> str | None:
    own, audit = stats.mean_in_flight, stats.mean_in_flight_audit
    if not own or audit is None or abs(own - audit) <= rules.audit_share * own:
        return None
    return (
        f"I3: two counts of the load disagree: the loop counted {own:.2f} in flight, the records show {audit:.2f}. "
        "Requests are missing or their times are wrong; run it again, and report it as a bug if it stays."
    )


def _token_counts(
    run: LevelRun, records: Sequence[RequestRecord], samples: Sequence[Sample], rules: LevelRules
) -> str | None:
    """I4. Engines count a token when it is made or when its request ends; a count between the two readings agrees.

    Not applied where a request failed: what an engine still made for it was not seen by anyone.
    """
    window = steady_window(run)
    if window is None or seconds(window[1] - window[0]) <= rules.tokens_window_s:
        return None
    polls = Series.of(samples, "engine", "output_tokens_total").within(window)
    if len(polls.values) < 2 or polls.values[-1] < polls.values[0]:
        return None
    between = (int(polls.at_ns[0]), int(polls.at_ns[-1]))
    ours = _tokens_seen(records, between)
    counted = float(polls.values[-1] - polls.values[0])
    if ours is None or _within(counted, ours, rules.tokens_share):
        return None
    return (
        f"I4: the engine counted {counted:.0f} output tokens where {ours[0]:.0f} came here. "
        "Keep other clients off the server, and check that the token counts of its answers are right."
    )


def _tokens_seen(records: Sequence[RequestRecord], window: Window) -> tuple[float, float] | None:
    """Output tokens as they came, and as their requests ended; None if that cannot be told."""
    touched = [r for r in records if r.sent_ns <= window[1] and r.end_ns > window[0]]
    if any(r.failure is not None for r in touched):
        return None
    as_they_came = output_tokens_in(touched, window)
    if as_they_came is None:
        return None
    return as_they_came, float(sum(r.out_tokens or 0 for r in touched if r.end_ns <= window[1]))


def _within(counted: float, readings: tuple[float, float], share: float) -> bool:
    return min(readings) * (1 - share) <= counted <= max(readings) * (1 + share)


def _disturbed(run: LevelRun, samples: Sequence[Sample], rules: LevelRules) -> str | None:
    window = (run.started_ns, run.ended_ns)
    for source in sorted({s.source for s in samples if s.source.startswith("gpu:")}):
        others = Series.of(samples, source, "memory_others_bytes").within(window).values
        if len(others) and others.max() > rules.others_bytes:
            return (
                f"I5: another process held {others.max() / 2**20:.0f} MiB of the card {source.removeprefix('gpu:')}. "
                "Stop it (`loadproof doctor` names it), or measure another card."
            )
    for name in sorted({name for s in samples if s.source == "engine" for name in s.values if name.endswith("_total")}):
        values = Series.of(samples, "engine", name).within(window).values
        if (values[1:] < values[:-1]).any():
            return (
                f"I5: the engine's counter {name} went backwards: the server was restarted by someone else. "
                "Keep what restarts it away while it is measured."
            )
    return None


def _cut_short(run: LevelRun, stats: LevelStats) -> str | None:
    remedy = "Allow the level more time (ramp.max_seconds, budget.minutes) or ask for fewer requests (ramp.requests)."
    if run.health.lost is not None:
        return None  # said already
    if run.cut is not None:
        done = f"{stats.offered} of {run.spec.requests} measured requests"
        return f"I6: the level was cut short after {done} ({run.cut}). {remedy}"
    if stats.offered < run.spec.requests:
        return f"I6: only {stats.offered} of {run.spec.requests} requests were measured. {remedy}"
    return None


# --- flags ------------------------------------------------------------------------------------------------------


def level_flags(run: LevelRun, stats: LevelStats, samples: Sequence[Sample], slo: Slo, rules: LevelRules) -> list[str]:
    """What a reader must know of a VALID level, one sentence each."""
    flags = list(_throttled(run, samples, rules))
    if stats.offered and stats.drained_late > rules.drained_share * stats.offered:
        flags.append(
            f"{stats.drained_late} of {stats.offered} measured requests ended while the load was already leaving: "
            "their times may read too well."
        )
    if (difference := _engine_differs(stats)) is not None and difference > rules.engine_share:
        flags.append(f"The engine's running and waiting requests differ by {difference:.0%} from those in flight here.")
    if slo.tpot_ms is not None and stats.offered > stats.failed and stats.mean_out_tokens is None:
        flags.append(
            "The server gives no token counts, so TPOT cannot be told and no request can be good. "
            "Switch its usage record on, or leave tpot_ms out of the SLO."
        )
    return flags


def _throttled(run: LevelRun, samples: Sequence[Sample], rules: LevelRules) -> Iterator[str]:
    window = (run.started_ns, run.ended_ns)
    for source in sorted({s.source for s in samples if s.source.startswith("gpu:")}):
        for name in THROTTLES:
            values = Series.of(samples, source, f"throttle_{name}").within(window).values
            if len(values) and values.mean() > rules.throttled_share:
                card = source.removeprefix("gpu:")
                yield f"The card {card} held its clocks down ({name}) in {values.mean():.0%} of the samples."


def _engine_differs(stats: LevelStats) -> float | None:
    """Of an open level at the moments of the engine's samples, since what is in flight changes between them."""
    here = stats.mean_in_flight if stats.in_flight_sampled is None else stats.in_flight_sampled
    if stats.running_mean is None or stats.waiting_mean is None or not here:
        return None
    return abs(stats.running_mean + stats.waiting_mean - here) / here
