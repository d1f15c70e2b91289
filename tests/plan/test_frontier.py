"""[frontier]: a workload for each prompt length, or a sentence that says why not."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.asked import asked, search_rules
from orchestrator.errors import PlanError
from orchestrator.plan import Plan, parse_plan

DEPLOYMENTS = """
[model]
id = "org/model"
context_tokens = 8192
[[deployment]]
name = "one"
stack = "vllm"
[[deployment]]
name = "two"
stack = "vllm"
quantization = "fp8"
"""
WORKLOAD = '[[workload]]\nname = "chat"\npreset = "azure-conv-2023"\n'
FRONTIER = "[frontier]\nprompt_tokens = [4096, 256, 1024]\n"


def plan_of(text: str, *overrides: str) -> Plan:
    return parse_plan(text.encode(), "p.toml", overrides, base=Path("/nowhere"), environ={})


def test_every_length_is_a_cell_of_every_deployment_after_the_plans_own_workloads() -> None:
    plan = plan_of(DEPLOYMENTS + WORKLOAD + FRONTIER)
    assert [cell.id for cell in plan.cells()] == [
        "one--chat", "one--prompt-256", "one--prompt-1024", "one--prompt-4096",
        "two--chat", "two--prompt-256", "two--prompt-1024", "two--prompt-4096",
    ]  # fmt: skip
    drawn = plan.workload(plan.cells()[3]).draw(1, 50, plan.cells()[3].workload.context_tokens)
    assert {(r.prompt_tokens, r.output_tokens, r.clamped) for r in drawn} == {(4096, 128, False)}
    assert len({r.prompt_seed for r in drawn}) == 50
    assert [cell.frontier_prompt_tokens for cell in asked(plan).cells] == [None, 256, 1024, 4096] * 2
    assert all(plan.expected_seconds(cell) > 0 for cell in plan.cells())


def test_it_may_stand_alone_and_has_its_own_name_output_and_precision() -> None:
    plan = plan_of(
        DEPLOYMENTS + FRONTIER + 'output_tokens = 64\nname = "rag"\nprecision = 0.2\n[ramp]\nprecision = 0.05\n'
    )
    assert [w.name for w in plan.workloads] == ["rag-256", "rag-1024", "rag-4096"]
    assert {search_rules(plan, cell).precision for cell in plan.cells()} == {0.2}
    both = plan_of(DEPLOYMENTS + WORKLOAD + FRONTIER + "[ramp]\nprecision = 0.05\nmethod = 'full'\n")
    assert [search_rules(both, cell).precision for cell in both.cells()] == [0.05, 0.1, 0.1, 0.1] * 2
    finer = plan_of(DEPLOYMENTS + FRONTIER, "frontier.precision=0.05")
    assert finer.cells()[0].fingerprint != plan_of(DEPLOYMENTS + FRONTIER).cells()[0].fingerprint


@pytest.mark.parametrize(
    ("text", "where", "said"),
    [
        ("prompt_tokens = [256]", "frontier.prompt_tokens", "For one length write a [[workload]]."),
        ("prompt_tokens = []", "frontier.prompt_tokens", "names 0 lengths, allowed are 2 to 32."),
        ("prompt_tokens = [256]", "frontier.prompt_tokens", "names 1 length, allowed are 2 to 32."),
        (f"prompt_tokens = {list(range(1, 34))}", "frontier.prompt_tokens", "names 33 lengths"),
        ("prompt_tokens = [256, 0]", "frontier.prompt_tokens", "found 0, allowed is 1 to 10,000,000."),
        ("prompt_tokens = [256, -1]", "frontier.prompt_tokens", "found -1"),
        ("prompt_tokens = [256, 512, 256]", "frontier.prompt_tokens", "names a length twice."),
        ("prompt_tokens = ['a', 'b']", "frontier.prompt_tokens", "expected a whole number, got a text"),
        ("output_tokens = 4", "frontier.prompt_tokens", "is missing."),
        ("prompt_tokens = [1, 2]\noutput_tokens = 0", "frontier.output_tokens", "found 0, allowed is 1 to"),
        ("prompt_tokens = [1, 2]\nprecision = 2", "frontier.precision", "allowed is above 0 and at most 1"),
        ("prompt_tokens = [1, 2]\npromt = 3", "frontier.promt", "there is no such key."),
        ("prompt_tokens = [1, 2]\nname = 'a b'", "frontier.name", "use letters, digits"),
        ("prompt_tokens = [1, 2]\nname = 'chat'\n[[workload]]\nname = 'chat-2'\npreset = 'rag-2025'",
         "frontier.name", "'chat-2' is the name of workload[0] too."),
        ("prompt_tokens = [256, 8001]", "frontier.prompt_tokens",
         "a prompt of 8001 and an output of 128 tokens do not fit the 8192 tokens of deployment one "
         "(64 are kept for the chat template)."),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_once_and_nothing_else(text: str, where: str, said: str) -> None:
    with pytest.raises(PlanError) as caught:
        plan_of(DEPLOYMENTS + "[frontier]\n" + text + "\n")
    (problem,) = caught.value.problems
    assert problem.where == f"p.toml: {where}"
    assert said in f"{problem.message} {problem.remedy}"


def test_a_frontier_that_is_no_table_is_told() -> None:
    with pytest.raises(PlanError, match="expected a table"):
        plan_of("frontier = 3\n" + DEPLOYMENTS)


@settings(deadline=None)
@given(st.sets(st.integers(1, 20_000), min_size=2, max_size=8), st.integers(1, 2000), st.integers(32, 20_000))
def test_a_length_is_refused_exactly_where_it_would_be_cut(lengths: set[int], output: int, context: int) -> None:
    text = DEPLOYMENTS.replace("8192", str(context)) + (
        f"[frontier]\nprompt_tokens = {sorted(lengths)}\noutput_tokens = {output}\n"
    )
    room = context - min(64, context // 32)
    too_long = [n for n in lengths if n + output > room]
    if not too_long:
        plan = plan_of(text)
        for cell in plan.cells():
            assert plan.workload(cell).stats(context).clamped_share == 0
        return
    with pytest.raises(PlanError) as caught:
        plan_of(text)
    assert len(caught.value.problems) == len(too_long)
