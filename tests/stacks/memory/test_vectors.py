"""Worked examples of the memory model: predictions that must not move, and the measured starts beside them.

The reference predictions have no allocator remainders (a later finding): they are taken off the weights and given back
to the pool before comparing, and the full prediction is held against the measured figures. Activation and non-torch
memory follow the constants of ``engine-constants.json``, fitted to the public start-up logs.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec
import pytest

from stacks.memory.bill import Bill, bill, inflight_tokens, require_pool
from stacks.memory.cards import GIB, card_with_memory, find_card
from stacks.memory.formats import find_kv_format, find_weight_format
from stacks.memory.kv import Layout, llamacpp_kv, pool_tokens
from stacks.memory.models import Model, Params, find_model
from stacks.memory.pools import layout_of
from stacks.memory.setup import Setup
from stacks.memory.versions import parse_version

H100, A10G, RTX_5090 = "H100-SXM-80GB", "A10G-24GB", "RTX-5090-32GB"


def setup_of(
    model: str,
    weights: str = "16-bit",
    *,
    card: str = H100,
    total_gib: float | None = None,
    version: str = "0.19.0",
    kv: str = "auto",
    u: float | None = 0.95,
    length: int = 8192,
    seqs: int = 1024,
    batched: int = 8192,
    tensor: int = 1,
) -> Setup:
    chosen = find_weight_format(weights)
    return Setup(
        model=find_model(model),
        weights=chosen,
        kv=find_kv_format(kv, chosen),
        card=find_card(card) if total_gib is None else card_with_memory(card, round(total_gib * GIB)),
        version=parse_version(version),
        tensor=tensor,
        memory_fraction=u,
        max_model_len=length,
        max_num_seqs=seqs,
        max_num_batched_tokens=batched,
    )


def remainders_gib(result: Bill) -> float:
    return sum(part.bytes for part in result.parts if part.name == "allocator remainders") / GIB


class Vector(NamedTuple):
    setup: Setup
    weights: float
    activation: float
    non_torch: float
    charged: float
    pool: float
    tokens: int
    measured_weights: float
    measured_pool: float | None


LLAMA8, QWEN14 = "meta-llama/Meta-Llama-3.1-8B", "Qwen/Qwen3-14B"
VECTORS = {
    "1": Vector(setup_of(LLAMA8), 14.989, 1.886, 0.25, 0, 58.106, 476_000, 14.99, 58.11),
    "2": Vector(setup_of(LLAMA8, kv="fp8"), 14.989, 1.886, 0.25, 0, 58.106, 952_000, 14.99, 58.11),
    "3": Vector(setup_of(LLAMA8, "int4-w4a16"), 5.380, 1.886, 0.25, 0, 67.715, 554_720, 5.38, 67.71),
    "4": Vector(
        setup_of("meta-llama/Meta-Llama-3.1-70B", "fp8", tensor=4),
        *(16.955, 1.973, 2.15, 0, 54.153, 709_792, 16.96, 54.09),
    ),
    "5": Vector(setup_of("google/gemma-3-27b-it"), 51.378, 3.990, 0.25, 0, 19.612, 36_720, 51.45, 19.53),
    "7": Vector(setup_of("deepseek-ai/DeepSeek-V2-Lite"), 29.381, 1.479, 0.25, 0, 44.121, 1_523_088, 29.43, 43.61),
    "8": Vector(setup_of(QWEN14, version="0.16.0"), 27.518, 5.651, 0.13, 0, 41.931, 274_800, 27.52, 41.94),
    "9": Vector(setup_of(QWEN14, version="0.18.0"), 27.518, 2.239, 0.25, 0, 45.223, 296_368, 27.52, 45.23),
    "10": Vector(
        setup_of(
            "Qwen/Qwen2.5-14B-Instruct",
            "awq",
            card=A10G,
            total_gib=22.30,
            version="0.19.1",
            u=0.9,
            length=4096,
            seqs=256,
            batched=2048,
        ),
        *(9.369, 1.059, 0.25, 0, 9.392, 51_280, 9.38, 9.10),
    ),
    "11": Vector(
        setup_of(
            "Qwen/Qwen3-8B",
            card=RTX_5090,
            version="0.24.0",
            u=0.92,
            length=32768,
            seqs=256,
            batched=2048,
        ),
        *(15.266, 0.554, 0.25, 0.790, 11.991, 87_312, 15.27, 12.228),
    ),
}


@pytest.mark.parametrize("number", VECTORS)
def test_worked_example(number: str) -> None:
    vector = VECTORS[number]
    result = bill(vector.setup)
    extra = remainders_gib(result)
    terms = result.terms
    assert terms.weights / GIB - extra == pytest.approx(vector.weights, abs=0.002)
    assert terms.activation / GIB == pytest.approx(vector.activation, abs=0.002)
    assert terms.non_torch / GIB == pytest.approx(vector.non_torch, abs=0.002)
    assert terms.graphs_charged / GIB == pytest.approx(vector.charged, abs=0.002)
    reference = require_pool(result).bytes.value + extra * GIB
    assert reference / GIB == pytest.approx(vector.pool, abs=0.002)
    assert _tokens(result, reference) == pytest.approx(vector.tokens, abs=32)


@pytest.mark.parametrize("number", VECTORS)
def test_worked_example_against_its_measured_start(number: str) -> None:
    vector = VECTORS[number]
    result = bill(vector.setup)
    assert result.weights.value / GIB == pytest.approx(vector.measured_weights, rel=0.002)
    if vector.measured_pool is not None:
        assert require_pool(result).bytes.low / GIB - 0.005 <= vector.measured_pool
        assert vector.measured_pool <= require_pool(result).bytes.high / GIB + 0.005


def _tokens(result: Bill, pool_bytes: float) -> int:
    inflight = inflight_tokens(result.setup, result.limits)
    length = result.limits.max_model_len
    return pool_tokens(result.layout, pool_bytes, length, inflight, from_concurrency=False).tokens


def test_mxfp4_experts_are_padded_on_each_rank() -> None:
    """Example 6. Padding a rank's share lies nearer the measured 7.01 GiB than padding the whole (6.859)."""
    one = bill(setup_of("openai/gpt-oss-20b", "mxfp4", u=0.9))
    two = bill(setup_of("openai/gpt-oss-20b", "mxfp4", u=0.9, tensor=2))
    assert one.weights.value / GIB == pytest.approx(13.72, rel=0.005)
    assert two.weights.value / GIB == pytest.approx(7.01, rel=0.0125)
    assert require_pool(two).bytes.value / GIB == pytest.approx(59.32, abs=0.15)


