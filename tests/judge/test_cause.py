"""Limits that look alike from the client's side, told apart by what the engine and a quiet level show."""

from __future__ import annotations

import pytest
from fakes.levels import answered, run_of

from orchestrator.judge.cause import DECODE, JudgedLevel, cause_of_break
from orchestrator.records import Criterion, CriterionVerdict, LevelStats, LevelVerdict, Percentiles


def stats(
    *, ttft_ms: float = 100.0, prompt_tokens_per_s: float = 1000.0, running: tuple[float, float] | None = None
) -> LevelStats:
    return LevelStats(
        offered=200,
        good=150,
        failed=0,
        attainment=0.75,
        ttft_ms=Percentiles(mean=ttft_ms, n=200),
        tpot_ms=Percentiles(),
        itl_ms=Percentiles(),
        e2e_ms=Percentiles(),
        window_s=60.0,
        output_tokens_per_s=1000.0,
        prompt_tokens_per_s=prompt_tokens_per_s,
        requests_per_s=None,
        goodput_per_s=None,
        mean_in_flight=None,
        mean_in_flight_audit=None,
        mean_in_tokens=500.0,
        mean_out_tokens=100.0,
        running_mean=running[0] if running else None,
        running_max=running[1] if running else None,
    )


def criterion(name: str, verdict: CriterionVerdict, value: float, limit: float) -> Criterion:
    return Criterion(id=name, name=name, verdict=verdict, value=value, limit=limit, note="running 30, waiting 34 of 64")


def level(concurrency: int, found: LevelStats, *criteria: Criterion) -> JudgedLevel:
    return run_of([answered()], concurrency), found, LevelVerdict(valid=True, verdict="FAIL", criteria=criteria)


QUEUE = criterion("S5", "FAIL", 0.5, 0.05)
SLOW = (criterion("S1-ttft", "PASS", 1.0, 0.95), criterion("S1-tpot", "FAIL", 0.6, 0.95))


@pytest.mark.parametrize(
    ("running", "limiter"),
    [((32.0, 32.0), "the engine's limit on running requests"), ((30.0, 48.0), "prefill")],
)
def test_a_queue_at_a_cap_and_a_queue_before_the_prefill(running: tuple[float, float], limiter: str) -> None:
    broke = level(64, stats(running=running), QUEUE)
    assert cause_of_break(broke, [broke]).limiter == limiter


@pytest.mark.parametrize(("prompt_tokens_per_s", "limiter"), [(4000.0, "prefill"), (1000.0, DECODE)])
def test_slow_tokens_by_prompts_or_by_decoding(prompt_tokens_per_s: float, limiter: str) -> None:
    """A quiet server takes 100 ms for 500 prompt tokens: 4,000 a second fill 80 % of its time, 1,000 fill 20 %."""
    broke = level(64, stats(prompt_tokens_per_s=prompt_tokens_per_s), *SLOW)
    quiet = level(1, stats(ttft_ms=100.0))
    found = cause_of_break(broke, [quiet, broke])
    assert found.limiter == limiter
    assert "of the time" in found.evidence[-1]


def test_without_a_quiet_level_it_stays_unknown() -> None:
    broke = level(64, stats(), *SLOW)
    assert cause_of_break(broke, [broke]).limiter == "unknown"
