"""What the simulated engines log is read by the same data sheets that read the real ones."""

from __future__ import annotations

import pytest

from stacks.catalog import stack as stack_named
from stacks.memory.bill import require_pool
from stacks.memory.cards import find_card
from stacks.memory.formats import find_kv_format, find_weight_format
from stacks.memory.models import find_model
from stacks.memory.setup import Setup
from stacks.simulated.card import SimulatedCard, simulated_card
from stacks.simulated.faults import Faults, parse_fault
from stacks.simulated.pages import metrics_page
from stacks.simulated.startup import out_of_memory, startup

STACKS = ("vllm", "tgi", "sglang", "llamacpp")


def card(
    stack: str, *, model: str = "meta-llama/Llama-3.1-8B", length: int = 4096, name: str = "A100-80GB"
) -> SimulatedCard:
    form = find_weight_format("fp16")
    setup = Setup(
        model=find_model(model),
        weights=form,
        kv=find_kv_format("auto", form),
        card=find_card(name),
        stack=stack,
        max_model_len=length,
    )
    return simulated_card(setup)


@pytest.mark.parametrize("stack", STACKS)
def test_a_start_tells_its_memory_in_the_stacks_own_lines(stack: str) -> None:
    made = card(stack)
    told = startup(made.bill)
    assert told.refusal is None
    facts = stack_named(stack).log_facts(told.lines)
    pool = require_pool(made.bill)
    assert facts.get("kv_tokens", pool.held.tokens) == pool.held.tokens
    if stack != "tgi":
        assert facts["weights_bytes"] == pytest.approx(made.bill.weights.value, rel=0.001)
        assert facts["kv_bytes"] == pytest.approx(pool.bytes.value, rel=0.002)


@pytest.mark.parametrize(
    ("stack", "failure_class"),
    [("vllm", "ctx-too-long"), ("tgi", "no-kv"), ("sglang", "no-kv"), ("llamacpp", "oom-kv")],
)
def test_what_does_not_fit_is_refused_in_the_stacks_own_words(stack: str, failure_class: str) -> None:
    told = startup(card(stack, length=131_072, name="L4-24GB").bill)
    assert told.refusal is not None
    found = stack_named(stack).find_failure((*told.lines, told.refusal))
    assert found is not None
    assert found.failure_class == failure_class


@pytest.mark.parametrize("stack", STACKS)
def test_weights_that_do_not_fit_are_refused(stack: str) -> None:
    told = startup(card(stack, model="meta-llama/Llama-3.1-70B", name="L4-24GB").bill)
    assert told.refusal is not None
    found = stack_named(stack).find_failure((*told.lines, told.refusal))
    assert found is not None
    assert "oom" in found.failure_class or "memory" in found.failure_class


@pytest.mark.parametrize("stack", STACKS)
def test_running_out_of_memory_under_load_is_said_as_the_stack_says_it(stack: str) -> None:
    assert stack_named(stack).find_failure([out_of_memory(stack)]) is not None


@pytest.mark.parametrize("stack", STACKS)
def test_the_metrics_page_is_read_as_the_stacks_own(stack: str) -> None:
    engine = card(stack).engine(noise=0.0)
    engine.submit(100, 10)
    engine.advance()
    values = stack_named(stack).metric_values(metrics_page(stack, engine).decode())
    assert (values["running"], values["waiting"]) == (1, 0)
    assert (values["prompt_tokens_total"], values["output_tokens_total"]) == (100, 1)
    assert values.get("kv_use", 0.001) > 0


def test_faults_are_named_on_the_command_line() -> None:
    assert Faults(**parse_fault("oom-at-start")).oom_at_start
    assert Faults(**parse_fault("error-every=7")).error_every == 7
    assert Faults(**parse_fault("throttle=1.5")).slowdown(0) == 1.5
    assert Faults(**parse_fault("slow-death-s=60")).slowdown(120) == 4
    for wrong in ("nonsense", "throttle=fast", "oom-at-start=1"):
        with pytest.raises(ValueError, match="no"):
            parse_fault(wrong)
