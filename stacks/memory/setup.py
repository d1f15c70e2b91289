"""The settings that decide a memory bill, and what an engine takes for those that are left away."""

from __future__ import annotations

from typing import Literal, NamedTuple

from stacks.memory.cards import GIB, Card, HardwareClass
from stacks.memory.formats import KvFormat, WeightFormat
from stacks.memory.models import Facts, Model, NonsenseError
from stacks.memory.versions import Version, constant, newest_known
from stacks.memory.weights import Sharding, Stage

Generation = Literal["V0", "V1"]

PREDICTED_STACKS = ("vllm", "sglang", "tgi", "llamacpp")
"""Stacks whose pool rule is known. Others get weights and KV bytes per token only."""


class Setup(Facts, frozen=True, kw_only=True):
    """A deployment as far as memory goes. None = left to the engine's default."""

    model: Model
    weights: WeightFormat
    kv: KvFormat
    card: Card | None
    """None: nothing is known of the card, so no pool can be predicted."""
    card_low_gib: float | None = None
    card_high_gib: float | None = None
    """Spread of the card's memory, where only its size class is known."""
    total_is_measured: bool = False
    """The card's memory is this machine's own figure, not the table's."""
    stack: str = "vllm"
    version: Version | None = None
    generation: Generation | None = None
    checkpoint: str = ""
    online: bool = False
    """Weights are quantised while they are loaded."""
    pooling: bool = False
    """A pooling model: no lm_head."""
    weight_bytes: int | None = None
    """Tensor bytes summed from the checkpoint's headers, over all ranks: replaces the formula for the tensors."""
    tensor: int = 1
    pipeline: int = 1
    memory_fraction: float | None = None
    """vLLM gpu_memory_utilization, SGLang mem_fraction_static, TGI cuda_memory_fraction."""
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    """Running requests; slots in llama.cpp."""
    max_num_batched_tokens: int | None = None
    """Tokens of a batch; chunked prefill in SGLang, max_batch_prefill_tokens in TGI, micro batch in llama.cpp."""
    eager: bool = False
    """No CUDA graphs."""
    offline: bool = False
    """Started as a library, whose defaults are larger than the server's."""
    kv_cache_bytes: int | None = None
    """A pinned pool: replaces every pool rule."""
    block_tokens: int = 16
    unified_kv: bool = True
    """llama.cpp: one cache for all slots (its default)."""
    cpu: bool = False
    """There is no card and none is meant: the engine works in host memory."""
    in_python: bool = False
    """llama.cpp: run by a Python process (`stacks.llamacpp_portable`) and not by its own program."""
    free_before_load_bytes: int | None = None
    free_after_load_bytes: int | None = None
    """SGLang: free memory as it logs it; without it both are predicted."""
    extra_features: tuple[str, ...] = ()
    """LoRA, drafts, ...: lines that these formulas do not have."""

    @property
    def known_version(self) -> Version:
        """The version whose constants apply: the named one, else the newest of its generation that was checked."""
        if self.version is not None:
            return self.version
        if self.stack == "vllm" and self.generation == "V0":
            return Version(0, 7)
        return newest_known(self.stack)

    @property
    def engine(self) -> Generation:
        """vLLM's engine generation: V0 up to 0.7."""
        if self.generation is not None:
            return self.generation
        return "V0" if self.known_version < Version(0, 8) else "V1"

    @property
    def hardware(self) -> HardwareClass:
        if self.cpu:
            return "x86"
        return self.card.hardware_class if self.card is not None else "older"

    @property
    def total_bytes(self) -> int | None:
        return self.card.usable_bytes if self.card is not None else None

    def shards(self, stage: Stage) -> Sharding:
        return Sharding(self.tensor, self.pipeline, stage)


def check_setup(setup: Setup) -> Setup:
    """The same setup, or `NonsenseError` naming what cannot be true."""
    for name in ("tensor", "pipeline", "block_tokens"):
        if getattr(setup, name) < 1:
            raise NonsenseError(f"{name} is {getattr(setup, name)}, which must be at least 1.")
    for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "kv_cache_bytes"):
        value = getattr(setup, name)
        if value is not None and value < 1:
            raise NonsenseError(f"{name} is {value}, which must be at least 1.")
    if setup.memory_fraction is not None and not 0 < setup.memory_fraction <= 1:
        raise NonsenseError(f"The memory fraction is {setup.memory_fraction}, which must be above 0 and at most 1.")
    if setup.model.heads % setup.tensor:
        sizes = ", ".join(str(ranks) for ranks in (1, 2, 4, 8, 16) if setup.model.heads % ranks == 0)
        raise NonsenseError(
            f"{setup.model.heads} attention heads of {setup.model.name or 'the model'} "
            f"do not divide over {setup.tensor} ranks.",
            f"Tensor parallel sizes that do: {sizes}.",
        )
    if setup.pipeline > setup.model.layers:
        raise NonsenseError(f"{setup.pipeline} pipeline ranks are more than the model's {setup.model.layers} layers.")
    return setup


