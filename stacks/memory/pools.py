"""The KV pool that an engine reserves at start, by its own rule, on the tightest rank.

vLLM up to 0.20   K = total*u - W - A - N
vLLM 0.21 on      K = total*u - W - A - N - Ge                      graphs are charged by the engine's own estimate
SGLang            K = free after load - free before load * (1 - mem_fraction_static)
TGI               K = total*fraction*0.9 - C - W - prefill peak     (the warm-up's blocks come back)
llama.cpp         K = cells * bytes, whatever is free
"""

from __future__ import annotations

from typing import NamedTuple

from stacks.memory import host
from stacks.memory.cards import GIB
from stacks.memory.kv import Layout, flat_layout, hybrid_layout, llamacpp_kv
from stacks.memory.overheads import (
    activation_bytes,
    context_bytes,
    forward_bytes,
    graph_bytes,
    graph_estimate_bytes,
    non_torch_bytes,
)
from stacks.memory.setup import Limits, Setup, limits_of
from stacks.memory.versions import Version, constant
from stacks.memory.weights import Stage, WeightPart, stages, weight_bytes, weight_parts

HYBRID_POOLS_SINCE = Version(0, 9, 1)
"""vLLM's hybrid allocator (vllm-project/vllm#17996); before it windowed layers kept the full context."""


class Terms(NamedTuple):
    """The terms of one rank, bytes. `pool` is what is left; negative if nothing is."""

    stage: Stage
    parts: tuple[WeightPart, ...]
    weights: float
    activation: float
    non_torch: float
    graphs: float
    graphs_charged: float
    context: float
    pool: float | None
    """None: nothing is known of the card."""
    copies: float = 0.0
    """Weights that are held a second time in another order."""


def _weights(setup: Setup, stage: Stage) -> tuple[WeightPart, ...]:
    parts = weight_parts(
        setup.model,
        setup.weights,
        setup.shards(stage),
        stack=setup.stack,
        checkpoint=setup.checkpoint,
        pooling=setup.pooling,
    )
    if setup.weight_bytes is None:
        return parts
    # The header knows the tensors; what the engine adds at load time is still the formula's.
    added = tuple(part for part in parts if part.name in {"rotary cache", "absorbed MLA copies"})
    per_rank = setup.weight_bytes / (setup.tensor * setup.pipeline)
    return (WeightPart("tensors of the checkpoint", per_rank), *added)


def _vllm_terms(setup: Setup, limits: Limits, stage: Stage) -> Terms:
    version, hardware = setup.known_version, setup.hardware
    parts = _weights(setup, stage)
    weights = weight_bytes(parts)
    activation = activation_bytes(
        setup.model,
        limits.seqs,
        limits.batched_tokens,
        setup.shards(stage),
        version,
        hardware,
        v0=setup.engine == "V0",
        pooling=setup.pooling,
    )
    non_torch = non_torch_bytes(setup.tensor, version, hardware)
    layers = setup.model.layers / setup.pipeline
    graphs = 0.0 if setup.eager else graph_bytes(layers, version, hardware)
    charged = 0.0
    if not setup.eager and constant("vllm", "graphs_charged", version, hardware).value:
        charged = graph_estimate_bytes(layers, version, hardware)
    pool = None
    if setup.total_bytes is not None:
        pool = setup.total_bytes * limits.fraction - weights - activation - non_torch - charged
    context = context_bytes(setup.model, setup.tensor, setup.pipeline, version, hardware)
    return Terms(stage, parts, weights, activation, non_torch, graphs, charged, context, pool)


def _vllm_cpu_terms(setup: Setup, limits: Limits, stage: Stage) -> Terms:
    version, parts = setup.known_version, _weights(setup, stage)
    return Terms(
        stage,
        parts,
        weight_bytes(parts),
        activation=host.vllm_batch_bytes(setup.model, limits.batched_tokens, version),
        non_torch=0.0,
        graphs=0.0,
        graphs_charged=0.0,
        context=host.vllm_runtime_bytes(version),
        pool=None,
        copies=host.vllm_copies_bytes(setup.model, version),
    )


