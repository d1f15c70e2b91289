"""[[compare]]: what it becomes, and what is refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.asked import asked
from orchestrator.errors import PlanError
from orchestrator.plan import Plan, parse_plan
from orchestrator.plan.settings import Compare

PLAN = """
seed = 4
[slo]
ttft_ms = 2000
[model]
id = "meta-llama/Llama-3.1-8B-Instruct"
context_tokens = 4096
[defaults]
launch = "simulated"
card = "RTX-4090-24GB"
[[deployment]]
name = "vllm"
stack = "vllm"
[[deployment]]
name = "tgi"
stack = "tgi"
[[deployment]]
name = "large"
stack = "vllm"
card = "H100-SXM-80GB"
[[deployment]]
name = "short"
stack = "vllm"
context_tokens = 2048
[[workload]]
name = "chat"
prompt_tokens = 100
output_tokens = 50
"""
COMPARE = '[[compare]]\na = "vllm"\nb = "tgi"\nworkload = "chat"\n'


def plan_of(*parts: str, text: str = PLAN) -> Plan:
    return parse_plan((text + "".join(parts)).encode(), "plan.toml", base=Path(), environ={})


def problems(*parts: str, text: str = PLAN) -> list[str]:
    with pytest.raises(PlanError) as raised:
        plan_of(*parts, text=text)
    return [f"{p.where}: {p.message} {p.remedy}" for p in raised.value.problems]


def test_it_names_two_cells_and_what_is_asked_stands_in_the_journal() -> None:
    plan = plan_of(COMPARE)
    (paired,) = plan.comparisons()
    assert (paired.id, paired.a.id, paired.b.id) == ("vllm--tgi--chat", "vllm--chat", "tgi--chat")
    assert paired.settings == Compare(a="vllm", b="tgi", workload="chat")
    (told,) = asked(plan).comparisons
    assert (told.id, told.a, told.b, told.concurrency) == (paired.id, "vllm--chat", "tgi--chat", None)
    assert (told.throughput_margin, told.ttft_margin) == (0.03, 0.05)
    assert len(told.order) == 12
    assert asked(plan_of()).comparisons == ()


def test_cells_are_those_of_a_plan_without_it_and_the_comparison_has_a_fingerprint_of_its_own() -> None:
    plan, without = plan_of(COMPARE), plan_of()
    assert [cell.fingerprint for cell in plan.cells()] == [cell.fingerprint for cell in without.cells()]
    prints = {plan_of(COMPARE, more).comparisons()[0].fingerprint for more in ("", "pairs = 8\n", "requests = 50\n")}
    assert len(prints) == 3


def test_requests_are_enough_by_themselves_and_whole_tens() -> None:
    settings = Compare(a="a", b="b", workload="w")
    assert [settings.requests_at(c) for c in (1, 40, 41, 500)] == [400, 400, 410, 5000]
    assert Compare(a="a", b="b", workload="w", requests=95).requests_at(500) == 100


def test_its_time_is_part_of_the_estimate() -> None:
    plan, longer = plan_of(COMPARE), plan_of(COMPARE, "pairs = 12\n")
    one, two = (p.expected_pairs_seconds(p.comparisons()[0]) for p in (plan, longer))
    assert one > 0
    assert two == pytest.approx(2 * one)
    assert plan.expected_total_seconds() == pytest.approx(plan_of().expected_total_seconds() + one)


def test_the_same_two_at_two_concurrencies_are_two_comparisons() -> None:
    plan = plan_of(COMPARE, "concurrency = 4\n", COMPARE, "concurrency = 8\n")
    assert [one.id for one in plan.comparisons()] == ["vllm--tgi--chat--4", "vllm--tgi--chat--8"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ('a = "vlm"', "[0].a: there is no deployment 'vlm'. Did you mean \"vllm\"?"),
        ('b = "zzz"', "[0].b: there is no deployment 'zzz'. The plan has vllm, tgi"),
        ('workload = "chart"', "[0].workload: there is no workload 'chart'. Did you mean"),
        ('b = "vllm"', "[0].b: is 'vllm', as a is. Name another deployment"),
        ('b = "large"', "[0]: vllm is on RTX-4090-24GB and large on H100-SXM-80GB: a pair is measured on one card."),
        ('b = "short"', "[0]: vllm serves a context of 4,096 tokens and short of 2,048 tokens: pairs are measured on"),
        ("workload", "[0].workload: is missing."),
        ("pairs = 5", "[0].pairs: found 5, expected an even number"),
        ("pairs = 2", "[0].pairs: found 2, allowed is at least 4"),
        ("pair = 4", '[0].pair: there is no such key. Did you mean "pairs"?'),
        ("ttft_margin = 0", "[0].ttft_margin: found 0"),
    ],
)
def test_what_no_pair_could_decide_is_refused_with_its_remedy(change: str, told: str) -> None:
    """`change`: a key with its value; a key alone is left out."""
    key = change.split(" =")[0]
    kept = [line for line in COMPARE.splitlines() if not line.startswith(f"{key} =")]
    (found,) = problems("\n".join([*kept, change if "=" in change else "", ""]))
    assert found.startswith(f"plan.toml: compare{told}")


def test_a_server_that_is_not_ours_is_refused() -> None:
    text = PLAN.replace(
        'name = "tgi"\nstack = "tgi"', 'name = "tgi"\nstack = "tgi"\nlaunch = "external"\nurl = "http://x:1"'
    )
    text = text.replace('launch = "simulated"\ncard = "RTX-4090-24GB"', 'launch = "docker"').replace(
        'card = "H100-SXM-80GB"\n', ""
    )
    (found,) = problems(COMPARE, text=text)
    assert "compare[0].b: tgi is external, so it cannot be started anew for every pair. Let loadproof start it" in found


def test_the_same_comparison_twice_and_one_bracket_are_refused() -> None:
    (found,) = problems(COMPARE, COMPARE)
    assert "compare[1]: compares the same two at the same concurrency again." in found
    (found,) = problems(COMPARE.replace("[[compare]]", "[compare]"))
    assert "Write [[compare]] with two brackets" in found


def test_a_deployment_that_cannot_be_read_is_told_once() -> None:
    (found,) = problems(COMPARE, text=PLAN.replace('stack = "tgi"', 'stack = "tgj"'))
    assert "tgj" in found
