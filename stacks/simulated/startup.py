"""What a simulated engine logs while it starts, and what the card holds meanwhile: the lines of its stack that our own
readers read, and its refusals."""

from __future__ import annotations

import math
from typing import NamedTuple

from stacks.memory.bill import Bill, require_pool
from stacks.memory.cards import GIB
from stacks.simulated.kernels import card_too_old, fallback_line

MIB = 2**20


class Said(NamedTuple):
    """A line of the log."""

    line: str
    held_bytes: float
    """What the server holds on the card by then."""


class Startup(NamedTuple):
    said: tuple[Said, ...]
    refusal: str | None
    """The sentence with which it ends instead of starting; None = it is up after its lines."""

    @property
    def lines(self) -> tuple[str, ...]:
        return tuple(said.line for said in self.said)

    @property
    def held_bytes(self) -> float:
        """What it holds once it is up. Engines that reserve their pool hold it whatever is asked of them."""
        return self.said[-1].held_bytes


class _Log:
    """Lines as they come, with the card beside them."""

    def __init__(self, held_bytes: float) -> None:
        self.held_bytes = held_bytes
        self.said: list[Said] = []

    def say(self, line: str, more_bytes: float = 0.0) -> None:
        """`more_bytes`: taken from the card before the line."""
        self.held_bytes += more_bytes
        self.said.append(Said(line, self.held_bytes))

    def up(self) -> Startup:
        return Startup(tuple(self.said), None)

    def refused(self, sentence: str) -> Startup:
        return Startup(tuple(self.said), sentence)


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


def _begin(result: Bill, *first: str) -> _Log:
    """The first lines, and the one by which every reader of the log knows that no card is there."""
    log = _Log(result.terms.context)
    for line in first:
        log.say(line)
    card = result.setup.card
    log.say(f"loadproof: simulated on {card.id if card is not None else 'a CPU'}, which is not there")
    if (unpacked := fallback_line(result.setup)) is not None:
        log.say(unpacked)
    return log


def _weights_fit(result: Bill) -> bool:
    total = result.total_bytes
    return total is None or result.weights.value + result.terms.context < total


def _vllm(result: Bill) -> Startup:
    limits, weights, terms = result.limits, result.weights.value, result.terms
    pool = require_pool(result)
    log = _begin(
        result,
        f"INFO [core.py:109] Initializing a V1 LLM engine (v{result.setup.known_version}) with config: simulated",
    )
    if (too_old := card_too_old(result.setup)) is not None:
        return log.refused(too_old)
    if not _weights_fit(result):
        return log.refused("ERROR [gpu_model_runner.py:4010] Failed to load model - not enough GPU memory.")
    log.say(f"INFO [gpu_model_runner.py:4118] Model loading took {_gib(weights)} GiB memory and 3.1 seconds", weights)
    log.say(f"INFO [gpu_worker.py:436] Available KV cache memory: {_gib(pool.bytes.value)} GiB", terms.non_torch)
    if pool.bytes.value <= 0:
        return log.refused(
            "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when "
            "initializing the engine."
        )
    if pool.bytes.value < result.need_bytes:
        return log.refused(
            f"ValueError: To serve at least one request with the models's max seq len ({limits.max_model_len}), "
            f"({_gib(result.need_bytes)} GiB KV cache is needed, which is larger than the available KV cache memory "
            f"({_gib(pool.bytes.value)} GiB). Based on the available memory, the estimated maximum model length is "
            f"{result.longest_tokens}. Try increasing `gpu_memory_utilization` or decreasing `max_model_len`."
        )
    log.say(f"INFO [kv_cache_utils.py:1713] GPU KV cache size: {pool.held.tokens:,} tokens", pool.bytes.value)
    log.say(
        f"INFO [kv_cache_utils.py:1718] Maximum concurrency for {limits.max_model_len:,} tokens per request: "
        f"{pool.held.tokens / limits.max_model_len:.2f}x"
    )
    log.say(
        f"INFO [gpu_model_runner.py:5320] Graph capturing finished in 5 secs, took {_gib(terms.graphs)} GiB",
        terms.graphs,
    )
    return log.up()


