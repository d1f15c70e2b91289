"""Whole runs on a real Docker Engine: what dies, what is killed and what goes away is a result, and nothing is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fakes import openai_server
from fakes.dying import dying_owner, reapers_of, wait_until
from fakes.engine import containers_of, docker_client, fake_image
from fakes.private_engine import PrivateEngine, lacking, private_engine
from fakes.registry import digest, registry

from orchestrator.errors import HostError
from orchestrator.journal import read_events
from orchestrator.launch.docker import Engine
from orchestrator.launch.engine_facts import Plan
from orchestrator.records import CellFinished, LevelCommitted, RunClosed, ServerReady, ServerStopped

pytestmark = pytest.mark.docker

PLAN = """
[model]
id = "org/model"
context_tokens = 512
[slo]
ttft_ms = 2000
tpot_ms = 1000
[defaults]
launch = "docker"
image = "{image}"
start_timeout_s = 60
max_concurrency = 64
{deployments}
[[workload]]
name = "w"
prompt_tokens = 8
output_tokens = 8
levels = [2, 4]
[ramp]
requests = 20
requests_per_user = 2
min_seconds = {min_seconds}
max_seconds = 20
ramp_seconds = 0.1
warmup_generations = 1
filler_seconds = 1
confirm = 0
"""
DEPLOYMENT = """
[[deployment]]
name = "{name}"
stack = "llamacpp"
command = ["python3", "/opt/site/server.py"{more}]
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with fake_image(tmp_path_factory.mktemp("image"), Path(openai_server.__file__)) as name:
        yield name


@pytest.fixture
def own_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PrivateEngine]:
    if reason := lacking():
        if "docker" in os.environ.get("LOADPROOF_REQUIRE", ""):
            pytest.fail(reason)
        pytest.skip(reason)
    with private_engine(tmp_path) as engine:
        monkeypatch.setenv("DOCKER_HOST", engine.address)
        yield engine


def write_plan(folder: Path, image: str, deployments: dict[str, str], min_seconds: float = 0) -> Path:
    rows = "".join(DEPLOYMENT.format(name=name, more=more) for name, more in deployments.items())
    plan = folder / "plan.toml"
    plan.write_text(PLAN.format(image=image, deployments=rows, min_seconds=min_seconds))
    return plan


def command(plan: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "orchestrator.cli", "run", str(plan), "--out", str(out)]


def has_begun_a_level(out: Path) -> bool:
    journal = out / "journal.jsonl"
    return journal.exists() and "level-started" in journal.read_text()


def test_an_engine_that_is_restarted_under_a_run_costs_a_level_and_not_the_run(
    tmp_path: Path, own_engine: PrivateEngine
) -> None:
    own_engine.start()
    out = tmp_path / "run"
    with fake_image(tmp_path / "image", Path(openai_server.__file__)) as image:
        plan = write_plan(tmp_path, image, {"first": "", "second": ""}, min_seconds=4)
        with subprocess.Popen(command(plan, out), stderr=subprocess.PIPE, text=True) as run:
            wait_until(lambda: has_begun_a_level(out), "a level is being measured")
            own_engine.stop()
            own_engine.start()
            _, said = run.communicate(timeout=120)
        assert run.returncode == 0, said
        assert containers_of(out.name) == []
    events = read_events(out)
    assert isinstance(events[-1], RunClosed)
    assert events[-1].outcome == "complete"
    finished = {event.cell: event.outcome for event in events if isinstance(event, CellFinished)}
    assert list(finished.values()) == ["measured", "measured"]
    died, *others = [event for event in events if isinstance(event, ServerStopped)]
    assert died.failure is not None
    assert died.failure.failure_class == "server died"
    assert all(event.failure is None for event in others)
    committed = [event for event in events if isinstance(event, LevelCommitted)]
    assert committed[0].verdict.hard_break == "server died"
    assert {event.verdict.verdict for event in committed if event.cell == list(finished)[1]} == {"PASS"}


