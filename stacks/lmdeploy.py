"""LMDeploy, 0.14 to 0.18: two engines, KV pool allocated at start."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from stacks.base import Capabilities, Deployment, Wire
from stacks.command import Flag, command_words, when
from stacks.logs import GIB, MIB, Fact, failure
from stacks.openai import ChatWire, Dialect, TextCompletionsWire
from stacks.prometheus import Metric
from stacks.settings import Values
from stacks.sheet import DataSheet

DEFAULT_SHARE = 0.8
DEFAULT_SEQUENCES = 256
DEFAULT_PREFILL_TOKENS = 8192
KV_POLICIES = {"int4": 4, "int8": 8, "fp8": 16, "fp8_e5m2": 17, "turbo_quant": 42}

FACTS = (
    Fact("kv_bytes", re.compile(r"Object cache budget: (?P<value>[\d.]+) MB from (?:free|cacheable)"), MIB),
    Fact("kv_blocks", re.compile(r"CacheConfig\(.*?num_gpu_blocks=(?P<value>\d+)")),
    Fact("kv_blocks", re.compile(r"\[BlockManager\] max_block_count = (?P<value>\d+)")),
    Fact("engine", re.compile(r"input backend=(?P<value>\w+)"), None),
    Fact("engine_fallback", re.compile(r"Fallback to (?P<value>pytorch engine) because"), None),
    Fact("prefill_tokens", re.compile(r"No enough memory\. Update max_prefill_token_num=(?P<value>\d+)")),
    Fact("quantized_before", re.compile(r"(?P<value>Can not perform weight quantization on quantized model)"), None),
    Fact("context_tokens", re.compile(r"session_len=(?P<value>\d+)")),
)
_POOL = re.compile(r"CacheConfig\(.*?block_size=(?P<tokens>\d+),.*?num_gpu_blocks=(?P<n>\d+)")
_BLOCK = re.compile(r"\[BlockManager\] block_size = (?P<mb>[\d.]+) MB")
_BLOCKS = re.compile(r"\[BlockManager\] max_block_count = (?P<n>\d+)")

FAILURES = (
    failure(
        "no-kv",
        r"No enough gpu memory for (?:kv|state) cache",
        "The weights leave no room for a cache: lower max_concurrency, take smaller weights or a bigger card.",
    ),
    failure(
        "out of memory",
        r"No enough gpu memory for runtime|out of memory at \S+/",
        "Lower memory_fraction (of LMDeploy: the share of what the weights leave free) or max_batched_tokens.",
    ),
)
LAST_FAILURES = (
    failure(
        "kv-full",
        r"cache out of memory, no request can be admitted",
        "The KV cache was full and requests failed: give it more room, or send fewer at once.",
    ),
)

METRICS = {
    "running": (Metric("lmdeploy:num_requests_running"),),
    "waiting": (Metric("lmdeploy:num_requests_waiting"),),
    "kv_use": (Metric("lmdeploy:gpu_cache_usage_perc", over="max"),),
    "prompt_tokens_total": (Metric("lmdeploy:prompt_tokens_total"),),
    "output_tokens_total": (Metric("lmdeploy:generation_tokens_total"),),
    "cached_tokens_total": (Metric("lmdeploy:cached_tokens_total"),),
}


class LmDeploy(DataSheet):
    name = "lmdeploy"
    title = "LMDeploy"
    homepage = "https://lmdeploy.readthedocs.io"
    versions = ("0.14.0", "0.18.0")
    default_image = "openmmlab/lmdeploy:v0.18.0-cu12.8"
    default_command = ("lmdeploy", "serve", "api_server")
    capabilities = Capabilities(
        exact_length="ignore_eos",
        cache_off="flag",
        cache_check="metric",
        kv_gauge=True,
        when_kv_full="fails or evicts, by engine",
    )
    wires: ClassVar[tuple[type[Wire], ...]] = (TextCompletionsWire, ChatWire)
    port = 23333
    shm_bytes = 16 * GIB
    start_timeout_s = 1800.0

    quantizations = Values.growing(("0.14.0", "awq gptq compressed-tensors fp8 mxfp4", ""))
    on_load: ClassVar[Mapping[str, str]] = {"fp8": ""}
    kv_dtypes = Values((((0, 0, 0), tuple(KV_POLICIES)),))
    dtypes = ("float16", "bfloat16")
    refused: ClassVar[Mapping[str, str]] = {
        "kv_cache_bytes": "LMDeploy takes a share of what is free: memory_fraction.",
        "kv_cache_tokens": "LMDeploy takes a share of what is free: memory_fraction.",
    }
    dialect = Dialect(length="ignore_eos", min_tokens_field="min_new_tokens")
    start_marker = re.compile(r"input backend=")
    facts = FACTS
    failures = FAILURES
    last_failures = LAST_FAILURES
    metrics = METRICS

    def arguments(self, deployment: Deployment, host: str, port: int) -> tuple[str, ...]:
        flags = [
            Flag("--server-name", host),
            Flag("--server-port", port),
            Flag("--model-name", self.served_name(deployment)),
            when(deployment.revision, Flag("--revision", deployment.revision)),
            Flag("--dtype", deployment.dtype),
            when(deployment.quantization, Flag("--model-format", deployment.quantization)),
            Flag("--quant-policy", KV_POLICIES.get(deployment.kv_dtype, 0)),
            when(deployment.context_tokens, Flag("--session-len", deployment.context_tokens)),
            Flag("--max-batch-size", deployment.max_concurrency or DEFAULT_SEQUENCES),
            Flag("--max-prefill-token-num", deployment.max_batched_tokens or DEFAULT_PREFILL_TOKENS),
            Flag("--cache-max-entry-count", deployment.memory_fraction or DEFAULT_SHARE),
            Flag("--tp", deployment.tensor_parallel),
            # The default hides the memory.
            Flag("--log-level", "INFO"),
        ]
        return (deployment.model, *command_words(flags, deployment.args))

    def derived_facts(self, lines: Sequence[str]) -> dict[str, float | str]:
        sizes = [float(found["mb"]) for line in lines if (found := _BLOCK.search(line))]
        counts = [int(found["n"]) for line in lines if (found := _BLOCKS.search(line))]
        facts: dict[str, float | str] = {"kv_bytes": sizes[-1] * counts[-1] * MIB} if sizes and counts else {}
        pools = [found for line in lines if (found := _POOL.search(line))]
        return {**facts, "kv_tokens": float(pools[-1]["tokens"]) * int(pools[-1]["n"])} if pools else facts

    def notes(self, deployment: Deployment) -> list[str]:
        found = super().notes(deployment)
        found.append("LMDeploy cuts an answer silently where prompt and output exceed session_len.")
        if deployment.quantization == "fp8" or deployment.kv_dtype.startswith("fp8"):
            found.append("fp8 on load and an fp8 KV cache are the PyTorch engine's: see the fact engine_fallback.")
        return found
