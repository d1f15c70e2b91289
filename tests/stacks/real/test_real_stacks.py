"""`loadproof run` on real vLLM, SGLang, transformers serve and llama.cpp, all on this CPU and with the same weights.

    make test-stacks [STACKS="vllm llamacpp"]

What is asserted holds on a slow and busy machine too; times are only shown, in the table at the end.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from real import install
from real.table import ROWS, Row, need

from orchestrator.demo import model_folder, models
from orchestrator.journal import read_events
from orchestrator.launch.orphans import find_orphans
from orchestrator.records import ServerReady, ServerRecord

KV_BYTES_PER_TOKEN = 23_040
"""30 layers x 3 heads x 64 values x keys and values x 2 bytes."""
PLAN = """
seed = 7
[model]
id = "{model}"
context_tokens = 512
[slo]                      # far beyond what a CPU needs: these tests are no race
ttft_ms = 60000
tpot_ms = 10000
{deployments}
[[workload]]
name = "w"
prompt_tokens = {prompt}
output_tokens = {output}
levels = {levels}
[ramp]
max = 64
requests = 20
requests_per_user = 2
min_seconds = 0
max_seconds = 240
ramp_seconds = 0.5
warmup_generations = 1
filler_seconds = 1
deadline_seconds = 240
confirm = 0
"""
OFFLINE = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def deployment(name: str, stack: str, **settings: Any) -> str:
    """One [[deployment]] as TOML."""
    rows = {"name": name, "stack": stack, "launch": "process", "start_timeout_s": 900, **settings}
    env = OFFLINE | {"HF_HOME": str(install.hub_home())} | rows.pop("env", {})
    table = ", ".join(f"{key} = {json.dumps(value)}" for key, value in env.items())
    return "\n".join(["[[deployment]]", *(f"{k} = {json.dumps(v)}" for k, v in rows.items()), f"env = {{ {table} }}"])


def vllm(name: str, **settings: Any) -> str:
    program = str(install.python_of("vllm").with_name("vllm"))
    base = {"command": [program], "dtype": "bfloat16", "max_concurrency": 16, "args": ["--enforce-eager"]}
    return deployment(name, "vllm", **base | {"env": {"VLLM_CPU_KVCACHE_SPACE": "1"}} | settings)


def llamacpp(name: str, bits: int, **settings: Any) -> str:
    (model,) = (model for model in models(model_folder()) if model.bits == bits)
    command = [sys.executable, "-m", "stacks.llamacpp_portable"]
    base = {"command": command, "model": str(model.path), "quantization": model.quantization, "max_concurrency": 8}
    return deployment(name, "llamacpp", **base | settings)


def transformers(name: str, **settings: Any) -> str:
    program = str(install.python_of("transformers").with_name("transformers"))
    return deployment(
        name,
        "transformers",
        command=[program, "serve"],
        dtype="bfloat16",
        kv_cache_tokens=16_384,
        max_batched_tokens=512,
        args=["--device", "cpu"],
        **settings,
    )


def sglang(name: str) -> str:
    on_cpu = ["--device", "cpu", "--attention-backend", "torch_native", "--sampling-backend", "pytorch"]
    return deployment(
        name,
        "sglang",
        command=[str(install.python_of("sglang")), "-m", "sglang.launch_server"],
        dtype="bfloat16",
        kv_cache_tokens=16_384,
        memory_fraction=0.3,
        max_concurrency=16,
        args=[*on_cpu, "--disable-overlap-schedule"],
        env={"SGLANG_USE_CPU_ENGINE": "1"},
    )


class Done(msgspec.Struct):
    """A run that has ended."""

    cells: list[dict[str, Any]]
    servers: list[ServerRecord]
    folder: Path

    def samples(self, name: str) -> list[dict[str, float]]:
        """What the engine's metrics page said during a cell."""
        (file,) = self.folder.glob(f"cells/{name}*/attempt-1/samples.jsonl")
        read = [json.loads(line) for line in file.read_text().splitlines()]
        return [sample["values"] for sample in read if sample["source"] == "engine"]


def run(folder: Path, *deployments: str, levels: list[int], prompt: int = 32, output: int = 16) -> Done:
    plan, out = folder / "plan.toml", folder / f"run-{folder.name}"
    model = install.plain_weights()
    text = PLAN.format(model=model, deployments="\n".join(deployments), levels=levels, prompt=prompt, output=output)
    plan.write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "run", str(plan), "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert find_orphans(out.name) == []
    servers = [event.server for event in read_events(out) if isinstance(event, ServerReady)]
    return Done(json.loads((out / "result.json").read_bytes())["cells"], servers, out)


def row(cell: Mapping[str, Any], server: ServerRecord) -> Row:
    verdict, bill = cell["verdict"], cell["bill"]
    predicted = {line["name"]: line.get("predicted") for line in cell["reconciliation"]["lines"]}
    return Row(
        cell["asked"]["deployment"],
        server.version or "not told",
        server.ready_s or 0.0,
        max(level["stats"].get("output_tokens_per_s") or 0.0 for level in cell["levels"]),
        verdict.get("c_ok"),
        verdict.get("c_bad"),
        bill.get("kv_bytes"),
        predicted.get("KV cache"),
        cell["ledger"].get("peak_bytes"),
        predicted.get("total"),
        cell["reconciliation"].get("unexplained_bytes"),
    )