class Limits(NamedTuple):
    """The settings that hold: those given, and the engine's defaults for the rest."""

    fraction: float
    max_model_len: int
    seqs: int
    batched_tokens: int


_LLAMACPP_SLOTS = 4
_FALLBACK_LEN = 2048


def _model_len(setup: Setup) -> int:
    return setup.max_model_len or setup.model.max_position or _FALLBACK_LEN


def _vllm_limits(setup: Setup) -> Limits:
    version, length = setup.known_version, _model_len(setup)
    fraction = setup.memory_fraction or constant("vllm", "default_utilization", version, setup.hardware).value
    if setup.engine == "V0":
        # One prompt of the whole length is profiled, until chunked prefill switches itself on.
        profiled = max(length, 2048) if length <= 32768 else 512
        return Limits(fraction, length, setup.max_num_seqs or 256, setup.max_num_batched_tokens or profiled)
    seqs, tokens = _v1_defaults(setup)
    seqs = setup.max_num_seqs or seqs
    tokens = setup.max_num_batched_tokens or min(tokens, seqs * length)
    return Limits(fraction, length, min(seqs, tokens), tokens)


def _v1_defaults(setup: Setup) -> tuple[int, int]:
    """max_num_seqs and max_num_batched_tokens by card: an A100-80 has other defaults than an H100-80."""
    total = (setup.total_bytes or 0) / GIB
    if setup.known_version < Version(0, 8):
        return 256, 8192 if setup.offline else 2048
    if total >= 160 and setup.known_version >= Version(0, 20):
        return 1024, 16384
    if total >= 70 and not (setup.card is not None and setup.card.id.startswith("A100")):
        return 1024, 16384 if setup.offline else 8192
    return 256, 8192 if setup.offline else 2048


_SGLANG_SIZES = (
    # card memory below (GiB): chunked prefill, largest decode graph (tp 1 and 2), the same from tp 4 on
    (20, 2048, 8, 8),
    (35, 4096, 48, 160),
    (60, 4096, 32, 160),
    (90, 8192, 256, 512),
    (160, 8192, 256, 512),
    (float("inf"), 16384, 512, 512),
)
_MIB = 2**20


def sglang_defaults(total_bytes: float, tensor: int) -> tuple[int, int]:
    """Chunked prefill tokens and the largest decode graph of SGLang 0.5.23 on a card."""
    for below, chunk, graph, graph_wide in _SGLANG_SIZES:
        if total_bytes / GIB < below:
            return chunk, graph_wide if tensor >= 4 else graph
    raise AssertionError("the last row has no bound")


def sglang_fraction(total_bytes: float, tensor: int, pipeline: int, mla: bool, chunk: int, graph: int) -> float:
    """mem_fraction_static when it is not given: the share left after a reserve, MiB.

    reserved = 512 + 1.5*max(chunk, 2048) + 1024*tp*pp/8 + 2*decode_max_bs + prefill_graphs; at least 10240 above 60 GiB
    """
    memory = total_bytes / _MIB
    prefill_graphs = 1536 if mla else 0
    reserved = 512 + 1.5 * max(chunk, 2048) + 1024 * tensor * pipeline / 8 + 2 * graph + prefill_graphs
    if memory > 60 * 1024:
        reserved = max(reserved, 10240)
    return float(round((memory - reserved) / memory, 3))


def _sglang_limits(setup: Setup) -> Limits:
    total = setup.total_bytes or 0
    chunk, graph = sglang_defaults(total, setup.tensor)
    chunk = setup.max_num_batched_tokens or chunk
    fraction = setup.memory_fraction
    if fraction is None and total:
        fraction = sglang_fraction(
            total,
            setup.tensor,
            setup.pipeline,
            setup.model.mla is not None,
            chunk,
            min(graph, setup.max_num_seqs or graph),
        )
    return Limits(fraction or 0.0, _model_len(setup), setup.max_num_seqs or 4096, chunk)


def limits_of(setup: Setup) -> Limits:
    """What holds on this stack."""
    if setup.stack == "sglang":
        return _sglang_limits(setup)
    if setup.stack == "tgi":
        fraction = setup.memory_fraction or 1.0
        return Limits(fraction, _model_len(setup), setup.max_num_seqs or 128, setup.max_num_batched_tokens or 4096)
    if setup.stack == "llamacpp":
        slots = setup.max_num_seqs or _LLAMACPP_SLOTS
        return Limits(1.0, _model_len(setup), slots, setup.max_num_batched_tokens or 512)
    return _vllm_limits(setup)
