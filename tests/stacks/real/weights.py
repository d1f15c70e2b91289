"""SmolLM2-135M-Instruct for servers that read Hugging Face folders, out of the demo's GGUF file. Needs no network.

    python weights.py plain MODEL.gguf FOLDER       bfloat16; needs torch, transformers, accelerate, gguf
    python weights.py int8 PLAIN-FOLDER FOLDER      compressed-tensors W8A8; needs torch, safetensors

Run by the Python of a stack's own environment. Made from a 4-bit file, both hold 4-bit information: right for memory,
speed and concurrency, and no comparison of answer quality.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any


def write_plain(source: Path, target: Path) -> None:
    """A folder with unquantized bfloat16 weights, the tokenizer and its chat template."""
    import torch  # type: ignore[import-not-found]  # of the stack's environment, not of ours
    from transformers import (  # type: ignore[import-not-found]  # likewise
        AutoModelForCausalLM,
        AutoTokenizer,
        GgufConfig,
    )

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    # Without dequantize the weights stay packed, and save_pretrained refuses to write them.
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def write_int8(source: Path, target: Path) -> None:
    """`source` with int8 weights per channel, for int8 activations per token."""
    import torch
    from safetensors.torch import load_file, save_file  # type: ignore[import-not-found]  # likewise

    target.mkdir(parents=True)
    tensors: dict[str, Any] = {}
    for name, value in load_file(source / "model.safetensors").items():
        if value.ndim == 2 and ".layers." in name and name.endswith("_proj.weight"):
            scale = value.float().abs().amax(1, keepdim=True).clamp(min=1e-8) / 127
            tensors[name] = (value.float() / scale).round().clamp(-128, 127).to(torch.int8)
            tensors[name.replace("weight", "weight_scale")] = scale.float()
        else:
            tensors[name] = value
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    for file in source.iterdir():
        if file.name not in ("model.safetensors", "config.json"):
            shutil.copy(file, target)
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "quantization_config": _w8a8()}, indent=1))


def _w8a8() -> dict[str, Any]:
    integer = {
        "num_bits": 8,
        "type": "int",
        "symmetric": True,
        "group_size": None,
        "block_structure": None,
        "actorder": None,
    }
    group = {
        "targets": ["Linear"],
        "weights": {**integer, "strategy": "channel", "dynamic": False, "observer": "minmax"},
        "input_activations": {**integer, "strategy": "token", "dynamic": True},
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "config_groups": {"group_0": group},
    }


if __name__ == "__main__":
    _, kind, given, wanted = sys.argv
    {"plain": write_plain, "int8": write_int8}[kind](Path(given), Path(wanted))
