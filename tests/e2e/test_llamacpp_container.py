"""`loadproof run` as a user runs it, on the real llama.cpp server in a real container that is built here."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.engine import containers_of, python_image
from fakes.python_image import copy_distributions, openmp_runtime

from orchestrator.demo import model_folder, models
from orchestrator.journal import read_events
from orchestrator.records import LevelCommitted, ServerReady

pytestmark = [pytest.mark.docker, pytest.mark.llamacpp, pytest.mark.slow]

REPOSITORY = Path(__file__).parents[2]
PLAN = """
title = "llama.cpp in a container"
seed = 3
[model]
id = "/models/{weights}"
context_tokens = {context}
vocab_size = 49152
[slo]
ttft_ms = 60000
tpot_ms = 60000
[[deployment]]
name = "4-bit"
stack = "llamacpp"
launch = "docker"
image = "{image}"
command = ["python3", "-m", "stacks.llamacpp_portable"]
mounts = ["{folder}:/models:ro"]
max_concurrency = 8
kv_cache_tokens = {pool}
{limits}
[[workload]]
name = "w"
prompt_tokens = 64
output_tokens = 16
[ramp]
start = 2
max = 8
requests = 20
requests_per_user = 1
min_seconds = 0
max_seconds = 120
ramp_seconds = 0.2
warmup_generations = 1
filler_seconds = 1
confirm = 0
recovery = false
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image of this Python with llama.cpp's wheel and our way of starting it; removed at the end."""
    openmp = openmp_runtime()
    if openmp is None:
        pytest.skip("no OpenMP runtime on this machine: install libgomp1")
    folder = tmp_path_factory.mktemp("image")
    site = folder / "site"
    copy_distributions({"xllamacpp", "msgspec", "prometheus-client"}, site)
    for package in ("orchestrator", "stacks"):
        shutil.copytree(REPOSITORY / package, site / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(openmp, site / "libgomp.so.1")
    with python_image(folder, site, "llamacpp", "ENV LD_LIBRARY_PATH=/opt/site") as name:
        yield name


def measured(folder: Path, image: str, *, context: int, pool: int, limits: str = "") -> tuple[Path, Any, str]:
    """(run directory, result.json, what was printed) of a run that ended as it should; no container is left."""
    weights = models(model_folder())[0].path
    plan = folder / "plan.toml"
    model = {"weights": weights.name, "folder": weights.parent, "context": context, "pool": pool}
    plan.write_text(PLAN.format(image=image, limits=limits, **model))
    out = folder / "run"
    command = [sys.executable, "-m", "orchestrator.cli", "run", str(plan), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert containers_of(out.name) == []
    assert (out / "result.json").exists(), done.stderr
    return out, json.loads((out / "result.json").read_bytes()), done.stdout + done.stderr


def test_the_break_of_a_real_server_in_a_container_is_found(tmp_path: Path, image: str) -> None:
    """Three requests of 64 + 16 tokens fit a KV pool of 256, and four do not, however fast the machine is."""
    out, result, said = measured(tmp_path, image, context=128, pool=256)
    (cell,) = result["cells"]
    verdict = cell["verdict"]
    assert (verdict["c_ok"], verdict["c_bad"]) == (3, 4), said
    events = read_events(out)
    levels = [event for event in events if isinstance(event, LevelCommitted)]
    assert len(levels) >= 2
    assert any(level.verdict.verdict == "FAIL" and level.verdict.valid for level in levels)
    assert {kind for level in levels for kind in level.stats.failures} == {"error_in_stream"}
    (ready,) = (event for event in events if isinstance(event, ServerReady))
    assert ready.server.container_id is not None
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", ready.server.image_digest or "")
    sources = {
        json.loads(line)["source"] for file in out.rglob("samples*.jsonl") for line in file.read_text().splitlines()
    }
    assert {"engine", "container"} <= sources
    assert (out / "report.html").stat().st_size > 10_000


def test_a_memory_limit_that_kills_it_is_out_of_memory_by_the_engine_s_word(tmp_path: Path, image: str) -> None:
    """A KV cache of 360 MiB under a limit of 200: what 4-bit weights do not shrink."""
    out, result, said = measured(tmp_path, image, context=2048, pool=16_384, limits='memory_limit_bytes = "200MiB"')
    (cell,) = result["cells"]
    assert cell["incidents"][0]["failure"]["failure_class"] == "out of memory", said
    evidence = "\n".join(cell["incidents"][0]["failure"]["evidence"])
    assert "OOMKilled=true" in evidence
    assert f"HostConfig.Memory={200 << 20}" in evidence
    assert (out / "report.html").stat().st_size > 10_000
