from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacks.memory.checkpoint import model_of_config, read_config, read_model, safetensors_bytes
from stacks.memory.formats import find_weight_format
from stacks.memory.gguf_header import Omitted, read_gguf_header
from stacks.memory.models import Model, NonsenseError, UnknownFactError, builtin_models, find_model
from stacks.memory.weights import weight_bytes, weight_parts

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192},
    "tie_word_embeddings": False,
}


def test_a_config_gives_what_the_table_has() -> None:
    model, known = model_of_config(LLAMA, "mine"), find_model("meta-llama/Meta-Llama-3.1-8B")
    assert model.params == msgspec.structs.replace(known.params, status="structural")
    assert (model.head_dim, model.kv_heads, model.rotary_cache_positions) == (128, 8, 131072)
    assert model.params.text_total == 8_030_261_248


def config_of(model: Model) -> dict[str, Any]:
    """A config.json of a table's model, as far as its family writes one."""
    config: dict[str, Any] = {
        "model_type": "llama" if model.gated_mlp else "starcoder2",
        "num_hidden_layers": model.layers,
        "hidden_size": model.hidden,
        "num_attention_heads": model.heads,
        "intermediate_size": model.intermediate or 0,
        "vocab_size": model.vocab,
        "max_position_embeddings": model.max_position or 2048,
        "tie_word_embeddings": model.tied_embeddings,
    }
    if model.kv_heads:
        config |= {"num_key_value_heads": model.kv_heads, "head_dim": model.head_dim}
    if model.mla:
        config |= {name: getattr(model.mla, name) for name in model.mla.__struct_fields__}
    if model.moe:
        config |= {
            "n_routed_experts": model.moe.experts,
            "num_experts_per_tok": model.moe.experts_per_token,
            "moe_intermediate_size": model.moe.expert_intermediate,
            "n_shared_experts": model.moe.shared_experts,
            "shared_expert_intermediate_size": model.moe.shared_intermediate,
            "first_k_dense_replace": model.moe.first_dense_layers,
            "decoder_sparse_step": model.moe.moe_layer_step,
        }
    return config


PLAIN = [
    name
    for name, model in builtin_models().items()
    if model.params.status == "exact" and model.layer_types is None and not model.params.positions
]


@pytest.mark.parametrize("name", PLAIN)
def test_counts_from_a_config_are_those_published(name: str) -> None:
    """Biases, QK norms and sinks are not in these configs: they are below 0.1 % of a model."""
    known = builtin_models()[name]
    counted = model_of_config(config_of(known), name).params
    assert counted.text_total == pytest.approx(known.params.text_total, rel=0.001)
    assert counted.experts == known.params.experts
    assert counted.embedding == known.params.embedding


def test_there_are_plain_models_to_count() -> None:
    assert len(PLAIN) >= 20


def test_layer_kinds_and_windows() -> None:
    gemma = {
        **LLAMA,
        "model_type": "gemma3_text",
        "num_hidden_layers": 12,
        "sliding_window": 1024,
        "sliding_window_pattern": 6,
    }
    assert model_of_config(gemma, "g").layer_types == {"full_attention": 2, "sliding_attention": 10}
    listed = {
        **LLAMA,
        "num_hidden_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 128,
    }
    assert model_of_config(listed, "l").window == 128
    assert model_of_config({**LLAMA, "layer_types": ["full_attention"] * 32}, "f").layer_types is None


def test_a_multimodal_config_says_that_its_tower_is_not_counted() -> None:
    config = {"text_config": LLAMA, "vision_config": {"depth": 27}, "model_type": "qwen3_5"}
    model = model_of_config(config, "v")
    assert model.encoder == "dynamic"
    assert model.approximate


def test_linear_scaling_multiplies_the_rotary_cache() -> None:
    scaled = {**LLAMA, "max_position_embeddings": 8192, "rope_scaling": {"type": "linear", "factor": 4.0}}
    assert model_of_config(scaled, "s").rotary_cache_positions == 32768


def test_quantised_checkpoints_name_their_format() -> None:
    gptq = {**LLAMA, "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32}}
    found = read_config(json.dumps(gptq).encode(), "q")
    assert found.weight_format == "gptq-int4"
    assert found.model.checkpoint_quantization is not None
    assert found.model.checkpoint_quantization.group == 32
    fine, usual = (
        weight_bytes(weight_parts(model, find_weight_format("gptq")))
        for model in (found.model, model_of_config(LLAMA, "plain"))
    )
    assert fine - usual == pytest.approx((2 / 32 - 2 / 128) * (found.model.params.attention + found.model.params.mlp))
    packed = {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}}},
        "ignore": ["lm_head"],
    }
    assert read_config(json.dumps({**LLAMA, "quantization_config": packed}).encode(), "c").weight_format == "fp8"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_hidden_layers": 0}, "0 layers"),
        ({"num_attention_heads": 0}, "0 heads"),
        ({"hidden_size": "many"}, "hidden_size"),
        ({"num_key_value_heads": 5}, "do not divide"),
        ({"vocab_size": None}, "vocab_size"),
        ({"vocab_size": True}, "vocab_size"),
    ],
)
def test_nonsense_in_a_config_is_refused_by_name(change: dict[str, Any], words: str) -> None:
    with pytest.raises(NonsenseError, match=words):
        model_of_config({**LLAMA, **change}, "bad")


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"\xff\xfe"])
def test_what_is_no_config_is_refused(text: bytes) -> None:
    with pytest.raises(NonsenseError, match=r"config\.json"):
        read_config(text, "bad")


