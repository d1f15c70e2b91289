"""What `loadproof load` tells: one JSON object, or a table and a few sentences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import click
import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from orchestrator.clock import NS_PER_MS, NS_PER_S
from orchestrator.judge.bounds import BATCHES, least_n_eff, percentile_interval
from orchestrator.judge.rules import LevelRules
from orchestrator.judge.validity import client_lag, worker_lost
from orchestrator.metrics import e2e_due_ns, e2e_ns, level_stats, measured_records, tpot_ns, ttft_due_ns, ttft_ns
from orchestrator.records import LevelRun, LevelStats, Percentiles, RequestRecord, Slo

POINTS = {"p50": 5000, "p90": 9000, "p95": 9500, "p99": 9900}

Metric = Callable[[RequestRecord], float | None]


def invalid_reason(run: LevelRun, slo: Slo) -> str | None:
    """Why the times cannot be believed, with the remedy; None if they can."""
    return worker_lost(run) or client_lag(run, slo, LevelRules())


def whole_s(records: Sequence[RequestRecord]) -> float:
    """From the first send to the last end."""
    if not records:
        return 0.0
    return (max(r.end_ns for r in records) - min(r.sent_ns for r in records)) / NS_PER_S


def output_tokens_per_s(records: Sequence[RequestRecord]) -> float | None:
    """Output tokens of the requests that did not fail, over the whole time from the first send to the last end. None
    if the server told no counts."""
    done = [r for r in records if r.failure is None]
    if not done or any(r.out_tokens is None for r in done):
        return None
    return sum(r.out_tokens or 0 for r in done) / whole_s(records)


def facts(run: LevelRun, records: Sequence[RequestRecord], slo: Slo) -> dict[str, Any]:
    """The object of `--json`. Times of an open loop count from when a request was due. A percentile that falls on a
    failed request is null; so is a mean of nothing."""
    measured = measured_records(records)
    stats = level_stats(run, records, [], slo)
    why = invalid_reason(run, slo)
    health = run.health
    length_s = whole_s(measured)
    return {
        "requests": stats.offered,
        "failures": stats.failures,
        "ttft_ms": _percentiles(stats.ttft_ms),
        "tpot_ms": _percentiles(stats.tpot_ms),
        "itl_ms": _percentiles(stats.itl_ms),
        "e2e_ms": _percentiles(stats.e2e_ms),
        "output_tokens_per_s": output_tokens_per_s(measured),
        "requests_per_s": (stats.offered - stats.failed) / length_s if length_s else None,
        "duration_s": length_s,
        "good": stats.good,
        "attainment": stats.attainment,
        "goodput_per_s": stats.good / length_s if length_s else None,
        "slo": msgspec.to_builtins(slo),
        "mean_in_tokens": stats.mean_in_tokens,
        "mean_out_tokens": stats.mean_out_tokens,
        "concurrency": run.spec.concurrency or None,
        "rate_per_s": run.spec.rate_per_s,
        "sessions_per_s": run.spec.sessions_per_s,
        "sessions": len({r.session for r in measured if r.session is not None}) or None,
        "cached_tokens": stats.cached_tokens,
        "seed": run.spec.seed,
        "cut": run.cut,
        "client": {
            "stamp": "kernel" if health.kernel_share > 0.5 else "user",
            "kernel_share": health.kernel_share,
            "workers": health.workers,
            "cpu_s": health.cpu_s,
            "loop_lag_ms_p99": health.loop_lag_ms_p99,
            "read_backlog_ms_p99": health.read_backlog_ms_p99,
            "send_lag_ms_p99": health.send_lag_ms_p99,
            "valid": why is None,
            "why": why,
        },
    }


def _percentiles(found: Percentiles) -> dict[str, float | int | None]:
    names = ("p50", "p90", "p95", "p99", "mean")
    return {**{name: getattr(found, name) for name in names}, "n": found.n}


# --- for people -------------------------------------------------------------------------------------------------


def screen(run: LevelRun, records: Sequence[RequestRecord], slo: Slo) -> None:
    """Print the table and what a reader must know beside it."""
    measured = measured_records(records)
    stats = level_stats(run, records, [], slo)
    console = Console(highlight=False)
    console.print(_table(measured, stats, open_loop=run.spec.is_open))
    for line in _sentences(run, measured, stats, slo):
        click.echo(line)


def _table(measured: Sequence[RequestRecord], stats: LevelStats, *, open_loop: bool) -> Table:
    caption = "ms; [95 % interval], or n too small for one; failed requests count as infinite"
    table = Table(box=box.SIMPLE, caption=caption)
    table.add_column("")
    for name in (*POINTS, "mean"):
        table.add_column(name, justify="right", no_wrap=True)
    ttft, e2e = (ttft_due_ns, e2e_due_ns) if open_loop else (ttft_ns, e2e_ns)
    rows: tuple[tuple[str, Percentiles, Metric | None], ...] = (
        ("TTFT", stats.ttft_ms, ttft),
        ("TPOT", stats.tpot_ms, tpot_ns),
        ("ITL", stats.itl_ms, None),
        ("E2E", stats.e2e_ms, e2e),
    )
    for name, found, metric in rows:
        values = [_ms(metric(r)) for r in measured] if metric else None
        cells = [_cell(found, point, values) for point in POINTS]
        table.add_row(name, *cells, "-" if found.mean is None else _figure(found.mean))
    return table


def _ms(ns: float | None) -> float:
    return math.inf if ns is None else ns / NS_PER_MS


def _cell(found: Percentiles, point: str, values: Sequence[float] | None) -> str:
    """A percentile with its interval where the count allows one (tokens of a request hang together: ITL has none)."""
    value: float | None = getattr(found, point)
    if value is None:
        return "failed" if found.n else "-"
    if values is None:
        return _figure(value)
    if len(values) >= max(BATCHES, least_n_eff(POINTS[point], two_sided=True)):
        interval = percentile_interval(values, POINTS[point])
        if interval.lower is not None and interval.upper is not None:
            return f"{_figure(value)}\n[{_figure(interval.lower)}, {_figure(interval.upper)}]"
    return f"{_figure(value)}\nn too small"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def _sentences(run: LevelRun, measured: Sequence[RequestRecord], stats: LevelStats, slo: Slo) -> list[str]:
    length_s = whole_s(measured)
    tokens = output_tokens_per_s(measured)
    health = run.health
    failed = ", ".join(f"{count} {kind}" for kind, count in stats.failures.items()) or "none"
    limits = ", ".join(f"{name} <= {ms:g} ms" for name, ms in _limits(slo))
    lines = [
        f"{stats.offered} requests in {length_s:.1f} s; failed: {failed}.",
        "Output: " + ("not counted by the server." if tokens is None else f"{tokens:,.1f} tokens/s."),
        f"Good ({limits}): {stats.good} of {stats.offered}, {stats.good / length_s if length_s else 0:.3g} a second.",
        f"Client: {_processes(health.workers)}, {health.kernel_share:.0%} kernel stamps, "
        f"{health.cpu_s:.1f} s CPU in {health.wall_s:.1f} s, "
        f"p99 loop lag {health.loop_lag_ms_p99:.1f} ms, read backlog {health.read_backlog_ms_p99 or 0:.1f} ms, "
        f"send lag {health.send_lag_ms_p99:.1f} ms.",
    ]
    if run.spec.sessions_per_s is not None:
        lines.insert(1, _conversations(measured, stats))
    first = next((r.failure for r in measured if r.failure is not None), None)
    if first is not None:
        lines.append(f"First failure: {first.kind}{f' {first.status}' if first.status else ''}: {first.detail}")
    if run.cut is not None:
        lines.append(f"Cut short: {run.cut}.")
    if (why := invalid_reason(run, slo)) is not None:
        lines.append(f"INVALID. {why}")
    return lines


def _conversations(measured: Sequence[RequestRecord], stats: LevelStats) -> str:
    """How many, and what a prefix cache made of them."""
    number = len({r.session for r in measured})
    told = [r for r in measured if r.cached_tokens is not None and r.in_tokens]
    if not told:
        return f"{number} conversations; the server does not tell what its prefix cache held."
    prompts = sum(r.in_tokens or 0 for r in told)
    return f"{number} conversations; {(stats.cached_tokens or 0) / prompts:.0%} of their prompt tokens were cached."


def _processes(workers: int) -> str:
    return "1 process" if workers == 1 else f"{workers} processes"


def _limits(slo: Slo) -> list[tuple[str, float]]:
    named = (("TTFT", slo.ttft_ms), ("TPOT", slo.tpot_ms), ("gap", slo.gap_ms), ("E2E", slo.e2e_ms))
    return [(name, ms) for name, ms in named if ms is not None]
