from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stacks.memory.bill import bill, inflight_tokens, require_pool
from stacks.memory.cards import GIB, builtin_cards, card_of_size, find_card
from stacks.memory.formats import find_kv_format, find_weight_format
from stacks.memory.intervals import PoolClass, pool_class
from stacks.memory.models import NonsenseError, UnknownFactError, builtin_models, find_model
from stacks.memory.sentences import (
    margin_sentence,
    point_sentence,
    quantization_sentence,
    requests_sentence,
    start_sentence,
    step_sentence,
)
from stacks.memory.setup import Setup, limits_of, sglang_defaults, sglang_fraction
from stacks.memory.sizing import compare_sizes, fitting_cards, fitting_lengths, size, with_weights
from stacks.memory.versions import parse_version

CHAT = [(857, 652), (2000, 100), (50, 900)]


def setup_of(**changes: Any) -> Setup:
    weights = find_weight_format(changes.pop("weights", "fp16"))
    values: dict[str, Any] = {
        "model": find_model(changes.pop("model", "meta-llama/Llama-3.1-8B-Instruct")),
        "weights": weights,
        "kv": find_kv_format(changes.pop("kv", "auto"), weights),
        "card": find_card(changes.pop("card", "RTX-4090-24GB")),
        "version": parse_version(changes.pop("version", "0.33.0")),
        "max_model_len": 8192,
    }
    return Setup(**values | changes)


# --- the bill ---------------------------------------------------------------------------------------------------


def test_items_and_margin_add_up_to_the_card() -> None:
    """Weights, KV, activation, context with non-torch, graphs and margin are all there is."""
    for version in ("0.19.0", "0.33.0"):
        result = bill(setup_of(version=version, card="H100"))
        assert [item.name for item in result.items] == [
            *("weights", "KV cache", "activation peak", "runtime context", "CUDA graphs", "margin")
        ]
        total = sum(item.spread.value for item in result.items)
        assert total == pytest.approx(result.total_bytes, rel=1e-6), version


def test_every_item_lies_within_its_own_interval() -> None:
    for item in bill(setup_of()).items:
        assert item.spread.low <= item.spread.value <= item.spread.high, item.name
        assert item.why


def test_eager_mode_has_no_graphs() -> None:
    eager = bill(setup_of(eager=True))
    assert eager.terms.graphs == eager.terms.graphs_charged == 0
    assert require_pool(eager).bytes.value > require_pool(bill(setup_of())).bytes.value


def test_a_pinned_pool_is_exact() -> None:
    result = bill(setup_of(kv_cache_bytes=2 * GIB, card="H100"))
    pool = require_pool(result)
    assert pool.bytes.low == pool.bytes.value == pool.bytes.high == 2 * GIB
    assert pool.held.tokens == pool.tokens_low == 2 * GIB // 131072
    assert result.starts == "yes"


def test_other_format_moves_the_pool_by_what_the_weights_shrink() -> None:
    """The measured pattern: KV grows by the weights freed, and nothing else changes."""
    plain, small = (bill(setup_of(weights=name, card="H100")) for name in ("fp16", "awq"))
    grown = require_pool(small).bytes.value - require_pool(plain).bytes.value
    assert grown == pytest.approx(plain.weights.value - small.weights.value, rel=1e-6)
    assert small.terms.activation == plain.terms.activation


def test_fp8_kv_doubles_the_tokens_of_the_same_pool() -> None:
    plain, small = (require_pool(bill(setup_of(kv=name, card="H100"))) for name in ("auto", "fp8"))
    assert plain.bytes.value == small.bytes.value
    assert small.held.tokens == pytest.approx(2 * plain.held.tokens, abs=16)


def test_without_a_card_there_is_no_pool_and_it_says_why() -> None:
    result = bill(msgspec.structs.replace(setup_of(), card=None))
    assert result.pool is None
    assert result.starts == "undecided"
    with pytest.raises(UnknownFactError, match="name the card"):
        require_pool(result)


@pytest.mark.parametrize("stack", ["transformers", "lmdeploy", "trtllm"])
def test_a_stack_without_a_pool_rule_gives_weights_only(stack: str) -> None:
    result = bill(setup_of(stack=stack, version="1.0"))
    assert result.no_pool is not None
    assert stack in result.no_pool
    assert result.weights.value > 14 * GIB


