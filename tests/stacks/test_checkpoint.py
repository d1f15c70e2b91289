"""A quantization that the weights on this machine cannot have is refused before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import PlanError
from orchestrator.plan import load_plan
from stacks.base import Deployment
from stacks.catalog import BUILT_IN, stack
from stacks.checkpoint import quantized_as


def checkpoint(folder: Path, config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / "config.json").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("config", "method"),
    [
        ({"model_type": "llama"}, ""),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "awq"),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({"quantization_config": {"quant_algo": "FP8"}}, "fp8"),
        ({"quantization_config": {"bits": 4}}, None),
        ({"quantization_config": None}, ""),
        ([], None),
        ("{not json", None),
        ("[" * 100_000, None),
    ],
)
def test_how_a_checkpoint_says_it(tmp_path: Path, config: Any, method: str | None) -> None:
    assert quantized_as(checkpoint(tmp_path / "m", config)) == method


def test_what_cannot_be_told_is_not_told(tmp_path: Path) -> None:
    assert quantized_as(Path("org/model-8b")) is None
    assert quantized_as(tmp_path / "model.gguf") is None
    checkpoint(tmp_path, {})
    (tmp_path / "hf_quant_config.json").write_text("{}")
    assert quantized_as(tmp_path) == "modelopt"


@pytest.mark.parametrize(
    ("name", "asked", "method", "refused"),
    [
        ("vllm", "awq", "", "needs a checkpoint"),
        ("vllm", "compressed-tensors", "", "needs a checkpoint"),
        ("vllm", "fp8", "", ""),
        ("vllm", "fp8", "fp8", ""),
        ("vllm", "fp8", "compressed-tensors", "is quantized as compressed-tensors"),
        ("vllm", "gptq_marlin", "gptq", ""),
        ("vllm", None, "awq", ""),
        ("vllm", "quark", "", ""),
        ("tgi", "bitsandbytes-nf4", "", ""),
        ("tgi", "bitsandbytes-nf4", "bitsandbytes", ""),
        ("tgi", "awq", "", "needs a checkpoint"),
        ("sglang", "fp8", "awq", "is quantized as awq"),
        ("lmdeploy", "gptq", "", "needs a checkpoint"),
        ("transformers", "bnb-4bit", "gptq", "is quantized as gptq"),
    ],
)
def test_what_fits(name: str, asked: str | None, method: str, refused: str) -> None:
    deployment = Deployment(name="d", stack=name, model="/m", quantization=asked)
    found = stack(name).checkpoint_problems(deployment, method)
    assert [problem.key for problem in found] == ["quantization"] * bool(refused)
    assert all(refused in problem.message and problem.remedy for problem in found)


@pytest.mark.parametrize("name", BUILT_IN)
def test_without_a_quantization_every_checkpoint_is_right(name: str) -> None:
    deployment = Deployment(name="d", stack=name, model="/m")
    assert [stack(name).checkpoint_problems(deployment, method) for method in ("", "awq")] == [[], []]


@pytest.mark.parametrize(
    ("launch", "model", "more"),
    [("process", "{folder}", ""), ("docker", "/models/plain", 'mounts = ["{parent}:/models:ro"]')],
)
def test_a_plan_tells_it_with_its_key(tmp_path: Path, launch: str, model: str, more: str) -> None:
    folder = checkpoint(tmp_path / "plain", {"model_type": "llama"})
    words = {"folder": folder, "parent": tmp_path}
    plan = tmp_path / "plan.toml"
    plan.write_text(
        f'[[deployment]]\nstack = "vllm"\nversion = "0.33.0"\nquantization = "awq"\nlaunch = "{launch}"\n'
        f'model = "{model.format(**words)}"\ncontext_tokens = 512\n{more.format(**words)}\n'
        "[[workload]]\nprompt_tokens = 8\noutput_tokens = 8\n"
    )
    with pytest.raises(PlanError) as caught:
        load_plan(plan)
    (problem,) = caught.value.problems
    assert "deployment" in str(problem)
    assert "awq needs a checkpoint that is quantized already" in str(problem)
    assert "fp8_per_tensor" in str(problem)
