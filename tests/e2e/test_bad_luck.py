"""Wrong input and misfortune as a user meets them: one clear sentence, the right exit code, nothing measured lost."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.journal import read_events
from orchestrator.launch.orphans import find_orphans
from orchestrator.records import AnyEvent, LevelCommitted, RunClosed, ServerStopped

SERVER = Path(__file__).parents[1] / "fakes" / "openai_server.py"
WELL = 8
"""Requests that the server answers well before its misfortune: the probe, and some of the first level."""
PLAN = """
title = "bad luck"
seed = 5
[model]
id = "{model}"
context_tokens = 512
[slo]
ttft_ms = 2000
tpot_ms = 2000
[[deployment]]
name = "fake"
stack = "llamacpp"
launch = "process"
command = {command}
max_concurrency = 64
[[workload]]
name = "w"
prompt_tokens = 8
output_tokens = 4
levels = {levels}
[ramp]
requests = 20
requests_per_user = 2
min_seconds = 0
max_seconds = 60
ramp_seconds = 0.1
warmup_generations = 1
filler_seconds = 3
deadline_seconds = 1
"""


def write_plan(folder: Path, *options: str, levels: tuple[int, ...] = (2,)) -> Path:
    model = folder / "model.gguf"
    model.write_bytes(b"GGUF, if anybody asks")
    plan = folder / "plan.toml"
    command = json.dumps([sys.executable, str(SERVER), *options])
    plan.write_text(PLAN.format(model=model, command=command, levels=list(levels)))
    return plan


def loadproof(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orchestrator.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)


def said_once(done: subprocess.CompletedProcess[str]) -> str:
    """What was told as the error: one line, and never a traceback."""
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("loadproof: ")]
    return line


# --- refused before anything starts -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('title = "bad luck"', 'titel = "bad luck"', 'titel: there is no such key. Did you mean "title"?'),
        ("prompt_tokens = 8\noutput_tokens = 4", 'preset = "azure-conv-2032"', "azure-conv-2023"),
        ("model.gguf", "no-such-model.gguf", "no-such-model.gguf' does not exist"),
        ("requests = 20", "requests = 2", "ramp.requests: found 2, allowed is at least 20"),
        ('launch = "process"', 'launch = "process"\nmemory_limit_bytes = "1GiB"', 'has no meaning with launch'),
        ("[slo]", "[slo", "plan.toml"),
    ],
)  # fmt: skip
def test_a_wrong_plan_is_refused_with_the_key_and_the_remedy(tmp_path: Path, old: str, new: str, said: str) -> None:
    plan = write_plan(tmp_path)
    assert old in plan.read_text()
    plan.write_text(plan.read_text().replace(old, new))
    out = tmp_path / "run"
    done = loadproof("run", plan, "--out", out)
    assert done.returncode == 2
    assert "1 problem in the plan; nothing was started" in said_once(done)
    assert said in done.stderr
    assert not out.exists()


def test_a_plan_that_is_not_there(tmp_path: Path) -> None:
    done = loadproof("run", tmp_path / "plan.toml")
    assert done.returncode == 2
    assert "plan.toml" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_directory_that_exists(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    done = loadproof("run", write_plan(tmp_path), "--out", tmp_path / "run")
    assert done.returncode == 3
    assert "exists already. Name another folder with --out" in said_once(done)


def docker_plan(folder: Path, image: str) -> Path:
    plan = write_plan(folder)
    text = plan.read_text().replace('launch = "process"', f'launch = "docker"\nimage = "{image}"')
    plan.write_text(text.replace('.gguf"', '.gguf"\nserved_name = "m"'))
    (folder / "mounted").mkdir()
    shutil.move(folder / "model.gguf", folder / "mounted" / "model.gguf")
    text = plan.read_text().replace(str(folder / "model.gguf"), "/models/model.gguf")
    plan.write_text(text.replace("max_concurrency", f'mounts = ["{folder}/mounted:/models"]\nmax_concurrency'))
    return plan


def test_no_docker(tmp_path: Path) -> None:
    done = loadproof(
        "run", docker_plan(tmp_path, "x:1"), "--out", tmp_path / "run", DOCKER_HOST="unix:///no/such/docker.sock"
    )
    assert done.returncode == 3
    assert "No Docker Engine answers at unix:///no/such/docker.sock" in said_once(done)
    assert isinstance(read_events(tmp_path / "run")[-1], RunClosed)


@pytest.mark.docker
def test_a_missing_image(tmp_path: Path) -> None:
    done = loadproof("run", docker_plan(tmp_path, "127.0.0.1:1/no/such:1"), "--out", tmp_path / "run")
    assert done.returncode == 3
    assert "127.0.0.1:1/no/such:1" in said_once(done)
    assert "cannot be reached" in said_once(done)


# --- a server that misbehaves under load --------------------------------------------------------------------------


def run_of(tmp_path: Path, *options: str, levels: tuple[int, ...] = (2,)) -> tuple[int, list[AnyEvent], dict[str, Any]]:
    """(exit code, journal, the only cell of result.json)."""
    out = tmp_path / "run"
    done = loadproof("run", write_plan(tmp_path, *options, levels=levels), "--out", out)
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    assert (out / "report.html").stat().st_size > 10_000
    assert find_orphans(out.name) == []
    (cell,) = json.loads((out / "result.json").read_bytes())["cells"]
    return done.returncode, read_events(out), cell


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("500", "status"),
        ("hang", "timeout"),
        ("stall", "timeout"),
        ("half", "truncated"),
        ("rst", "reset"),
        ("error", "error_in_stream"),
        ("garbage", "protocol"),
        ("bad-chunk", "protocol"),
    ],
)
def test_what_a_server_does_under_load_is_counted_by_its_class(tmp_path: Path, mode: str, kind: str) -> None:
    code, events, cell = run_of(tmp_path, "--mode", mode, "--mode-after", str(WELL))
    (level,) = [event for event in events if isinstance(event, LevelCommitted) and event.verdict.valid]
    assert code == 0, "a break that was found is success"
    assert (level.verdict.verdict, set(level.stats.failures)) == ("FAIL", {kind})
    lines = (tmp_path / "run" / "cells").rglob("requests.jsonl")
    records = [json.loads(line) for file in lines for line in file.read_text().splitlines()]
    assert sum("failure" not in record for record in records) == WELL - 1, "all but the probe are on the disk"
    assert cell["verdict"]["verdict"] == "REFUSED"


def test_a_server_that_dies_under_load_is_a_result(tmp_path: Path) -> None:
    code, events, cell = run_of(tmp_path, "--exit-after", str(WELL), levels=(2, 4))
    levels = [event for event in events if isinstance(event, LevelCommitted)]
    assert code == 0
    assert [(level.run.spec.concurrency, level.verdict.hard_break) for level in levels] == [(2, "server died")]
    assert cell["incidents"][0]["failure"]["failure_class"] == "server died"
    assert "code 9" in cell["incidents"][0]["failure"]["message"]


@pytest.mark.parametrize("mode", ["500", "hang"])
def test_a_server_that_never_answers_well_does_not_come_up(tmp_path: Path, mode: str) -> None:
    plan = write_plan(tmp_path, "--mode", mode)
    plan.write_text(plan.read_text().replace("max_concurrency", "start_timeout_s = 2\nmax_concurrency"))
    done = loadproof("run", plan, "--out", tmp_path / "run")
    assert done.returncode == 4
    assert "1 of 1 cells could not be measured: fake--w. The report says why." in said_once(done)
    stopped = [event for event in read_events(tmp_path / "run") if isinstance(event, ServerStopped)]
    assert [event.failure is not None for event in stopped] == [True]
    assert (tmp_path / "run" / "report.html").exists()


# --- the disk -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=False)
    if done.returncode != 0:
        pytest.skip("no right to mount a small disk: run as root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_refused_before_the_start(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        done = loadproof("run", write_plan(tmp_path), "--out", disk / "run")
    assert done.returncode == 3
    assert "MiB left" in said_once(done)


def test_a_disk_that_fills_up_ends_the_run_and_keeps_what_was_measured(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "80m") as disk:
        plan, out = write_plan(tmp_path, levels=(2, 3, 4, 5, 6)), disk / "run"
        command = [sys.executable, "-m", "orchestrator.cli", "run", str(plan), "--out", str(out), "--json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if '"level-committed"' in line or '"level_committed"' in line:
                    break
            with contextlib.suppress(OSError), (disk / "ballast").open("wb") as ballast:
                while True:
                    ballast.write(bytes(1 << 20))
            _, err = process.communicate()
        assert process.returncode == 3
        assert "Traceback" not in err
        assert "is full" in err
        committed = [event for event in read_events(out) if isinstance(event, LevelCommitted)]
        assert 1 <= len(committed) < 5
        (disk / "ballast").unlink()
        done = loadproof("run", "--resume", out, "--quiet")
        assert done.returncode == 0, done.stderr
        levels = [event for event in read_events(out) if isinstance(event, LevelCommitted) and event.verdict.valid]
        assert [level.run.spec.concurrency for level in levels] == [2, 3, 4, 5, 6]
        assert find_orphans(out.name) == []