# --- on the disk ------------------------------------------------------------------------------------------------


def write_safetensors(path: Path, spans: dict[str, tuple[int, int]]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    header |= {name: {"dtype": "BF16", "shape": [1], "data_offsets": list(span)} for name, span in spans.items()}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)


def test_a_directory_gives_config_and_tensor_bytes(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    write_safetensors(tmp_path / "model-00001-of-00002.safetensors", {"a": (0, 100), "b": (100, 150)})
    write_safetensors(tmp_path / "model-00002-of-00002.safetensors", {"c": (0, 7)})
    found = read_model(tmp_path)
    assert found.weight_bytes == 157
    assert found.model.layers == 32
    assert read_model(tmp_path / "config.json").weight_bytes is None


def test_a_directory_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownFactError, match=r"no config\.json"):
        read_model(tmp_path)


@pytest.mark.parametrize("data", [b"", b"\x01\0\0\0\0\0\0\0{", (10**12).to_bytes(8, "little"), b"\x02\0\0\0\0\0\0\0[]"])
def test_broken_safetensors_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(NonsenseError, match="safetensors"):
        safetensors_bytes(path)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def gguf_bytes(metadata: dict[str, bytes], tensors: list[tuple[str, tuple[int, ...], int]]) -> bytes:
    """A GGUF file's header; `metadata` holds each value with its kind in front, encoded."""
    data = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, value in metadata.items():
        data += text(key) + value
    for name, shape, kind in tensors:
        data += text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", side) for side in shape)
        data += struct.pack("<IQ", kind, 0)
    return data


def u32(value: int) -> bytes:
    return struct.pack("<II", 4, value)


SMALL = {
    "general.architecture": struct.pack("<I", 8) + text("llama"),
    "llama.block_count": u32(2),
    "llama.embedding_length": u32(256),
    "llama.feed_forward_length": u32(512),
    "llama.attention.head_count": u32(4),
    "llama.attention.head_count_kv": u32(2),
    "llama.context_length": u32(2048),
    "tokenizer.ggml.tokens": struct.pack("<IIQ", 9, 8, 5000) + text("a") * 5000,
}
TENSORS = [
    ("token_embd.weight", (256, 5000), 8),
    ("blk.0.attn_q.weight", (256, 256), 12),
    ("blk.0.ffn_down.weight", (512, 256), 12),
    ("blk.0.attn_norm.weight", (256,), 0),
    ("output.weight", (256, 5000), 14),
]


def test_a_gguf_header_gives_the_model_and_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    path.write_bytes(gguf_bytes(SMALL, TENSORS))
    header = read_gguf_header(path)
    assert header.metadata["tokenizer.ggml.tokens"] == Omitted(5000)
    found = read_model(path)
    assert (
        found.weight_bytes
        == 256 * 5000 // 32 * 34 + (256 * 256 + 512 * 256) // 256 * 144 + 1024 + 256 * 5000 // 256 * 210
    )
    assert found.weight_format == "gguf-q8_0"
    model = found.model
    assert (model.layers, model.kv_heads, model.head_dim, model.vocab) == (2, 2, 64, 5000)
    assert not model.tied_embeddings
    assert (model.params.embedding, model.params.attention, model.params.norms) == (1_280_000, 65_536, 256)


@given(st.integers(0, 1600))
def test_a_gguf_cut_anywhere_is_refused(length: int) -> None:
    import tempfile

    whole = gguf_bytes(SMALL, TENSORS)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cut.gguf"
        path.write_bytes(whole[: min(length, len(whole) - 1)])
        with pytest.raises(NonsenseError, match="GGUF"):
            read_gguf_header(path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"GGML" + bytes(40), "does not begin with GGUF"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version is 1"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "claims"),
        (gguf_bytes({"x": struct.pack("<I", 77)}, []), "unknown kind 77"),
        (gguf_bytes({"x": struct.pack("<IIQ", 9, 9, 1)}, []), "nests arrays"),
        (gguf_bytes({}, [("t", (1,) * 9, 0)]), "9 dimensions"),
        (gguf_bytes({}, [("t", (1,), 99)]), "unknown type 99"),
    ],
)
def test_hostile_gguf_headers_are_refused(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    with pytest.raises(NonsenseError, match=words):
        read_gguf_header(path)


@pytest.mark.llamacpp
@pytest.mark.parametrize(("name", "logged_mib"), [("Q8_0", 136.40)])
def test_a_real_file_has_the_buffer_that_the_server_logs(name: str, logged_mib: float) -> None:
    from orchestrator.demo import model_folder, models

    path = next(model.path for model in models(model_folder()) if name in model.path.name)
    found = read_model(path)
    assert found.weight_bytes is not None
    assert round(found.weight_bytes / 2**20, 2) == logged_mib
    assert found.model.kv_heads == 3
