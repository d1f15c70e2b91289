"""Bytes of the weights on one rank, with everything the engine keeps beside them.

    W = [ (attention + mlp - replicated)*b/tp + replicated*b + experts*be/tp + router*2 + (norms + other)*2 ] / pp
        + pad64(vocab)*hidden*2/tp                       embedding, first pipeline rank
        + pad64(vocab)*hidden*2/tp                       lm_head, last pipeline rank; not if tied, not if pooling
        + vision*2/tp + positions*2 + rotary + absorbed MLA copies

Component counts are those of `models.Params`; `b` and `be` are bytes per quantised weight, per format.
"""

from __future__ import annotations

import functools
import math
import re
from importlib import resources
from typing import NamedTuple

import msgspec

from stacks.memory.allocator import unsplit_bytes
from stacks.memory.formats import WeightFormat, format_of_checkpoint
from stacks.memory.models import Facts, Model


class Stage(NamedTuple):
    """A pipeline rank: which ends of the model it holds."""

    first: bool = True
    last: bool = True


def stages(pipeline_parallel: int) -> tuple[Stage, ...]:
    """The distinct kinds of ranks of a pipeline."""
    if pipeline_parallel == 1:
        return (Stage(),)
    ends = (Stage(True, False), Stage(False, True))
    return ends if pipeline_parallel == 2 else (*ends, Stage(False, False))


class Sharding(NamedTuple):
    """Tensor and pipeline parallel sizes, and the rank that is asked about."""

    tensor: int = 1
    pipeline: int = 1
    stage: Stage = Stage()


WHOLE = Sharding()
"""One card holds everything."""


class WeightPart(NamedTuple):
    name: str
    bytes: float


class Quirk(Facts, frozen=True, kw_only=True):
    """What a published checkpoint does differently from its format's rule."""

    match: str
    format: str
    source: str
    group: int | None = None
    kv_heads: int | None = None
    only_mlp: bool = False
    layers_16bit: int = 0
    """Layers whose MLPs stay 16-bit too (first and last)."""


@functools.cache
def _quirks() -> tuple[Quirk, ...]:
    text = resources.files("stacks.memory").joinpath("data", "checkpoint-quirks.json").read_bytes()
    return msgspec.convert(msgspec.json.decode(text)["quirks"], tuple[Quirk, ...])


def find_quirk(checkpoint: str, weights: WeightFormat) -> Quirk | None:
    """What the checkpoint of this name is known to do differently, or None."""
    for quirk in _quirks():
        if quirk.format == weights.name and re.search(quirk.match, checkpoint, re.IGNORECASE):
            return quirk
    return None