def _tgi(result: Bill) -> Startup:
    pool = require_pool(result)
    log = _begin(result, "INFO text_generation_launcher: Args { simulated }")
    if not _weights_fit(result):
        return log.refused(out_of_memory("tgi"))
    log.say("INFO shard-manager: text_generation_launcher: Shard ready in 3.1s rank=0", result.weights.value)
    if pool.bytes.value < result.need_bytes:
        return log.refused(
            "Error: Backend(Warmup(Generation("
            f'"Not enough memory to handle `max_total_tokens={result.limits.max_model_len}`.'
            ' You need to decrease `--max-total-tokens`")))'
        )
    log.say(f"INFO text_generation_launcher: KV-cache blocks: {pool.held.tokens}, size: 1", pool.bytes.value)
    log.say(f"INFO text_generation_router_v3: Setting max batch total tokens to {pool.held.tokens}")
    log.say("INFO text_generation_launcher: Using prefix caching = False")
    return log.up()


def _sglang(result: Bill) -> Startup:
    limits, weights, terms = result.limits, result.weights.value, result.terms
    pool = require_pool(result)
    total = result.total_bytes or 0
    log = _begin(result, "server_args=ServerArgs(simulated)")
    log.say(f"Load weight begin. avail mem={_gib(total - terms.context)} GB")
    if not _weights_fit(result):
        return log.refused(out_of_memory("sglang"))
    free = total - terms.context - weights
    log.say(
        f"Load weight end. elapsed=3.10 s, type=simulated, avail mem={_gib(free)} GB, mem usage={_gib(weights)} GB.",
        weights,
    )
    if pool.bytes.value < result.need_bytes:
        return log.refused("RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.")
    half = _gib(pool.bytes.value / 2)
    log.say(
        f"KV Cache is allocated. #tokens: {pool.held.tokens}, K size: {half} GB, V size: {half} GB", pool.bytes.value
    )
    log.say(
        f"max_total_num_tokens={pool.held.tokens}, chunked_prefill_size={limits.batched_tokens}, "
        f"max_prefill_tokens=16384, max_running_requests={limits.seqs}, context_len={limits.max_model_len}",
        terms.graphs,
    )
    return log.up()


def _llamacpp(result: Bill) -> Startup:
    """The cache takes what the context asks for, whatever is free; so the card's memory is looked at here."""
    setup, limits = result.setup, result.limits
    pool = require_pool(result)
    total = result.total_bytes or math.inf
    log = _begin(result, "build: 0 (simulated)", f"main: loading model '{setup.checkpoint or setup.model.name}'")
    if result.weights.value > total:
        return log.refused(out_of_memory("llamacpp"))
    log.say(
        f"load_tensors:        CUDA0 model buffer size = {result.weights.value / MIB:.2f} MiB", result.weights.value
    )
    log.say("llama_context: constructing llama_context")
    if result.weights.value + pool.bytes.value > total:
        return log.refused("llama_init_from_model: failed to allocate buffer for kv cache")
    streams = 1 if setup.unified_kv else limits.seqs
    cells = pool.held.tokens // streams
    cache, half = f"{pool.bytes.value / MIB:.2f}", f"{pool.bytes.value / 2 / MIB:.2f}"
    log.say(f"llama_kv_cache:      CUDA0 KV buffer size = {cache} MiB", pool.bytes.value)
    log.say(
        f"llama_kv_cache: size = {cache} MiB ({cells:6d} cells, {setup.model.layers} layers, "
        f"{limits.seqs}/{streams} seqs), K (f16): {half} MiB, V (f16): {half} MiB"
    )
    log.say(f"srv    load_model: initializing slots, n_slots = {limits.seqs}, n_ctx_slot = {cells}")
    log.say("main: server is listening on http://simulated")
    return log.up()
