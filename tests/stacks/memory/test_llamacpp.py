"""The real llama.cpp server on this CPU: the predicted cache is what it allocates, at three formats and contexts."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from orchestrator.demo import model_folder, models
from stacks.memory.bill import bill, require_pool
from stacks.memory.checkpoint import read_model
from stacks.memory.formats import find_kv_format, find_weight_format
from stacks.memory.setup import Setup

KV_BUFFER = re.compile(r"KV buffer size =\s*([\d.]+) MiB")
MODEL_BUFFER = re.compile(r"CPU_Mapped model buffer size =\s*([\d.]+) MiB")
READY = re.compile(r"server is listening|all slots are idle")


def buffers(*arguments: str) -> tuple[float, float]:
    """(KV, mapped model) MiB that a started server logs; it is stopped as soon as it is ready."""
    command = [sys.executable, "-m", "stacks.llamacpp_portable", "--port", "0", "-lv", "4", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    found: dict[re.Pattern[str], float] = {}
    seen = []
    try:
        for line in process.stderr:
            seen.append(line)
            for pattern in (KV_BUFFER, MODEL_BUFFER):
                if match := pattern.search(line):
                    found[pattern] = float(match[1])
            if READY.search(line) or (KV_BUFFER in found and MODEL_BUFFER in found):
                break
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    assert set(found) == {KV_BUFFER, MODEL_BUFFER}, "".join(seen[-20:])
    return found[KV_BUFFER], found[MODEL_BUFFER]


@pytest.mark.llamacpp
@pytest.mark.slow
@pytest.mark.parametrize("unified", [False, True])
@pytest.mark.parametrize(("context", "kv"), [(1024, "f16"), (3000, "q8_0"), (8192, "f16")])
@pytest.mark.parametrize("index", range(3))
def test_predicted_cache_is_allocated_to_the_byte(index: int, context: int, kv: str, unified: bool) -> None:
    path = models(model_folder())[index].path
    found = read_model(path)
    weights = find_weight_format(found.weight_format or "fp16")
    setup = Setup(
        model=found.model,
        weights=weights,
        weight_bytes=found.weight_bytes,
        kv=find_kv_format(kv, weights),
        card=None,
        stack="llamacpp",
        max_model_len=context,
        max_num_seqs=4,
        unified_kv=unified,
    )
    result = bill(setup)
    shared = ["-kvu"] if unified else []
    kv_mib, model_mib = buffers("-m", str(path), "-c", str(context), "-np", "4", "-ctk", kv, "-ctv", kv, *shared)
    assert require_pool(result).bytes.value / 2**20 == pytest.approx(kv_mib, abs=0.006)
    assert result.weights.value / 2**20 == pytest.approx(model_mib, abs=0.02)
