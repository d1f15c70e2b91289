from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from orchestrator.clock import NS_PER_S
from orchestrator.judge.level import judge_level
from orchestrator.metrics import level_stats, measured_records
from orchestrator.records import LevelSpec, Request, RequestRecord, Slo
from stacks.simulated.engine import POLICIES, Engine, EngineLimits
from stacks.simulated.open import run_virtual_open
from stacks.simulated.timing import StepTimes
from workloads.arrivals import constant, poisson, schedule

TIMES = StepTimes(step_s=0.001, sequence_s=1e-5, kv_token_s=1e-6, attention_s=1e-9, token_s=1e-4, weights_s=(0.01,))
SLO = Slo(ttft_ms=1000, tpot_ms=50)


def engine(sequences: int = 64, noise: float = 0.03) -> Engine:
    limits = EngineLimits(blocks=10_000, block_tokens=16, sequences=sequences, step_tokens=512, request_tokens=4096)
    return Engine(limits, TIMES, POLICIES["vllm"], seed=1, noise=noise)


def spec(rate_per_s: float, measured: int, *, drain_s: float | None = None) -> LevelSpec:
    return LevelSpec(
        concurrency=0,
        rate_per_s=rate_per_s,
        purpose="rate",
        seed=1,
        requests=measured,
        min_seconds=0.0,
        max_seconds=1e6,
        ramp_seconds=0.0,
        warmup_generations=0,
        warmup_seconds=0.0,
        filler_seconds=0.0,
        deadline_seconds=600.0,
        drain_seconds=drain_s,
    )


def requests(prompt: int = 50, output: int = 40) -> Iterator[Request]:
    return (Request(seq=n, prompt_tokens=prompt, output_tokens=output, prompt_seed=n) for n in itertools.count())


def alone_s() -> float:
    """Time of a request on an empty engine whose steps have no noise."""
    level = run_virtual_open(engine(noise=0.0), spec(1.0, 1), schedule(constant(1.0), requests=1), requests())
    (record,) = level.records
    return (record.end_ns - record.sent_ns) / NS_PER_S


def test_waiting_is_that_of_a_queue_with_one_server() -> None:
    """M/D/1: the mean wait is rho * s / (2 (1 - rho)) (Pollaczek and Khinchine)."""
    service_s, rho = alone_s(), 0.5
    rate = rho / service_s
    level = run_virtual_open(
        engine(sequences=1, noise=0.0), spec(rate, 40_000), schedule(poisson(rate, 5), requests=40_000), requests()
    )
    waits = [(r.end_ns - r.due_ns) / NS_PER_S - service_s for r in level.records]
    assert len(waits) == 40_000
    assert np.mean(waits) == pytest.approx(rho * service_s / (2 * (1 - rho)), rel=0.05)


def test_each_request_is_sent_when_due_and_the_first_part_is_warm_up() -> None:
    due = schedule(poisson(20.0, 3), seconds=100)
    level = run_virtual_open(engine(), spec(20.0, 1500), due, requests())
    assert len(level.records) == level.sent == len(due)
    by_seq = sorted(level.records, key=lambda r: r.seq)
    assert [r.due_ns for r in by_seq] == pytest.approx(due, abs=1)
    assert [r.phase for r in by_seq] == ["warmup"] * (len(due) - 1500) + ["measured"] * 1500
    stats = level_stats(level.run, level.records, level.samples, SLO)
    assert stats.offered == 1500
    assert stats.requests_per_s == pytest.approx(20.0, rel=0.1)
    assert stats.mean_in_flight == pytest.approx(stats.mean_in_flight_audit, rel=0.01)
    assert level.run.cut is None


def test_what_is_unfinished_after_the_drain_has_failed() -> None:
    rate = 3 / alone_s()
    level = run_virtual_open(
        engine(sequences=1), spec(rate, 100, drain_s=5.0), schedule(constant(rate), seconds=60), requests()
    )
    last_due = max(r.due_ns for r in level.records)
    lost = [r for r in level.records if r.failure is not None]
    assert {r.failure.kind for r in lost if r.failure} == {"timeout"}
    assert len(lost) > 20
    assert all(r.end_ns >= last_due + 5 * NS_PER_S for r in lost)
    assert all(r.end_ns <= last_due + 6 * NS_PER_S for r in level.records)


def test_beyond_the_cap_requests_are_dropped() -> None:
    level = run_virtual_open(
        engine(sequences=1), spec(100.0, 50), schedule(constant(100.0), requests=50), requests(), most_in_flight=3
    )
    kinds = [r.failure.kind if r.failure else "" for r in sorted(level.records, key=lambda r: r.seq)]
    assert len(kinds) == 50
    assert kinds[:3] == ["", "", ""]
    assert kinds[3] == "dropped"
    assert set(kinds) == {"", "dropped"}


def test_a_level_that_is_cut_waits_for_nothing() -> None:
    def stop(record: RequestRecord, position: int, of: int | None) -> str | None:
        return "enough" if position == 10 else None

    on = engine()
    level = run_virtual_open(on, spec(50.0, 3000), schedule(constant(50.0), seconds=60), requests(), stop_early=stop)
    assert level.run.cut == "enough"
    assert {r.failure.kind for r in level.records if r.failure} == {"cancelled"}
    assert len(measured_records(level.records)) < 100
    assert on.idle


@pytest.mark.parametrize(("load", "s7"), [(0.7, "PASS"), (1.15, "FAIL")])
def test_a_queue_that_grows_without_end_is_seen(load: float, s7: str) -> None:
    """S7, by a server that takes one request after another; limits so wide that S1 sees nothing of it."""
    rate = load / alone_s()
    due = schedule(poisson(rate, 11), seconds=900)
    level = run_virtual_open(engine(sequences=1), spec(rate, len(due) * 8 // 10 // 10 * 10), due, requests())
    slo = Slo(ttft_ms=1e9, tpot_ms=1e9)
    stats = level_stats(level.run, level.records, level.samples, slo)
    verdict = judge_level(level.run, stats, level.records, level.samples, slo)
    criterion = {c.id: c for c in verdict.criteria}
    assert (verdict.valid, criterion["S1"].verdict, criterion["S7"].verdict) == (True, "PASS", s7)
    assert verdict.verdict == s7
    assert "S5" not in criterion
    assert (criterion["S7"].value or 0) == pytest.approx(1 / max(1.0, load), abs=0.03)
