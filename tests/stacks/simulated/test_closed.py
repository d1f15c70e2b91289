from __future__ import annotations

import itertools

import pytest

from orchestrator.clock import NS_PER_S
from orchestrator.judge.level import judge_level
from orchestrator.metrics import level_stats, measured_records
from orchestrator.records import LevelSpec, Request, Slo
from stacks.simulated.closed import run_virtual
from stacks.simulated.engine import POLICIES, Engine, EngineLimits
from stacks.simulated.level import Client, VirtualLevel
from stacks.simulated.timing import StepTimes

TIMES = StepTimes(step_s=0.001, sequence_s=1e-5, kv_token_s=1e-6, attention_s=1e-9, token_s=1e-4, weights_s=(0.01,))
SLO = Slo(ttft_ms=1000, tpot_ms=50)


def engine(stack: str = "vllm", sequences: int = 64, blocks: int = 10_000, admitted: int | None = None) -> Engine:
    limits = EngineLimits(
        blocks=blocks, block_tokens=16, sequences=sequences, step_tokens=512, request_tokens=4096, admitted=admitted
    )
    return Engine(limits, TIMES, POLICIES[stack], seed=1)


def spec(concurrency: int, requests: int = 200, ramp_s: float = 2.0) -> LevelSpec:
    return LevelSpec(
        concurrency=concurrency,
        purpose="load",
        seed=1,
        requests=requests,
        min_seconds=0.0,
        max_seconds=1e6,
        ramp_seconds=ramp_s,
        warmup_generations=3,
        warmup_seconds=1.0,
        filler_seconds=60.0,
        deadline_seconds=600.0,
    )


def play(on: Engine, level: LevelSpec, client: Client | None = None) -> VirtualLevel:
    requests = itertools.cycle(
        Request(seq=n, prompt_tokens=50 + 7 * (n % 13), output_tokens=20 + 11 * (n % 17), prompt_seed=n)
        for n in range(221)
    )
    return run_virtual(on, level, measured=requests, other=requests, client=client)


@pytest.mark.parametrize("stack", sorted(POLICIES))
def test_the_load_is_held_and_both_counts_of_it_agree(stack: str) -> None:
    level = play(engine(stack), spec(16))
    stats = level_stats(level.run, level.records, level.samples, SLO)
    assert stats.offered == 200
    assert stats.mean_in_flight == pytest.approx(16, rel=0.01)
    assert stats.mean_in_flight_audit == pytest.approx(stats.mean_in_flight, rel=0.001)
    assert stats.running_mean is not None
    assert stats.waiting_mean is not None
    assert stats.running_mean + stats.waiting_mean == pytest.approx(16, rel=0.02)
    verdict = judge_level(level.run, stats, level.records, level.samples, SLO)
    assert (verdict.valid, verdict.verdict) == (True, "PASS")


def test_the_phases_follow_each_other_as_in_a_real_level() -> None:
    level = play(engine(), spec(8))
    phases = [r.phase for r in sorted(level.records, key=lambda r: r.seq)]
    assert [phase for phase, _ in itertools.groupby(phases)] == ["ramp", "warmup", "measured", "filler"]
    first = min(r.sent_ns for r in measured_records(level.records))
    ended = sum(r.end_ns <= first for r in level.records)
    assert ended >= 3 * 8
    assert first >= (2.0 * 7 / 8 + 1.0) * NS_PER_S
    assert len({r.seq for r in level.records}) == level.sent == len(level.records)


def test_the_tokens_of_the_answers_are_those_the_engine_counts() -> None:
    on = engine()
    level = play(on, spec(16, requests=1000))
    assert len(level.records) > 1000
    assert sum(r.out_tokens or 0 for r in level.records) == on.counters.output_tokens
    assert sum(sum(r.token_counts) for r in level.records) == on.counters.output_tokens


def test_the_engine_is_looked_at_every_second() -> None:
    level = play(engine(), spec(16))
    at = [sample.at_ns for sample in level.samples]
    assert len(at) > 10
    assert {after - before for before, after in itertools.pairwise(at)} == {NS_PER_S}
    assert at[-1] <= level.run.ended_ns < at[-1] + NS_PER_S


def test_a_late_client_sees_everything_late_and_is_invalid() -> None:
    level = play(engine(), spec(16), Client(lambda _: 0.8))
    stats = level_stats(level.run, level.records, level.samples, SLO)
    assert stats.ttft_ms.p50 is not None
    assert stats.ttft_ms.p50 > 800
    verdict = judge_level(level.run, stats, level.records, level.samples, SLO)
    assert not verdict.valid
    assert verdict.invalid[0].startswith("I1")


def test_a_full_pool_that_fails_its_requests_shows_as_failures() -> None:
    level = play(engine("llamacpp", blocks=120), spec(16))
    stats = level_stats(level.run, level.records, level.samples, SLO)
    assert stats.failures.get("error_in_stream", 0) > 0


def test_an_engine_that_refuses_is_asked_again_later() -> None:
    level = play(engine("tgi", admitted=4), spec(8, requests=50))
    stats = level_stats(level.run, level.records, level.samples, SLO)
    assert stats.failures["status"] > 0
    assert stats.offered == 50
