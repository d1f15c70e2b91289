"""What a run predicts of its cells before it starts anything, and why where it cannot."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fakes.nvml import GIB, Card, Driver, Process

from orchestrator.asked import asked
from orchestrator.plan import parse_plan
from orchestrator.records import Predicted
from orchestrator.watch import gpu
from orchestrator.watch.gpu import GpuInfo
from orchestrator.watch.neighbours import neighbours
from stacks.base import Deployment
from stacks.memory.bill import Bill, bill, require_pool
from stacks.memory.cards import find_card
from stacks.memory.deployed import setup_of
from stacks.memory.models import UnknownFactError

H100 = GpuInfo(index=0, uuid="GPU-1", name="NVIDIA H100 80GB HBM3", memory_total_bytes=81_559 * 2**20)

PLAN = """
[model]
id = "meta-llama/Llama-3.1-8B-Instruct"
context_tokens = 8192
[defaults]
launch = "docker"
gpus = [0]
[[deployment]]
name = "16-bit"
stack = "vllm"
version = "0.19.0"
image = "vllm/vllm-openai:v0.19.0"
memory_fraction = 0.95
[[deployment]]
name = "4-bit"
stack = "vllm"
image = "vllm/vllm-openai:v0.19.0"
memory_fraction = 0.95
model = "hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4"
[[deployment]]
name = "unheard-of"
stack = "vllm"
image = "vllm/vllm-openai:v0.19.0"
model = "nobody/nothing-7b"
[[deployment]]
name = "theirs"
stack = "vllm"
launch = "external"
url = "http://127.0.0.1:1"
[[workload]]
name = "chat"
prompt_tokens = 512
output_tokens = 128
"""


@pytest.fixture(scope="module")
def cells() -> dict[str, Predicted | str]:
    found = asked(parse_plan(PLAN.encode(), "plan.toml", base=Path.cwd()), [H100]).cells
    return {cell.deployment: cell.predicted or cell.unpredicted for cell in found}


def item(predicted: Predicted | str, name: str) -> float:
    assert isinstance(predicted, Predicted)
    return next(item.value_bytes for item in predicted.items if item.name == name) / GIB


def test_four_bit_frees_weights_for_tokens(cells: dict[str, Predicted | str]) -> None:
    large, small = cells["16-bit"], cells["4-bit"]
    assert isinstance(large, Predicted)
    assert isinstance(small, Predicted)
    assert item(large, "weights") == pytest.approx(14.99, abs=0.02)
    assert item(small, "weights") == pytest.approx(5.4, abs=0.1)
    freed = item(large, "weights") - item(small, "weights")
    assert item(small, "KV cache") - item(large, "KV cache") == pytest.approx(freed, abs=0.01)
    assert small.kv_tokens
    assert large.kv_tokens
    assert small.kv_tokens > large.kv_tokens
    assert large.key == f"vllm 0.19.0, {find_card('H100').name}, tensor parallel 1" == small.key
    assert small.requests
    assert large.requests
    assert small.requests > large.requests
    assert large.total
    assert large.total.low_bytes < large.total.value_bytes < large.total.high_bytes


def test_what_cannot_be_predicted_says_why(cells: dict[str, Predicted | str]) -> None:
    assert "Nothing is known of the model 'nobody/nothing-7b'" in str(cells["unheard-of"])
    assert cells["theirs"] == "The server is not ours: what it was started with is not known."


def test_a_prediction_survives_the_journal(cells: dict[str, Predicted | str]) -> None:
    predicted = cells["16-bit"]
    assert msgspec.json.decode(msgspec.json.encode(predicted), type=Predicted) == predicted


def test_neighbours_are_named_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(free=60 * GIB, computing=[Process(os.getpid(), 2 * GIB), Process(2**22 + 1, GIB)])
    monkeypatch.setattr(gpu, "pynvml", Driver([card]))
    found = neighbours(("all",))
    assert [(n.pid, n.memory_bytes) for n in found] == [(os.getpid(), 2 * GIB), (2**22 + 1, GIB)]
    assert found[0].name
    assert found[1].name == ""
    assert neighbours(()) == ()
    assert neighbours(("7",)) == ()


SMOL = {
    "num_hidden_layers": 30,
    "hidden_size": 576,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "intermediate_size": 1536,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
"""SmolLM2-135M."""
WIDE = {"hidden_size": 1152, "intermediate_size": 3072, "num_hidden_layers": 15, "num_attention_heads": 18}
INT8 = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "int"}}}}


def on_cpu(folder: Path, *args: str, config: dict[str, object] | None = None, **settings: Any) -> Bill:
    """The bill of a model on vLLM's CPU backend."""
    (folder / "config.json").write_bytes(msgspec.json.encode(SMOL | (config or {})))
    plain = Deployment(
        name="cpu",
        stack="vllm",
        model=str(folder),
        launch="process",
        version="0.32.0",
        context_tokens=2048,
        max_concurrency=16,
        args=args,
        env={"VLLM_CPU_KVCACHE_SPACE": "1"},
    )
    return bill(setup_of(msgspec.structs.replace(plain, **settings)))


@pytest.mark.parametrize(
    ("settings", "tokens"), [({}, 46_592), ({"kv_dtype": "fp8"}, 93_184), ({"kv_cache_tokens": 512}, 544)]
)
def test_the_pool_of_vllm_on_a_cpu_is_exact(tmp_path: Path, settings: dict[str, Any], tokens: int) -> None:
    """As vLLM 0.33 logs it for SmolLM2-135M (30 layers, 3 KV heads of 64) with VLLM_CPU_KVCACHE_SPACE=1."""
    result = on_cpu(tmp_path, **settings)
    assert require_pool(result).held.tokens == tokens
    assert {item.name for item in result.items} == {"weights", "KV cache"}
    assert result.resident is None, "what its compiler keeps is not modelled"


@pytest.mark.parametrize(
    ("config", "settings", "measured_mib"),
    [
        ({}, {}, 3206.0),
        (WIDE | {"num_key_value_heads": 6}, {}, 3643.8),
        ({"vocab_size": 147_456}, {}, 3459.8),
        ({"quantization_config": INT8}, {}, 3142.9),
        ({}, {"max_batched_tokens": 512, "env": {"VLLM_CPU_KVCACHE_SPACE": "2"}}, 4152.2),
    ],
)
def test_what_vllm_holds_on_a_cpu_is_within_five_percent(
    tmp_path: Path, config: dict[str, object], settings: dict[str, Any], measured_mib: float
) -> None:
    """PSS of all processes of vLLM 0.32.0, eager, after batches of as many tokens as it takes. The first two made the
    constants; the other three did not."""
    resident = on_cpu(tmp_path, "--enforce-eager", config=config, **settings).resident
    assert resident is not None
    assert resident.value == pytest.approx(measured_mib * 2**20, rel=0.025)
    assert resident.low < measured_mib * 2**20 < resident.high
    assert resident.high / resident.value == pytest.approx(1.05)


def test_a_family_of_formats_means_the_checkpoints_own(tmp_path: Path) -> None:
    scheme = {"weights": {"num_bits": 8, "type": "int"}}
    config = {
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 2,
        "vocab_size": 128,
        "quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"group_0": scheme}},
    }
    (tmp_path / "config.json").write_bytes(msgspec.json.encode(config))
    deployment = Deployment(name="a", stack="vllm", model=str(tmp_path), quantization="compressed-tensors")
    assert setup_of(deployment).weights.name == "int8"
    with pytest.raises(UnknownFactError):
        setup_of(msgspec.structs.replace(deployment, quantization="mystery", model="meta-llama/Llama-3.1-8B"))