def as_predicted(cell: Mapping[str, Any], *, share: float) -> None:
    """The bill told before the start against the server's: KV tokens exact, resident memory within a share."""
    lines = {line["name"]: line for line in cell["reconciliation"]["lines"]}
    assert lines["KV tokens"]["measured"] == lines["KV tokens"]["predicted"]
    assert lines["total"]["measured"] == pytest.approx(lines["total"]["predicted"], rel=share)


DEPLOYMENTS = {
    "llamacpp": lambda: [llamacpp("llamacpp-q4", 4), llamacpp("llamacpp-q8", 8)],
    "vllm": lambda: [
        vllm("vllm-bf16"),
        vllm("vllm-int8", model=str(install.int8_weights()), quantization="compressed-tensors"),
    ],
    "transformers": lambda: [
        transformers("transformers-bf16"),
        transformers("transformers-bnb4", quantization="bnb-4bit"),
    ],
    "sglang": lambda: [sglang("sglang-bf16")],
}


@pytest.mark.parametrize("stack", DEPLOYMENTS)
def test_a_full_run(stack: str, tmp_path: Path) -> None:
    need(stack)
    done = run(tmp_path, *DEPLOYMENTS[stack](), levels=[1, 4])
    assert len(done.cells) == len(done.servers) == len(DEPLOYMENTS[stack]())
    ROWS.extend(map(row, done.cells, done.servers))
    for cell in done.cells if stack in {"vllm", "llamacpp"} else ():
        as_predicted(cell, share=0.05)
    for cell, server in zip(done.cells, done.servers, strict=True):
        assert cell["verdict"].get("c_ok") == 4, cell["verdict"]
        for level in cell["levels"]:
            stats = level["stats"]
            assert (stats["failed"], stats["mean_out_tokens"]) == (0, 16.0), "every answer has its exact length"
            assert stats["mean_in_tokens"] == pytest.approx(32, abs=4)
        assert "version_note" not in server.facts
        if stack in install.VERSIONS and stack != "transformers":  # which has no way to tell its version
            assert (server.version or "").startswith(install.VERSIONS[stack])


@pytest.mark.parametrize("stack", ["vllm", "sglang", "llamacpp"])
def test_the_pool_is_as_large_as_its_geometry_says_and_no_prompt_hits_a_prefix_cache(
    stack: str, tmp_path: Path
) -> None:
    need(stack)
    done = run(tmp_path, DEPLOYMENTS[stack]()[0], levels=[2])
    (cell,) = done.cells
    bill = cell["bill"]
    # Engines print it rounded, SGLang to 0.01 GiB for keys and values each.
    assert bill["kv_bytes"] == pytest.approx(bill["kv_tokens"] * KV_BYTES_PER_TOKEN, rel=0.01, abs=0.011 * 2**30)
    seen = done.samples(cell["asked"]["deployment"])
    assert seen[-1]["cached_tokens_total"] == 0.0
    assert seen[-1]["output_tokens_total"] > 20 * 16
    assert max(sample["running"] for sample in seen) >= 1


def test_preemption_is_provoked_on_vllm_and_seen(tmp_path: Path) -> None:
    """Eight users of 128 tokens in a pool for four of them."""
    need("vllm")
    done = run(tmp_path, vllm("vllm-tiny-pool", kv_cache_tokens=512), levels=[8], prompt=64, output=64)
    (cell,) = done.cells
    ROWS.extend(map(row, done.cells, done.servers))
    assert cell["bill"]["kv_tokens"] == pytest.approx(512, abs=64)
    seen = done.samples("vllm-tiny-pool")
    assert seen[-1]["preemptions_total"] > 0
    assert max(sample["waiting"] for sample in seen) >= 1
    assert cell["verdict"].get("c_ok") is None
    stats = cell["levels"][0]["stats"]
    assert (stats["failed"], stats["mean_out_tokens"]) == (0, 64.0), "it recomputes, and loses nothing"


def test_a_full_kv_cache_of_llamacpp_is_an_error_inside_the_stream(tmp_path: Path) -> None:
    """Eight users of 128 tokens in a shared cache of 512: every active request fails at once, many with status 200."""
    need("llamacpp")
    small = llamacpp("llamacpp-kv-full", 4, kv_cache_tokens=512)
    done = run(tmp_path, small, levels=[2, 8], prompt=64, output=64)
    (cell,) = done.cells
    ROWS.extend(map(row, done.cells, done.servers))
    assert (cell["verdict"].get("c_ok"), cell["verdict"].get("c_bad")) == (2, 8)
    broken = cell["levels"][-1]
    assert broken["stats"]["failed"] > 0
    (file,) = done.folder.glob("cells/*/attempt-1/requests.jsonl")
    failures = [json.loads(line).get("failure") for line in file.read_text().splitlines()]
    said = [failure for failure in failures if failure]
    assert any("Context size has been exceeded" in json.dumps(failure) for failure in said)
