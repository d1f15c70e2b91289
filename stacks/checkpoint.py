"""How a local checkpoint says that it is quantized, read before anything starts."""

from __future__ import annotations

import json
import re
from pathlib import Path

MAX_CONFIG_BYTES = 4 * 1024 * 1024
_TABLES = ("quantization_config", "compression_config")
FROM_CHECKPOINT = re.compile(r"awq|gptq|compressed-tensors|exl2|marlin|modelopt")
"""Quantizations that no stack makes while it loads."""


def quantized_as(folder: Path) -> str | None:
    """The method that its configuration names, ``""`` if it is plain; None if it cannot be told (a hub id, a file)."""
    try:
        if (folder / "hf_quant_config.json").is_file():  # as NVIDIA's ModelOpt writes it
            return "modelopt"
        file = folder / "config.json"
        if file.stat().st_size > MAX_CONFIG_BYTES:
            return None
        config = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(config, dict):
        return None
    table = next((config[name] for name in _TABLES if isinstance(config.get(name), dict)), None)
    if table is None:
        return ""
    method = table.get("quant_method") or table.get("quant_algo")
    return method.lower() if isinstance(method, str) else None
