"""`loadproof run` on simulated vLLM and TGI in real containers: the stacks' own words, API and metrics, no card."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.engine import containers_of, python_image
from fakes.python_image import closure, copy_distributions

from orchestrator.journal import read_events
from orchestrator.records import LevelCommitted, ServerReady, ServerStarting

pytestmark = [pytest.mark.docker, pytest.mark.slow]

REPOSITORY = Path(__file__).parents[2]
MODEL = "meta-llama/Llama-3.1-8B-Instruct"
PLAN = """
title = "vLLM against TGI, simulated, in containers"
seed = 4
[model]
id = "{model}"
context_tokens = 4096
[slo]
ttft_ms = 20000
tpot_ms = 20000
[defaults]
launch = "docker"
image = "{image}"
max_concurrency = 8
gpus = []
[[deployment]]
name = "vllm"
stack = "vllm"
command = {vllm}
[[deployment]]
name = "tgi"
stack = "tgi"
command = {tgi}
[[workload]]
name = "w"
prompt_tokens = 64
output_tokens = 8
levels = [2]
[ramp]
requests = 20
min_seconds = 0
ramp_seconds = 0.2
warmup_generations = 1
filler_seconds = 1
confirm = 0
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image of this Python with what the simulated card needs; removed at the end."""
    folder = tmp_path_factory.mktemp("image")
    site = folder / "site"
    copy_distributions(closure(("click", "msgspec", "numpy")), site)
    for package in ("orchestrator", "stacks", "workloads"):
        shutil.copytree(REPOSITORY / package, site / package, ignore=shutil.ignore_patterns("__pycache__"))
    with python_image(folder, site, "simulated") as name:
        yield name


def command(stack: str) -> str:
    """As a plan names it; the plan's own flags of the stack follow."""
    simulate = ["python3", "-m", "orchestrator.cli", "simulate", "--stack", stack, "--card", "RTX-4090-24GB"]
    return json.dumps([*simulate, "--model", MODEL, "--speed", "10"])


def test_both_are_started_measured_and_removed(tmp_path: Path, image: str) -> None:
    plan, out = tmp_path / "plan.toml", tmp_path / "run"
    plan.write_text(PLAN.format(model=MODEL, image=image, vllm=command("vllm"), tgi=command("tgi")))
    words = [sys.executable, "-m", "orchestrator.cli", "run", str(plan), "--out", str(out)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert containers_of(out.name) == []
    events = read_events(out)
    ready = {event.server.stack: event.server for event in events if isinstance(event, ServerReady)}
    assert ready.keys() == {"vllm", "tgi"}, done.stderr
    assert all(server.container_id for server in ready.values())
    assert ready["vllm"].facts.get("kv_tokens"), "its start-up log was read"
    started = {event.server.stack: event.server.argv for event in events if isinstance(event, ServerStarting)}
    assert "--max-num-seqs" in started["vllm"]
    levels = [event for event in events if isinstance(event, LevelCommitted)]
    assert {level.cell for level in levels} == {"vllm--w", "tgi--w"}
    assert {(level.run.spec.concurrency, level.stats.failed) for level in levels} == {(2, 0)}
    assert all(level.stats.good >= 20 for level in levels)
    samples = [json.loads(line) for file in out.rglob("samples*.jsonl") for line in file.read_text().splitlines()]
    assert {"engine", "container"} <= {sample["source"] for sample in samples}
    assert (out / "report.html").stat().st_size > 10_000
