"""The soak: trends with their intervals, the phase, and what is said of them."""

from __future__ import annotations

import math
import random

import msgspec
import pytest
from fakes.levels import answered, closed_loop, failed, ns, run_of
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.clock import NS_PER_S
from orchestrator.judge.search import Measure, Outcome, SearchRules, Stop, next_step
from orchestrator.judge.soak import Soak, Trend, recommended, soak_gaps, soak_of, soak_sentence
from orchestrator.judge.steps import OpenLoop
from orchestrator.records import RequestRecord, Sample

MIB = 1 << 20
USERS, REQUESTS = 4, 4000
"""280 ms a request: the window lasts 280 s."""


def soaked(ttft_s: object = 0.1, *, memory: object = None, fail_every: int = 0) -> Soak:
    """A soak whose TTFT and memory are functions of the time in seconds."""

    def make(seq: int, sent_s: float) -> RequestRecord:
        if fail_every and seq % fail_every == 0:
            return failed(seq, sent_s=sent_s, end_s=sent_s + 0.28)
        return answered(seq, sent_s=sent_s, ttft_s=ttft_s(sent_s) if callable(ttft_s) else ttft_s)  # type: ignore[arg-type]

    records = closed_loop(USERS, REQUESTS, make)
    run = run_of(records, USERS, purpose="soak")
    samples = [
        Sample(at_ns=ns(s), source="tree", values={"pss_bytes": memory(s)})  # type: ignore[operator]
        for s in range(run.ended_ns // NS_PER_S + 1)
        if memory is not None
    ]
    found = soak_of(run, records, samples)
    assert found is not None
    return found


def test_a_server_that_stays_as_it_is() -> None:
    found = soaked(memory=lambda _: 400.0 * MIB)
    assert found.window_s == pytest.approx(280, abs=2)
    assert [t and t.verdict for t in (found.ttft_rise, found.tpot_rise, found.leak_bytes_per_hour)] == ["PASS"] * 3
    assert [len(line) for line in (found.ttft_p95_ms, found.tpot_p95_ms, found.memory_bytes)] == [10] * 3
    assert {value for _, value in found.ttft_p95_ms} == {100.0}
    assert soak_sentence(found).endswith("memory +0.0 MiB/h (+0.0 to +0.0); steady.")
    stop = Stop(c_ok=5, c_bad=6, confirmed_ok=True, confirmed_bad=True, monotone=True, why="", soaked="PASS")
    assert list(soak_gaps(found, stop, asked=True)) == []
    assert found.tpot_rise is not None
    unsure = msgspec.structs.replace(found, tpot_rise=msgspec.structs.replace(found.tpot_rise, lower=0.05, upper=0.2))
    assert soak_sentence(unsure).endswith("; whether it is steady was not decided.")
    assert list(soak_gaps(unsure, stop, asked=True)) == []


def test_a_tail_that_gets_slower_is_a_trend_of_the_size_that_it_has() -> None:
    """From 100 ms by 0.2 ms a second: over the window by 56 ms, of a mean of about 128."""
    found = soaked(lambda s: 0.1 + 0.0002 * s)
    assert found.ttft_rise is not None
    length = found.window_s * 0.2
    assert found.ttft_rise.value == pytest.approx(length / (100 + length / 2), rel=0.03)
    assert found.ttft_rise.lower <= found.ttft_rise.value <= found.ttft_rise.upper
    assert found.ttft_rise.verdict == "FAIL"
    assert found.tpot_rise is not None
    assert found.tpot_rise.verdict == "PASS"
    stop = Stop(c_ok=5, c_bad=6, confirmed_ok=True, confirmed_bad=True, monotone=True, why="", soaked="PASS")
    (gap,) = soak_gaps(found, stop, asked=True)
    assert gap.startswith("During the soak p95 TTFT rose by at least 4")
    assert gap.endswith("and 10 % is allowed.")
    assert soak_sentence(found).endswith("; that is no steady state.")


def test_a_leak_is_told_in_mebibytes_an_hour() -> None:
    found = soaked(memory=lambda s: (400 + s / 60) * MIB)  # 60 MiB/h of 402
    leak = found.leak_bytes_per_hour
    assert leak is not None
    assert leak.value == pytest.approx(60 * MIB, rel=0.01)
    assert leak.limit == pytest.approx(3600 / 280 * MIB, rel=0.01), "1 % an hour is less than 1 MiB over this soak"
    assert leak.verdict == "FAIL"
    stop = Stop(c_ok=5, c_bad=6, confirmed_ok=True, confirmed_bad=True, monotone=True, why="", soaked="PASS")
    (gap,) = soak_gaps(found, stop, asked=True)
    assert "the memory grew by at least 60." in gap
    assert "and 12.9 is allowed (1 % of it, or 1 MiB over the soak)." in gap


def test_without_readings_and_with_many_failures_nothing_is_told() -> None:
    found = soaked(fail_every=10)
    assert (found.ttft_rise, found.tpot_rise, found.leak_bytes_per_hour) == (None, None, None)
    assert (found.ttft_p95_ms, found.memory_bytes) == ((), ())
    assert soak_sentence(found).endswith("4 users: no trend could be told.")


def test_noise_is_called_no_trend() -> None:
    """Lognormal first tokens without any trend, 40 times: none fails; a rise of half is found every time."""
    stable, rising = [], []
    for seed in range(20):
        draw = random.Random(seed)
        stable.append(soaked(lambda _, d=draw: 0.1 * math.exp(d.gauss(0, 0.3))).ttft_rise)
        rising.append(soaked(lambda s, d=draw: (0.1 + 0.0003 * s) * math.exp(d.gauss(0, 0.3))).ttft_rise)
    assert [t.verdict for t in stable if t].count("FAIL") == 0
    assert [t.verdict for t in rising if t] == ["FAIL"] * 20


@settings(deadline=None, max_examples=15)
@given(st.integers(50, 50_000), st.floats(-20, 20))
def test_the_slope_of_the_memory_is_its_own_whatever_it_stands_on(base_mib: int, per_minute: float) -> None:
    found = soaked(memory=lambda s: (base_mib + 100 + per_minute * s / 60) * MIB)
    assert found.leak_bytes_per_hour is not None
    assert found.leak_bytes_per_hour.value / MIB == pytest.approx(60 * per_minute, rel=0.02, abs=0.01)


@pytest.mark.parametrize(
    ("lower", "upper", "word"),
    [(0.0, 0.05, "PASS"), (0.05, 0.2, "UNDECIDED"), (0.11, 0.2, "FAIL"), (-0.5, 0.0, "PASS")],
)
def test_a_trend_is_judged_by_its_interval(lower: float, upper: float, word: str) -> None:
    assert Trend(value=(lower + upper) / 2, lower=lower, upper=upper, limit=0.1).verdict == word


# --- the phase ---


def walk(rules: SearchRules, *, soaks: tuple[str, ...] = ("PASS",), limit: int = 24) -> tuple[list[Measure], Stop]:
    steps: list[Measure] = []
    history: list[Outcome] = []
    told = iter(soaks)
    while isinstance(step := next_step(history, rules), Measure):
        word = next(told) if step.purpose == "soak" else "PASS" if step.concurrency < limit else "FAIL"
        steps.append(step)
        history.append(
            Outcome(
                concurrency=step.concurrency,
                purpose=step.purpose,
                valid=word != "INVALID",
                verdict="UNDECIDED" if word == "INVALID" else word,  # type: ignore[arg-type]
            )
        )
    return steps, step


def test_the_soak_comes_last_at_the_recommended_point() -> None:
    steps, stop = walk(SearchRules(recovery=True, soak_seconds=1800.0))
    assert [s.purpose for s in steps[-2:]] == ["recovery", "soak"]
    assert (steps[-1].concurrency, steps[-1].min_seconds) == (17, 1800.0)
    assert (stop.c_ok, stop.soaked) == (22, "PASS")


def test_one_that_is_invalid_is_made_once_more() -> None:
    steps, stop = walk(SearchRules(soak_seconds=60.0), soaks=("INVALID", "PASS"))
    assert [s.replicate for s in steps if s.purpose == "soak"] == [0, 1]
    assert stop.soaked == "PASS"
    _, stop = walk(SearchRules(soak_seconds=60.0), soaks=("INVALID", "INVALID"))
    assert stop.soaked == "INVALID"
    assert list(soak_gaps(None, stop, asked=True)) == [
        "The soak is INVALID, twice: whether the server stays as it is over hours is not known."
    ]


def test_what_does_not_hold_stands_in_the_way() -> None:
    _, stop = walk(SearchRules(soak_seconds=60.0), soaks=("FAIL",))
    assert list(soak_gaps(None, stop, asked=True)) == ["The soak did not hold the SLO at 17 users."]
    _, stop = walk(SearchRules())
    assert list(soak_gaps(None, stop, asked=True)) == ["The soak was not made."]
    assert list(soak_gaps(None, stop, asked=False)) == []


def test_there_is_none_where_nothing_holds_or_levels_are_fixed() -> None:
    assert "soak" not in [s.purpose for s in walk(SearchRules(soak_seconds=60.0), limit=1)[0]]
    assert "soak" not in [s.purpose for s in walk(SearchRules(levels=(1, 2), soak_seconds=60.0))[0]]


def test_the_replay_may_recommend_fewer() -> None:
    stop = Stop(c_ok=20, c_bad=21, confirmed_ok=True, confirmed_bad=True, monotone=True, why="")
    assert recommended(stop) == 16
    check = OpenLoop(throughput=10.0, rate_sign=4.0, in_flight_p95=9.7)
    assert recommended(Stop(**{**{f: getattr(stop, f) for f in stop.__struct_fields__}, "open_loop": check})) == 9
    one = Stop(c_ok=1, c_bad=2, confirmed_ok=True, confirmed_bad=True, monotone=True, why="")
    assert recommended(one) == 1
