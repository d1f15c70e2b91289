from __future__ import annotations

import pytest

from stacks.memory.allocator import unsplit_bytes
from stacks.memory.cards import GIB
from stacks.memory.formats import find_weight_format, weight_formats
from stacks.memory.models import builtin_models, find_model
from stacks.memory.weights import WHOLE, Sharding, Stage, find_quirk, stages, weight_bytes, weight_parts

MIB = 2**20


def total_gib(model: str, weights: str, shards: Sharding = WHOLE, checkpoint: str = "", pooling: bool = False) -> float:
    parts = weight_parts(find_model(model), find_weight_format(weights), shards, checkpoint=checkpoint, pooling=pooling)
    return weight_bytes(parts) / GIB


@pytest.mark.parametrize(
    ("model", "weights", "shards", "measured_gib"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", "16-bit", Sharding(), 14.2487),
        ("meta-llama/Meta-Llama-3.1-8B", "16-bit", Sharding(2), 7.51),
        ("meta-llama/Meta-Llama-3.1-8B", "16-bit", Sharding(1, 4, Stage(True, False)), 4.26),
        ("meta-llama/Meta-Llama-3.1-70B", "fp8", Sharding(2), 33.88),
        ("meta-llama/Meta-Llama-3.1-405B", "awq", Sharding(4), 51.1453),
        ("deepseek-ai/DeepSeek-V3", "fp8", Sharding(16), 40.3172),
        ("google/gemma-3-27b-it", "16-bit", Sharding(), 51.45),
        ("facebook/opt-125m", "16-bit", Sharding(), 0.239),
    ],
)
def test_weights_that_were_measured(model: str, weights: str, shards: Sharding, measured_gib: float) -> None:
    assert total_gib(model, weights, shards) == pytest.approx(measured_gib, rel=0.002)


def test_checkpoints_that_differ_from_their_format() -> None:
    early = total_gib(
        "meta-llama/Meta-Llama-3.1-405B", "fp8", Sharding(8), "meta-llama/Meta-Llama-3.1-405B-Instruct-FP8"
    )
    assert early == pytest.approx(57.752, rel=0.001)
    qat = total_gib("google/gemma-3-12b-it", "awq", checkpoint="gaunernst/gemma-3-12b-it-int4-awq")
    assert qat == pytest.approx(9.05, rel=0.005)
    assert find_quirk("meta-llama/Llama-3.1-8B-FP8", find_weight_format("fp8")) is None


def test_a_pooling_model_has_no_head() -> None:
    with_head = total_gib("mistralai/Mistral-7B-Instruct-v0.2", "bnb-nf4")
    without = total_gib("mistralai/Mistral-7B-Instruct-v0.2", "bnb-nf4", pooling=True)
    assert with_head - without == pytest.approx(32000 * 4096 * 2 / GIB)
    assert without == pytest.approx(3.9099, rel=0.001)


def test_ranks_beyond_the_kv_heads_copy_them() -> None:
    model = find_model("Qwen/Qwen2.5-7B-Instruct")  # 4 KV heads
    parts = {tensor: dict(weight_parts(model, find_weight_format("16-bit"), Sharding(tensor))) for tensor in (4, 28)}
    copied = model.layers * 2 * model.hidden * 128 * (28 - 4) * 2
    assert parts[28]["attention"] * 28 - parts[4]["attention"] * 4 == pytest.approx(copied)


def test_every_rank_holds_routers_and_latent_projections_whole() -> None:
    model = find_model("deepseek-ai/DeepSeek-V2-Lite")
    one, eight = (dict(weight_parts(model, find_weight_format("16-bit"), Sharding(tensor))) for tensor in (1, 8))
    assert eight["router"] == one["router"] == 26 * 64 * 2048 * 2
    down = model.layers * model.hidden * (512 + 64) * 2
    assert eight["attention"] - down == pytest.approx((one["attention"] - down) / 8)


def test_pipeline_ranks_share_the_ends() -> None:
    assert stages(1) == (Stage(True, True),)
    assert len(stages(2)) == 2
    assert len(stages(4)) == 3
    names = [
        {
            part.name
            for part in weight_parts(find_model("Qwen/Qwen3-8B"), find_weight_format("16-bit"), Sharding(1, 4, stage))
        }
        for stage in stages(4)
    ]
    assert ["embedding" in each for each in names] == [True, False, False]
    assert ["lm_head" in each for each in names] == [False, True, False]


@pytest.mark.parametrize("name", builtin_models())
def test_every_model_shrinks_with_its_bits(name: str) -> None:
    model = builtin_models()[name]
    sizes = [
        weight_bytes(weight_parts(model, weight_formats()[weights]))
        for weights in ("fp32", "16-bit", "fp8", "awq-int4")
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[1] > model.params.text_total * 2


@pytest.mark.parametrize(
    ("sizes", "wasted"),
    [
        ([512 * 1024] * 10, 0),  # small blocks are always cut off
        ([259 * MIB], MIB),  # 260 MiB segment: exactly 1 MiB is not cut off
        ([258 * MIB + 512], 0),  # 2 MiB less 512 bytes are
        ([9 * MIB, 9 * MIB], 0),  # 20 MiB segment: 2 MiB stay free
        ([9 * MIB, 9 * MIB, int(1.5 * MIB)], MIB // 2),  # and are taken by what fits best
        ([6 * MIB + MIB // 2] * 3, MIB // 2),
    ],
)
def test_remainders_that_the_allocator_does_not_cut_off(sizes: list[int], wasted: int) -> None:
    assert unsplit_bytes(sizes) == wasted