def _pad64(rows: int) -> int:
    return -(-rows // 64) * 64


def _head_bytes(model: Model, weights: WeightFormat, shards: Sharding, pooling: bool) -> list[WeightPart]:
    table = _pad64(model.vocab) * model.hidden / shards.tensor
    parts = []
    if shards.stage.first:
        parts.append(WeightPart("embedding", table * weights.embedding))
    if not shards.stage.last or pooling:
        return parts
    if not model.tied_embeddings:
        parts.append(WeightPart("lm_head", table * weights.lm_head))
    elif not shards.stage.first:
        # A tied head needs the table on the last rank too.
        parts.append(WeightPart("lm_head", table * weights.embedding))
    return parts


def _replicated_params(model: Model) -> int:
    """MLA down-projections, which every tensor-parallel rank holds whole."""
    if model.mla is None:
        return 0
    return (
        model.layers
        * model.hidden
        * (model.mla.kv_lora_rank + model.mla.qk_rope_head_dim + (model.mla.q_lora_rank or 0))
    )


def _attention_params(model: Model, tensor: int, quirk: Quirk | None) -> int:
    """Attention weights over all ranks; with fewer KV heads than ranks the K and V projections are copied."""
    extra = 0
    if model.kv_heads and model.head_dim:
        heads = quirk.kv_heads if quirk and quirk.kv_heads else model.kv_heads
        extra = model.layers * 2 * model.hidden * model.head_dim * (max(heads, tensor) - model.kv_heads)
    return model.params.attention + extra


def _expert_bytes(model: Model, weights: WeightFormat, per_weight: float, tensor: int) -> float:
    """Bytes on one rank. MXFP4 kernels pad a rank's experts: hidden to 256, its share of the intermediate size to 128.

    gpt-oss's 2880 x 2880 becomes 3072 x 2944 on one rank and 3072 x 1536 on each of two.
    """
    plain = model.params.experts * per_weight / tensor
    if model.moe is None or weights.name != "mxfp4":
        return plain
    share = model.moe.expert_intermediate / tensor
    wide = -(-model.hidden // 256) * 256
    narrow = math.ceil(share / 128) * 128
    return plain * wide * narrow / (model.hidden * share)


def _group(model: Model, weights: WeightFormat, quirk: Quirk | None) -> int | None:
    """Weights per scale: a known checkpoint's, else what the model's own config says of this very format."""
    if quirk is not None and quirk.group is not None:
        return quirk.group
    shipped = model.checkpoint_quantization
    if shipped is None or format_of_checkpoint(shipped.method, shipped.bits) != weights.name:
        return None
    return shipped.group


def _layer_bytes(model: Model, weights: WeightFormat, tensor: int, quirk: Quirk | None) -> list[WeightPart]:
    params = model.params
    per_expert = weights.bytes_at(_group(model, weights, quirk))
    per_weight = weights.rest if weights.experts_only else per_expert
    attention_per_weight = 2.0 if quirk and quirk.only_mlp else per_weight
    replicated = _replicated_params(model)
    router = model.router_params
    attention = _attention_params(model, tensor, quirk) - replicated
    mlp = params.mlp - router
    kept = mlp * (quirk.layers_16bit / model.layers) if quirk else 0.0
    # Engines keep the MLA down-projections as the checkpoint has them.
    return [
        WeightPart("attention", attention * attention_per_weight / tensor + replicated * attention_per_weight),
        WeightPart("mlp", ((mlp - kept) * per_weight + kept * 2.0) / tensor),
        WeightPart("experts", _expert_bytes(model, weights, per_expert, tensor)),
        WeightPart("router", router * weights.rest),
        WeightPart("norms and small tensors", (params.norms + params.other) * weights.rest),
    ]


def _mlp_tensors(hidden: int, wide: int, gated: bool, tensor: int) -> list[int]:
    return [(2 if gated else 1) * hidden * wide // tensor, hidden * wide // tensor]


def _attention_tensors(model: Model, tensor: int) -> list[int]:
    if model.mla is not None:
        mla, heads = model.mla, model.heads // tensor
        query = heads * (mla.qk_nope_head_dim + mla.qk_rope_head_dim)
        down = (
            [model.hidden * query]
            if mla.q_lora_rank is None
            else [model.hidden * mla.q_lora_rank, mla.q_lora_rank * query]
        )
        up = mla.kv_lora_rank * heads * (mla.qk_nope_head_dim + mla.v_head_dim)
        return [
            *down,
            model.hidden * (mla.kv_lora_rank + mla.qk_rope_head_dim),
            up,
            heads * mla.v_head_dim * model.hidden,
        ]
    assert model.kv_heads is not None
    assert model.head_dim is not None
    query = model.heads // tensor * model.head_dim
    key_value = 2 * max(1, model.kv_heads // tensor) * model.head_dim
    return [model.hidden * (query + key_value), query * model.hidden]


def _layer_tensors(model: Model, index: int, tensor: int) -> list[int]:
    """Elements of the large tensors of layer `index`, in the order in which engines make them."""
    tensors = _attention_tensors(model, tensor)
    moe = model.moe
    if moe is None or index < moe.first_dense_layers or (index - moe.first_dense_layers) % moe.moe_layer_step:
        return tensors + _mlp_tensors(model.hidden, model.intermediate or 0, model.gated_mlp, tensor)
    shared = moe.shared_intermediate or moe.shared_experts * moe.expert_intermediate
    expert = _mlp_tensors(model.hidden, moe.expert_intermediate, True, tensor)
    return [*tensors, *(moe.experts * size for size in expert), *_mlp_tensors(model.hidden, shared, True, tensor)]


def _allocator_part(model: Model, weights: WeightFormat, shards: Sharding) -> list[WeightPart]:
    """What the allocator does not cut off. Packed formats have it in their measured bytes per weight."""
    if weights.bits < 8 or weights.group or weights.bytes > round(weights.bytes) + 0.001:
        return []
    element = round(weights.bytes)
    table = _pad64(model.vocab) * model.hidden // shards.tensor * round(weights.embedding)
    sizes = [table] if shards.stage.first else []
    sizes += [model.params.positions * 2, model.rotary_cache_positions * model.rotary_dim * 2]
    for index in range(model.layers // shards.pipeline):
        sizes += [size * element for size in _layer_tensors(model, index, shards.tensor)]
    if shards.stage.last and not model.tied_embeddings:
        sizes.append(table)
    return [WeightPart("allocator remainders", float(unsplit_bytes(sizes)))]


def _engine_parts(model: Model, stack: str, tensor: int) -> list[WeightPart]:
    """What an engine of the vLLM family keeps beside the checkpoint's tensors."""
    if stack == "llamacpp":
        return []
    parts = [WeightPart("rotary cache", model.rotary_cache_positions * model.rotary_dim * 2.0)]
    if model.mla is not None and stack == "vllm":
        head = model.mla.qk_nope_head_dim + model.mla.v_head_dim
        parts.append(
            WeightPart("absorbed MLA copies", model.layers * model.mla.kv_lora_rank * model.heads / tensor * head * 2.0)
        )
    return parts


def weight_parts(
    model: Model,
    weights: WeightFormat,
    shards: Sharding = WHOLE,
    *,
    stack: str = "vllm",
    checkpoint: str = "",
    pooling: bool = False,
) -> tuple[WeightPart, ...]:
    """Bytes per component on the rank that `shards` names. `checkpoint` is its published name, for known quirks."""
    layers = _layer_bytes(model, weights, shards.tensor, find_quirk(checkpoint, weights))
    parts = [WeightPart(part.name, part.bytes / shards.pipeline) for part in layers]
    parts += _head_bytes(model, weights, shards, pooling)
    parts.append(WeightPart("vision", (model.params.vision or 0) * 2.0 / shards.tensor))
    parts.append(WeightPart("positions", model.params.positions * weights.rest))
    parts += _engine_parts(model, stack, shards.tensor)
    if stack != "llamacpp":
        parts += _allocator_part(model, weights, shards)
    return tuple(part for part in parts if part.bytes)


def weight_bytes(parts: tuple[WeightPart, ...]) -> float:
    return sum(part.bytes for part in parts)
