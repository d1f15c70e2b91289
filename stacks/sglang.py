"""SGLang, 0.4.6 to 0.5.23: radix cache, KV pool allocated at start, retracts when it is full."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from stacks.base import REAL, Capabilities, Deployment, LaunchKind, Readiness, Wire
from stacks.command import Flag, command_words, when
from stacks.logs import GIB, Fact, failure, number_of
from stacks.openai import ChatWire, CompletionsWire, Dialect
from stacks.prometheus import Metric, values_of
from stacks.settings import Values
from stacks.sheet import QUIET, DataSheet

DEFAULT_SEQUENCES = 256
DEFAULT_CHUNK_TOKENS = 8192

QUANTIZATIONS = Values.growing(
    (
        "0.4.6",
        "awq fp8 gptq marlin gptq_marlin awq_marlin bitsandbytes gguf modelopt modelopt_fp4 w8a8_int8 w8a8_fp8 "
        "moe_wna16 qoq",
        "",
    ),
    ("0.5.3", "petit_nvfp4 w4afp8 mxfp4", ""),
    ("0.5.9", "mxfp8 modelopt_fp8 auto-round compressed-tensors modelslim quark_int4fp8_moe", ""),
    ("0.5.15", "nvfp4_online modelopt_mixed mxfp_w4a8 quark quark_mxfp4 mlx_q4 mlx_q8", ""),
    ("0.5.23", "auto-round-int8 humming", "marlin qoq"),
)
KV_DTYPES = Values.growing(
    ("0.4.6", "fp8_e5m2 fp8_e4m3", ""),
    ("0.5.9", "bf16 bfloat16 fp4_e2m1", ""),
    ("0.5.23", "mxfp8 nvfp4 fp4_mx_block16", ""),
)

_KV = re.compile(
    r"(?:KV Cache (?:is allocated|VA upper bound)\.|KV cache allocated\.).*?"
    r"(?:K size: (?P<k>[\d.]+) GB, V size: (?P<v>[\d.]+) GB|KV size: (?P<kv>[\d.]+) GB)"
)
_BEGIN = re.compile(r"Load weight begin\. avail mem=(?P<avail>[\d.]+) GB")
_END = re.compile(r"Load weight end\..*?avail mem=(?P<avail>[\d.]+) GB")
FACTS = (
    Fact("weights_bytes", re.compile(r"Load weight end\..*?mem usage=(?P<value>-?[\d.]+) GB"), GIB),
    Fact("load_s", re.compile(r"Load weight end\..*?elapsed=(?P<value>[\d.]+) s")),
    Fact("load_s", re.compile(r"Engine startup timings \(s\): load_weight=(?P<value>[\d.]+)")),
    Fact("init_s", re.compile(r"Engine startup timings \(s\):.*scheduler_e2e=(?P<value>[\d.]+)")),
    Fact("graphs_bytes", re.compile(r"Capture .*?graph end\..*?mem usage=(?P<value>-?[\d.]+) GB"), GIB),
    # The pool may be allocated after the graphs: then the summary has the upper bound, and this line the size.
    Fact("kv_tokens", re.compile(r"Post-capture KV sizing: .*#tokens: (?P<value>\d+)")),
    Fact("kv_tokens", re.compile(r"max_total_num_tokens=(?P<value>\d+),.*max_prefill_tokens=")),
    Fact("kv_tokens", re.compile(r"KV Cache is allocated\..*#tokens: (?P<value>\d+)")),
    Fact("slots", re.compile(r"max_total_num_tokens=.*max_running_requests=(?P<value>\d+)")),
    Fact("context_tokens", re.compile(r"max_total_num_tokens=.*context_len=(?P<value>\d+)")),
    Fact("attention", re.compile(r"server_args=.*?\battention_backend'?[=:] ?'(?P<value>[\w-]+)'"), None),
    Fact("memory_fraction", re.compile(r"server_args=.*?\bmem_fraction_static'?[=:] ?(?P<value>[\d.]+)")),
)

FAILURES = (
    failure(
        "no-kv",
        r"Not enough memory\. Please try to increase --mem-fraction-static\.",
        "The weights leave no room for a KV cache: raise memory_fraction (of SGLang it is weights and KV together).",
    ),
    failure(
        "no-state",
        r"Hybrid \(mamba/linear-attention\) state cache is too small",
        "Raise memory_fraction or lower max_concurrency.",
    ),
    failure("tiny-pool", r"Memory pool size is too small", "Raise kv_cache_tokens or memory_fraction."),
    failure(
        "gpu-not-free",
        r"The memory capacity is unbalanced\. Some GPUs may be occupied",
        "Something else holds memory of one of the cards: stop it.",
    ),
    failure(
        "oom-graph",
        r"Capture (?:prefill )?(?:cuda|CUDA|CPU) graph failed",
        "Lower memory_fraction or max_concurrency: the graphs need room beside the KV cache.",
    ),
    failure("quant-unknown", r"Unknown quantization method: ", "Check quantization against the installed version."),
    failure(
        "hang",
        r"watchdog timeout|Health check failed\. Server couldn't get a response from detokenizer",
        "The engine hangs: keep its log and try another attention backend or version.",
    ),
)
LAST_FAILURES = (
    failure("engine-dead", r"Scheduler hit an exception: ", "The scheduler died: the traceback in the log says why."),
)

METRICS = {
    "running": (Metric("sglang:num_running_reqs"),),
    "waiting": (Metric("sglang:num_queue_reqs"),),
    "kv_use": (Metric("sglang:token_usage", over="max"),),
    "preemptions_total": (Metric("sglang:num_retracted_requests_total"),),
    "prompt_tokens_total": (Metric("sglang:prompt_tokens_total"),),
    "output_tokens_total": (Metric("sglang:generation_tokens_total"),),
    "cached_tokens_total": (
        Metric("sglang:cached_tokens_total"),  # from its first hit on; the other one from the start, in newer releases
        Metric("sglang:prefill_effective_tokens_total", {"mode": "device_hit"}),
    ),
    "kv_tokens": (Metric("sglang:max_total_num_tokens"),),
    "kv_used_tokens": (Metric("sglang:kv_used_tokens"), Metric("sglang:num_used_tokens")),
}
RETRACTED_NOW = {"retracted": (Metric("sglang:num_retracted_reqs"),)}
"""The gauge that stands beside the counter of retractions, which appears with the first one."""


class Sglang(DataSheet):
    name = "sglang"
    launches: ClassVar[tuple[LaunchKind, ...]] = (*REAL, "simulated")
    title = "SGLang"
    homepage = "https://docs.sglang.ai"
    versions = ("0.4.6", "0.5.23")
    default_image = "lmsysorg/sglang:v0.5.23"
    default_command = ("python3", "-m", "sglang.launch_server")
    # /ready is unknown to 0.5.15 and older; /health generates no token here (see `environment`).
    readiness = Readiness(version_path="/server_info")
    capabilities = Capabilities(
        token_ids=True,
        exact_length="ignore_eos",
        cache_off="flag",
        cache_check="metric",
        kv_gauge=True,
        preempt_counter=True,
        when_kv_full="holds requests back, then retracts running ones and computes them again later",
    )
    wires: ClassVar[tuple[type[Wire], ...]] = (CompletionsWire, ChatWire)
    port = 30000
    shm_bytes = 32 * GIB
    start_timeout_s = 1800.0
    stop_timeout_s = 60.0

    quantizations = QUANTIZATIONS
    on_load: ClassVar[Mapping[str, str]] = {
        "fp8": "",
        "mxfp8": "",
        "nvfp4_online": "",
        "quark_mxfp4": "",
        "quark_int4fp8_moe": "",
        "bitsandbytes": "",
    }
    kv_dtypes = KV_DTYPES
    dtypes = ("half", "float16", "bfloat16", "float", "float32")
    refused: ClassVar[Mapping[str, str]] = {"kv_cache_bytes": "SGLang sizes its KV pool in tokens: kv_cache_tokens."}
    dialect = Dialect(length="ignore_eos", min_tokens_field="min_tokens")
    salts = True
    start_marker = re.compile(r"server_args=")
    facts = FACTS
    failures = FAILURES
    last_failures = LAST_FAILURES
    metrics = METRICS

    def arguments(self, deployment: Deployment, host: str, port: int) -> tuple[str, ...]:
        bitsandbytes = deployment.quantization == "bitsandbytes"
        flags = [
            Flag("--model-path", deployment.model, ("--model",)),
            Flag("--served-model-name", self.served_name(deployment)),
            when(deployment.revision, Flag("--revision", deployment.revision)),
            Flag("--host", host),
            Flag("--port", port),
            Flag("--dtype", deployment.dtype),
            when(deployment.quantization, Flag("--quantization", deployment.quantization)),
            when(bitsandbytes, Flag("--load-format", "bitsandbytes")),
            Flag("--kv-cache-dtype", deployment.kv_dtype),
            when(deployment.context_tokens, Flag("--context-length", deployment.context_tokens)),
            Flag("--max-running-requests", deployment.max_concurrency or DEFAULT_SEQUENCES),
            Flag("--chunked-prefill-size", deployment.max_batched_tokens or DEFAULT_CHUNK_TOKENS),
            when(deployment.memory_fraction, Flag("--mem-fraction-static", deployment.memory_fraction)),
            when(deployment.kv_cache_tokens, Flag("--max-total-tokens", deployment.kv_cache_tokens)),
            Flag("--tp-size", deployment.tensor_parallel, ("--tp", "--tensor-parallel-size")),
            Flag("--disable-radix-cache"),
            Flag("--enable-metrics"),
        ]
        return command_words(flags, deployment.args)

    def environment(self, deployment: Deployment) -> Mapping[str, str]:
        return {"SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "false", **QUIET}

    def derived_facts(self, lines: Sequence[str]) -> dict[str, float | str]:
        return {**_weights_by_difference(lines), **_kv_bytes(lines)}

    def metric_values(self, text: str) -> dict[str, float]:
        values = super().metric_values(text)
        # The counter came with 0.5.9, as did the gauge of kv_tokens: where both gauges are, no counter means none yet.
        if "kv_tokens" in values and values_of(text, RETRACTED_NOW):
            values.setdefault("preemptions_total", 0.0)
        return values

    def notes(self, deployment: Deployment) -> list[str]:
        found = super().notes(deployment)
        found.append("SGLang refreshes its gauges every few decode steps: they lag behind the load.")
        if deployment.launch != "external" and deployment.memory_fraction is None and not deployment.kv_cache_tokens:
            found.append("No memory_fraction: SGLang computes one from the card; the value it took is recorded.")
        return found


def _kv_bytes(lines: Sequence[str]) -> dict[str, float | str]:
    """Keys and values together, of the last line that tells them: the engine may size in two passes."""
    pools = [found for line in lines if (found := _KV.search(line))]
    if not pools:
        return {}
    sizes = [number_of(text) for text in pools[-1].groupdict().values() if text is not None]
    return {"kv_bytes": sum(size for size in sizes if size is not None) * GIB}


def _weights_by_difference(lines: Sequence[str]) -> dict[str, float | str]:
    """Weights as the fall of the free memory: versions before 2025-03 print no ``mem usage``."""
    begins = [number_of(found["avail"]) for line in lines if (found := _BEGIN.search(line))]
    ends = [number_of(found["avail"]) for line in lines if (found := _END.search(line))]
    if not begins or not ends or begins[-1] is None or ends[-1] is None:
        return {}
    return {"weights_bytes": (begins[-1] - ends[-1]) * GIB}