def _sglang_terms(setup: Setup, limits: Limits, stage: Stage) -> Terms:
    version, hardware = setup.known_version, setup.hardware
    parts = _weights(setup, stage)
    weights = weight_bytes(parts)
    name = "context_gib" if setup.tensor == 1 else "context_gib_group"
    context = constant("sglang", name, version, hardware).value * GIB
    overhead = 1 + constant("sglang", "weights_overhead_share", version, hardware).value
    before = setup.free_before_load_bytes
    if before is None and setup.total_bytes is not None:
        before = round(setup.total_bytes - context)
    pool = None
    if before is not None:
        after = setup.free_after_load_bytes
        pool = (before - weights * overhead if after is None else after) - before * (1 - limits.fraction)
    graphs = 0.0 if setup.eager else graph_bytes(setup.model.layers / setup.pipeline, Version(0, 19), hardware)
    return Terms(stage, parts, weights, 0.0, 0.0, graphs, 0.0, context, pool)


def _tgi_terms(setup: Setup, limits: Limits, stage: Stage) -> Terms:
    version, hardware = setup.known_version, setup.hardware
    parts = _weights(setup, stage)
    weights = weight_bytes(parts)
    context = constant("tgi", "context_gib", version, hardware).value * GIB
    peak = forward_bytes(setup.model, limits.batched_tokens, setup.tensor)
    pool = None
    if setup.total_bytes is not None:
        share = limits.fraction * constant("tgi", "wiggle", version, hardware).value
        pool = setup.total_bytes * share - context - weights - peak
    return Terms(stage, parts, weights, peak, 0.0, 0.0, 0.0, context, pool)


def _llamacpp_terms(setup: Setup, limits: Limits, stage: Stage) -> Terms:
    parts = _weights(setup, stage)
    cache = llamacpp_kv(
        setup.model,
        limits.max_model_len,
        limits.seqs,
        setup.kv.bytes,
        setup.kv.bytes,
        unified=setup.unified_kv,
        micro_batch=limits.batched_tokens,
    )
    buffers = runtime = 0.0
    if setup.card is None:
        buffers = host.compute_bytes(setup.model, cache, limits.batched_tokens)
        runtime = host.runtime_bytes(setup.model, limits.seqs, in_python=setup.in_python)
    # On a card compute buffers are read from the log, not predicted: their line says so instead of showing a guess.
    return Terms(stage, parts, weight_bytes(parts), buffers, 0.0, 0.0, 0.0, runtime, float(cache.bytes))


def layout_of(setup: Setup) -> Layout:
    """How the engine cuts its pool."""
    block = 1 if setup.stack in {"sglang", "tgi", "llamacpp"} else setup.block_tokens
    hybrid = setup.stack == "vllm" and setup.engine == "V1" and setup.known_version >= HYBRID_POOLS_SINCE
    rule = hybrid_layout if hybrid else flat_layout
    return rule(setup.model, setup.kv.bytes, setup.tensor, setup.pipeline, block)


def in_host_memory(setup: Setup) -> bool:
    """All of its memory is the host's, and all of it is modelled: llama.cpp without a card, vLLM's CPU backend without
    a compiler of its own. What another engine holds on a CPU beside weights and KV is not."""
    if setup.stack == "llamacpp":
        return setup.card is None
    whole = setup.tensor == setup.pipeline == 1 and setup.eager
    return setup.stack == "vllm" and setup.cpu and whole and setup.known_version >= host.VLLM_SINCE


def rank_terms(setup: Setup) -> tuple[Terms, ...]:
    """The terms of every kind of rank, the tightest (smallest pool) first."""
    limits = limits_of(setup)
    rule = {"sglang": _sglang_terms, "tgi": _tgi_terms, "llamacpp": _llamacpp_terms}.get(setup.stack, _vllm_terms)
    if setup.stack == "vllm" and in_host_memory(setup):
        rule = _vllm_cpu_terms
    terms = [rule(setup, limits, stage) for stage in stages(setup.pipeline)]
    if setup.kv_cache_bytes is not None:
        terms = [entry._replace(pool=float(setup.kv_cache_bytes)) for entry in terms]
    return tuple(sorted(terms, key=lambda entry: (entry.pool if entry.pool is not None else 0.0, -entry.weights)))
