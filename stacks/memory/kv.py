"""KV cache: bytes per token, the block layout of hybrid models, and what a pool holds.

    dense, GQA:  2 * max(1, kv_heads/tp) * head_dim * b * layers/pp         b = bytes per value
    MLA:         (kv_lora_rank + qk_rope_head_dim) * b * layers/pp          not divided by tp
    tokens     = floor(pool bytes / (bytes per token * block)) * block

Hybrid models (sliding window, chunked or linear-attention layers) in vLLM V1: layers are put into groups of `n`; a
block is one page of `n` layers and belongs to one group, so that every group takes pages of its own from one pool.
Sizes are bytes on one rank.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from stacks.memory.models import Model, NonsenseError

BLOCK_TOKENS = 16
_DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


class LayerKv(NamedTuple):
    """Bytes per token of one layer of each kind."""

    full: float
    windowed: float


def _kv_layer_bytes(kv_heads: int, head_dim: int, value_bytes: float, tensor: int) -> float:
    """Fewer heads than ranks are copied: no gain from more ranks."""
    return 2 * max(1, kv_heads / tensor) * head_dim * value_bytes


def layer_kv(model: Model, value_bytes: float, tensor: int) -> LayerKv:
    if model.mla is not None:
        latent = (model.mla.kv_lora_rank + model.mla.qk_rope_head_dim) * value_bytes
        return LayerKv(latent, latent)
    assert model.kv_heads is not None
    assert model.head_dim is not None
    windowed = _kv_layer_bytes(model.kv_heads, model.head_dim, value_bytes, tensor)
    if model.global_attention is None:
        return LayerKv(windowed, windowed)
    full = _kv_layer_bytes(model.global_attention.kv_heads, model.global_attention.head_dim, value_bytes, tensor)
    return LayerKv(full, windowed)


def state_bytes(model: Model, tensor: int) -> int:
    """Fixed state of one sequence in one linear-attention layer: recurrent matrix and last inputs."""
    linear = model.linear_attention
    if linear is None:
        return 0
    recurrent = linear.value_heads * linear.key_head_dim * linear.value_head_dim * _DTYPE_BYTES[linear.state_dtype]
    channels = 2 * linear.key_heads * linear.key_head_dim + linear.value_heads * linear.value_head_dim
    return (recurrent + channels * (linear.conv_kernel - 1) * 2) // tensor


class Layout(NamedTuple):
    """How a pool is cut: pages of `block_tokens` tokens of `layers_per_group` layers, and which groups take them."""

    page_bytes: float
    block_tokens: int
    full_groups: int
    windowed_groups: int = 0
    linear_groups: int = 0
    window: int = 0
    chunked: bool = False

    @property
    def groups(self) -> int:
        return self.full_groups + self.windowed_groups + self.linear_groups

    @property
    def hybrid(self) -> bool:
        return self.groups > 1

    def blocks(self, pool_bytes: float) -> int:
        return max(0, math.floor(pool_bytes / self.page_bytes))

    def blocks_of(self, context_tokens: int, inflight_tokens: int = 0) -> int:
        """Blocks that one request of `context_tokens` holds; `inflight_tokens` are those of batches under way."""
        whole = math.ceil(context_tokens / self.block_tokens)
        return (
            self.full_groups * whole
            + self.windowed_groups * self._windowed(context_tokens, inflight_tokens)
            + (self.linear_groups)
        )

    def _windowed(self, context_tokens: int, inflight_tokens: int) -> int:
        if not self.windowed_groups:
            return 0
        reach = self.window + inflight_tokens if self.chunked else self.window - 1 + inflight_tokens
        held = math.ceil(min(reach, context_tokens) / self.block_tokens)
        return held if self.chunked else held + 1


def flat_layout(model: Model, value_bytes: float, tensor: int, pipeline: int, block_tokens: int) -> Layout:
    """One group with every layer that keeps KV at full length: dense models, and engines without hybrid pools."""
    per_layer = layer_kv(model, value_bytes, tensor)
    token = (model.full_layers * per_layer.full + model.windowed_layers * per_layer.windowed) / pipeline
    if token <= 0:
        raise NonsenseError(f"{model.name or 'The model'} keeps no KV cache: no layer has attention.")
    return Layout(token * block_tokens, block_tokens, 1)


def _layers_per_group(counts: list[int]) -> int:
    """vLLM's rule: the smaller kind sets the group, unless the kinds are nearly alike."""
    smallest, largest = min(counts), max(counts)
    return largest if largest < 1.5 * smallest else smallest


