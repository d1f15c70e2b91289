"""Servers in containers on a real Docker Engine: what comes up, what is refused, what dies; and nothing is left."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from click.testing import CliRunner
from fakes.dying import dying_owner, reapers_of, wait_until
from fakes.engine import containers_of, docker_client, fake_image
from fakes.stacks import FakeStack

from orchestrator.commands.clean import clean
from orchestrator.commands.doctor import doctor
from orchestrator.errors import HostError, StackError
from orchestrator.launch.orphans import container_orphans, remove
from orchestrator.launch.owner import Owner
from orchestrator.launch.server import Server, open_server
from orchestrator.records import ServerRecord
from stacks.base import Deployment

pytestmark = pytest.mark.docker

MIB = 1 << 20


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with fake_image(tmp_path_factory.mktemp("image")) as name:
        yield name


@asynccontextmanager
async def opened(
    directory: Path,
    run_id: str,
    image: str | None,
    *args: str,
    records: list[ServerRecord] | None = None,
    on_starting: Callable[[ServerRecord], None] | None = None,
    said: list[str] | None = None,
    **settings: Any,
) -> AsyncIterator[Server]:
    deployment = Deployment(
        name="fake-1", stack="fake", model="fake-model", launch="docker", image=image, args=args, **settings
    )
    seen: list[ServerRecord] = []
    words: list[str] = []
    async with open_server(
        FakeStack(),
        deployment,
        directory=directory,
        owner=Owner.current(run_id, "cell 1/x"),
        on_starting=on_starting or (seen if records is None else records).append,
        on_progress=(words if said is None else said).append,
    ) as server:
        yield server


def fail(error: type[Exception], *args: Any, **settings: Any) -> Any:
    async def go() -> None:
        async with opened(*args, **settings):
            pytest.fail("it came up")

    with pytest.raises(error) as caught:
        asyncio.run(go())
    return caught.value


async def get(server: Server, path: str) -> None:
    async with httpx.AsyncClient(base_url=server.base_url, trust_env=False) as client:
        try:
            await client.get(path)
        except httpx.HTTPError:
            return


# --- it comes up --------------------------------------------------------------------------------------------------


def test_a_container_is_started_watched_and_removed(
    tmp_path: Path, run_id: str, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "hf_Very-Secret-1")
    records: list[ServerRecord] = []
    (tmp_path / "models").mkdir()

    async def go() -> tuple[dict[str, Any], tuple[int, ...], dict[str, float], ServerRecord]:
        async with opened(
            tmp_path,
            run_id,
            image,
            *("--ready-after", "0.5", "--say", "KV pool 4096 tokens", "--print-env"),
            records=records,
            secrets=("MY_TOKEN",),
            env={"A": "b"},
            mounts=(f"{tmp_path}/models:/models",),
            memory_limit_bytes=256 * MIB,
            shm_bytes=32 * MIB,
            cpus=1.5,
        ) as server:
            assert server.record.container_id is not None
            with docker_client() as client:
                inspected = client.api.inspect_container(server.record.container_id)
            usage = await asyncio.to_thread(server.usage)
            return inspected, await asyncio.to_thread(server.pids), usage, server.record

    inspected, pids, usage, record = asyncio.run(go())
    assert [(r.container_id is None, r.base_url) for r in records] == [(True, ""), (False, "")]
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", record.base_url)
    assert record.image_digest is not None
    assert record.image_digest.startswith("sha256:")
    assert (record.version, record.facts) == ("9.8.7", {"kv_tokens": 4096.0})
    assert record.argv[:2] == ("python3", "/opt/site/server.py")
    host = inspected["HostConfig"]
    assert (host["Memory"], host["MemorySwap"], host["ShmSize"]) == (256 * MIB, 256 * MIB, 32 * MIB)
    assert (host["NanoCpus"], host["AutoRemove"]) == (1_500_000_000, False)
    assert (host["Mounts"][0]["Type"], host["Mounts"][0]["Target"]) == ("bind", "/models")
    assert [binding["HostIp"] for binding in host["PortBindings"]["8000/tcp"]] == ["127.0.0.1"]
    labels = inspected["Config"]["Labels"]
    assert (labels["loadproof"], labels["loadproof.run"], labels["loadproof.cell"]) == ("1", run_id, "cell 1/x")
    assert labels["loadproof.owner"] == Owner.current(run_id, "c").mark
    assert {"A=b", "MY_TOKEN=hf_Very-Secret-1"} <= set(inspected["Config"]["Env"])
    assert pids[0] == inspected["State"]["Pid"]
    assert 0 < usage["memory_used_bytes"] < usage["memory_limit_bytes"] == 256 * MIB
    assert usage["cpu_s"] > 0
    log = (tmp_path / "server.log").read_text()
    assert "'MY_TOKEN': '[MY_TOKEN]'" in log
    assert "Very-Secret" not in log + repr(records) + " ".join(inspected["Config"]["Cmd"])


# --- it ends ------------------------------------------------------------------------------------------------------


def test_the_memory_limit_s_kill_is_out_of_memory_by_the_engine_s_word(tmp_path: Path, run_id: str, image: str) -> None:
    async def go() -> Any:
        async with opened(tmp_path, run_id, image, memory_limit_bytes=64 * MIB) as server:
            await get(server, "/eat")
            return await asyncio.wait_for(server.died(), 30)

    failure = asyncio.run(go())
    assert failure.failure_class == "out of memory"
    assert (failure.exit_code, failure.oom_killed) == (137, True)
    assert "at its limit of 64 MiB" in failure.message
    assert "OOMKilled=true" in failure.evidence[0]
    assert failure.evidence[1] == f"engine: HostConfig.Memory={64 * MIB}"
    assert any("listening on" in line for line in failure.evidence)


def test_death_at_the_start_is_a_result_with_its_log(tmp_path: Path, run_id: str, image: str) -> None:
    said = ("--say", "x: CUDA out of memory. Tried to allocate")
    error = fail(StackError, tmp_path, run_id, image, *said, "--ready-after", "99", "--die-after", "0.2")
    assert error.failure_class == "oom-weights"
    assert "exited with code 3" in error.message
    assert "ExitCode=3 OOMKilled=false" in error.evidence[0]
    assert error.evidence[-1] == "the engine has died of grief"


def test_death_under_load_is_noticed(tmp_path: Path, run_id: str, image: str) -> None:
    async def go() -> Any:
        async with opened(tmp_path, run_id, image) as server:
            await get(server, "/die")
            return await asyncio.wait_for(server.died(), 30)

    failure = asyncio.run(go())
    assert (failure.failure_class, failure.exit_code, failure.oom_killed) == ("server died", 3, False)


def test_a_container_that_somebody_removes_is_noticed(tmp_path: Path, run_id: str, image: str) -> None:
    async def go() -> Any:
        async with opened(tmp_path, run_id, image) as server:
            with docker_client() as client:
                client.api.remove_container(server.record.container_id, force=True)
            assert await asyncio.to_thread(server.usage) == {}
            return await asyncio.wait_for(server.died(), 30)

    failure = asyncio.run(go())
    assert failure.failure_class == "server died"
    assert "somebody else removed it" in failure.evidence[0]


def test_a_start_time_out(tmp_path: Path, run_id: str, image: str) -> None:
    error = fail(StackError, tmp_path, run_id, image, "--ready-after", "99", start_timeout_s=4)
    assert error.failure_class == "start-timeout"
    assert "/health answers 503: loading" in error.message


def test_ctrl_c_during_the_start_leaves_nothing(tmp_path: Path, run_id: str, image: str) -> None:
    async def go() -> None:
        making = asyncio.Event()
        opening = opened(tmp_path, run_id, image, "--ready-after", "99", on_starting=lambda _: making.set())
        task = asyncio.ensure_future(opening.__aenter__())
        await making.wait()
        task.cancel()  # while the engine makes the container
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(go())


# --- what the engine refuses --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"image": "127.0.0.1:1/no/such:1"}, "its registry cannot be reached"),
        ({"image": "Not An Image"}, "is no image name"),
        ({"image": None}, "has no image"),
        ({"mounts": ("/no/such/folder:/models",)}, "folder /no/such/folder does not exist"),
        ({"memory_limit_bytes": MIB}, "below the engine's least, 6MB"),
        ({"cpus": 1000.0}, "does not have that many CPUs"),
    ],
)
def test_what_the_engine_refuses_is_one_sentence(
    tmp_path: Path, run_id: str, image: str, settings: dict[str, Any], said: str
) -> None:
    settings = {"image": image} | settings
    error = fail(HostError, tmp_path, run_id, settings.pop("image"), **settings)
    assert said in error.message
    assert error.remedy


def test_a_gpu_that_the_engine_cannot_give(tmp_path: Path, run_id: str, image: str) -> None:
    with docker_client() as client:
        if "nvidia" in client.info().get("Runtimes", {}):
            pytest.skip("this engine has an NVIDIA runtime: nothing is refused")
    error = fail(HostError, tmp_path, run_id, image, gpus=("all",))
    assert "NVIDIA's container toolkit is missing" in error.message


def test_a_program_that_the_image_lacks(
    tmp_path: Path, run_id: str, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = FakeStack.launch

    def without(self: FakeStack, deployment: Deployment, host: str, port: int) -> Any:
        spec = launch(self, deployment, host, port)
        return msgspec.structs.replace(spec, entrypoint=("no-such-program",))

    monkeypatch.setattr(FakeStack, "launch", without)
    error = fail(HostError, tmp_path, run_id, image)
    assert "does not hold the program" in error.message
    assert "no-such-program" in error.message


def test_the_doctor_tells_the_engine_and_the_room_for_its_images() -> None:
    done = CliRunner().invoke(doctor, ["--json", "--need", "docker"])
    checks = {check["name"]: check for check in json.loads(done.output)["checks"]}
    with docker_client() as client:
        info = client.info()
    assert checks["container engine"]["status"] == "OK"
    assert f"version {info['ServerVersion']}" in checks["container engine"]["found"]
    assert info["DockerRootDir"] in checks["disk for images"]["found"]


def test_no_engine_at_all(tmp_path: Path, run_id: str, image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setenv("DOCKER_HOST", "unix:///no/such/docker.sock")
        error = fail(HostError, tmp_path, run_id, image)
    assert error.message == "No Docker Engine answers at unix:///no/such/docker.sock."
    assert "DOCKER_HOST" in error.remedy


# --- on a network, as from inside a container ---------------------------------------------------------------------


def test_a_shared_network_is_used_where_it_is_named(
    tmp_path: Path, run_id: str, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with docker_client() as client:
        network = client.networks.create(run_id, labels={"loadproof-test": "1"})
        try:
            monkeypatch.setenv("LOADPROOF_DOCKER_NETWORK", run_id)

            async def go() -> str:
                async with opened(tmp_path, run_id, image) as server:
                    return server.base_url

            base_url = asyncio.run(go())
        finally:
            network.remove()
    assert re.fullmatch(r"http://(?!127)[\d.]+:8000", base_url)


def test_a_shared_network_that_does_not_exist(
    tmp_path: Path, run_id: str, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOADPROOF_DOCKER_NETWORK", "no-such-network")
    error = fail(HostError, tmp_path, run_id, image)
    assert "network that the container is to join does not exist" in error.message


# --- orphans ------------------------------------------------------------------------------------------------------


def test_24_containers_of_a_dead_owner_are_found_and_removed_and_a_living_one_s_stay(run_id: str, image: str) -> None:
    living = Owner.current(run_id, "living")
    dead = Owner(run_id=run_id, cell="dead", pid=living.pid, pid_started=living.pid_started - 1, place=living.place)
    with docker_client() as client:
        for owner, count in ((dead, 24), (living, 1)):
            for _ in range(count):
                client.api.create_container(image, ["python3"], labels=owner.labels())
        orphans = container_orphans(run_id)
        assert len(orphans) == 24
        assert {orphan.owner for orphan in orphans} == {dead}
        assert "whose loadproof" in str(orphans[0])
        remove(orphans)
        left = containers_of(run_id)
        assert len(left) == 1
        client.api.remove_container(left[0])


@pytest.mark.parametrize("moment", ["ready", "starting"])
def test_sigkill_of_the_owner_leaves_no_container(tmp_path: Path, run_id: str, image: str, moment: str) -> None:
    with dying_owner(tmp_path, run_id, image=image) as owner:
        owner.hear(moment)
        if moment == "ready":
            assert len(containers_of(run_id)) == 1
        owner.kill_group()
        wait_until(lambda: not reapers_of(run_id), "the reaper has done its work and ended")
    assert containers_of(run_id) == []


def test_what_the_reaper_could_not_do_is_done_by_clean(tmp_path: Path, run_id: str, image: str) -> None:
    with dying_owner(tmp_path, run_id, image=image) as owner:
        owner.hear("ready")
        (reaper,) = reapers_of(run_id)
        reaper.kill()
        owner.kill_group()
    (container,) = containers_of(run_id)
    listed = CliRunner().invoke(clean, ["--dry-run"])
    assert listed.exit_code == 0
    assert f"container {container[:12]} loadproof-cell-1-" in listed.output
    assert containers_of(run_id) == [container]
    assert CliRunner().invoke(clean, []).exit_code == 0
    assert containers_of(run_id) == []
