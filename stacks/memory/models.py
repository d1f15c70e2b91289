"""Geometry and parameter counts of language models: the built-in table, and the shape every other source takes.

Counts are parameters, not bytes; `formats` turns them into bytes. The table's own `_fields` entry documents each key.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any, Literal

import msgspec

from orchestrator.errors import LoadproofError


class UnknownFactError(LoadproofError):
    """A model, card, format or engine version that nothing is known of; the remedy names the nearest ones."""

    exit_code = 2


class NonsenseError(LoadproofError):
    """Facts or settings that cannot be true: zero layers, heads that do not divide, negative memory."""

    exit_code = 2


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all facts: immutable, keyword only; unknown keys of a file are ignored."""


class Moe(Facts, frozen=True, kw_only=True):
    experts: int
    experts_per_token: int
    expert_intermediate: int
    shared_experts: int = 0
    shared_intermediate: int | None = None
    first_dense_layers: int = 0
    moe_layer_step: int = 1


class Mla(Facts, frozen=True, kw_only=True):
    """Latent attention (DeepSeek): ranks and head sizes."""

    kv_lora_rank: int
    qk_rope_head_dim: int
    qk_nope_head_dim: int
    v_head_dim: int
    q_lora_rank: int | None = None


class GlobalAttention(Facts, frozen=True, kw_only=True):
    """What full-attention layers have instead, where they differ from the windowed ones."""

    head_dim: int
    kv_heads: int
    k_equals_v: bool = False
    """The projections are shared; the cache still stores both (K is rotated, V is not)."""


class LinearAttention(Facts, frozen=True, kw_only=True):
    """Layers with a fixed state per sequence (gated DeltaNet and kin)."""

    key_heads: int
    value_heads: int
    key_head_dim: int
    value_head_dim: int
    conv_kernel: int
    state_dtype: str = "float32"


class Params(Facts, frozen=True, kw_only=True):
    """Parameter counts by component; `text_total` is their sum without vision."""

    embedding: int
    lm_head: int
    attention: int
    mlp: int
    experts: int
    norms: int
    text_total: int
    positions: int = 0
    other: int = 0
    vision: int | None = None
    status: str = "structural"


class Checkpoint(Facts, frozen=True, kw_only=True):
    """Quantization of the weights as shipped."""

    method: str
    bits: int | None = None
    group: int | None = None
    modules_16bit: tuple[str, ...] = ()


class Model(Facts, frozen=True, kw_only=True):
    """A model's geometry. `heads`, `kv_heads`, `head_dim` are per attention layer; MLA has its own ranks."""

    name: str = ""
    layers: int
    hidden: int
    heads: int
    kv_heads: int | None
    head_dim: int | None
    intermediate: int | None
    vocab: int
    max_position: int | None
    rotary_cache_positions: int
    rotary_dim: int
    tied_embeddings: bool
    gated_mlp: bool = True
    """Three MLP matrices instead of two."""
    params: Params
    layer_types: dict[str, int] | None = None
    window: int | None = None
    global_attention: GlobalAttention | None = None
    moe: Moe | None = None
    mla: Mla | None = None
    linear_attention: LinearAttention | None = None
    checkpoint_quantization: Checkpoint | None = None
    encoder: Literal["fixed", "dynamic", "audio"] | None = None
    """What sees the other modality: images of one size, images of any size up to a budget, sound."""
    notes: str | None = None

    @property
    def approximate(self) -> bool:
        """Some parts of the model are counted only roughly, so its weights are too."""
        return "approximate" in self.params.status or "rounded" in self.params.status

    @property
    def moe_layers(self) -> int:
        """Layers that hold routed experts."""
        if self.moe is None:
            return 0
        return len(range(self.moe.first_dense_layers, self.layers, self.moe.moe_layer_step))

    @property
    def router_params(self) -> int:
        """16-bit router weights, held whole by every rank: moe layers x experts x hidden."""
        return self.moe_layers * self.moe.experts * self.hidden if self.moe else 0

    @property
    def linear_layers(self) -> int:
        return (self.layer_types or {}).get("linear_attention", 0)

    @property
    def windowed_layers(self) -> int:
        kinds = self.layer_types or {}
        return kinds.get("sliding_attention", 0) + kinds.get("chunked_attention", 0)

    @property
    def chunked(self) -> bool:
        """Windowed layers attend within fixed chunks (Llama 4) instead of a sliding window."""
        return bool((self.layer_types or {}).get("chunked_attention"))

    @property
    def full_layers(self) -> int:
        return self.layers - self.windowed_layers - self.linear_layers


