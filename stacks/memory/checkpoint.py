"""A model's facts from what lies on the disk: a config.json, a directory that holds one, or a GGUF file.

Where the weights lie beside the config (safetensors), their headers give the bytes to the byte; no weight is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from stacks.memory.formats import format_of_checkpoint
from stacks.memory.gguf_header import GgufHeader, Omitted, read_gguf_header
from stacks.memory.models import (
    Checkpoint,
    LinearAttention,
    Mla,
    Model,
    Moe,
    NonsenseError,
    Params,
    UnknownFactError,
    check_model,
)

_MOST_CONFIG_BYTES = 4 * 2**20
_MOST_HEADER_BYTES = 100 * 2**20

UNGATED = frozenset({"opt", "gpt2", "gptj", "gpt_neox", "phi", "starcoder2", "falcon", "bloom", "mpt", "gpt_bigcode"})
"""Model types whose MLP has two matrices."""


class FoundModel(NamedTuple):
    """A model, and what its files say of the weights."""

    model: Model
    weight_format: str | None = None
    """Key of the format table, where the checkpoint names one that is known."""
    weight_bytes: int | None = None
    """Sum of all tensors, where the weights are there."""


def _pick(config: Mapping[str, Any], *names: str, default: Any = None) -> Any:
    for name in names:
        if config.get(name) is not None:
            return config[name]
    return default


def _whole(config: Mapping[str, Any], *names: str, default: int | None = None) -> int:
    value = _pick(config, *names, default=default)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise NonsenseError(f"The config lacks {' or '.join(names)}, or it is no whole number (found {value!r}).")
    return int(value)


# --- config.json ------------------------------------------------------------------------------------------------


def _moe(config: Mapping[str, Any]) -> Moe | None:
    experts = _pick(config, "num_local_experts", "num_experts", "n_routed_experts")
    if not experts:
        return None
    return Moe(
        experts=int(experts),
        experts_per_token=_whole(config, "num_experts_per_tok", "experts_per_token", "moe_topk", default=1),
        expert_intermediate=_whole(config, "moe_intermediate_size", "intermediate_size"),
        shared_experts=int(_pick(config, "n_shared_experts", default=0)),
        shared_intermediate=_pick(config, "shared_expert_intermediate_size"),
        first_dense_layers=int(_pick(config, "first_k_dense_replace", default=0)),
        moe_layer_step=int(
            _pick(config, "decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_freq", default=1)
        ),
    )


def _mla(config: Mapping[str, Any]) -> Mla | None:
    if config.get("kv_lora_rank") is None:
        return None
    return Mla(
        kv_lora_rank=_whole(config, "kv_lora_rank"),
        q_lora_rank=config.get("q_lora_rank"),
        qk_rope_head_dim=_whole(config, "qk_rope_head_dim"),
        qk_nope_head_dim=_whole(config, "qk_nope_head_dim"),
        v_head_dim=_whole(config, "v_head_dim"),
    )


def _linear(config: Mapping[str, Any]) -> LinearAttention | None:
    if config.get("linear_num_value_heads") is None:
        return None
    return LinearAttention(
        key_heads=_whole(config, "linear_num_key_heads"),
        value_heads=_whole(config, "linear_num_value_heads"),
        key_head_dim=_whole(config, "linear_key_head_dim"),
        value_head_dim=_whole(config, "linear_value_head_dim"),
        conv_kernel=_whole(config, "linear_conv_kernel_dim", default=4),
    )


def _layer_types(config: Mapping[str, Any], layers: int) -> dict[str, int] | None:
    """Layers by kind; None if all attend to everything."""
    kinds = config.get("layer_types")
    if isinstance(kinds, list):
        counts: dict[str, int] = {}
        for kind in kinds:
            counts[str(kind)] = counts.get(str(kind), 0) + 1
        return None if set(counts) == {"full_attention"} else counts
    pattern = config.get("sliding_window_pattern")
    if isinstance(pattern, int) and pattern > 1 and config.get("sliding_window"):
        full = layers // pattern
        return {"full_attention": full, "sliding_attention": layers - full}
    step = config.get("full_attention_interval")
    if isinstance(step, int) and step > 1:
        return {"full_attention": layers // step, "linear_attention": layers - layers // step}
    return None


def _rotary_positions(config: Mapping[str, Any], max_position: int, windowed: bool) -> int:
    """Cached positions over all distinct rotary embeddings; scaling multiplies the length it starts from."""
    scaling = config.get("rope_scaling") or {}
    factor = scaling.get("factor")
    kind = _pick(scaling, "rope_type", "type", default="")
    length = max_position
    if isinstance(factor, int | float) and kind in {"linear", "yarn", "dynamic"}:
        original = scaling.get("original_max_position_embeddings")
        length = int((original or max_position) * factor)
    # Local layers rotate with a base of their own (Gemma 3) and keep a cache of their own.
    return length + max_position if windowed and config.get("rope_local_base_freq") else length


class _Sizes(NamedTuple):
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    gated: bool
    tied: bool


def _sizes(config: Mapping[str, Any]) -> _Sizes:
    layers = _whole(config, "num_hidden_layers", "n_layer", "num_layers")
    hidden = _whole(config, "hidden_size", "n_embd", "d_model")
    heads = _whole(config, "num_attention_heads", "n_head")
    if layers <= 0 or hidden <= 0 or heads <= 0:
        raise NonsenseError(
            f"The config has {layers} layers, hidden size {hidden} and {heads} heads: all must be positive."
        )
    return _Sizes(
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=_whole(config, "num_key_value_heads", "num_kv_heads", default=heads),
        head_dim=_whole(config, "head_dim", default=hidden // heads),
        intermediate=_whole(config, "intermediate_size", "ffn_dim", "n_inner", default=4 * hidden),
        vocab=_whole(config, "vocab_size"),
        gated=str(config.get("model_type", "")) not in UNGATED,
        tied=bool(
            _pick(config, "tie_word_embeddings", default=config.get("model_type") in {"gemma2", "gemma3_text", "opt"})
        ),
    )


def _attention_count(sizes: _Sizes, mla: Mla | None, bias: bool) -> int:
    if mla is None:
        query, key_value = sizes.heads * sizes.head_dim, 2 * sizes.kv_heads * sizes.head_dim
        return sizes.layers * (2 * sizes.hidden * query + sizes.hidden * key_value + (query + key_value) * bias)
    head = mla.qk_nope_head_dim + mla.qk_rope_head_dim
    rank = mla.q_lora_rank
    down = sizes.hidden * sizes.heads * head if rank is None else rank * (sizes.hidden + sizes.heads * head + 1)
    latent = sizes.hidden * (mla.kv_lora_rank + mla.qk_rope_head_dim) + mla.kv_lora_rank
    up = mla.kv_lora_rank * sizes.heads * (mla.qk_nope_head_dim + mla.v_head_dim)
    return sizes.layers * (down + latent + up + sizes.heads * mla.v_head_dim * sizes.hidden)


def _mlp_counts(sizes: _Sizes, moe: Moe | None) -> tuple[int, int]:
    """(MLP with shared experts and routers, routed experts)."""
    matrices = 3 if sizes.gated else 2
    dense = matrices * sizes.hidden * sizes.intermediate
    if moe is None:
        return sizes.layers * dense, 0
    moe_layers = len(range(moe.first_dense_layers, sizes.layers, moe.moe_layer_step))
    shared = moe.shared_intermediate or moe.shared_experts * moe.expert_intermediate
    per_layer = 3 * sizes.hidden * shared + moe.experts * sizes.hidden
    routed = moe_layers * moe.experts * 3 * sizes.hidden * moe.expert_intermediate
    return (sizes.layers - moe_layers) * dense + moe_layers * per_layer, routed


def _params(sizes: _Sizes, moe: Moe | None, mla: Mla | None, bias: bool, vision: bool) -> Params:
    embedding = sizes.vocab * sizes.hidden
    attention = _attention_count(sizes, mla, bias)
    mlp, experts = _mlp_counts(sizes, moe)
    norms = (2 * sizes.layers + 1) * sizes.hidden
    head = 0 if sizes.tied else embedding
    status = "approximate, vision tower not counted" if vision else "structural"
    return Params(
        embedding=embedding,
        lm_head=head,
        attention=attention,
        mlp=mlp,
        experts=experts,
        norms=norms,
        text_total=embedding + head + attention + mlp + experts + norms,
        status=status,
    )


def _quantization(config: Mapping[str, Any]) -> Checkpoint | None:
    table = config.get("quantization_config")
    if not isinstance(table, dict):
        return None
    method = str(_pick(table, "quant_method", "quant_algo", default=""))
    bits = _pick(table, "bits", "w_bit")
    group = _pick(table, "group_size", "q_group_size")
    groups = table.get("config_groups")
    if isinstance(groups, dict) and groups:
        # compressed-tensors: bits and group of the first group of layers
        weights = next(iter(groups.values())).get("weights") or {}
        bits, group = weights.get("num_bits", bits), weights.get("group_size", group)
        if weights.get("type") == "float" and bits == 8:
            method = "fp8"
    if table.get("load_in_8bit"):
        bits = 8
    kept = _pick(table, "modules_to_not_convert", "ignore", "ignored_layers", default=[])
    return Checkpoint(
        method=method, bits=bits, group=group, modules_16bit=tuple(str(name) for name in kept if isinstance(name, str))
    )


def model_of_config(config: Mapping[str, Any], name: str) -> Model:
    """The model of a Hugging Face config.json. Raises `NonsenseError` for what is missing or cannot be."""
    text = config.get("text_config")
    inner = {**config, **text} if isinstance(text, dict) else dict(config)
    sizes = _sizes(inner)
    moe, mla = _moe(inner), _mla(inner)
    kinds = _layer_types(inner, sizes.layers)
    max_position = _whole(inner, "max_position_embeddings", "n_positions", default=2048)
    windowed = bool(kinds and kinds.get("sliding_attention"))
    encoder = "vision_config" in config or "audio_config" in config
    rotary = (
        mla.qk_rope_head_dim if mla else int(sizes.head_dim * float(_pick(inner, "partial_rotary_factor", default=1)))
    )
    bias = bool(_pick(inner, "attention_bias", "qkv_bias", default=inner.get("model_type") in {"qwen2", "qwen2_moe"}))
    model = Model(
        name=name,
        layers=sizes.layers,
        hidden=sizes.hidden,
        heads=sizes.heads,
        kv_heads=None if mla else sizes.kv_heads,
        head_dim=None if mla else sizes.head_dim,
        intermediate=sizes.intermediate,
        vocab=sizes.vocab,
        max_position=max_position,
        rotary_cache_positions=_rotary_positions(inner, max_position, windowed),
        rotary_dim=rotary,
        tied_embeddings=sizes.tied,
        gated_mlp=sizes.gated,
        params=_params(sizes, moe, mla, bias, encoder),
        layer_types=kinds,
        window=_pick(inner, "sliding_window", "attention_chunk_size") if kinds else None,
        moe=moe,
        mla=mla,
        linear_attention=_linear(inner),
        checkpoint_quantization=_quantization(config),
        encoder=None if not encoder else "audio" if "audio_config" in config else "dynamic",
    )
    return check_model(model)


def read_config(text: bytes, name: str) -> FoundModel:
    """A config.json's text, from the disk or from a hub."""
    try:
        config = json.loads(text[:_MOST_CONFIG_BYTES])
    except ValueError as error:
        raise NonsenseError(f"{name}: the config.json is not JSON ({error}).") from None
    if not isinstance(config, dict):
        raise NonsenseError(f"{name}: the config.json holds no table.")
    model = model_of_config(config, name)
    shipped = model.checkpoint_quantization
    return FoundModel(model, format_of_checkpoint(shipped.method, shipped.bits) if shipped else None)


