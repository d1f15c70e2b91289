"""A plan on simulated cards: what is wrong with it is told before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import PlanError
from orchestrator.plan import Plan, parse_plan

PLAN = """
[model]
id = "{model}"
context_tokens = 8192
[defaults]
launch = "simulated"
card = "{card}"
secrets = ["NOT_SET_ANYWHERE"]
[[deployment]]
name = "d"
stack = "{stack}"
{more}
[[workload]]
preset = "azure-conv-2023"
"""
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


def plan(
    stack: str = "vllm", *, model: str = LLAMA, card: str = "RTX-4090-24GB", more: str = "", end: str = ""
) -> Plan:
    text = PLAN.format(model=model, card=card, stack=stack, more=more) + end
    return parse_plan(text.encode(), "p.toml", base=Path.cwd(), environ={})


@pytest.mark.parametrize("stack", ["vllm", "tgi", "sglang", "llamacpp"])
def test_the_stacks_that_are_simulated(stack: str) -> None:
    found = plan(stack)
    assert found.simulated
    (deployment,) = found.deployments
    assert (deployment.launch, deployment.card, deployment.secrets) == ("simulated", "RTX-4090-24GB", ())
    assert 0 < found.expected_seconds(found.cells()[0]) < 1e6


@pytest.mark.parametrize(
    ("changes", "where", "said"),
    [
        ({"card": "RTX-4091"}, "deployment[0].card", "Nearest: RTX-4090-24GB"),
        ({"model": "meta-llama/Llama-9-8B"}, "deployment[0].model", "Nothing is known of the model"),
        ({"stack": "lmdeploy"}, "deployment[0].launch", "cannot be launched"),
        ({"stack": "tgi", "more": 'quantization = "nvfp4"'}, "deployment[0].quantization", "TGI accepts"),
        ({"more": 'args = ["--swap-space", "4"]'}, "deployment[0].args", "means nothing to a simulated card"),
        ({"more": "gpus = [0]"}, "deployment[0].gpus", "has no meaning"),
        ({"more": "tensor_parallel = 3"}, "deployment[0].", "do not divide"),
        ({"end": "[slo]\ngap_ms = 100\n"}, "slo.gap_ms", "does not know gaps"),
        (
            {"end": '[[deployment]]\nname = "real"\nstack = "vllm"\nlaunch = "docker"\nsecrets = []\n'},
            "deployment[1].launch",
            "one or the other",
        ),
    ],
)
def test_what_is_wrong_is_told(changes: dict[str, str], where: str, said: str) -> None:
    with pytest.raises(PlanError) as refused:
        plan(**changes)
    problems = [str(problem) for problem in refused.value.problems]
    assert [problem for problem in problems if where in problem and said in problem], problems
    assert not [problem for problem in problems if "--card-memory" in problem], "an option of another command"


def test_a_card_is_needed() -> None:
    text = PLAN.format(model=LLAMA, card="X", stack="vllm", more="").replace('card = "X"\n', "")
    with pytest.raises(PlanError, match=r'is missing, and launch = "simulated" needs it'):
        parse_plan(text.encode(), "p.toml", base=Path.cwd(), environ={})


def test_a_card_has_no_meaning_for_a_server_that_is_there() -> None:
    with pytest.raises(PlanError, match=r"has no meaning with launch"):
        plan(more='launch = "process"\ncommand = ["vllm"]\nsecrets = []\ncard = "L4-24GB"')