def test_the_tightest_pipeline_rank_sets_the_pool() -> None:
    """The last rank samples; the H100 row with pp 4 holds 2,257,264 tokens, though its first rank printed 69.8 GiB."""
    settled = {"card": "H100", "version": "0.19.0", "memory_fraction": 0.95}
    result = bill(setup_of(pipeline=4, **settled))
    assert result.terms.stage.last
    assert require_pool(result).held.tokens == pytest.approx(2_257_264, rel=0.001)


def test_tgi_and_sglang_have_rules_of_their_own() -> None:
    tgi = require_pool(bill(setup_of(stack="tgi", version="3.3.7", card="H100")))
    sglang = require_pool(bill(setup_of(stack="sglang", version="0.5.23", card="H100")))
    assert tgi.bytes.value / GIB == pytest.approx(0.9 * 79.19 - 0.6 - 14.99, abs=1.0)
    assert sglang.bytes.value / GIB == pytest.approx(78.66 * (1 - 13.125 / 79.19) - 14.99 * 1.01, abs=0.05)
    assert tgi.held.bytes_per_token == sglang.held.bytes_per_token == 131072


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tensor": 3}, "32 attention heads .* do not divide over 3"),
        ({"tensor": 0}, "tensor is 0"),
        ({"memory_fraction": 1.5}, "fraction is 1.5"),
        ({"memory_fraction": 0.0}, "fraction is 0.0"),
        ({"max_model_len": 0}, "max_model_len is 0"),
        ({"kv_cache_bytes": -5}, "kv_cache_bytes is -5"),
        ({"pipeline": 99}, "99 pipeline ranks"),
    ],
)
def test_nonsense_is_refused_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(NonsenseError, match=words):
        bill(setup_of(**changes))


@settings(max_examples=60, deadline=None)
@given(
    model=st.sampled_from(sorted(builtin_models())),
    card=st.sampled_from(sorted(builtin_cards())),
    weights=st.sampled_from(["fp16", "fp8", "awq"]),
    tensor=st.sampled_from([1, 2, 4]),
    length=st.integers(16, 200_000),
    stack=st.sampled_from(
        [("vllm", "0.33.0"), ("vllm", "0.6.0"), ("sglang", "0.5.23"), ("tgi", "3.3.7"), ("llamacpp", "0")]
    ),
)
def test_any_known_model_on_any_card_gives_a_bill_in_order(
    model: str, card: str, weights: str, tensor: int, length: int, stack: tuple[str, str]
) -> None:
    known = builtin_models()[model]
    if known.heads % tensor:
        tensor = 1
    result = bill(
        setup_of(
            model=model,
            card=card,
            weights=weights,
            tensor=tensor,
            max_model_len=length,
            stack=stack[0],
            version=stack[1],
        )
    )
    assert 0 < result.weights.low <= result.weights.value <= result.weights.high
    if result.pool is not None:
        assert result.pool.bytes.low <= result.pool.bytes.value <= result.pool.bytes.high
        assert 0 <= result.pool.tokens_low <= result.pool.held.tokens <= result.pool.tokens_high
        inflight = inflight_tokens(result.setup, result.limits)
        assert result.longest_tokens == 0 or result.layout.blocks_of(result.longest_tokens, inflight) <= (
            result.pool.held.blocks
        )


# --- defaults ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("card", "version", "offline", "seqs", "batched"),
    [
        ("H100", "0.19.0", False, 1024, 8192),
        ("H100", "0.19.0", True, 1024, 16384),
        ("A100-80GB", "0.19.0", False, 256, 2048),
        ("RTX-4090-24GB", "0.33.0", False, 256, 2048),
        ("B200", "0.33.0", False, 1024, 16384),
        ("H100", "0.7.0", False, 256, 8192),
    ],
)
def test_vllm_defaults_by_card(card: str, version: str, offline: bool, seqs: int, batched: int) -> None:
    limits = limits_of(setup_of(card=card, version=version, offline=offline))
    assert (limits.seqs, limits.batched_tokens) == (seqs, batched)


def test_v0_profiles_one_prompt_until_chunking_switches_on() -> None:
    lengths = {
        length: limits_of(setup_of(version="0.6.4", max_model_len=length)).batched_tokens
        for length in (1024, 8192, 32768, 65536)
    }
    assert lengths == {1024: 2048, 8192: 8192, 32768: 32768, 65536: 512}