def hybrid_layout(model: Model, value_bytes: float, tensor: int, pipeline: int, block_tokens: int) -> Layout:
    """vLLM V1's layout of a model with several kinds of layers; the flat one if it has only one kind.

    Linear-attention layers need pages that hold a whole state, so the block grows until attention's page is as large.
    """
    counts = [count for count in (model.full_layers, model.windowed_layers, model.linear_layers) if count]
    if len(counts) == 1 or not model.full_layers:
        return flat_layout(model, value_bytes, tensor, pipeline, block_tokens)
    per_group = _layers_per_group(counts)
    per_layer = layer_kv(model, value_bytes, tensor)
    token = max(per_layer.full, per_layer.windowed if model.windowed_layers else 0)
    state = state_bytes(model, tensor)
    if model.linear_layers and state > token * block_tokens:
        block_tokens = math.ceil(state / token / BLOCK_TOKENS) * BLOCK_TOKENS
    return Layout(
        page_bytes=per_group / pipeline * block_tokens * token,
        block_tokens=block_tokens,
        full_groups=math.ceil(model.full_layers / per_group),
        windowed_groups=math.ceil(model.windowed_layers / per_group),
        linear_groups=math.ceil(model.linear_layers / per_group),
        window=model.window or 0,
        chunked=model.chunked,
    )


class PoolTokens(NamedTuple):
    """What a pool holds: blocks, the tokens as the engine logs them, requests of the longest length."""

    blocks: int
    tokens: int
    max_concurrency: float
    bytes_per_token: float
    """Pool bytes per logged token: differs from the layers' own bytes in hybrid models."""


def pool_tokens(
    layout: Layout, pool_bytes: float, max_model_len: int, inflight_tokens: int, *, from_concurrency: bool
) -> PoolTokens:
    """Tokens of a pool. `from_concurrency`: hybrid models log int(max concurrency x length)."""
    blocks = layout.blocks(pool_bytes)
    need = layout.blocks_of(max_model_len, inflight_tokens)
    concurrency = blocks / need
    if not layout.hybrid:
        tokens = blocks * layout.block_tokens
        return PoolTokens(blocks, tokens, concurrency, layout.page_bytes / layout.block_tokens)
    if from_concurrency or layout.linear_groups:
        return PoolTokens(
            blocks, int(concurrency * max_model_len), concurrency, layout.page_bytes * need / max_model_len
        )
    tokens = blocks // layout.groups * layout.block_tokens
    return PoolTokens(blocks, tokens, concurrency, layout.page_bytes * layout.groups / layout.block_tokens)


# --- llama.cpp --------------------------------------------------------------------------------------------------


def _pad256(tokens: int) -> int:
    return -(-tokens // 256) * 256


class LlamaCppKv(NamedTuple):
    """llama.cpp's cache, fixed by its settings and not by what is free."""

    cells: int
    """Per stream."""
    streams: int
    bytes: int


def llamacpp_kv(
    model: Model,
    context_tokens: int,
    slots: int,
    key_bytes: float,
    value_bytes: float,
    *,
    unified: bool = False,
    micro_batch: int = 512,
    swa_full: bool = False,
) -> LlamaCppKv:
    """
    n_ctx = pad256(-c);  unified: cells = n_ctx, 1 stream;  else per slot cells = pad256(n_ctx/slots)
    bytes = sum over layers of cells * streams * (kv_heads*head_dim) * (bytes(type_k) + bytes(type_v))
    sliding-window layers: cells = pad256(min(cells, window*(slots if unified else 1) + ubatch))
    """
    streams = 1 if unified else slots
    cells = _pad256(context_tokens if unified else math.ceil(_pad256(context_tokens) / slots))
    per_layer = layer_kv(model, 1.0, 1)
    windowed_cells = cells
    if model.window and not swa_full:
        windowed_cells = _pad256(min(cells, model.window * (slots if unified else 1) + micro_batch))
    both = key_bytes + value_bytes
    full = cells * model.full_layers * per_layer.full / 2 * both
    windowed = windowed_cells * model.windowed_layers * per_layer.windowed / 2 * both
    return LlamaCppKv(cells, streams, round(streams * (full + windowed)))