# --- weights on the disk ----------------------------------------------------------------------------------------


def safetensors_bytes(path: Path) -> int:
    """Bytes of all tensors of one safetensors file, from its header."""
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) != 8 or not 2 <= length <= _MOST_HEADER_BYTES:
            raise NonsenseError(f"{path} is not a readable safetensors file: its header claims {length} bytes.")
        try:
            header = json.loads(file.read(length))
            spans = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
            return sum(int(end) - int(begin) for begin, end in spans)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise NonsenseError(f"{path} is not a readable safetensors file: {error}.") from None


def _gguf_params(header: GgufHeader) -> Params:
    counts = {"embedding": 0, "lm_head": 0, "attention": 0, "mlp": 0, "experts": 0, "norms": 0, "other": 0}
    for tensor in header.tensors:
        counts[_gguf_component(tensor.name)] += tensor.elements
    return Params(**counts, text_total=sum(counts.values()), status="exact")


def _gguf_component(name: str) -> str:
    for part, component in (
        ("token_embd", "embedding"),
        ("norm", "norms"),
        ("_exps", "experts"),
        ("attn", "attention"),
        ("ffn", "mlp"),
    ):
        if part in name:
            return component
    return "lm_head" if name.startswith("output") else "other"


def _gguf_format(header: GgufHeader) -> str | None:
    """The format by the type that holds most of the file."""
    sizes: dict[str, int] = {}
    for tensor in header.tensors:
        sizes[tensor.type] = sizes.get(tensor.type, 0) + tensor.bytes
    main = max(sizes, key=lambda kind: sizes[kind], default="")
    known = {"f32": "fp32", "f16": "16-bit", "bf16": "16-bit", "q4_k": "gguf-q4_k_m", "q5_k": "gguf-q5_k_m"}
    return known.get(main, f"gguf-{main}" if main in {"q4_0", "q4_1", "q6_k", "q8_0"} else None)


