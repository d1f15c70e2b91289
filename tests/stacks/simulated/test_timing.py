from __future__ import annotations

import pytest

from stacks.memory.bill import bill
from stacks.memory.cards import find_card
from stacks.memory.formats import find_kv_format, find_weight_format
from stacks.memory.models import UnknownFactError, find_model
from stacks.memory.setup import Setup
from stacks.simulated.timing import StepTimes, step_times


def times(weights: str = "fp16", card: str = "RTX-4090-24GB", model: str = "meta-llama/Llama-3.1-8B") -> StepTimes:
    form = find_weight_format(weights)
    kv = find_kv_format("auto", form)
    return step_times(
        bill(Setup(model=find_model(model), weights=form, kv=kv, card=find_card(card), max_model_len=4096))
    )


def test_a_decode_step_is_that_of_the_memory_model() -> None:
    """The 4090 vector of steptime: 14.89 ms weights at the whole bandwidth, 5.34 ms KV, 25.79 ms in all."""
    found = times()
    assert found.weights_s[0] == pytest.approx(0.01489 / 0.8, rel=0.002)
    assert found.kv_token_s * 34.4 * 1194 == pytest.approx(0.00534 / 0.8, rel=0.002)
    without_sequences = found.decode_s(34, round(34.4 * 1194)) - 34 * found.sequence_s
    assert without_sequences == pytest.approx(0.02579, rel=0.002)


def test_weights_are_read_once_however_many_tokens_pass_until_arithmetic_takes_longer() -> None:
    found = times()
    assert found.linear_s(1) == found.linear_s(64) == found.weights_s[0]
    assert found.linear_s(2048) == pytest.approx(2048 * found.token_s)
    assert found.linear_s(2048) > 3 * found.weights_s[0]


def test_four_bits_help_small_batches_and_not_large_ones() -> None:
    plain, quantized = times("fp16"), times("awq")
    assert quantized.decode_s(1, 100) < 0.4 * plain.decode_s(1, 100)
    assert quantized.linear_s(2048) > plain.linear_s(2048)
    assert quantized.kv_token_s == plain.kv_token_s


def test_fp8_computes_faster_where_the_card_does() -> None:
    assert times("fp8", "H100-SXM-80GB").token_s == pytest.approx(times("fp16", "H100-SXM-80GB").token_s / 2, rel=0.02)


def test_experts_are_read_as_they_are_hit() -> None:
    found = times(model="Qwen/Qwen3-30B-A3B", card="H100-SXM-80GB")
    assert found.weights_s[1] < found.weights_s[8] < found.weights_s[64]


def test_an_unknown_card_has_no_times() -> None:
    form = find_weight_format("fp16")
    setup = Setup(model=find_model("meta-llama/Llama-3.1-8B"), weights=form, kv=find_kv_format("auto", form), card=None)
    with pytest.raises(UnknownFactError, match="not known"):
        step_times(bill(setup))
