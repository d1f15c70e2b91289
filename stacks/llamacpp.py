"""llama.cpp's llama-server: the file decides the quantization, the KV cache is divided into slots at start."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, ClassVar

from orchestrator.records import Prompt
from stacks.base import REAL, Capabilities, Delta, Deployment, LaunchKind, Readiness, Setting, Wire
from stacks.command import Flag, command_words, when
from stacks.logs import MIB, Fact, failure
from stacks.openai import ChatWire, CompletionsWire, Dialect, count, error_text
from stacks.prometheus import Metric
from stacks.settings import Release, Values
from stacks.sheet import ANY_REVISION, DataSheet

DEFAULT_SLOTS = 4
DEFAULT_BATCH_TOKENS = 2048
DEFAULT_UBATCH_TOKENS = 512
CUDA_IMAGE = "ghcr.io/ggml-org/llama.cpp:server-cuda"
CPU_IMAGE = "ghcr.io/ggml-org/llama.cpp:server"
_UNIFIED = ("-kvu", "--kv-unified")

FILE_TYPES = (
    *("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_0", "Q5_1", "Q5_K", "Q5_K_S", "Q5_K_M"),
    *("Q4_0", "Q4_1", "Q4_K", "Q4_K_S", "Q4_K_M", "Q4_K_XL", "Q3_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q2_K", "Q2_K_S"),
    *("IQ4_NL", "IQ4_XS", "IQ3_M", "IQ3_S", "IQ3_XS", "IQ3_XXS", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS"),
    *("IQ1_M", "IQ1_S", "TQ1_0", "TQ2_0", "MXFP4", "MXFP4_MOE", "NVFP4"),
)
KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
_FILE_TYPE = re.compile(
    r"(?i)(?<![A-Za-z0-9])((?:I?Q\d|TQ\d)_[A-Z0-9_]+|B?F16|F32|MXFP4(?:_MOE)?|NVFP4)(?![A-Za-z0-9])"
)

FACTS = (
    Fact("kv_bytes", re.compile(r"KV self size\s+=\s*(?P<value>[\d.]+) MiB"), MIB),
    Fact("slots", re.compile(r"n_slots = (?P<value>\d+), n_ctx_slot")),
    Fact("context_tokens", re.compile(r"n_slots = \d+, n_ctx_slot = (?P<value>\d+)")),
    Fact("kv_unified", re.compile(r"kv_unified = '(?P<value>true|false)'"), None),
    Fact("kv_type", re.compile(r"\bsize\s+=.*\bK \((?P<value>\w+)\):"), None),
    Fact("file_type", re.compile(r"print_info: file type\s+= (?P<value>.+?)\s*$"), None),
    Fact("compute_bytes", re.compile(r":\s+(?P<part>\S+) compute buffer size =\s*(?P<value>[\d.]+) MiB"), MIB, "parts"),
    Fact(
        "fit",
        re.compile(
            r"(?P<value>cannot meet free memory targets? (?:of|on all devices)[^,]*"
            r"|failed to fit params to free device memory)"
        ),
        None,
    ),
)
_BUILD = re.compile(r"build(?:_info)?:? (?P<build>b?\d+ ?[-(]\w+)")
_BUILD_NUMBER = re.compile(r"b?(\d{3,})(?=\D|$)")
NEWEST_BUILD = 11549
"""The newest build whose lines and metrics were read."""
_CONTEXT = re.compile(r"constructing llama_context")
_WEIGHTS = re.compile(r"load_tensors:\s+(?P<part>\S+)(?: model)? buffer size =\s*(?P<mib>[\d.]+) MiB")
_KV_BUFFER = re.compile(r":\s+(?P<part>\S+) KV buffer size =\s*(?P<mib>[\d.]+) MiB")
_KV_CELLS = re.compile(r"size =\s*[\d.]+ MiB \(\s*(?P<cells>\d+) cells,.*?\d+(?:/(?P<streams>\d+))? seqs\)")
_LAYERS = re.compile(r"offloaded (?P<n>\d+)/(?P<all>\d+) layers to GPU")
_LOADED = re.compile(r"(?P<min>\d+)\.(?P<s>\d+)\.(?P<ms>\d+)\.\d+ I .*(?:model loaded|listening on http)")

FAILURES = (
    failure(
        "oom-kv",
        r"failed to allocate buffer for kv cache|failed to allocate .*kv cache",
        "The KV cache does not fit: lower context_tokens or max_concurrency, or take a smaller kv_dtype.",
    ),
    failure(
        "oom-compute",
        r"failed to allocate compute buffers?",
        "The compute buffer does not fit: lower max_batched_tokens, or leave more memory free.",
    ),
    failure(
        "oom-weights",
        r"unable to allocate \S+ buffer|cudaMalloc failed: out of memory|ErrorOutOfDeviceMemory",
        "The weights do not fit on the device: take a smaller file, or offload fewer layers (-ngl N in args).",
    ),
    failure(
        "out of memory",
        r"ggml_aligned_malloc: insufficient memory|failed to allocate \S+ buffer of size",
        "There is not enough host memory: take a smaller file or a shorter context.",
    ),
    failure(
        "not-found",
        r"failed to open GGUF file|failed to open .*\.gguf",
        "The model file is not there, or may not be read: check the path, and the mount in a container.",
    ),
    failure(
        "model-broken",
        r"model is corrupted or incomplete|invalid magic characters|failed to read tensor (?:info|data)",
        "The model file is cut short or damaged: download it again.",
    ),
    failure("model-unknown", r"unknown model architecture: '", "This build is older than the model: take a newer one."),
    failure(
        "kv-type",
        r"V cache quantization requires flash_attn|quantized V cache .*requires",
        "A quantized V cache needs flash attention, which this build or model does not have: take kv_dtype f16.",
    ),
)
LAST_FAILURES = (
    failure(
        "model-load-failed",
        r"error loading model|failed to load model|exiting due to model loading error|failed to create context",
        "The model could not be loaded: the lines before this one say why.",
    ),
    failure(
        "kv-full",
        r"Context size has been exceeded",
        "The shared KV cache was full and every active slot failed: raise kv_cache_tokens, or give each slot its own.",
    ),
)

METRICS = {
    "running": (Metric("llamacpp:requests_processing"),),
    "waiting": (Metric("llamacpp:requests_deferred"),),
    "kv_use": (Metric("llamacpp:kv_cache_usage_ratio"),),
    "prompt_tokens_total": (Metric("llamacpp:prompt_tokens_total"),),
    "output_tokens_total": (Metric("llamacpp:tokens_predicted_total"),),
    "cached_tokens_total": (Metric("llamacpp:prompt_tokens_cached_total"),),
}


class CompletionWire(Wire):
    """``/completion``, llama.cpp's own: token ids in, token ids and running counts out."""

    name: ClassVar[str] = "completion"
    path: ClassVar[str] = "/completion"
    takes_token_ids: ClassVar[bool] = True

    def __init__(self, *, cache_prompt: bool = False) -> None:
        self._cache_prompt = cache_prompt

    def body(self, prompt: Prompt, output_tokens: int, model: str) -> dict[str, Any]:
        content: str | list[int] = list(prompt.token_ids) if prompt.token_ids is not None else prompt.text or ""
        options = {"temperature": 0, "ignore_eos": True, "cache_prompt": self._cache_prompt, "stream": True}
        return {"prompt": content, "n_predict": output_tokens, **options}

    def delta(self, event: Any) -> Delta:
        if not isinstance(event, dict):
            return Delta()
        if error := error_text(event):
            return Delta(error=error)
        ids, content = event.get("tokens"), event.get("content")
        tokens = len(ids) if isinstance(ids, list) else None
        timings = event.get("timings")
        return Delta(
            text=bool(tokens) or (isinstance(content, str) and bool(content)),
            tokens=tokens,
            finish=_finish(event),
            in_tokens=count(event.get("tokens_evaluated")),
            out_tokens=count(event.get("tokens_predicted")),
            cached_tokens=count(timings.get("cache_n")) if isinstance(timings, dict) else None,
        )


