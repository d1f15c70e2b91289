"""Every known sentence of a failure: its class, and a remedy that says what to do."""

from __future__ import annotations

import pytest
from fakes import samples

from stacks.catalog import BUILT_IN, stack

RECORDED = {
    "vllm/startup-fail-ctx-too-long.log": ("ctx-too-long", "context_tokens to at most 896"),
    "vllm/startup-fail-missing-model.log": ("not-found", "path, name and revision"),
    "vllm/startup-fail-no-metadata.log": ("broken-install", "install the package vllm"),
    "vllm/startup-fail-offline-model.log": ("offline", "Download the model first"),
    "vllm/startup-fail-port-taken.log": ("port-taken", "another one"),
    "vllm/startup-fail-quant-mismatch.log": ("quant-mismatch", "quantized as compressed-tensors"),
    "vllm/startup-fail-quant-needs-checkpoint.log": ("quant-mismatch", "awq needs a checkpoint that is quantized"),
    "vllm/startup-fail-unknown-quant.log": ("quant-unknown", "loadproof stacks show vllm"),
    "llamacpp/startup-fail-kv-too-big.log": ("oom-kv", "lower context_tokens or max_concurrency"),
    "llamacpp/startup-fail-missing-model.log": ("not-found", "check the path"),
    "llamacpp/startup-fail-truncated-model.log": ("model-broken", "download it again"),
    "llamacpp/startup-fail-port-taken.log": ("port-taken", "another one"),
    "llamacpp/run-kv-full.log": ("kv-full", "raise kv_cache_tokens"),
    "transformers/startup-fail-local-gguf.log": ("gguf-local", "REPO:FILE.gguf"),
    "transformers/startup-models-500.log": ("no-cache-folder", "HF_HOME must hold"),
}
SENTENCES = {
    "vllm": (
        (
            "gpu-not-free",
            "Free memory on device (3.27/15.98 GiB) on startup is less than desired GPU memory utilization",
        ),
        ("oom-weights", "Failed to load model - not enough GPU memory. CUDA out of memory. Tried to allocate 2 GiB"),
        ("no-kv", "No available memory for the cache blocks. Try increasing `gpu_memory_utilization`"),
        (
            "ctx-too-long",
            "with the models's max seq len (40960), (5.62 GiB KV cache is needed, which is larger than the available "
            "KV cache memory (4.50 GiB). Based on the available memory, the estimated maximum model length is 32768.",
        ),
        (
            "ctx-too-long",
            "with the model's max seq len (131072), (18.0 GiB KV cache is needed, which is larger than the available "
            "KV cache memory (0.01 GiB). Try increasing `gpu_memory_utilization`",
        ),
        (
            "ctx-too-long",
            "The model's max seq len (131072) is larger than the maximum number of tokens that can be stored in KV "
            "cache (23968). Try increasing",
        ),
        ("oom-warmup", "CUDA out of memory occurred when warming up sampler with 1024 dummy requests"),
        ("gpu-shared", "Error in memory profiling. Initial free memory 78.1 GiB, current free memory 79.0 GiB."),
        ("quant-unknown", "Unknown quantization method: x. Must be one of ['awq']"),
        ("quant-unknown", "vllm serve: error: argument --quantization/-q: invalid choice: 'x' (choose from awq)"),
        (
            "quant-mismatch",
            "Quantization method specified in the model config (awq) does not match the quantization method specified "
            "in the `quantization` argument (fp8).",
        ),
        ("quant-mismatch", "Cannot find the config file for awq"),
        ("quant-card", "The quantization method fp8 is not supported for the current GPU. Minimum capability: 80."),
        ("quant-card", "Quantization scheme is not supported for the current GPU. Min capability: 89."),
        ("block-size", "Worker failed with error 'No common block size for 16 (CPU_ATTN: [MultipleOf(32)]).', please"),
        ("engine-start-failed", "RuntimeError: Worker failed with error 'x is not y', please check the stack trace"),
        ("model-unknown", "Model architectures ['X'] are not supported for now. Supported architectures: ..."),
        ("not-found", "HFValidationError: Repo id must be in the form 'repo_name' or 'namespace/repo_name': '/x'"),
        ("port-taken", "OSError: [Errno 98] Address already in use"),
        ("engine-start-failed", "Engine core initialization failed. See root cause above. Failed core proc(s): {}"),
        ("engine-start-failed", "EngineCore failed to start."),
        ("engine-dead", "EngineCore encountered a fatal error."),
    ),
    "tgi": (
        (
            "prefill-oom",
            "Not enough memory to handle 4096 prefill tokens. You need to decrease `--max-batch-prefill-tokens`",
        ),
        ("no-kv", "Not enough memory to handle `max_total_tokens=32768`"),
        ("no-kv", "Error: Backend(NotEnoughMemory(32768))"),
        ("no-kv", 'Error: Backend(Warmup(Generation("Not enough memory to handle `max_total_tokens=32768`")))'),
        ("limits", "`max_batch_prefill_tokens` must be <= `max_batch_total_tokens`. Given: 4096 and 1024"),
        ("warm-up", "Unable to warmup the Python model shards"),
        ("shard-dead", "Shard complete standard error output:"),
        ("host-oom", "Shard process was signaled to shutdown with signal 9 rank=0"),
        ("shard-dead", "Shard 0 failed to start"),
        ("shard-dead", "Error: ShardCannotStart"),
        ("shard-dead", "Shard 0 crashed"),
        ("shard-dead", "Webserver Crashed"),
        ("download", "Download error"),
        ("download", "Error: DownloadError"),
        ("download", "Download process was signaled to shutdown"),
        ("model-unknown", "ValueError: Unsupported model type x"),
        ("no-gpu", "not enough cuda devices"),
    ),
    "sglang": (
        ("no-kv", "Not enough memory. Please try to increase --mem-fraction-static."),
        (
            "no-kv",
            "Not enough memory. Please try to increase --mem-fraction-static. Current value: mem_fraction_static=0.6",
        ),
        ("no-state", "Hybrid (mamba/linear-attention) state cache is too small to serve any requests."),
        ("tiny-pool", "Memory pool size is too small"),
        ("gpu-not-free", "The memory capacity is unbalanced. Some GPUs may be occupied by other processes."),
        ("oom-graph", "Capture cuda graph failed: CUDA out of memory. Tried to allocate 2.00 GiB."),
        ("oom-graph", "Capture prefill CUDA graph failed: x"),
        ("quant-unknown", "Unknown quantization method: x. Must be one of [...]"),
        ("engine-dead", "Scheduler hit an exception: Traceback (most recent call last)"),
        ("hang", "watchdog timeout (300 s)"),
        ("hang", "Health check failed. Server couldn't get a response from detokenizer for last 20 seconds."),
    ),
    "llamacpp": (
        ("oom-weights", "allocating 20000.00 MiB on device 0: cudaMalloc failed: out of memory"),
        ("oom-weights", "error loading model: unable to allocate CUDA0 buffer"),
        ("oom-kv", "failed to allocate buffer for kv cache"),
        ("oom-compute", "failed to allocate compute buffers"),
        ("model-load-failed", "failed to create context with model 'm.gguf'"),
        ("not-found", "failed to open GGUF file 'm.gguf' (No such file or directory)"),
        ("model-broken", "error loading model: model is corrupted or incomplete"),
        ("model-load-failed", "srv load_model: failed to load model, 'm.gguf'"),
        ("model-load-failed", "exiting due to model loading error"),
        ("model-unknown", "error loading model: unknown model architecture: 'x'"),
        ("port-taken", "couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 8080"),
        ("kv-type", "llama_init_from_model: V cache quantization requires flash_attn"),
        ("kv-full", "Context size has been exceeded."),
    ),
    "trtllm": (
        ("out of memory", "Executor creation failed due to insufficient GPU memory."),
        ("out of memory", "The GPU ran out of memory."),
        ("engine-start-failed", "RuntimeError: Executor worker returned error"),
        ("model-unknown", "Unknown architecture for AutoModelForCausalLM: X"),
        ("engine-dead", "CppExecutorError: x"),
    ),
    "lmdeploy": (
        ("no-kv", "RuntimeError: No enough gpu memory for kv cache."),
        ("no-kv", "No enough gpu memory for state cache. Please reduce max_batch_size."),
        ("out of memory", "No enough gpu memory for runtime."),
        ("out of memory", "[TM][FATAL] out of memory at /src/turbomind/core/allocator.cc/42"),
        ("kv-full", "cache out of memory, no request can be admitted; failing head-of-line request"),
    ),
}
SHARED = (
    ("out of memory", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 48.00 MiB. GPU 0 has a total"),
    ("out of memory", "RuntimeError: CUDA error: out of memory"),
    ("out of memory", "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ("gated", "403 Client Error. Cannot access gated repo for url https://huggingface.co/api/models/o/m."),
    ("gated", "Access to model o/m is restricted and you are not in the authorized list."),
    ("gated", "OSError: You are trying to access a gated repo."),
    ("not-found", "401 Client Error. Repository Not Found for url: https://huggingface.co/api/models/o/m."),
    ("not-found", "404 Client Error. Revision Not Found for url: https://huggingface.co/o/m/resolve/x/config.json."),
    ("not-found", "OSError: o/m is not a local folder and is not a valid model identifier listed on 'https://...'"),
    ("offline", "Cannot find the file on the disk and outgoing traffic has been disabled."),
    ("offline", "OSError: We couldn't connect to 'https://huggingface.co' to load the files"),
    ("model-unknown", "has model type `x` but Transformers does not recognize this architecture."),
    ("driver-too-old", "RuntimeError: The NVIDIA driver on your system is too old (found version 11040)."),
    ("driver-too-old", "CUDA driver version is insufficient for CUDA runtime version"),
    ("driver-too-old", "nvidia-container-cli: requirement error: unsatisfied condition: cuda>=13.0"),
    ("no-kernel", "RuntimeError: CUDA error: no kernel image is available for execution on the device"),
    ("no-kernel", "with CUDA capability sm_120 is not compatible with the current PyTorch installation."),
    ("no-gpu", "RuntimeError: Found no NVIDIA driver on your system."),
    ("no-gpu", 'could not select device driver "" with capabilities: [[gpu]]'),
    (
        "port-taken",
        "ERROR:    [Errno 98] error while attempting to bind on address ('0.0.0.0', 8000): address already in use",
    ),
    ("shm", "Fatal Python error: Bus error"),
    ("shm", "OSError: [Errno 28] No space left on device: '/dev/shm/nccl-x'"),
    ("nccl", "NCCL error in: ../x.cpp:1, unhandled system error (run with NCCL_DEBUG=INFO for details)"),
    ("xid", "NVRM: Xid (PCI:0000:3b:00): 79, pid=1, GPU has fallen off the bus."),
    ("bad-argument", "vllm: error: unrecognized arguments: --no-such-flag"),
)
HARMLESS = (
    # INFO lines of healthy starts that name what others fail by.
    "CUDA graphs can take additional 1~3 GiB memory per GPU. If you are running out of memory, consider decreasing it.",
    "No available shared memory broadcast block found in 60 seconds.",
    "(APIServer pid=1) INFO Available routes are: /health, /load, /v1/models",
    "OOM is handled by the engine; set --gpu-memory-utilization to avoid out of memory errors.",
)


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_failure(name: str) -> None:
    failure_class, remedy = RECORDED[name]
    found = stack(name.partition("/")[0]).find_failure(samples.lines(name))
    assert found is not None
    assert found.failure_class == failure_class
    assert remedy in found.remedy


def test_no_recorded_failure_is_left_out() -> None:
    assert {name for kind in BUILT_IN for name in samples.names(kind, "startup-fail*.log")} <= set(RECORDED)


@pytest.mark.parametrize(
    ("name", "failure_class", "sentence"), [(name, *row) for name, rows in SENTENCES.items() for row in rows]
)
def test_a_sentence_has_its_class_and_its_remedy(name: str, failure_class: str, sentence: str) -> None:
    found = stack(name).find_failure(["INFO all is well", f"(EngineCore pid=7) ERROR 11-23 [x.py:1] {sentence}"])
    assert found is not None
    assert found.failure_class == failure_class
    assert sentence in found.line
    assert len(found.remedy) > 20
    assert "{" not in found.remedy, "a group of the pattern was not filled in"


@pytest.mark.parametrize("name", [name for name in BUILT_IN if name != "external"])
@pytest.mark.parametrize(("failure_class", "sentence"), SHARED)
def test_what_torch_the_hub_and_the_machine_say_is_the_same_for_all(
    name: str, failure_class: str, sentence: str
) -> None:
    found = stack(name).find_failure([sentence])
    assert found is not None
    assert (found.failure_class, found.line) == (failure_class, sentence)


@pytest.mark.parametrize("name", BUILT_IN)
def test_harmless_lines_are_no_failure(name: str) -> None:
    assert stack(name).find_failure(HARMLESS) is None


@pytest.mark.parametrize("name", SENTENCES)
def test_every_row_of_a_failure_table_is_met_by_a_sentence(name: str) -> None:
    """No row without a sentence that somebody has seen."""
    sheet = BUILT_IN[name]()
    said = [sentence for _, sentence in (*SENTENCES[name], *SHARED)]
    recorded = [line for file in samples.names(name, "*.log") for line in samples.lines(file)]
    for row in (*sheet.failures, *sheet.last_failures):  # type: ignore[attr-defined]
        assert any(row.pattern.search(line) for line in (*said, *recorded)), row.pattern.pattern
