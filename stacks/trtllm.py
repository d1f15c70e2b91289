"""NVIDIA's `trtllm-serve`, 1.2 and 1.3: the checkpoint decides the quantization; unknown request fields are refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar, Literal

import msgspec

from stacks.base import Capabilities, Deployment, LaunchSpec, Readiness, Setting, Wire
from stacks.command import Flag, command_words, when
from stacks.logs import GIB, MIB, Fact, failure
from stacks.openai import ChatWire, CompletionsWire, Dialect
from stacks.prometheus import Metric
from stacks.settings import Values
from stacks.sheet import ANY_REVISION, QUIET, DataSheet

DEFAULT_BATCH_SIZE = 256
DEFAULT_BATCHED_TOKENS = 8192
DEFAULT_SHARE = 0.9

FACTS = (
    Fact("kv_bytes", re.compile(r"Allocated (?P<value>[\d.]+) GiB for max tokens in paged KV cache"), GIB),
    Fact("kv_tokens", re.compile(r"for max tokens in paged KV cache \((?P<value>\d+)\)")),
    Fact("compute_bytes", re.compile(r"Allocated (?P<value>[\d.]+) MiB for execution context memory"), MIB),
    Fact(
        "weights_bytes",
        re.compile(
            r"Memory used after loading (?:model )?weights \((?P<part>inside|outside) torch\).*: (?P<value>[\d.]+) GiB"
        ),
        GIB,
        "parts",
    ),
    Fact("block_tokens", re.compile(r"Number of tokens per block: (?P<value>\d+)")),
    Fact("context_tokens", re.compile(r"max_seq_len=(?P<value>\d+), max_num_requests=")),
    Fact("slots", re.compile(r"max_seq_len=\d+, max_num_requests=(?P<value>\d+)")),
)
FAILURES = (
    failure(
        "out of memory",
        r"Executor creation failed due to insufficient GPU memory|The GPU ran out of memory",
        "Lower memory_fraction, max_concurrency or max_batched_tokens, or take smaller weights.",
    ),
    failure("model-unknown", r"Unknown architecture for ", "Take a newer TensorRT-LLM, or a model that it knows."),
)
LAST_FAILURES = (
    failure("engine-dead", r"CppExecutorError", "The engine died: the lines before this one say why."),
    failure("engine-start-failed", r"Executor worker returned error", "The cause stands further up in the log."),
)


def _both(name: str, over: Literal["sum", "max"] = "sum") -> tuple[Metric, ...]:
    """With and (up to 1.2) without the prefix."""
    return (Metric(f"trtllm_{name}", over=over), Metric(name, over=over))


METRICS = {
    "running": _both("num_requests_running"),
    "waiting": _both("num_requests_waiting"),
    "kv_use": _both("kv_cache_utilization", "max"),
    "prompt_tokens_total": _both("prompt_tokens_total"),
    "output_tokens_total": _both("generation_tokens_total"),
    "cached_tokens_total": _both("prompt_cached_tokens_total"),
}


class TrtLlm(DataSheet):
    name = "trtllm"
    title = "TensorRT-LLM"
    homepage = "https://nvidia.github.io/TensorRT-LLM"
    versions = ("1.2.0", "1.3.0")
    default_image = "nvcr.io/nvidia/tensorrt-llm/release:1.2.1"
    default_command = ("trtllm-serve",)
    readiness = Readiness(version_path="/version")
    capabilities = Capabilities(
        token_ids=True,
        exact_length="ignore_eos",
        cache_off="flag",
        cache_check="metric",
        kv_gauge=True,
        when_kv_full="queues: a request is admitted with the KV cache that it may need",
    )
    wires: ClassVar[tuple[type[Wire], ...]] = (CompletionsWire, ChatWire)
    metrics_path = "/prometheus/metrics"
    port = 8000
    start_timeout_s = 1800.0

    quantizations = Values((((0, 0, 0), ()),))
    kv_dtypes = Values((((0, 0, 0), ("fp8", "nvfp4")),))
    dtypes = ()
    refused: ClassVar[Mapping[str, str]] = {
        "kv_cache_bytes": "TensorRT-LLM takes a share of what is free: memory_fraction.",
        "kv_cache_tokens": 'It stands in a file: args = ["--config", FILE] with kv_cache_config: {max_tokens: N}.',
        "revision": ANY_REVISION,
    }
    renames = False
    dialect = Dialect(length="ignore_eos", min_tokens_field="min_tokens")
    facts = FACTS
    failures = FAILURES
    last_failures = LAST_FAILURES
    metrics = METRICS

    def more_problems(self, deployment: Deployment) -> list[Setting]:
        if deployment.kv_dtype == "auto" or _has_config(deployment):
            return []
        file = "kv_cache_config: {dtype: ..., enable_block_reuse: false}"
        remedy = f'Mount a file with {file} and args = ["--config", FILE].'
        return [Setting("kv_dtype", "trtllm-serve takes the KV type from a file only.", remedy)]

    def own_name(self, deployment: Deployment) -> str:
        return deployment.model.rstrip("/").rpartition("/")[2]

    def arguments(self, deployment: Deployment, host: str, port: int) -> tuple[str, ...]:
        flags = [
            Flag("--host", host),
            Flag("--port", port),
            Flag("--backend", "pytorch"),
            when(deployment.context_tokens, Flag("--max_seq_len", deployment.context_tokens)),
            Flag("--max_batch_size", deployment.max_concurrency or DEFAULT_BATCH_SIZE),
            Flag("--max_num_tokens", deployment.max_batched_tokens or DEFAULT_BATCHED_TOKENS),
            Flag("--kv_cache_free_gpu_memory_fraction", deployment.memory_fraction or DEFAULT_SHARE),
            Flag("--tp_size", deployment.tensor_parallel),
        ]
        return (deployment.model, *command_words(flags, deployment.args))

    def environment(self, deployment: Deployment) -> Mapping[str, str]:
        return {"TRTLLM_NO_USAGE_STATS": "1", **QUIET}

    def launch(self, deployment: Deployment, host: str, port: int) -> LaunchSpec:
        in_container = deployment.launch == "docker"
        spec = super().launch(deployment, host, port)
        return msgspec.structs.replace(spec, ipc_host=in_container and deployment.shm_bytes is None)

    def notes(self, deployment: Deployment) -> list[str]:
        found = [
            *super().notes(deployment),
            "TensorRT-LLM moves its gauges when a request ends: they are stale under load.",
        ]
        if deployment.launch != "external" and not _has_config(deployment):
            found.append(
                "Without --config its metrics and the switch of its prefix cache (enable_block_reuse) stay as they "
                "are: prompts are unique, so that it hits nothing."
            )
        return found


def _has_config(deployment: Deployment) -> bool:
    return any(word.startswith(("--config", "--extra_llm_api_options")) for word in deployment.args)
