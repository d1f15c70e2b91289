"""One level of a run, with every number of it that a report shows. Judged again here from its raw records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from orchestrator.clock import NS_PER_S
from orchestrator.journal import sha256
from orchestrator.judge.level import judge_level
from orchestrator.judge.soak import Soak, soak_of
from orchestrator.metrics import Series, TokenEvents, level_stats, measured_records, output_arrivals, steady_window
from orchestrator.records import (
    ClientHealth,
    LevelCommitted,
    LevelRun,
    LevelStats,
    LevelVerdict,
    Purpose,
    RequestRecord,
    Sample,
    Slo,
)
from reports.certainty import Certainty, certainty
from reports.compat import Compat, compat
from reports.course import Course, course
from reports.ledger import held_tokens
from reports.run import Level
from reports.traffic import Counted


class LevelResult(msgspec.Struct, frozen=True, kw_only=True):
    """One concurrency, measured once. Times in seconds from the start of the attempt."""

    level: int
    """Order of measuring within the cell, from 0."""
    attempt: int
    concurrency: int
    purpose: Purpose
    rate_per_s: float | None
    """Of an open level: mean rate at which requests were due; its concurrency is 0, and its times count from due."""
    arrivals: str
    """Of an open level: how they came."""
    seed: int
    started_s: float
    ended_s: float
    cut: str | None
    undrained: int
    stats: LevelStats
    verdict: LevelVerdict
    health: ClientHealth
    workload_sha256: str
    """Of everything that was demanded; a faster server is asked for more within the least time."""
    list_sha256: str
    """Of the lengths that the first N measured requests asked in order, N being the least number of the level."""
    kv_held_tokens: int | None
    """Most tokens that requests under way held at one time, by their own counts."""
    judged_again: Literal["same", "differs"]
    """Whether the raw records, judged by this version, give the stored verdict."""
    certainty: Certainty
    compat: Compat
    course: Course
    tokens_from: tuple[str, ...]
    """Where the token counts of the successes come from."""
    power_w: float | None
    """Mean power of the cards over the steady window, where NVML tells it."""
    energy_j_per_output_token: float | None
    soak: Soak | None
    """What a soak showed over its time; None = it is no soak."""


def level_result(level: Level, started_ns: int, watched: Sequence[Sample], slo: Slo, counted: Counted) -> LevelResult:
    """One level, its records read once and kept by nobody; their lengths are added to `counted`."""
    commit = level.commit
    run, verdict, stats = commit.run, commit.verdict, commit.stats
    records = level.records()
    events = TokenEvents.of(records)
    counted.add(records)
    samples = [sample for sample in watched if run.started_ns <= sample.at_ns <= commit.at_ns]
    arrivals = output_arrivals(records, (run.started_ns, run.ended_ns), events)
    power = _power_w(samples, run)
    rate = stats.output_tokens_per_s
    return LevelResult(
        level=commit.level,
        attempt=commit.attempt,
        concurrency=run.spec.concurrency,
        purpose=run.spec.purpose,
        rate_per_s=run.spec.rate_per_s,
        arrivals=run.spec.arrivals,
        seed=run.spec.seed,
        started_s=round((run.started_ns - started_ns) / NS_PER_S, 3),
        ended_s=round((run.ended_ns - started_ns) / NS_PER_S, 3),
        cut=run.cut,
        undrained=run.undrained,
        stats=stats,
        verdict=verdict,
        health=run.health,
        workload_sha256=commit.workload_sha256,
        list_sha256=_list_sha256(records, run.spec.requests),
        kv_held_tokens=held_tokens(records, events),
        judged_again="same" if _agrees(commit, records, events, samples, slo) else "differs",
        certainty=certainty(run, records, slo, arrivals),
        compat=compat(records, events),
        course=course(run, records, samples, arrivals),
        tokens_from=tuple(sorted({r.tokens_from for r in records if r.failure is None})),
        power_w=power,
        energy_j_per_output_token=power / rate if power is not None and rate else None,
        soak=soak_of(run, records, samples) if run.spec.purpose == "soak" else None,
    )


def _list_sha256(records: Sequence[RequestRecord], most: int) -> str:
    asked = "".join(f"{r.asked_in} {r.asked_out}\n" for r in measured_records(records)[:most])
    return sha256(asked.encode())


def _power_w(samples: Sequence[Sample], run: LevelRun) -> float | None:
    """Mean power over the steady window, added up over the cards that were watched."""
    window = steady_window(run)
    cards = sorted({sample.source for sample in samples if sample.source.startswith("gpu:")})
    if window is None:
        return None
    read = [values for card in cards if len(values := Series.of(samples, card, "power_w").within(window).values)]
    return float(sum(values.mean() for values in read)) if read else None


def _agrees(
    commit: LevelCommitted, records: Sequence[RequestRecord], events: TokenEvents, samples: Sequence[Sample], slo: Slo
) -> bool:
    """Judge the level again from its raw records: the same counts and the same words?"""
    stats = level_stats(commit.run, records, samples, slo, events=events)
    verdict = judge_level(commit.run, stats, records, samples, slo, hard_break=commit.verdict.hard_break)
    return (stats.offered, stats.good, stats.failed, verdict.valid, verdict.verdict) == (
        commit.stats.offered,
        commit.stats.good,
        commit.stats.failed,
        commit.verdict.valid,
        commit.verdict.verdict,
    )


def held_at(levels: Sequence[LevelResult], concurrency: int | None) -> LevelResult | None:
    """The level that speaks for a concurrency that holds: the latest valid one that passed. Where runs are pooled, it
    may hold though no single run of it was decided."""
    own = [level for level in levels if level.concurrency == concurrency and level.verdict.valid]
    passed = [level for level in own if level.verdict.verdict == "PASS"]
    undecided = [level for level in own if level.verdict.verdict == "UNDECIDED" and level.purpose != "sentinel"]
    return max(passed or undecided, key=_order, default=None)


def _order(level: LevelResult) -> int:
    return level.level
