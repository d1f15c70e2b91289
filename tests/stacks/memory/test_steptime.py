from __future__ import annotations

from typing import NamedTuple

import pytest

from stacks.memory.cards import find_card
from stacks.memory.formats import find_weight_format
from stacks.memory.models import find_model
from stacks.memory.steptime import (
    card_tflops,
    context_bytes_read,
    decode_seconds,
    prefill_seconds,
    read_bytes,
    steady_state,
    tpot_seconds,
)
from stacks.memory.weights import Sharding, weight_parts


class Load(NamedTuple):
    model: str
    bandwidth: float
    tflops: float
    tensor: int
    batch: float
    context: float
    prompt: float
    rate: float
    share: float
    weights_ms: float
    kv_ms: float
    decode_ms: float
    prefill_share: float
    tpot_ms: float


LLAMA = "meta-llama/Meta-Llama-3.1-8B"
LOADS = {
    "RTX 4090": Load(LLAMA, 1008, 165, 1, 34.4, 1194, 857, 1.634, 0.55, 14.89, 5.34, 25.79, 0.232, 33.56),
    "RTX PRO 6000": Load(LLAMA, 1792, 468, 1, 127.7, 1201, 857, 4.552, 0.55, 8.38, 11.22, 24.99, 0.228, 32.35),
    "A100-40": Load(LLAMA, 1555, 312, 1, 1, 1088, 1024, 0.5, 0.50, 9.65, 0.09, 12.68, 0.049, 13.34),
    "2 x RTX PRO 6000": Load(
        "Qwen/Qwen3-32B", 1792, 468, 2, 121, 1224, 862, 1.878, 0.55, 17.85, 10.83, 36.35, 0.201, 45.51
    ),
}


@pytest.mark.parametrize("name", LOADS)
def test_step_times_of_measured_loads(name: str) -> None:
    load = LOADS[name]
    model, weights = find_model(load.model), find_weight_format("16-bit")
    parts = weight_parts(model, weights, Sharding(load.tensor))
    read = read_bytes(model, parts, load.batch)
    kv = load.batch * context_bytes_read(model, load.context, 2.0, load.tensor, 1)
    assert read / load.bandwidth / 1e6 == pytest.approx(load.weights_ms, rel=0.002)
    assert kv / load.bandwidth / 1e6 == pytest.approx(load.kv_ms, abs=0.01)
    decode = decode_seconds(read, kv, load.bandwidth)
    assert decode * 1000 == pytest.approx(load.decode_ms, rel=0.002)
    prefill = prefill_seconds(model, load.prompt, load.tflops, tensor=load.tensor, share=load.share)
    assert prefill * load.rate == pytest.approx(load.prefill_share, abs=0.001)
    assert tpot_seconds(decode, load.rate, prefill) * 1000 == pytest.approx(load.tpot_ms, rel=0.003)


def test_prefills_that_fill_the_card_leave_no_time_to_decode() -> None:
    assert tpot_seconds(0.02, 10, 0.1) == float("inf")


def test_a_steady_state_feeds_itself() -> None:
    steady = steady_state(50, 200, 0.02, 0.1)
    cycle = 50 / steady.requests_per_s
    assert cycle == pytest.approx(200 * steady.tpot_s)
    assert steady_state(0, 200, 0.02, 0.1).requests_per_s == 0


def test_few_requests_touch_few_experts() -> None:
    model, weights = find_model("Qwen/Qwen3-30B-A3B"), find_weight_format("16-bit")
    parts = weight_parts(model, weights)
    alone, many = read_bytes(model, parts, 1), read_bytes(model, parts, 1000)
    assert many - alone == pytest.approx(model.params.experts * 2 * (1 - 8 / 128), rel=0.001)


def test_a_tied_table_is_read_as_the_head() -> None:
    model, weights = find_model("Qwen/Qwen3-4B"), find_weight_format("16-bit")
    head = model.vocab * model.hidden * 2
    assert read_bytes(model, weight_parts(model, weights), 1) > head + model.params.mlp * 2


def test_weight_only_formats_compute_in_16_bit() -> None:
    card = find_card("H100")
    assert card_tflops(card, find_weight_format("awq")) == card.dense_tflops.fp16
    assert card_tflops(card, find_weight_format("fp8")) == card.dense_tflops.fp8
    assert card_tflops(find_card("A100-80GB"), find_weight_format("fp8")) == 312