def check_model(model: Model) -> Model:
    """The same model, or `NonsenseError` naming the first fact that cannot be true."""
    for name in ("layers", "hidden", "heads", "vocab"):
        if getattr(model, name) <= 0:
            raise NonsenseError(f"{model.name or 'model'}: {name} is {getattr(model, name)}, which must be positive.")
    if model.mla is None:
        if not model.kv_heads or not model.head_dim or model.kv_heads < 0 or model.head_dim < 0:
            raise NonsenseError(f"{model.name or 'model'}: kv_heads and head_dim must be positive.")
        if model.heads % model.kv_heads:
            raise NonsenseError(
                f"{model.name or 'model'}: {model.heads} query heads do not divide over {model.kv_heads} KV heads."
            )
    if model.layer_types and sum(model.layer_types.values()) != model.layers:
        raise NonsenseError(f"{model.name or 'model'}: the layer kinds do not add up to {model.layers} layers.")
    return model


# --- the built-in table -----------------------------------------------------------------------------------------


def _read_data(name: str) -> Any:
    return msgspec.json.decode(resources.files("stacks.memory").joinpath("data", name).read_bytes())


@functools.cache
def builtin_models() -> Mapping[str, Model]:
    """Hub id -> model, in the table's order."""
    table = _read_data("model-facts.json")["models"]
    return {name: msgspec.convert({**facts, "name": name}, Model) for name, facts in table.items()}


@functools.cache
def _aliases() -> Mapping[str, str]:
    return {simplify(alias): target for alias, target in _read_data("model-aliases.json")["aliases"].items()}


_NOISE = re.compile(
    r"^(instruct|chat|base|hf|it|sft|dpo|awq|gptq|gguf|nvfp4|mxfp4|mxfp8|fp8|fp16|bf16|f16|int4|int8|w\d+a\d+|g\d+"
    r"|4bit|8bit|nf4|bnb|bitsandbytes|quantized|dynamic|static|block|kv|qat|meta|marlin|unsloth|full|finetune|fine|tune"
    r"|\d{4}|i?q\d\w*|[kx]|xxs|xs|s|m|l)$"
)


def simplify(name: str) -> str:
    """A model's name without its organisation and without words on tuning and quantization, for look-ups."""
    tail = re.sub(r"\(.*?\)", "", name).strip().rsplit("/", 1)[-1].lower()
    tail = re.sub(r"\.gguf$", "", tail)
    tail = re.sub(r"llama3(?=[-_.])", "llama-3", tail)
    words = [word for word in re.split(r"[-_:\s]+|\.(?=[a-z])", tail) if word and not _NOISE.match(word)]
    return "-".join(words)


@functools.cache
def _by_simple_name() -> Mapping[str, str]:
    table: dict[str, str] = {}
    for name in builtin_models():
        table.setdefault(simplify(name), name)
    return table


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """The known names closest to `name`, for a remedy."""
    by_lower = {entry.lower(): entry for entry in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=count, cutoff=0.4)
    return ", ".join(by_lower[entry] for entry in close) or ", ".join(list(by_lower.values())[:count])


def find_model(name: str) -> Model:
    """A model of the table by hub id, by a fine-tune's or quantized copy's name, or by alias.

    Raises `UnknownFactError` naming the nearest models.
    """
    table = builtin_models()
    if name in table:
        return table[name]
    simple = simplify(name)
    target = _by_simple_name().get(simple) or _aliases().get(simple)
    if target is None:
        raise UnknownFactError(f"Nothing is known of the model {name!r}.", f"Nearest: {nearest(name, table)}.")
    return table[target]
