"""[open_loop] and [demand]: the check that follows a search, and the traffic that is expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.asked import asked, level_spec, open_rules, open_spec, search_rules
from orchestrator.errors import PlanError
from orchestrator.judge.search import Measure
from orchestrator.plan.plan import Plan
from orchestrator.plan.reading import parse_plan
from orchestrator.records import Demand

PLAN = """
[slo]
ttft_ms = 1000
tpot_ms = 50
[model]
id = "m"
context_tokens = 4096
[[deployment]]
stack = "vllm"
launch = "external"
url = "http://127.0.0.1:1"
"""
PRESET = '[[workload]]\npreset = "azure-conv-2023"\n'
SYNTHETIC = "[[workload]]\nprompt_tokens = 100\noutput_tokens = 50\n"
FULL = '[ramp]\nmethod = "full"\n'


def plan_of(*parts: str, base: Path = Path()) -> Plan:
    return parse_plan((PLAN + "".join(parts)).encode(), "plan.toml", base=base, environ={})


def problems(*parts: str, base: Path = Path()) -> list[str]:
    with pytest.raises(PlanError) as raised:
        plan_of(*parts, base=base)
    return [f"{p.where}: {p.message} {p.remedy}" for p in raised.value.problems]


def trace(folder: Path, rows: int = 400) -> Path:
    lines = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    lines += [f"2023-11-16 18:{n // 60 % 60:02}:{n % 60:02}.0000000,{50 + n % 9},{5 + n % 4}" for n in range(rows)]
    path = folder / "ours.csv"
    path.write_text("\n".join(lines))
    return path


def test_the_check_follows_the_full_method_and_not_the_quick_one() -> None:
    full, quick = plan_of(PRESET, FULL), plan_of(PRESET)
    assert search_rules(full, full.cells()[0]).open_loop is not None
    assert search_rules(quick, quick.cells()[0]).open_loop is None
    asked_for = plan_of(PRESET, "[open_loop]\ncheck = true\n")
    assert search_rules(asked_for, asked_for.cells()[0]).open_loop is not None
    declined = plan_of(PRESET, FULL, "[open_loop]\ncheck = false\n")
    assert search_rules(declined, declined.cells()[0]).open_loop is None
    ladder = plan_of(PRESET, "levels = [4]\n", FULL)
    assert search_rules(ladder, ladder.cells()[0]).open_loop is None


def test_a_preset_is_its_own_expected_traffic() -> None:
    plan = plan_of(PRESET, FULL)
    rules = open_rules(plan, plan.cells()[0])
    assert rules is not None
    assert rules.traffic == "azure-conv-2023, bin by bin"
    assert rules.swings is not None
    assert rules.swings.factor(2.8).factor == pytest.approx(1.587789, abs=5e-7)


def test_the_swings_of_bins_without_tokens_are_those_of_the_requests() -> None:
    plan = plan_of(SYNTHETIC, FULL, '[open_loop]\narrivals = "azure-conv-2023"\n')
    rules = open_rules(plan, plan.cells()[0])
    assert rules is not None
    assert rules.traffic == "the arrivals of azure-conv-2023, bin by bin"
    assert rules.swings is not None
    assert rules.swings.factor(0.0) == rules.swings.factor(9.0)


def test_synthetic_lengths_say_nothing_of_traffic() -> None:
    plan = plan_of(SYNTHETIC, FULL)
    rules = open_rules(plan, plan.cells()[0])
    assert rules is not None
    assert (rules.traffic, rules.swings) == ("", None)
    law = plan_of(SYNTHETIC, FULL, '[open_loop]\narrivals = "gamma:2"\n')
    assert law.expected["p100-o50"].name == "gamma:2 arrivals at a constant rate"


def test_a_trace_of_ones_own(tmp_path: Path) -> None:
    trace(tmp_path)
    plan = plan_of(SYNTHETIC, FULL, '[open_loop]\ntrace = "ours.csv"\n', base=tmp_path)
    (cell,) = plan.cells()
    step = Measure(concurrency=0, purpose="replay", replicate=3, looks=(100,), rate_per_s=4.0)
    spec = open_spec(step, plan, cell)
    assert spec.arrivals.startswith("ours.csv")
    assert spec.min_seconds == pytest.approx(100, rel=0.01)
    assert spec.requests == pytest.approx(0.8 * 400, abs=10)
    own = plan_of(f'[[workload]]\ntrace = "{tmp_path / "ours.csv"}"\n', FULL)
    assert own.expected["ours"].name == plan.expected["p100-o50"].name


def test_an_open_level_drains_for_three_times_what_the_longest_answer_may_take() -> None:
    plan = plan_of(SYNTHETIC, FULL)
    (cell,) = plan.cells()
    step = Measure(concurrency=0, purpose="rate", replicate=0, looks=(1600,), rate_per_s=10.0, min_seconds=0)
    spec = open_spec(step, plan, cell)
    assert spec.drain_seconds == pytest.approx(3 * (1.0 + 0.05 * 50))
    assert (spec.requests, spec.min_seconds, spec.arrivals, spec.concurrency) == (1600, 200.0, "poisson", 0)
    limited = plan_of(SYNTHETIC, FULL, "[open_loop]\nmin_seconds = 5\n").cells()
    assert limited
    e2e = parse_plan(
        (PLAN.replace("tpot_ms = 50", "e2e_ms = 2000") + SYNTHETIC + FULL).encode(), "p", base=Path(), environ={}
    )
    assert open_spec(step, e2e, e2e.cells()[0]).drain_seconds == 6.0


def test_the_time_limit_of_a_closed_level_cuts_no_open_one() -> None:
    """Closed levels that are cut are INVALID; an open one has the time that its requests take."""
    plan = plan_of(SYNTHETIC, FULL, "max_seconds = 100\n")
    (cell,) = plan.cells()
    step = Measure(concurrency=0, purpose="rate", replicate=0, looks=(1600,), rate_per_s=4.0, min_seconds=300.0)
    spec = open_spec(step, plan, cell)
    assert (spec.min_seconds, spec.max_seconds) == (500.0, 1000.0 + (spec.drain_seconds or 0.0))
    closed = Measure(concurrency=8, purpose="confirm", replicate=0, looks=(1600,))
    assert level_spec(closed, plan.ramp, 1, 2.0).max_seconds == 100.0


def test_the_check_costs_time_that_is_shown_before_the_start() -> None:
    with_check, without = plan_of(PRESET, FULL), plan_of(PRESET, FULL, "[open_loop]\ncheck = false\n")
    more = with_check.expected_total_seconds() - without.expected_total_seconds()
    assert more > 60 + 6 * 300 + 1800


def test_the_fingerprint_holds_the_check_where_there_is_one() -> None:
    prints = [
        plan_of(PRESET, *more).cells()[0].fingerprint
        for more in ((FULL,), (FULL, "[open_loop]\nrequests = 3200\n"), (), ("[open_loop]\nrequests = 3200\n",))
    ]
    assert len(set(prints)) == 3
    assert prints[2] == prints[3]


def test_what_the_launch_needs_is_asked() -> None:
    plan = plan_of(PRESET, "[demand]\nusers = 40\nrate_per_s = 5.5\n")
    assert asked(plan).demand == Demand(users=40, rate_per_s=5.5)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ((PRESET, FULL, '[open_loop]\ntrace = "nowhere.csv"\n'), "open_loop.trace: The trace"),
        ((PRESET, FULL, '[open_loop]\narrivals = "poison"\n'), "open_loop.arrivals: found 'poison'"),
        ((PRESET, FULL, '[open_loop]\narrivals = "fixed-1k1k"\n'), "says nothing of arrivals"),
        ((PRESET, FULL, '[open_loop]\narrivals = "poisson"\ntrace = "x.csv"\n'), "names both trace and arrivals"),
        ((PRESET, '[open_loop]\narrivals = "poisson"\n'), "open_loop.arrivals: has no meaning without the check"),
        ((PRESET, "[open_loop]\nchek = true\n"), 'Did you mean "check"?'),
        ((PRESET, FULL, "[open_loop]\nrequests = 3\n"), "open_loop.requests: found 3"),
        ((PRESET, "[demand]\nusers = 0\n"), "demand.users: found 0"),
        ((PRESET, "[demand]\nrate_per_s = -1\n"), "demand.rate_per_s: found -1"),
    ],
)
def test_what_is_wrong_is_told_before_the_start(tmp_path: Path, parts: tuple[str, ...], said: str) -> None:
    found = problems(*parts, base=tmp_path)
    assert any(said in text for text in found), found


def test_a_trace_without_times_is_no_expected_traffic(tmp_path: Path) -> None:
    (tmp_path / "lengths.csv").write_text("prompt_tokens,output_tokens\n10,5\n20,7\n")
    found = problems(SYNTHETIC, FULL, '[open_loop]\ntrace = "lengths.csv"\n', base=tmp_path)
    assert any("has no time stamps" in text for text in found), found