def _finish(event: Mapping[str, Any]) -> str | None:
    """OpenAI's words for why the last event is the last."""
    if event.get("stop") is not True:
        return None
    return {"limit": "length", "eos": "stop", "word": "stop"}.get(str(event.get("stop_type")), "stop")


class LlamaCpp(DataSheet):
    name = "llamacpp"
    launches: ClassVar[tuple[LaunchKind, ...]] = (*REAL, "simulated")
    title = "llama.cpp"
    homepage = "https://github.com/ggml-org/llama.cpp"
    default_image = CUDA_IMAGE
    default_command = ("llama-server",)
    readiness = Readiness(version_path="/props")
    capabilities = Capabilities(
        token_ids=True,
        exact_length="ignore_eos",
        cache_off="per request",
        cache_check="field",
        takes_all_gpus=True,
        when_kv_full="lets requests wait for a slot; with a shared KV cache every active request fails at once",
    )
    wires: ClassVar[tuple[type[Wire], ...]] = (CompletionsWire, ChatWire, CompletionWire)
    port = 8080
    start_timeout_s = 900.0

    quantizations = Values((((0, 0, 0), FILE_TYPES),))
    kv_dtypes = Values((((0, 0, 0), KV_TYPES),))
    dtypes = ()
    refused: ClassVar[Mapping[str, str]] = {
        "memory_fraction": "It takes what context_tokens and max_concurrency need.",
        "kv_cache_bytes": "llama.cpp sizes its KV cache in tokens: kv_cache_tokens.",
        "revision": ANY_REVISION,
        "tensor_parallel": 'It splits by layer over all GPUs it is given; args = ["-sm", "row"] changes that.',
    }
    dialect = Dialect(length="ignore_eos", fields={"cache_prompt": False})
    start_marker = re.compile(r"loading model '")
    facts = FACTS
    failures = FAILURES
    last_failures = LAST_FAILURES
    metrics = METRICS

    # --- settings -----------------------------------------------------------------------------------------------

    def release(self, deployment: Deployment) -> Release | None:
        """llama.cpp numbers its builds and has no releases."""
        return None

    def spelled(self, quantization: str) -> str:
        return quantization.upper()

    def more_problems(self, deployment: Deployment) -> list[Setting]:
        asked, stands = deployment.quantization, file_type(deployment.model)
        if asked is None or stands is None or stands.startswith(asked.upper()):
            return []
        message = f"The file decides the quantization, and {deployment.model} is named {stands}, not {asked}."
        return [Setting("quantization", message, "Name another file, or leave the key out.")]

    # --- what to start ------------------------------------------------------------------------------------------

    def own_name(self, deployment: Deployment) -> str:
        return PurePosixPath(deployment.model).stem if is_file(deployment.model) else deployment.model

    def image(self, deployment: Deployment) -> str | None:
        return deployment.image or (CUDA_IMAGE if deployment.gpus else CPU_IMAGE)

    def entrypoint(self, deployment: Deployment) -> tuple[str, ...] | None:
        return ("/app/llama-server",)

    def arguments(self, deployment: Deployment, host: str, port: int) -> tuple[str, ...]:
        slots = deployment.max_concurrency or DEFAULT_SLOTS
        batch = deployment.max_batched_tokens or DEFAULT_BATCH_TOKENS
        kv_type = "f16" if deployment.kv_dtype == "auto" else deployment.kv_dtype
        flags = [
            _model_flag(deployment),
            Flag("--alias", self.served_name(deployment), ("-a",)),
            Flag("--host", host),
            Flag("--port", port),
            Flag("-c", context_of(deployment, slots), ("--ctx-size",)),
            Flag("-np", slots, ("--parallel",)),
            when(deployment.kv_cache_tokens, Flag("-kvu", None, (*_UNIFIED, "-no-kvu", "--no-kv-unified"))),
            Flag("-ngl", "all" if deployment.gpus else "0", ("--gpu-layers", "--n-gpu-layers")),
            # It would quietly shrink the context or leave layers on the CPU.
            Flag("--fit", "off", ("-fit",)),
            Flag("-b", batch, ("--batch-size",)),
            Flag("-ub", min(batch, DEFAULT_UBATCH_TOKENS), ("--ubatch-size",)),
            # A quantized V cache cannot do without flash attention.
            Flag("-fa", "on" if _is_quantized(kv_type) else "auto", ("--flash-attn",)),
            Flag("-ctk", kv_type, ("--cache-type-k",)),
            Flag("-ctv", kv_type, ("--cache-type-v",)),
            # Idle prompts would fill host memory over a run.
            Flag("--cache-ram", 0, ("-cram",)),
            *_thread_flags(deployment),
            # A stream holds its thread: with fewer, clients would queue where no metric sees them.
            Flag("--threads-http", max(256, 2 * slots + 64)),
            Flag("--metrics"),
            Flag("--slots"),
            Flag("--no-webui", None, ("--no-ui", "--webui", "--ui")),
            # The least verbosity that tells the memory.
            Flag("-lv", 4, ("--verbosity", "--log-verbosity", "-v", "--verbose")),
        ]
        return command_words(flags, deployment.args)

    # --- what it says -------------------------------------------------------------------------------------------

    def version_note(self, version: str | None) -> str | None:
        """Builds are numbered one after another, several a day, so only those after the known ones are unknown."""
        found = _BUILD_NUMBER.match(version or "")
        if found is None or int(found[1]) <= NEWEST_BUILD:
            return None
        return (
            f"{self.title} build {found[1]} is newer than what is known (up to {NEWEST_BUILD}): "
            "a log line or a metric that it has renamed is shown as not reported."
        )

    def log_facts(self, lines: Sequence[str]) -> dict[str, float | str]:
        builds = [found["build"] for line in lines if (found := _BUILD.search(line))]
        version: dict[str, float | str] = {"version": builds[-1].replace(" (", "-")} if builds else {}
        return {**version, **super().log_facts(lines)}

    def derived_facts(self, lines: Sequence[str]) -> dict[str, float | str]:
        return {**_weight_facts(lines), **_kv_facts(lines), **_loaded_facts(lines)}

    def metric_values(self, text: str) -> dict[str, float]:
        values = super().metric_values(text)
        # Its prompt counter leaves cached tokens out; those of the others hold them.
        if "prompt_tokens_total" in values:
            values["prompt_tokens_total"] += values.get("cached_tokens_total", 0.0)
        return values

    # --- what the report says -----------------------------------------------------------------------------------

    def _weight_notes(self, deployment: Deployment) -> list[str]:
        return []

    def path_note(self, deployment: Deployment, facts: Mapping[str, float | str]) -> str | None:
        on_card, layers = facts.get("gpu_layers"), facts.get("layers")
        if not deployment.gpus or not isinstance(on_card, float):
            return None
        if on_card == 0.0:
            return "A GPU was asked for, and no layer is on it: the CPU computes everything (wrong build?)."
        if isinstance(layers, float) and on_card < layers:
            return f"Only {on_card:.0f} of {layers:.0f} layers are on the card; the CPU computes the rest."
        return None

    def notes(self, deployment: Deployment) -> list[str]:
        found = super().notes(deployment)
        if deployment.launch == "external":
            return found
        slots = deployment.max_concurrency or DEFAULT_SLOTS
        if deployment.max_concurrency is None:
            found.append(f"No max_concurrency: {slots} slots; more users wait for one of them.")
        if deployment.kv_cache_tokens or set(_UNIFIED) & set(deployment.args):
            found.append("The slots share one KV cache: when it is full, every active request fails at once.")
        elif deployment.context_tokens is None:
            found.append(f"No context_tokens: the model's own context is divided among {slots} slots.")
        return found