def test_the_models_own_length_is_the_default() -> None:
    assert limits_of(setup_of(max_model_len=None)).max_model_len == 131072


def test_sglang_reserve() -> None:
    assert sglang_defaults(23.5 * GIB, 1) == (4096, 48)
    assert sglang_defaults(79 * GIB, 4) == (8192, 512)
    small = 23.5 * 1024
    expected = round((small - (512 + 1.5 * 4096 + 128 + 96)) / small, 3)
    assert sglang_fraction(23.5 * GIB, 1, 1, False, 4096, 48) == expected
    large = 79 * 1024
    assert sglang_fraction(79 * GIB, 1, 1, False, 8192, 256) == round(
        (large - max(10240, 512 + 12288 + 128 + 512)) / large, 3
    )


# --- intervals --------------------------------------------------------------------------------------------------

WIDEST = {"A": (0.6, 0.6), "B": (1.5, 1.5), "C": (8.0, 2.0), "D": (8.0, 2.0)}
"""The widest bounds that a class may state, GiB per card."""


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"card": "H100"}, "A"),
        ({"card": "L4"}, "A"),
        ({"card": "H100", "version": "0.9.0"}, "B"),
        ({"card": "H100", "version": "0.9.0", "tensor": 2}, "C"),
        ({"card": "H100", "extra_features": ("LoRA",)}, "D"),
        ({"card": "H100", "model": "Qwen/Qwen2-VL-7B-Instruct"}, "D"),
        ({"card": "H100", "stack": "tgi", "version": "3.3.7"}, "D"),
    ],
)
def test_classes_and_their_widest_bounds(changes: dict[str, Any], name: str) -> None:
    found: PoolClass = pool_class(setup_of(**changes))
    below, above = WIDEST[name]
    assert found.name == name
    assert 0 < found.below_gib <= below
    assert 0 < found.above_gib <= above


def test_an_unnamed_version_is_unclear() -> None:
    assert pool_class(msgspec.structs.replace(setup_of(), version=None)).name == "D"


def test_a_size_class_widens_by_its_cards_and_gives_no_value() -> None:
    sized = card_of_size("24 GB")
    assert sized is not None
    setup = msgspec.structs.replace(
        setup_of(), card=sized.card, card_low_gib=sized.low_gib, card_high_gib=sized.high_gib
    )
    sizing = size(setup, CHAT)
    pool = require_pool(sizing.bill)
    assert pool.bytes.high - pool.bytes.low >= (sized.high_gib - sized.low_gib) * 0.92 * GIB
    assert "marketing size" in (point_sentence(sizing) or "")


def test_weight_intervals_by_what_is_known() -> None:
    shares = {
        "fp16": bill(setup_of(weights="fp16")).weights,
        "awq": bill(setup_of(weights="awq")).weights,
        "online": bill(setup_of(weights="fp8", online=True)).weights,
    }
    half = {name: (spread.high - spread.value) / spread.value for name, spread in shares.items()}
    assert half["fp16"] <= 0.01
    assert half["awq"] <= 0.025
    assert half["online"] == pytest.approx(0.05)


# --- sizing and sentences ---------------------------------------------------------------------------------------


def test_requests_follow_the_pool() -> None:
    sizing = size(setup_of(weights="awq"), CHAT)
    requests = sizing.requests
    assert requests is not None
    assert requests.low < requests.mean < requests.high
    assert requests.safe < requests.mean
    assert requests.mean == pytest.approx(require_pool(sizing.bill).held.blocks / sizing.held.blocks)


def test_the_engines_cap_binds_where_it_is_lower() -> None:
    sizing = size(setup_of(weights="awq", card="H100", max_num_seqs=8), CHAT)
    assert sizing.requests is not None
    assert sizing.requests.limit == (8.0, "max_num_seqs")
    assert sizing.concurrency == 8
    assert "max_num_seqs = 8 binds first" in (requests_sentence(sizing) or "")


def test_tgi_reserves_the_whole_request() -> None:
    sizing = size(setup_of(stack="tgi", version="3.3.7", card="H100", weights="awq"), CHAT)
    assert sizing.requests is not None
    mean = sum(prompt + output for prompt, output in CHAT) / len(CHAT)
    assert sizing.requests.mean == pytest.approx(require_pool(sizing.bill).held.tokens / mean)