def test_a_server_that_dies_again_and_again_ends_the_cell_and_not_the_run(tmp_path: Path, image: str) -> None:
    """Each start comes up and dies under load: a result with its evidence, and the next deployment is measured."""
    plan = write_plan(tmp_path, image, {"dies": ', "--exit-after", "10"', "lives": ""})
    out = tmp_path / f"run-{uuid.uuid4().hex}"
    done = subprocess.run(command(plan, out), capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0, done.stderr
    assert containers_of(out.name) == []
    events = read_events(out)
    starts = [event for event in events if isinstance(event, ServerReady) and event.cell.startswith("dies")]
    stops = [event for event in events if isinstance(event, ServerStopped) and event.cell.startswith("dies")]
    assert 1 <= len(starts) <= 4, "it is not started for ever"
    assert [stop.failure is not None and stop.failure.exit_code for stop in stops] == [9] * len(stops)
    result = json.loads((out / "result.json").read_bytes())
    dead, alive = result["cells"]
    assert "c_ok" not in dead["verdict"]
    assert alive["verdict"]["c_ok"] == 4


def test_two_runs_at_once_do_not_touch_each_other(tmp_path: Path, run_id: str, image: str) -> None:
    """One is killed and cleaned up behind; the other's container serves on."""
    other = f"{run_id}-other"
    with fake_image(tmp_path / "image") as fake, docker_client():
        for folder in ("one", "two"):
            (tmp_path / folder).mkdir()
        with (
            dying_owner(tmp_path / "one", run_id, image=fake) as one,
            dying_owner(tmp_path / "two", other, image=fake) as two,
        ):
            one.hear("ready")
            base_url = two.hear("ready")["base_url"]
            one.kill_group()
            wait_until(lambda: not reapers_of(run_id), "the reaper of the first has done its work")
            assert containers_of(run_id) == []
            assert len(containers_of(other)) == 1
            assert len(reapers_of(other)) == 1
            assert httpx.get(f"{base_url}/health", trust_env=False).status_code == 200
            two.kill_group()
            wait_until(lambda: not reapers_of(other), "the reaper of the second has done its work")
        assert containers_of(other) == []


@pytest.mark.slow
def test_24_containers_are_gone_after_sigkill_of_their_loadproof(tmp_path: Path, run_id: str) -> None:
    with (
        fake_image(tmp_path / "image") as fake,
        dying_owner(tmp_path, run_id, image=fake, count=24) as owner,
    ):
        for _ in range(24):
            owner.hear("ready")
        assert len(containers_of(run_id)) == 24
        owner.kill_group()
        wait_until(lambda: not reapers_of(run_id), "all reapers have done their work")
        assert containers_of(run_id) == []


def test_a_registry_that_breaks_off_in_the_middle_of_a_layer_is_one_sentence(own_engine: PrivateEngine) -> None:
    """And what stands afterwards is no half of an image: the next pull brings it whole."""
    own_engine.start()
    with registry() as served, Engine.connect() as engine:
        reference = f"{served.address}/loadproof/x:1"
        served.breaks_off = True
        with pytest.raises(HostError) as caught:
            engine.image(reference, lambda _: None)
        assert served.broken_off >= 1
        assert caught.value.message == f"The registry broke off while it sent the image {reference}."
        assert caught.value.exit_code == 3
        served.breaks_off = False
        assert engine.image(reference, lambda _: None).digest.endswith(digest(served.manifest))


def test_gpus_are_handed_over_where_nvidia_s_hook_is(tmp_path: Path, own_engine: PrivateEngine) -> None:
    """The same requests that an engine without it refuses (test_docker_server)."""
    own_engine.give_hook()
    own_engine.start()
    with fake_image(tmp_path / "image") as image, docker_client() as client, Engine.connect() as engine:
        engine.require_gpus()
        for gpus, visible in ((("all",), "all"), (("0", "1"), "0,1"), (("GPU-fa4e-1",), "GPU-fa4e-1")):
            words = ("-c", "import os; print(os.environ['NVIDIA_VISIBLE_DEVICES'])")
            plan = Plan(f"c{uuid.uuid4().hex}", image, words, ("python3",), {}, {}, 80, "none", gpus=gpus)
            container = engine.create(plan)
            engine.start(container, image)
            assert client.api.wait(container)["StatusCode"] == 0
            assert client.api.logs(container).decode().strip() == visible
            engine.remove(container)