def is_file(model: str) -> bool:
    """A path of a GGUF file, and not a hub repository."""
    return model.endswith(".gguf") or model.startswith(("/", "./", "../", "~"))


def file_type(model: str) -> str | None:
    """The quantization that a file's name or a repository's ``:TAG`` tells, in capitals; None if it tells none."""
    name = PurePosixPath(model).name if is_file(model) else model.partition(":")[2]
    found = _FILE_TYPE.findall(name)
    return str(found[-1]).upper() if found else None


def context_of(deployment: Deployment, slots: int) -> int:
    """``-c``: tokens of the whole KV cache. Divided among the slots, unless they share it; 0 = the model's own."""
    if deployment.kv_cache_tokens is not None:
        return deployment.kv_cache_tokens
    context = deployment.context_tokens or 0
    return context if set(_UNIFIED) & set(deployment.args) else context * slots


def _model_flag(deployment: Deployment) -> Flag:
    if is_file(deployment.model):
        return Flag("-m", deployment.model, ("--model",))
    tag = "" if deployment.quantization is None or ":" in deployment.model else f":{deployment.quantization}"
    return Flag("-hf", deployment.model + tag, ("--hf-repo", "-hfr"))


def _thread_flags(deployment: Deployment) -> list[Flag]:
    if deployment.cpus is None:
        return []
    threads = max(1, int(deployment.cpus))
    return [Flag("-t", threads, ("--threads",)), Flag("-tb", threads, ("--threads-batch",))]