def test_formats_are_timed_at_one_concurrency() -> None:
    setup = setup_of()
    sizings = compare_sizes([with_weights(setup, find_weight_format(name)) for name in ("fp16", "awq")], CHAT)
    assert sizings[0].concurrency == sizings[1].concurrency
    assert sizings[0].requests is not None
    assert sizings[0].concurrency == pytest.approx(sizings[0].requests.mean)
    assert sizings[0].steady is not None
    assert sizings[1].steady is not None
    assert sizings[1].steady.decode_s < sizings[0].steady.decode_s
    assert sizings[1].steady.prefill_s == sizings[0].steady.prefill_s


def test_the_sentence_that_matters() -> None:
    plain, small = compare_sizes([setup_of(), setup_of(weights="awq")], CHAT)
    freed = (plain.bill.weights.value - small.bill.weights.value) / GIB
    tokens = require_pool(small.bill).held.tokens - require_pool(plain.bill).held.tokens
    sentence = quantization_sentence(plain, small)
    assert f"frees {freed:,.2f} GiB of weights: {tokens:,} more KV tokens" in sentence
    assert "does not change KV bytes per token (131,072)" in sentence
    assert "gain nothing" in sentence
    assert "at best 2.0 x" in quantization_sentence(plain, size(setup_of(weights="fp8"), CHAT))


def test_sentences_on_the_start() -> None:
    assert "It starts" in start_sentence(size(setup_of(), CHAT))
    too_long = start_sentence(size(setup_of(max_model_len=131072), CHAT))
    assert "does not start at 131,072 tokens" in too_long
    assert "set --max-model-len below" in too_long
    too_big = start_sentence(size(setup_of(model="Qwen/Qwen3-32B"), CHAT))
    assert "leave -" in too_big
    edge = size(setup_of(max_model_len=36_000), CHAT)
    assert edge.bill.starts == "undecided"
    assert start_sentence(edge).startswith("Undecided at 36,000")


def test_a_margin_that_may_be_used_up_is_told() -> None:
    assert margin_sentence(size(setup_of(memory_fraction=0.97, version="0.19.0"), CHAT))
    assert margin_sentence(size(setup_of(memory_fraction=0.80), CHAT)) is None


def test_times_need_speeds() -> None:
    sizing = size(setup_of(), CHAT)
    assert sizing.steady is not None
    assert "decode step" in (step_sentence(sizing) or "")
    slow = msgspec.structs.replace(setup_of(), card=msgspec.structs.replace(find_card("L4"), bandwidth_gb_s=None))
    assert size(slow, CHAT).steady is None
    with pytest.raises(NonsenseError, match="concurrency"):
        size(setup_of(), CHAT, concurrency=0)


def test_what_fits_is_judged_at_the_low_end() -> None:
    fits = fitting_cards(setup_of(), CHAT, concurrency=40)
    assert len(fits) == len(builtin_cards())
    held = [fit for fit in fits if fit.sizing is not None]
    assert len(held) > 10
    for fit in held:
        assert fit.sizing is not None
        assert fit.sizing.bill.starts == "yes"
        assert fit.sizing.requests is not None
        assert fit.sizing.requests.low >= 40
    prices = [fit.price_usd_per_hour for fit in held if fit.price_usd_per_hour is not None]
    assert prices == sorted(prices)


def test_the_largest_settings_are_the_largest() -> None:
    setup = setup_of(max_model_len=None)
    found = fitting_lengths(setup, CHAT)
    assert bill(msgspec.structs.replace(setup, max_model_len=found.max_model_len)).starts == "yes"
    assert bill(msgspec.structs.replace(setup, max_model_len=found.max_model_len + 256)).starts != "yes"

    def safe(seqs: int) -> float:
        requests = size(msgspec.structs.replace(setup, max_num_seqs=seqs), CHAT).requests
        assert requests is not None
        return requests.safe

    assert safe(found.max_num_seqs) >= found.max_num_seqs
    assert safe(found.max_num_seqs + 1) < found.max_num_seqs + 1


def test_a_model_that_never_fits_has_no_largest_length() -> None:
    assert fitting_lengths(setup_of(model="Qwen/Qwen3-32B"), CHAT).max_model_len == 0
