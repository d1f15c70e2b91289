"""`loadproof run` as a user runs it: against a server of known capacity, and killed at random moments and resumed."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.journal import read_events
from orchestrator.launch.orphans import find_orphans
from orchestrator.records import CellFinished, LevelCommitted, RunClosed, ServerReady

SERVER = Path(__file__).parents[1] / "fakes" / "openai_server.py"
PLAN = """
title = "known capacity"
seed = 7
[model]
id = "{model}"
context_tokens = 512
[slo]
ttft_ms = {limit}
tpot_ms = {limit}
[[deployment]]
name = "fake"
stack = "llamacpp"
launch = "process"
command = ["{python}", "{server}", "--capacity", "{capacity}", {more}]
max_concurrency = 64
[[workload]]
name = "w"
prompt_tokens = 8
output_tokens = {output}
[ramp]
start = {start}
max = {most}
requests = 20
requests_per_user = {per_user}
min_seconds = 0
max_seconds = 60
ramp_seconds = 0.1
warmup_generations = 1
filler_seconds = 1
confirm = {confirm}
recovery = false
[client]
workers = {workers}
"""
SLOW_BEYOND = '"--first", "0.4", "1.8", "--gap", "0.002", "0.002"'
"""The engine answers in 0.4 s up to its capacity and in 1.8 s beyond it: limits that a busy machine can time."""
REFUSES_BEYOND = '"--first", "0.2", "0.2", "--refuse"'
"""What a level says hangs on no clock, so that two runs can be compared."""


def write_plan(folder: Path, *, more: str, limit: int, **settings: int) -> Path:
    model = folder / "model.gguf"
    model.write_bytes(b"GGUF, if anybody asks")
    plan = folder / "plan.toml"
    command = {"python": sys.executable, "server": SERVER, "more": more}
    plan.write_text(PLAN.format(model=model, limit=limit, **command, **{"workers": 1, **settings}))
    return plan


def loadproof(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "orchestrator.cli", *map(str, arguments)]


def levels(run: Path) -> list[tuple[str, int, str]]:
    return [
        (event.run.spec.purpose, event.run.spec.concurrency, event.verdict.verdict)
        for event in read_events(run)
        if isinstance(event, LevelCommitted) and event.verdict.valid
    ]


def test_a_known_capacity_is_found_within_ten_percent(tmp_path: Path) -> None:
    settings = {"capacity": 24, "start": 4, "most": 64, "per_user": 3, "output": 8, "confirm": 1}
    plan = write_plan(tmp_path, more=SLOW_BEYOND, limit=1100, **settings)
    out = tmp_path / "run"
    command = loadproof("run", plan, "--out", out, "--set", "ramp.recovery=true")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    measured = levels(out)
    assert len(measured) >= 8, "bracket, bisection, both confirmations, and once more after the break"
    assert measured[-1] == ("recovery", 4, "PASS")
    result = json.loads((out / "result.json").read_bytes())
    (cell,) = result["cells"]
    assert 22 <= cell["verdict"]["c_ok"] <= 24
    assert 25 <= cell["verdict"]["c_bad"] <= 27
    assert cell["verdict"]["recovery"]["concurrency"] == 4
    assert cell["verdict"]["recovery"]["drain_s"] > 0
    assert cell["verdict"]["afterwards"][0] in " ".join(done.stdout.split())
    assert (out / "report.html").stat().st_size > 10_000
    assert find_orphans("run") == []


def test_a_newer_release_is_measured_with_one_warning_and_without_the_numbers_that_it_renamed(tmp_path: Path) -> None:
    """Its metrics have names that nobody knows: not reported, and no zero."""
    settings = {"capacity": 24, "start": 2, "most": 2, "per_user": 2, "output": 4, "confirm": 1, "workers": 2}
    plan = write_plan(tmp_path, more=SLOW_BEYOND, limit=1100, **settings)
    text = plan.read_text().replace('"llamacpp"', '"vllm"')
    text = text.replace('"--capacity"', '"--version", "99.1.0", "--capacity"')
    plan.write_text(text)
    out = tmp_path / "run"
    done = subprocess.run(loadproof("run", plan, "--out", out), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("vLLM 99.1.0 lies outside of what is known") == 1
    (ready,) = [event.server for event in read_events(out) if isinstance(event, ServerReady)]
    assert ready.version == "99.1.0"
    assert set(ready.facts) == {"version_note"}
    (commit, *_) = [event for event in read_events(out) if isinstance(event, LevelCommitted)]
    assert (commit.stats.failed, commit.stats.cached_tokens) == (0, None)
    assert (commit.run.spec.workers, commit.run.health.workers, commit.run.health.lost) == (2, 2, None)
    (samples,) = (out / "cells").glob("*/attempt-1/samples.jsonl")
    read = [json.loads(line) for line in samples.read_text().splitlines()]
    assert {sample["source"] for sample in read} >= {"host", "tree"}
    assert [sample for sample in read if sample["source"] == "engine" and sample["values"]] == []


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, int, str]], float]:
    """(folder of the plan, levels of a run that nobody disturbed, its length in s)."""
    folder = tmp_path_factory.mktemp("kill")
    settings = {"capacity": 3, "start": 3, "most": 8, "per_user": 2, "output": 2, "confirm": 0}
    plan = write_plan(folder, more=REFUSES_BEYOND, limit=20_000, **settings)
    out = folder / "unbroken"
    subprocess.run(loadproof("run", plan, "--out", out, "--quiet"), check=True, capture_output=True)
    events = read_events(out)
    length_s = (events[-1].at_ns - events[0].at_ns) / 1e9
    return folder, levels(out), length_s


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(20))
def test_killed_at_any_moment_and_resumed_it_gives_the_same(
    unbroken: tuple[Path, list[tuple[str, int, str]], float], moment: int
) -> None:
    folder, expected, length_s = unbroken
    assert len(expected) == 3
    out = folder / f"killed-{moment}"
    process = subprocess.Popen(
        loadproof("run", folder / "plan.toml", "--out", out, "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    assert b"run-opened" in process.stdout.readline()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(random.Random(moment).random() * length_s)
    process.kill()
    process.communicate()
    done = subprocess.run(loadproof("run", "--resume", out, "--quiet"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert levels(out) == expected
    events = read_events(out)
    assert isinstance(events[-1], RunClosed)
    assert sum(isinstance(event, CellFinished) for event in events) == 1
    assert find_orphans(out.name) == []
