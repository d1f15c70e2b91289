"""What a simulated engine logs while it starts: the lines of its stack that our own readers read, and its refusals."""

from __future__ import annotations

import math
from typing import NamedTuple

from stacks.memory.bill import Bill, require_pool
from stacks.memory.cards import GIB

MIB = 2**20


class Startup(NamedTuple):
    lines: tuple[str, ...]
    refusal: str | None
    """The sentence with which it ends instead of starting; None = it is up after its lines."""


def startup(result: Bill) -> Startup:
    """The log of a start, in the words of the bill's stack."""
    return {"vllm": _vllm, "tgi": _tgi, "sglang": _sglang, "llamacpp": _llamacpp}[result.setup.stack](result)


def out_of_memory(stack: str) -> str:
    """How an engine of that stack says that it ran out of GPU memory while it served."""
    if stack == "llamacpp":
        return "alloc_buffer: allocating 512.00 MiB on device 0: cudaMalloc failed: out of memory"
    return (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 512.00 MiB. GPU 0 has a total capacity of "
        "23.53 GiB of which 110.50 MiB is free."
    )


def _gib(value: float) -> str:
    return f"{value / GIB:.2f}"


def _weights_fit(result: Bill) -> bool:
    total = result.total_bytes
    return total is None or result.weights.value + result.terms.context < total


def _vllm(result: Bill) -> Startup:
    limits, weights = result.limits, result.weights.value
    pool = require_pool(result)
    lines = [
        f"INFO [core.py:109] Initializing a V1 LLM engine (v{result.setup.known_version}) with config: simulated",
    ]
    if not _weights_fit(result):
        return Startup(tuple(lines), "ERROR [gpu_model_runner.py:4010] Failed to load model - not enough GPU memory.")
    lines += [
        f"INFO [gpu_model_runner.py:4118] Model loading took {_gib(weights)} GiB memory and 3.1 seconds",
        f"INFO [gpu_worker.py:436] Available KV cache memory: {_gib(pool.bytes.value)} GiB",
    ]
    if pool.bytes.value <= 0:
        refusal = (
            "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when "
            "initializing the engine."
        )
        return Startup(tuple(lines), refusal)
    if pool.bytes.value < result.need_bytes:
        refusal = (
            f"ValueError: To serve at least one request with the models's max seq len ({limits.max_model_len}), "
            f"({_gib(result.need_bytes)} GiB KV cache is needed, which is larger than the available KV cache memory "
            f"({_gib(pool.bytes.value)} GiB). Based on the available memory, the estimated maximum model length is "
            f"{result.longest_tokens}. Try increasing `gpu_memory_utilization` or decreasing `max_model_len`."
        )
        return Startup(tuple(lines), refusal)
    concurrency = pool.held.tokens / limits.max_model_len
    lines += [
        f"INFO [kv_cache_utils.py:1713] GPU KV cache size: {pool.held.tokens:,} tokens",
        f"INFO [kv_cache_utils.py:1718] Maximum concurrency for {limits.max_model_len:,} tokens per request: "
        f"{concurrency:.2f}x",
        f"INFO [gpu_model_runner.py:5320] Graph capturing finished in 5 secs, took {_gib(result.terms.graphs)} GiB",
    ]
    return Startup(tuple(lines), None)


def _tgi(result: Bill) -> Startup:
    limits = result.limits
    pool = require_pool(result)
    lines = ["INFO text_generation_launcher: Args { simulated }"]
    if not _weights_fit(result):
        return Startup(tuple(lines), out_of_memory("tgi"))
    lines.append("INFO shard-manager: text_generation_launcher: Shard ready in 3.1s rank=0")
    if pool.bytes.value < result.need_bytes:
        refusal = (
            f'Error: Backend(Warmup(Generation("Not enough memory to handle `max_total_tokens={limits.max_model_len}`.'
            ' You need to decrease `--max-total-tokens`")))'
        )
        return Startup(tuple(lines), refusal)
    lines += [
        f"INFO text_generation_launcher: KV-cache blocks: {pool.held.tokens}, size: 1",
        f"INFO text_generation_router_v3: Setting max batch total tokens to {pool.held.tokens}",
        "INFO text_generation_launcher: Using prefix caching = False",
    ]
    return Startup(tuple(lines), None)


def _sglang(result: Bill) -> Startup:
    limits, weights = result.limits, result.weights.value
    pool = require_pool(result)
    total = result.total_bytes or 0
    lines = [
        "server_args=ServerArgs(simulated)",
        f"Load weight begin. avail mem={_gib(total - result.terms.context)} GB",
    ]
    if not _weights_fit(result):
        return Startup(tuple(lines), out_of_memory("sglang"))
    free = total - result.terms.context - weights
    lines.append(
        f"Load weight end. elapsed=3.10 s, type=simulated, avail mem={_gib(free)} GB, mem usage={_gib(weights)} GB."
    )
    if pool.bytes.value < result.need_bytes:
        refusal = "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static."
        return Startup(tuple(lines), refusal)
    half = _gib(pool.bytes.value / 2)
    lines += [
        f"KV Cache is allocated. #tokens: {pool.held.tokens}, K size: {half} GB, V size: {half} GB",
        f"max_total_num_tokens={pool.held.tokens}, chunked_prefill_size={limits.batched_tokens}, "
        f"max_prefill_tokens=16384, max_running_requests={limits.seqs}, context_len={limits.max_model_len}",
    ]
    return Startup(tuple(lines), None)


def _llamacpp(result: Bill) -> Startup:
    """The cache takes what the context asks for, whatever is free; so the card's memory is looked at here."""
    setup, limits = result.setup, result.limits
    pool = require_pool(result)
    total = result.total_bytes or math.inf
    lines = ["build: 0 (simulated)", f"main: loading model '{setup.checkpoint or setup.model.name}'"]
    if result.weights.value > total:
        return Startup(tuple(lines), out_of_memory("llamacpp"))
    lines.append(f"load_tensors:        CUDA0 model buffer size = {result.weights.value / MIB:.2f} MiB")
    lines.append("llama_context: constructing llama_context")
    if result.weights.value + pool.bytes.value > total:
        return Startup(tuple(lines), "llama_init_from_model: failed to allocate buffer for kv cache")
    streams = 1 if setup.unified_kv else limits.seqs
    cells = pool.held.tokens // streams
    lines += [
        f"llama_kv_cache:      CUDA0 KV buffer size = {pool.bytes.value / MIB:.2f} MiB",
        f"llama_kv_cache: size = {pool.bytes.value / MIB:.2f} MiB ({cells:6d} cells, {setup.model.layers} layers, "
        f"{limits.seqs}/{streams} seqs), K (f16): {pool.bytes.value / 2 / MIB:.2f} MiB, V (f16): "
        f"{pool.bytes.value / 2 / MIB:.2f} MiB",
        f"srv    load_model: initializing slots, n_slots = {limits.seqs}, n_ctx_slot = {cells}",
        "main: server is listening on http://simulated",
    ]
    return Startup(tuple(lines), None)