def test_llama_4_scout_keeps_a_large_rotary_cache() -> None:
    result = bill(setup_of("meta-llama/Llama-4-Scout-17B-16E-Instruct", tensor=4))
    rotary = next(part.bytes for part in result.parts if part.name == "rotary cache")
    assert rotary == 10_485_760 * 128 * 2
    assert result.weights.value / GIB - remainders_gib(result) == pytest.approx(53.096, abs=0.002)
    assert result.terms.activation / GIB == pytest.approx(3.142, abs=0.002)


# --- layouts from measured pools --------------------------------------------------------------------------------


def test_gemma_3_layout() -> None:
    layout = layout_of(setup_of("google/gemma-3-27b-it"))
    assert (layout.page_bytes, layout.groups) == (1_310_720, 7)
    held = pool_tokens(layout, 19.53 * GIB, 8192, 8192, from_concurrency=False)
    assert held.blocks == 15_998
    logged = pool_tokens(layout, 15_997 * layout.page_bytes, 8192, 8192, from_concurrency=False)
    assert logged.tokens == 36_560
    assert layout.blocks_of(8192, 8192) == 3_590
    assert round(logged.max_concurrency, 2) == 4.46


def test_gpt_oss_layout() -> None:
    layout = layout_of(setup_of("openai/gpt-oss-20b", "mxfp4", tensor=2))
    assert (layout.page_bytes, layout.groups) == (196_608, 2)
    held = pool_tokens(layout, 323_972 * layout.page_bytes, 8192, 8192, from_concurrency=False)
    assert held.tokens == 2_591_776
    assert round(held.max_concurrency, 2) == 316.07


def test_llama_4_scout_layout() -> None:
    layout = layout_of(setup_of("meta-llama/Llama-4-Scout-17B-16E-Instruct", tensor=4))
    held = pool_tokens(layout, 91_495 * layout.page_bytes, 8192, 8192, from_concurrency=False)
    assert held.tokens == 365_968
    assert round(held.max_concurrency, 2) == 44.68


@pytest.mark.parametrize(("pool_gib", "tokens"), [(6.93, 216_946), (7.88, 247_078)])
def test_linear_attention_layout_gives_the_logged_tokens(pool_gib: float, tokens: int) -> None:
    """Qwen3.8-27B with fp8 KV: attention's block grows to 1,568 tokens to hold a float32 state."""
    setup = setup_of("Qwen/Qwen3.5-27B", "nvfp4", card=RTX_5090, version="0.28.0", kv="fp8", length=131072)
    layout = layout_of(setup)
    assert layout.block_tokens == 1568
    assert (layout.full_groups, layout.linear_groups) == (1, 3)
    assert pool_tokens(layout, pool_gib * GIB, 131072, 2048, from_concurrency=True).tokens == tokens


