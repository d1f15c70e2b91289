"""Stacks by name: ours, and those of other distributions, which are found by their entry point."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from fakes.stacks import FakeStack

from stacks.about import about
from stacks.catalog import BUILT_IN, names, stack

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "own-stack"
SERVER = ROOT / "tests" / "fakes" / "openai_server.py"
PLAN = """
[model]
id = "model"
context_tokens = 512
[[deployment]]
stack = "house"
launch = "process"
command = ["{python}", "{server}", "--alias", "model"]
quantization = "int4"
version = "1.4.0"
max_concurrency = 8
start_timeout_s = 20
[[workload]]
prompt_tokens = 8
output_tokens = 4
levels = [1]
[ramp]
requests = 20
requests_per_user = 2
min_seconds = 0
max_seconds = 20
ramp_seconds = 0.1
filler_seconds = 0
confirm = 0
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The example as pip would lay it: its module, and a folder that tells its entry points."""
    site = tmp_path / "site"
    info = site / "loadproof_house-1.0.dist-info"
    info.mkdir(parents=True)
    shutil.copy(EXAMPLE / "house_stack.py", site)
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    entries = project["entry-points"]["loadproof.stacks"]
    lines = [f"{name} = {value}" for name, value in entries.items()]
    # What a stranger may get wrong must harm nobody else.
    lines += ["broken = no_such_module:Stack", "odd = json:loads", "vllm = house_stack:House"]
    (info / "entry_points.txt").write_text("\n".join(["[loadproof.stacks]", *lines, ""]))
    return site


def loadproof(site: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orchestrator.cli", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=site)


def test_a_stack_of_another_distribution_is_listed_and_shown(installed: Path) -> None:
    listed = loadproof(installed, "stacks", "--json")
    assert listed.returncode == 0, listed.stderr
    known = json.loads(listed.stdout)["stacks"]
    assert [each["name"] for each in known] == [*BUILT_IN, "house"]
    assert {each["name"]: each["title"] for each in known}["vllm"] == "vLLM", "ours cannot be replaced"
    assert 'the stack "broken" (no_such_module:Stack) cannot be loaded' in listed.stderr
    assert 'the stack "odd" (json:loads) is no subclass' in listed.stderr
    shown = json.loads(loadproof(installed, "stacks", "show", "house", "--json").stdout)
    given = {row["key"]: row["given_as"] or row["refused"] for row in shown["settings"]}
    assert given["context_tokens"] == ["--context", "4096"]
    assert "in tokens: kv_cache_tokens" in given["kv_cache_bytes"]
    assert [row["value"] for row in shown["quantizations"] if row["on_load"]] == ["int8", "int4"]


def test_it_is_measured_like_ours(installed: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(PLAN.format(python=sys.executable, server=SERVER))
    refused = loadproof(installed, "run", plan, "--dry-run", "--set", "deployment.0.version=1.2.0")
    assert refused.returncode == 2
    assert "Releases from 1.3.0 have it." in refused.stderr
    out = tmp_path / "run"
    done = loadproof(installed, "run", plan, "--out", out)
    assert done.returncode == 0, done.stderr
    (cell,) = json.loads((out / "result.json").read_bytes())["cells"]
    assert cell["asked"]["stack"] == "house"
    assert any("int4 quantizes a 16-bit checkpoint while it loads." in note for note in cell["asked"]["notes"])
    assert cell["levels"]


def test_the_example_is_short() -> None:
    assert len((EXAMPLE / "house_stack.py").read_text().splitlines()) <= 75


def test_a_name_that_there_is_not() -> None:
    assert set(names()) >= set(BUILT_IN)
    with pytest.raises(ValueError, match=r'no stack "vlm".*Nearest: "vllm"'):
        stack("vlm")


def test_a_stack_that_is_no_data_sheet_tells_what_it_has() -> None:
    told = about(FakeStack())
    assert (told.name, told.versions, told.failures, told.metrics) == ("fake", None, (), {})
    assert told.ready == ("/health answers 200", "/v1/models lists the model", "a completion of two tokens comes back")
    assert {row.key for row in told.settings} >= {"context_tokens", "max_concurrency"}
