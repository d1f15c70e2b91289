"""vLLM, 0.6 to 0.33: one engine, KV pool allocated at start, preempts when it is full."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from stacks.base import REAL, Capabilities, Deployment, LaunchKind, Readiness, Setting, Wire
from stacks.command import Flag, command_words, when
from stacks.logs import GIB, Fact, failure
from stacks.openai import ChatWire, CompletionsWire, Dialect
from stacks.prometheus import Metric, values_of
from stacks.settings import Values
from stacks.sheet import QUIET, DataSheet

BLOCK_TOKENS = 32
"""The least that the attention backends of GPUs and CPUs have in common; a few want more (--block-size in args)."""
DEFAULT_MEMORY_FRACTION = 0.9
DEFAULT_SEQUENCES = 256
DEFAULT_BATCHED_TOKENS = 8192
_BYTES_SINCE = (0, 10, 2)

QUANTIZATIONS = Values.growing(
    (
        "0.6.6",
        "aqlm awq deepspeedfp tpu_int8 fp8 fbgemm_fp8 modelopt marlin gguf gptq_marlin_24 gptq_marlin awq_marlin gptq "
        "compressed-tensors bitsandbytes qqq hqq experts_int8 neuron_quant ipex",
        "",
    ),
    ("0.8.5", "ptpc_fp8 nvfp4 bitblas gptq_bitblas quark moe_wna16 torchao", ""),
    ("0.10.2", "modelopt_fp4 auto-round rtn inc mxfp4 petit_nvfp4", "aqlm nvfp4 marlin qqq neuron_quant"),
    ("0.13.0", "fp_quant cpu_gptq cpu_awq", ""),
    (
        "0.16.0",
        "modelopt_mxfp8",
        "deepspeedfp tpu_int8 bitblas gptq_marlin_24 gptq_bitblas hqq ipex auto-round rtn cpu_gptq",
    ),
    ("0.18.1", "modelopt_mixed", ""),
    (
        "0.20.2",
        "humming gpt_oss_mxfp4 deepseek_v4_fp8 online fp8_per_tensor fp8_per_block int8_per_channel_weight_only mxfp8",
        "ptpc_fp8 petit_nvfp4",
    ),
    ("0.23.0", "auto_gptq", "cpu_awq"),
    ("0.24.0", "", "gguf"),
    ("0.27.1", "auto_awq fp8_per_channel nvfp4_per_token", ""),
    ("0.28.0", "", "bitsandbytes"),
)
KV_DTYPES = Values.growing(
    ("0.6.0", "fp8 fp8_e4m3 fp8_e5m2", ""),
    ("0.10.0", "fp8_inc", ""),
    ("0.11.0", "bfloat16", ""),
    ("0.13.0", "fp8_ds_mla", ""),
    ("0.18.0", "float16", ""),
    (
        "0.20.0",
        "nvfp4 int8_per_token_head fp8_per_token_head turboquant_k8v4 turboquant_4bit_nc turboquant_k3v4_nc "
        "turboquant_3bit_nc",
        "",
    ),
    ("0.27.0", "int4_per_token_head", ""),
    ("0.30.0", "nvfp4_ds_mla nvfp4_4over6", ""),
    ("0.33.0", "octave_k3v4 octave_k3v3 octave_k3v3_compact ultraquant_4bit", ""),
)
EXPERTS_ONLY = frozenset({"int8_per_channel_weight_only", "experts_int8", "nvfp4_per_token"})
DEPRECATED = frozenset({"fbgemm_fp8", "fp_quant"})
_DEPRECATED_SINCE = (0, 28, 0)

FACTS = (
    Fact("version", re.compile(r"\(v(?P<value>\d+\.\d+\.\d+[\w.+]*)\) with config"), None),
    Fact(
        "weights_bytes",
        re.compile(r"(?:Model loading took|Loading model weights took) (?P<value>[\d.]+) (?:GiB|GB)"),
        GIB,
    ),
    Fact("weights_bytes", re.compile(r"model weights take (?P<value>[\d.]+)GiB"), GIB),
    Fact("load_s", re.compile(r"Loading weights took (?P<value>[\d.]+) seconds")),
    Fact(
        "quantized_on_load_s",
        re.compile(r"Online quantization as part of model loading took (?P<value>[\d.]+) seconds"),
    ),
    Fact("kv_bytes", re.compile(r"Available KV cache memory: (?P<value>-?[\d.]+) GiB"), GIB),
    Fact(
        "kv_bytes",
        re.compile(r"reserved (?P<value>[\d.]+) ?GiB memory for KV Cache as specified by kv_cache_memory_bytes"),
        GIB,
    ),
    Fact("kv_bytes", re.compile(r"Explicitly set \((?P<value>[\d.]+)/[\d.]+\) GiB for KV cache"), GIB),
    Fact("kv_bytes", re.compile(r"memory reserved for KV Cache is (?P<value>[\d.]+)GiB"), GIB),
    Fact("kv_tokens", re.compile(r"\b\w+(?<!host) KV cache size: (?P<value>[\d,]+) tokens")),
    Fact("kv_blocks", re.compile(r"# (?:cuda|rocm|GPU|gpu) blocks: (?P<value>\d+)")),
    Fact("context_tokens", re.compile(r"Maximum concurrency for (?P<value>[\d,]+) tokens per request")),
    Fact("graphs_bytes", re.compile(r"CUDA graph pool memory: (?P<value>-?[\d.]+) GiB \(actual\)"), GIB),
    Fact("graphs_bytes", re.compile(r"Graph capturing finished in \d+ secs, took (?P<value>-?[\d.]+) GiB"), GIB),
    Fact("graphs_bytes", re.compile(r"Actual usage is .*?(?P<value>-?[\d.]+) GiB for CUDAGraph memory"), GIB),
    Fact(
        "activation_bytes",
        re.compile(r"Actual usage is .*?(?P<value>[\d.]+) GiB for peak activation"),
        GIB,
    ),
    Fact("activation_bytes", re.compile(r"PyTorch activation peak memory takes (?P<value>[\d.]+)GiB"), GIB),
    Fact(
        "init_s",
        re.compile(r"init engine \(profile, create kv cache, warmup model\) took (?P<value>[\d.]+) (?:s|seconds)"),
    ),
    Fact("fitted_context_tokens", re.compile(r"Auto-fit max_model_len: reduced from \d+ to (?P<value>\d+)")),
    Fact(
        "kernel",
        re.compile(
            r"(?:Using|Selected) (?P<value>\w+) for (?P<what>(?:MXFP\d|NVFP4) GEMM|mixed-precision linear"
            r"|CompressedTensors\w+|\w+LinearMethod|\w+MoEMethod)"
        ),
        None,
    ),
    Fact("moe_kernel", re.compile(r"Using '?(?P<value>\w+)'? (?P<what>\w+) MoE backend"), None),
    Fact(
        "attention",
        re.compile(r"Using (?:AttentionBackendEnum\.)?(?P<value>[\w-]+(?: Attention)?) (?:attention )?backend"),
        None,
    ),
    Fact(
        "weight_only_fallback",
        re.compile(
            r"(?P<value>Weight-only FP8 compression will be used leveraging the Marlin kernel"
            r"|\w+ is a weight-only \(A16\) kernel)"
        ),
        None,
    ),
)

_LESS_CONTEXT = "Raise memory_fraction, take an fp8 KV cache, or set context_tokens to at most {max}."
FAILURES = (
    failure(
        "gpu-not-free",
        r"Free memory on device .*on startup is less than desired GPU memory utilization",
        "Something else holds memory of this card: stop it, wait for the last server to go, or lower memory_fraction.",
    ),
    failure(
        "ctx-too-long",
        r"max seq len \([\d,]+\).*estimated maximum model length is (?P<max>\d+)",
        _LESS_CONTEXT,
    ),
    failure(
        "ctx-too-long",
        r"max seq len \(\d+\) is larger than the maximum number of tokens that can be stored in KV cache"
        r" \((?P<max>\d+)\)",
        _LESS_CONTEXT,
    ),
    failure(
        "ctx-too-long",
        r"max seq len \([\d,]+\), \(?[\d.]+ GiB KV cache is needed, which is larger than the available",
        "Raise memory_fraction, or set a shorter context_tokens: not even a small context fits now.",
    ),
    failure(
        "no-kv",
        r"No available memory for the cache blocks",
        "The weights leave no room for a KV cache: raise memory_fraction, take smaller weights or a bigger card.",
    ),
    failure(
        "oom-weights",
        r"Failed to load model - not enough GPU memory",
        "The weights alone do not fit: take a smaller quantization, more cards (tensor_parallel) or a bigger one.",
    ),
    failure(
        "oom-warmup",
        r"CUDA out of memory occurred when warming up sampler",
        "Lower max_concurrency or memory_fraction.",
    ),
    failure(
        "gpu-shared",
        r"Error in memory profiling\. Initial free memory",
        "Another process used this card during the start: make it stop, then start again.",
    ),
    failure(
        "quant-unknown",
        r"Unknown quantization method: |argument --quantization.*invalid choice",
        "This version does not have the quantization; `loadproof stacks show vllm` lists what each version has.",
    ),
    failure(
        "quant-mismatch",
        r"Quantization method specified in the model config \((?P<config>[^)]+)\) does not match the quantization",
        "The checkpoint is quantized as {config}: leave quantization away, or take another checkpoint.",
    ),
    failure(
        "quant-mismatch",
        r"Cannot find the config file for (?P<method>\w[\w-]*)",
        "{method} needs a checkpoint that is quantized already, and this one is plain.",
    ),
    failure(
        "quant-card",
        r"is not supported for the current GPU\. Minimum capability"
        r"|Quantization scheme is not supported for the current",
        "The card is too old for this quantization: take another one.",
    ),
    failure(
        "block-size",
        r"No common block size for (?P<size>\d+) \((?P<able>.+?)\)\.",
        "The attention backend takes no blocks of {size} tokens ({able}): give another --block-size in args.",
    ),
    failure(
        "model-unknown",
        r"Model architectures \[.*\] are not supported for now",
        "Take a newer vLLM, or a model that it knows.",
    ),
    failure(
        "broken-install",
        r"No package metadata was found for vllm",
        "The installation lacks its metadata: install the package vllm, not only its files.",
    ),
)
LAST_FAILURES = (
    failure(
        "engine-dead",
        r"EngineCore encountered (?:a fatal error|an issue)",
        "The engine died under load: the lines before this one say why.",
    ),
    failure(
        "engine-start-failed",
        r"Worker failed with error '(?P<why>[^']{1,200})",
        "A worker did not start: {why}",
    ),
    failure(
        "engine-start-failed",
        r"Engine core initialization failed|EngineCore failed to start",
        "The cause stands further up in the log.",
    ),
)

METRICS = {
    "running": (Metric("vllm:num_requests_running"),),
    "waiting": (Metric("vllm:num_requests_waiting"),),
    "kv_use": (
        Metric("vllm:kv_cache_usage_perc", over="max"),
        Metric("vllm:gpu_cache_usage_perc", over="max"),
    ),
    "preemptions_total": (Metric("vllm:num_preemptions_total"),),
    "prompt_tokens_total": (Metric("vllm:prompt_tokens_total"),),
    "output_tokens_total": (Metric("vllm:generation_tokens_total"),),
    "cached_tokens_total": (
        Metric("vllm:prompt_tokens_cached_total"),
        Metric("vllm:prefix_cache_hits_total"),
        Metric("vllm:gpu_prefix_cache_hits_total"),
    ),
    "kv_tokens": (Metric("vllm:cache_config_info", label="kv_cache_size_tokens"),),
    "rejected_total": (Metric("vllm:admission_rejections_total"),),
}
_OVERRIDE = re.compile(r"Overriding num_gpu_blocks=(?P<room>\d+) with num_gpu_blocks_override=(?P<taken>\d+)")
POOL_BEFORE_TOKENS = {
    "blocks": (Metric("vllm:cache_config_info", label="num_gpu_blocks"),),
    "block_tokens": (Metric("vllm:cache_config_info", label="block_size", over="max"),),
}
"""The KV pool as versions without the label ``kv_cache_size_tokens`` tell it."""


class Vllm(DataSheet):
    name = "vllm"
    launches: ClassVar[tuple[LaunchKind, ...]] = (*REAL, "simulated")
    title = "vLLM"
    homepage = "https://docs.vllm.ai"
    versions = ("0.6.6", "0.33.0")
    default_image = "vllm/vllm-openai:v0.33.0"
    default_command = ("vllm",)
    tells_what_fits = True
    readiness = Readiness(version_path="/version")
    capabilities = Capabilities(
        token_ids=True,
        exact_length="ignore_eos",
        cache_off="flag",
        cache_check="metric",
        kv_gauge=True,
        preempt_counter=True,
        when_kv_full="preempts a running request and computes it again later",
    )
    wires: ClassVar[tuple[type[Wire], ...]] = (CompletionsWire, ChatWire)
    port = 8000
    shm_bytes = 16 * GIB
    # The first start of a version compiles for minutes, after a download that may take longer.
    start_timeout_s = 1800.0
    stop_timeout_s = 60.0

    quantizations = QUANTIZATIONS
    on_load: ClassVar[Mapping[str, str]] = {
        "online": "",
        "fp8": "",
        "fp8_per_tensor": "",
        "fp8_per_block": "",
        "fp8_per_channel": "",
        "mxfp8": "",
        "mxfp4": "0.28.0",
        "bitsandbytes": "",
        "int8_per_channel_weight_only": "",
        "experts_int8": "",
        "nvfp4_per_token": "",
    }
    kv_dtypes = KV_DTYPES
    dialect = Dialect(length="ignore_eos", min_tokens_field="min_tokens")
    salts = True
    start_marker = re.compile(r"Initializing a V\d LLM engine|Initializing an LLM engine")
    stop_marker = re.compile(r"\[shutdown\] (?:API server: shutdown triggered|EngineCore: trigger received signal)")
    facts = FACTS
    failures = FAILURES
    last_failures = LAST_FAILURES
    metrics = METRICS

    def more_problems(self, deployment: Deployment) -> list[Setting]:
        number = self.release(deployment)
        if deployment.kv_cache_bytes is None or number is None or number >= _BYTES_SINCE:
            return []
        remedy = "Use memory_fraction, or kv_cache_tokens."
        return [Setting("kv_cache_bytes", "vLLM has --kv-cache-memory-bytes from 0.10.2 on.", remedy)]

    def arguments(self, deployment: Deployment, host: str, port: int) -> tuple[str, ...]:
        tokens, block_tokens = deployment.kv_cache_tokens, block_tokens_of(deployment)
        number = self.release(deployment)
        deprecated = deployment.quantization in DEPRECATED and (number is None or number >= _DEPRECATED_SINCE)
        flags = [
            Flag("--host", host),
            Flag("--port", port),
            Flag("--served-model-name", self.served_name(deployment)),
            when(deployment.revision, Flag("--revision", deployment.revision)),
            Flag("--dtype", deployment.dtype),
            when(deployment.quantization, Flag("--quantization", deployment.quantization, ("-q",))),
            when(deprecated, Flag("--allow-deprecated-quantization")),
            Flag("--kv-cache-dtype", deployment.kv_dtype),
            when(deployment.context_tokens, Flag("--max-model-len", deployment.context_tokens)),
            Flag("--max-num-seqs", deployment.max_concurrency or DEFAULT_SEQUENCES),
            Flag("--max-num-batched-tokens", deployment.max_batched_tokens or DEFAULT_BATCHED_TOKENS),
            Flag("--gpu-memory-utilization", deployment.memory_fraction or DEFAULT_MEMORY_FRACTION),
            when(
                deployment.kv_cache_bytes,
                Flag("--kv-cache-memory-bytes", deployment.kv_cache_bytes, ("--kv-cache-memory",)),
            ),
            when(tokens, Flag("--block-size", block_tokens)),
            # One block is never handed out.
            when(tokens, Flag("--num-gpu-blocks-override", -(-(tokens or 0) // block_tokens) + 1)),
            Flag("--tensor-parallel-size", deployment.tensor_parallel, ("-tp",)),
            Flag("--no-enable-prefix-caching", None, ("--enable-prefix-caching",)),
            Flag("--generation-config", "vllm"),
        ]
        return ("serve", deployment.model, *command_words(flags, deployment.args))

    def environment(self, deployment: Deployment) -> Mapping[str, str]:
        return {"VLLM_NO_USAGE_STATS": "1", "VLLM_ENABLE_STARTUP_PLAN": "0", **QUIET}

    def log_facts(self, lines: Sequence[str]) -> dict[str, float | str]:
        facts = super().log_facts(lines)
        overrides = [found for line in lines if (found := _OVERRIDE.search(line))]
        room = facts.get("kv_bytes")
        if overrides and isinstance(room, float) and float(overrides[-1]["room"]):
            # The log tells the room that there was; the pool takes as many blocks of it as it was told.
            facts["kv_bytes"] = room * float(overrides[-1]["taken"]) / float(overrides[-1]["room"])
        return facts

    def metric_values(self, text: str) -> dict[str, float]:
        values = super().metric_values(text)
        if "kv_tokens" not in values:
            pool = values_of(text, POOL_BEFORE_TOKENS)
            if len(pool) == len(POOL_BEFORE_TOKENS):
                values["kv_tokens"] = pool["blocks"] * pool["block_tokens"]
        return values

    def path_note(self, deployment: Deployment, facts: Mapping[str, float | str]) -> str | None:
        if "weight_only_fallback" not in facts:
            return None
        asked = deployment.quantization or "the checkpoint's format"
        return (
            f"It computes in 16 bit though {asked} was asked for, for this card has no such arithmetic: the weights "
            "are smaller, and prefill is no faster (the log: weight-only kernel)."
        )

    def notes(self, deployment: Deployment) -> list[str]:
        found = super().notes(deployment)
        if deployment.quantization in EXPERTS_ONLY:
            found.append(
                f"{deployment.quantization} quantizes experts only: on a dense model it starts and changes nothing."
            )
        if deployment.launch != "external" and deployment.context_tokens is None:
            found.append("No context_tokens: vLLM takes the model's own context and sizes its checks by it.")
        return found


def block_tokens_of(deployment: Deployment) -> int:
    """Tokens of a block of a pool that is sized in tokens: the plan's own, where its arguments give one."""
    words = [part for word in deployment.args for part in word.split("=", 1)]
    given = words[words.index("--block-size") + 1 :][:1] if "--block-size" in words else []
    return int(given[0]) if given and given[0].isdigit() and int(given[0]) else BLOCK_TOKENS
