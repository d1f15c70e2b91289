"""From a plan's deployment to its simulated card: stacks, formats and cards that do and do not go together."""

from __future__ import annotations

import pytest

from stacks.base import Deployment
from stacks.catalog import stack as stack_named
from stacks.memory.bill import require_pool
from stacks.memory.models import UnknownFactError
from stacks.simulated.card import SimulatedCard
from stacks.simulated.deployed import card_of, simulated_setup
from stacks.simulated.startup import Startup, startup

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
GIB = 2**30


def deployment(stack: str = "vllm", card: str | None = "RTX-4090-24GB", **more: object) -> Deployment:
    values = {"name": "d", "stack": stack, "model": MODEL, "launch": "simulated", "card": card, "context_tokens": 8192}
    return Deployment(**(values | more))  # type: ignore[arg-type]


def card(stack: str = "vllm", name: str = "RTX-4090-24GB", **more: object) -> SimulatedCard:
    asked = deployment(stack, name, **more)
    return card_of(simulated_setup(asked), asked)


def told(**more: object) -> Startup:
    return startup(card(**more).bill)  # type: ignore[arg-type]


def test_tgi_is_what_we_would_start_it_as() -> None:
    """No cap of its own on a batch or on the queue, and a prefill of at least the longest prompt."""
    limits = card("tgi").limits
    assert (limits.sequences, limits.admitted, limits.step_tokens) == (4096, 4096, 8192)
    assert card("tgi", max_concurrency=16).limits.sequences == 16


def test_the_release_is_that_of_the_stacks_image() -> None:
    assert str(card("vllm").bill.setup.version).startswith("0.33")
    assert str(card("tgi").bill.setup.version) == "3.3.7"


def test_fp8_arithmetic_is_only_where_card_and_kernels_have_it() -> None:
    """Ada has it, but TGI's fp8 is weight-only there; Ampere has none; Hopper has it on both."""
    sixteen = {name: card("vllm", name).times.token_s for name in ("RTX-4090-24GB", "A100-80GB", "H100-SXM-80GB")}
    fp8 = {name: card("vllm", name, quantization="fp8").times.token_s for name in sixteen}
    tgi = {name: card("tgi", name, quantization="fp8").times.token_s for name in sixteen}
    assert fp8["RTX-4090-24GB"] == pytest.approx(sixteen["RTX-4090-24GB"] / 2, rel=0.01)
    assert tgi["RTX-4090-24GB"] == pytest.approx(sixteen["RTX-4090-24GB"])
    assert fp8["A100-80GB"] == tgi["A100-80GB"] == pytest.approx(sixteen["A100-80GB"])
    assert fp8["H100-SXM-80GB"] == tgi["H100-SXM-80GB"] == pytest.approx(sixteen["H100-SXM-80GB"] / 2)


def test_a_card_without_fp8_says_so_in_the_stacks_words() -> None:
    facts = stack_named("vllm").log_facts(told(name="A100-80GB", quantization="fp8").lines)
    assert "Weight-only FP8" in str(facts["weight_only_fallback"])
    assert "weight_only_fallback" not in stack_named("vllm").log_facts(told(quantization="fp8").lines)
    assert any("Marlin FP8" in line for line in told(stack="tgi", quantization="fp8").lines)


def test_a_card_that_is_too_old_is_refused_in_the_stacks_words() -> None:
    found = told(name="V100-32GB", quantization="fp8")
    assert found.refusal is not None
    failure = stack_named("vllm").find_failure((*found.lines, found.refusal))
    assert failure is not None
    assert failure.failure_class == "quant-card"
    assert told(name="V100-32GB").refusal is None


@pytest.mark.parametrize("stack", ["vllm", "tgi", "sglang", "llamacpp"])
def test_a_start_says_that_it_is_simulated_and_what_the_card_holds(stack: str) -> None:
    made = card(stack, "H100-SXM-80GB", quantization=None if stack != "llamacpp" else "q4_k_m")
    found = startup(made.bill)
    assert stack_named(stack).log_facts(found.lines)["simulated"] == "H100-SXM-80GB"
    held = [said.held_bytes for said in found.said]
    assert held == sorted(held)
    terms = made.bill.terms
    pool = require_pool(made.bill).bytes.value
    assert held[0] == terms.context
    assert found.held_bytes == pytest.approx(
        terms.context + terms.weights + pool + terms.non_torch + terms.graphs, rel=1e-9
    )
    assert pool / GIB > 0.5


@pytest.mark.parametrize(
    ("more", "names"),
    [
        ({"card": "RTX-4091"}, "RTX-4090-24GB"),
        ({"model": "meta-llama/Llama-9-8B"}, "meta-llama/Meta-Llama-3.1-8B"),
        ({"stack": "tgi", "quantization": "nvfp4"}, "tgi"),
    ],
)
def test_what_is_not_known_is_refused_with_the_nearest_names(more: dict[str, str], names: str) -> None:
    with pytest.raises(UnknownFactError) as refused:
        simulated_setup(deployment(**more))
    assert names in f"{refused.value}"