def model_of_gguf(header: GgufHeader, name: str) -> Model:
    """The model of a GGUF header. Raises `NonsenseError` for what is missing or cannot be."""
    family = str(header.metadata.get("general.architecture", ""))
    own = {
        key.removeprefix(f"{family}."): value for key, value in header.metadata.items() if key.startswith(f"{family}.")
    }
    layers, hidden = _whole(own, "block_count"), _whole(own, "embedding_length")
    heads = _whole(own, "attention.head_count")
    kv_heads = own.get("attention.head_count_kv", heads)
    if isinstance(kv_heads, list):
        kv_heads = max((int(value) for value in kv_heads), default=heads)
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    listed = tokens.length if isinstance(tokens, Omitted) else len(tokens) if isinstance(tokens, list) else None
    head_dim = _whole(own, "attention.key_length", default=hidden // heads if heads else None)
    max_position = _whole(own, "context_length", default=2048)
    experts = own.get("expert_count")
    intermediate = own.get("feed_forward_length", 4 * hidden)
    if isinstance(intermediate, list):
        intermediate = max(int(value) for value in intermediate)
    model = Model(
        name=name,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=int(kv_heads),
        head_dim=head_dim,
        intermediate=int(intermediate),
        vocab=_whole(own, "vocab_size", default=listed),
        max_position=max_position,
        rotary_cache_positions=max_position,
        rotary_dim=_whole(own, "rope.dimension_count", default=head_dim),
        tied_embeddings=not any(tensor.name == "output.weight" for tensor in header.tensors),
        params=_gguf_params(header),
        moe=Moe(
            experts=int(experts),
            experts_per_token=_whole(own, "expert_used_count"),
            expert_intermediate=_whole(own, "expert_feed_forward_length", default=int(intermediate)),
        )
        if experts
        else None,
    )
    return check_model(model)


def read_model(path: Path) -> FoundModel:
    """The model at a path: a config.json, a directory that holds one, or a GGUF file."""
    if path.is_dir():
        config = path / "config.json"
        if not config.is_file():
            raise UnknownFactError(
                f"{path} holds no config.json.", "Give the directory of a checkpoint, or a GGUF file."
            )
        found = read_config(config.read_bytes(), path.name)
        shards = sorted(path.glob("*.safetensors"))
        return found._replace(weight_bytes=sum(map(safetensors_bytes, shards)) if shards else None)
    if path.suffix == ".gguf":
        header = read_gguf_header(path)
        return FoundModel(model_of_gguf(header, path.name), _gguf_format(header), header.tensor_bytes)
    return read_config(path.read_bytes(), path.parent.name or path.name)
