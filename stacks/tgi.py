"""Text-generation-inference, 2.4 to 3.3.7: reserves KV when it admits a request, so it queues and never preempts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from orchestrator.records import Prompt
from stacks.base import REAL, Capabilities, Delta, Deployment, LaunchKind, Readiness, Setting, Wire
from stacks.command import Flag, command_words, when
from stacks.logs import GIB, Fact, failure
from stacks.openai import ChatWire, Dialect, TextCompletionsWire, count, error_text
from stacks.prometheus import Metric
from stacks.settings import Values
from stacks.sheet import QUIET, DataSheet

DEFAULT_PREFILL_TOKENS = 4096
ADMITTED_REQUESTS = 4096
"""More is refused and not queued: far above any level, or the break is this number."""
PAYLOAD_BYTES = 64_000_000

FACTS = (
    Fact("kv_tokens", re.compile(r"Setting max batch total tokens to (?P<value>\d+)")),
    Fact("kv_blocks", re.compile(r"KV-cache blocks: (?P<value>\d+), size: \d+")),
    Fact("block_tokens", re.compile(r"KV-cache blocks: \d+, size: (?P<value>\d+)")),
    Fact("context_tokens", re.compile(r"Maximum total tokens defaulted to (?P<value>\d+)")),
    Fact("prefill_tokens", re.compile(r"Default `max_batch_prefill_tokens` to (?P<value>\d+)")),
    Fact("graph_sizes", re.compile(r"Cuda Graphs are enabled for sizes \[(?P<value>[\d, ]+)\]"), None),
    Fact("prefix_caching", re.compile(r"Using prefix caching = (?P<value>\w+)"), None),
    Fact("attention", re.compile(r"Using Attention = (?P<value>[\w-]+)"), None),
    Fact("load_s", re.compile(r"Shard ready in (?P<value>[\d.]+) ?s\b")),
)

FAILURES = (
    failure(
        "prefill-oom",
        r"Not enough memory to handle (?P<n>\d+) prefill tokens",
        "Lower max_batched_tokens below {n}, or take smaller weights.",
    ),
    failure(
        "no-kv",
        r"Not enough memory to handle `max_total_tokens=(?P<n>\d+)`|NotEnoughMemory\((?P<m>\d+)\)",
        "The KV cache has no room for one request: lower context_tokens, take smaller weights or a bigger card.",
    ),
    failure(
        "limits",
        r"`max_batch_prefill_tokens` must be <= `max_batch_total_tokens`",
        "Lower max_batched_tokens, or give the KV cache more room.",
    ),
    failure(
        "model-unknown", r"Unsupported model type", "TGI does not know the model, and learns no new ones: use vLLM."
    ),
    failure(
        "no-gpu", r"not enough cuda devices", "tensor_parallel asks for more GPUs than the container sees: check gpus."
    ),
    failure(
        "host-oom",
        r"signaled to shutdown with signal 9",
        "The host's memory ran out while loading: give the container more, or load fewer shards at once.",
    ),
)
LAST_FAILURES = (
    failure(
        "download",
        r"Download error|DownloadError|Download process was signaled to shutdown",
        "The model could not be fetched: check its name, the token and the disk.",
    ),
    failure(
        "warm-up",
        r"Unable to warmup the Python model shards",
        "The warm-up failed: the lines before this one say why.",
    ),
    failure(
        "shard-dead",
        r"Shard complete standard error output|signaled to shutdown with signal|Shard \S* ?(?:failed to start|crashed)"
        r"|ShardCannotStart|Webserver Crashed",
        "A shard died: its traceback stands in the log.",
    ),
)

METRICS = {
    "running": (Metric("tgi_batch_current_size"),),
    "waiting": (Metric("tgi_queue_size"),),
    "kv_tokens": (Metric("tgi_batch_max_total_tokens"),),
    "kv_reserved_tokens": (Metric("tgi_batch_current_max_tokens"),),
    "prompt_tokens_total": (Metric("tgi_request_input_length_sum"),),
    "output_tokens_total": (Metric("tgi_request_generated_tokens_sum"),),
}


def prefill_tokens(deployment: Deployment) -> int:
    """``--max-batch-prefill-tokens``: TGI wants at least the longest prompt."""
    return deployment.max_batched_tokens or max(DEFAULT_PREFILL_TOKENS, deployment.context_tokens or 0)


class GenerateStreamWire(Wire):
    """``/generate_stream``: text in, one event per token out, totals in the last one. Lengths cannot be forced."""

    name: ClassVar[str] = "generate"
    path: ClassVar[str] = "/generate_stream"
    forces_length = False

    def body(self, prompt: Prompt, output_tokens: int, model: str) -> dict[str, Any]:
        if prompt.text is None:
            raise ValueError("TGI takes text, not token ids.")
        # Greedy is the absence of sampling here: a temperature must be above 0.
        parameters = {"max_new_tokens": output_tokens, "do_sample": False, "details": True}
        return {"inputs": prompt.text, "parameters": parameters, "stream": True}

    def delta(self, event: Any) -> Delta:
        if not isinstance(event, dict):
            return Delta()
        if error := error_text(event):
            return Delta(error=error)
        token, details = event.get("token"), event.get("details")
        one = isinstance(token, dict) and count(token.get("id")) is not None
        end = details if isinstance(details, dict) else {}
        finish = end.get("finish_reason")
        return Delta(
            text=one,
            tokens=1 if one else None,
            finish=finish if isinstance(finish, str) else None,
            in_tokens=count(end.get("input_length")),
            out_tokens=count(end.get("generated_tokens")),
        )


class Tgi(DataSheet):
    name = "tgi"
    launches: ClassVar[tuple[LaunchKind, ...]] = (*REAL, "simulated")
    title = "TGI"
    homepage = "https://huggingface.co/docs/text-generation-inference"
    status = (
        "TGI is in maintenance mode since 2025-12-11; its project points to vLLM, SGLang and llama.cpp for new work."
    )
    versions = ("2.4.0", "3.3.7")
    default_image = "ghcr.io/huggingface/text-generation-inference:3.3.7"
    default_command = ("text-generation-launcher",)
    # /v1/models would list the same; /info also tells the version.
    readiness = Readiness(models_path="/info", version_path="/info")
    capabilities = Capabilities(
        exact_length="none",
        cache_off="flag",
        cache_check="log",
        takes_all_gpus=True,
        when_kv_full="queues: a request is admitted with the KV cache that it may need",
    )
    wires: ClassVar[tuple[type[Wire], ...]] = (GenerateStreamWire, ChatWire, TextCompletionsWire)
    port = 80
    shm_bytes = GIB
    start_timeout_s = 1800.0
    stop_timeout_s = 60.0

    quantizations = Values.growing(
        (
            "2.4.0",
            "bitsandbytes bitsandbytes-nf4 bitsandbytes-fp4 eetq fp8 awq gptq compressed-tensors marlin exl2",
            "",
        ),
    )
    on_load: ClassVar[Mapping[str, str]] = {
        "bitsandbytes": "",
        "bitsandbytes-nf4": "",
        "bitsandbytes-fp4": "",
        "eetq": "",
        "fp8": "",
    }
    kv_dtypes = Values.growing(("2.4.0", "fp8_e4m3fn fp8_e5m2", ""))
    dtypes = ("float16", "bfloat16")
    refused: ClassVar[Mapping[str, str]] = {
        "kv_cache_bytes": "TGI takes what is free: memory_fraction is the only knob.",
        "kv_cache_tokens": "TGI ignores a given size since 3.0: memory_fraction is the only knob.",
    }
    renames = False
    dialect = Dialect()
    start_marker = re.compile(r"\bArgs \{")
    facts = FACTS
    failures = FAILURES
    last_failures = LAST_FAILURES
    metrics = METRICS

    def more_problems(self, deployment: Deployment) -> list[Setting]:
        if deployment.quantization is None or deployment.dtype == "auto":
            return []
        return [Setting("dtype", "TGI does not take dtype beside quantization.", "Leave dtype out.")]

    def entrypoint(self, deployment: Deployment) -> tuple[str, ...] | None:
        return None

    def arguments(self, deployment: Deployment, host: str, port: int) -> tuple[str, ...]:
        context = deployment.context_tokens
        flags = [
            Flag("--model-id", deployment.model),
            when(deployment.revision, Flag("--revision", deployment.revision)),
            Flag("--hostname", host),
            Flag("--port", port),
            Flag("--num-shard", deployment.tensor_parallel),
            when(deployment.dtype != "auto", Flag("--dtype", deployment.dtype)),
            when(deployment.quantization, Flag("--quantize", deployment.quantization)),
            when(deployment.kv_dtype != "auto", Flag("--kv-cache-dtype", deployment.kv_dtype)),
            when(context, Flag("--max-input-tokens", (context or 2) - 1, ("--max-input-length",))),
            when(context, Flag("--max-total-tokens", context)),
            Flag("--max-batch-prefill-tokens", prefill_tokens(deployment)),
            when(deployment.max_concurrency, Flag("--max-batch-size", deployment.max_concurrency)),
            Flag("--max-concurrent-requests", max(ADMITTED_REQUESTS, deployment.max_concurrency or 0)),
            Flag("--cuda-memory-fraction", deployment.memory_fraction or 1.0),
            Flag("--payload-limit", PAYLOAD_BYTES),
            Flag("--usage-stats", "off"),
        ]
        return command_words(flags, deployment.args)

    def environment(self, deployment: Deployment) -> Mapping[str, str]:
        # The second name is that of 2.3.
        return {"PREFIX_CACHING": "0", "USE_PREFIX_CACHING": "0", **QUIET}

    def metric_values(self, text: str) -> dict[str, float]:
        values = super().metric_values(text)
        reserved, pool = values.pop("kv_reserved_tokens", None), values.get("kv_tokens")
        if reserved is not None and pool:
            values["kv_use"] = reserved / pool
        return values

    def notes(self, deployment: Deployment) -> list[str]:
        return [
            *super().notes(deployment),
            "TGI cannot be told an exact output length: answers may end earlier than asked; compare per token.",
            "TGI's KV use is what admitted requests have reserved, not what they have filled.",
            "TGI queues a generation again every 1024 tokens, which shows as a stall.",
        ]