def _is_quantized(kv_type: str) -> bool:
    return kv_type not in ("f32", "f16", "bf16")


def _on_host(buffer: str) -> bool:
    return buffer.startswith(("CPU", "AMX", "BLAS")) or buffer.endswith("Host")


def _buffers(lines: Sequence[str], pattern: re.Pattern[str]) -> Iterator[tuple[str, float]]:
    for line in lines:
        if found := pattern.search(line):
            yield found["part"], float(found["mib"]) * MIB


def _weight_facts(lines: Sequence[str]) -> dict[str, float | str]:
    """Weights on the device, with those that stay on the host beside them; without a device, all of them.

    Of one buffer the last line counts. ``offloaded 31/31 layers`` comes on a machine without a GPU too: only a buffer
    of a device proves it.
    """
    buffers = dict(_buffers(lines, _WEIGHTS))
    device = [size for name, size in buffers.items() if not _on_host(name)]
    host = [size for name, size in buffers.items() if _on_host(name)]
    if not device:
        return {"weights_bytes": sum(host), "gpu_layers": 0.0} if host else {}
    facts: dict[str, float | str] = {"weights_bytes": sum(device)}
    if host:
        facts["host_weights_bytes"] = sum(host)
    layers = [found for line in lines if (found := _LAYERS.search(line))]
    if not layers:
        return facts
    return {**facts, "gpu_layers": float(layers[-1]["n"]), "layers": float(layers[-1]["all"])}


def _kv_facts(lines: Sequence[str]) -> dict[str, float | str]:
    """All KV caches of the last context: models with sliding windows have two, and print the same names twice."""
    starts = [number for number, line in enumerate(lines) if _CONTEXT.search(line)]
    last = lines[starts[-1] :] if starts else lines
    facts: dict[str, float | str] = {}
    sizes = [size for _, size in _buffers(last, _KV_BUFFER)]
    if sizes:
        facts["kv_bytes"] = sum(sizes)
    cells = [int(found["cells"]) * int(found["streams"] or 1) for line in last if (found := _KV_CELLS.search(line))]
    if cells:
        facts["kv_tokens"] = float(max(cells))
    return facts


def _loaded_facts(lines: Sequence[str]) -> dict[str, float | str]:
    """Seconds from the start of the process until the model was loaded, from the time in front of that line."""
    for line in lines:
        if found := _LOADED.search(line):
            return {"init_s": int(found["min"]) * 60 + int(found["s"]) + int(found["ms"]) / 1000}
    return {}