def test_an_engine_without_hybrid_pools_keeps_every_layer_whole() -> None:
    layout = layout_of(setup_of("google/gemma-3-27b-it", version="0.8.2"))
    assert layout.groups == 1
    assert layout.page_bytes == 62 * 2 * 16 * 128 * 2 * 16


# --- does not fit, V0, SGLang, llama.cpp ------------------------------------------------------------------------


def test_a_pool_too_small_for_one_request_does_not_start() -> None:
    result = bill(
        setup_of(
            "Qwen/Qwen2.5-14B-Instruct",
            "awq",
            card=A10G,
            total_gib=22.30,
            version="0.19.1",
            u=0.5,
            length=16384,
            seqs=256,
            batched=2048,
        )
    )
    assert require_pool(result).bytes.value / GIB == pytest.approx(0.472, abs=0.002)
    assert result.need_bytes / GIB == pytest.approx(3.0, abs=0.001)
    assert result.starts == "no"
    assert result.layout.blocks(0.18 * GIB) == 61
    assert 61 * result.layout.block_tokens == 976


def test_v0_engine() -> None:
    setup = setup_of("Qwen/Qwen2.5-7B-Instruct", card=A10G, total_gib=21.99, version="0.8.1", u=0.9, length=6600)
    setup = msgspec.structs.replace(setup, generation="V0", max_num_seqs=None, max_num_batched_tokens=None)
    result = bill(setup)
    assert result.limits.batched_tokens == 6600
    extra = remainders_gib(result)
    assert (result.terms.weights / GIB - extra) == pytest.approx(14.193, abs=0.002)
    assert result.weights.value / GIB == pytest.approx(14.2487, abs=0.001)
    assert result.terms.activation / GIB == pytest.approx(1.446, abs=0.002)
    reference = require_pool(result).bytes.value + extra * GIB
    assert reference / GIB == pytest.approx(4.092, abs=0.002)
    assert _tokens(result, reference) == pytest.approx(76_608, abs=32)


def test_sglang_with_its_own_free_memory_at_hand() -> None:
    weights = find_weight_format("16-bit")
    setup = Setup(
        model=find_model("Qwen/Qwen2.5-7B-Instruct"),
        weights=weights,
        kv=find_kv_format("auto", weights),
        card=find_card("A100-40GB"),
        stack="sglang",
        version=parse_version("0.4.3"),
        memory_fraction=0.88,
        max_model_len=32768,
        free_before_load_bytes=round(38.97 * GIB),
        free_after_load_bytes=round(24.59 * GIB),
    )
    pool = require_pool(bill(setup))
    assert pool.bytes.value / GIB == pytest.approx(19.914, abs=0.002)
    assert pool.held.tokens == pytest.approx(372_873, abs=32)
    assert pool.bytes.high - pool.bytes.value == pytest.approx(0.1 * GIB)


def smollm() -> Model:
    params = Params(
        embedding=28_311_552,
        lm_head=0,
        attention=26_542_080,
        mlp=79_626_240,
        experts=0,
        norms=35_136,
        text_total=134_515_008,
    )
    return Model(
        name="SmolLM2-135M",
        layers=30,
        hidden=576,
        heads=9,
        kv_heads=3,
        head_dim=64,
        intermediate=1536,
        vocab=49152,
        max_position=8192,
        rotary_cache_positions=8192,
        rotary_dim=64,
        tied_embeddings=True,
        params=params,
    )


def test_llamacpp_cache_is_what_the_server_logged() -> None:
    cache = llamacpp_kv(smollm(), 8192, 4, 2.0, 2.0, unified=False)
    assert (cache.cells, cache.streams) == (2048, 4)
    assert cache.bytes / 2**20 == 180.00
    quantised = llamacpp_kv(smollm(), 8192, 4, 34 / 32, 34 / 32, unified=False)
    assert round(quantised.bytes / 2**20, 2) == 95.62


def test_hybrid_example_needs_whole_groups() -> None:
    layout = Layout(page_bytes=1.0, block_tokens=16, full_groups=2, windowed_groups=1, window=128)
    assert layout.blocks_of(1000) == 2 * math.ceil(1000 / 16) + math.ceil(127 / 16) + 1
