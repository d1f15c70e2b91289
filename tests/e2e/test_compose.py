"""The product's own containers: the image, built offline on a base made here, and the compose file that runs it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.models.images import Image
from fakes.python_image import build, closure, copy_distributions, openmp_runtime

import orchestrator

REPOSITORY = Path(__file__).parents[2]
IN_THE_BASE = ("pip", "hatchling", "click", "msgspec", "psutil", "docker", "httpx", "nvidia-ml-py", "rich")
"""What the image needs to be built, and to answer `--version` and `doctor`."""
OFFLINE = {
    "PATH": "/usr/bin",
    "PYTHONPATH": "/opt/site",
    "LD_LIBRARY_PATH": "/opt/site",
    "PIP_NO_INDEX": "1",
    "PIP_NO_DEPS": "1",
    "PIP_NO_BUILD_ISOLATION": "0",  # an option that pip names backwards: this switches the isolation off
    "PIP_BREAK_SYSTEM_PACKAGES": "1",
}
"""Makes the Dockerfile's own commands do without an index."""


# --- a base image ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(docker_host: str) -> Iterator[docker.DockerClient]:
    client = docker.DockerClient(base_url=docker_host)
    yield client
    client.close()


@pytest.fixture(scope="module")
def mark() -> str:
    """Names everything that this module makes."""
    return f"loadproof-test-{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="module")
def base(engine: docker.DockerClient, mark: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A base image out of this Python; no registry is asked."""
    folder = tmp_path_factory.mktemp("base")
    copy_distributions(closure(IN_THE_BASE), folder / "site")
    if openmp := openmp_runtime():
        shutil.copy(openmp, folder / "site/libgomp.so.1")
    build(folder / "base.tar", folder / "site")
    engine.api.import_image_from_file(
        str(folder / "base.tar"),
        repository=mark,
        tag="base",
        changes=[f"ENV {name}={value}" for name, value in OFFLINE.items()],
    )
    (folder / "base.tar").unlink()
    yield f"{mark}:base"
    engine.images.remove(f"{mark}:base", force=True)


def build_target(engine: docker.DockerClient, mark: str, base: str, target: str) -> Image:
    image, _ = engine.images.build(
        path=str(REPOSITORY),
        target=target,
        tag=f"{mark}:{target}",
        buildargs={"BASE": base},
        network_mode="none",
        rm=True,
        forcerm=True,
    )
    return image


@pytest.fixture(scope="module")
def bench_image(engine: docker.DockerClient, mark: str, base: str) -> Iterator[Image]:
    yield build_target(engine, mark, base, "bench")
    engine.images.remove(f"{mark}:bench", force=True)


@pytest.fixture(scope="module")
def demo_image(engine: docker.DockerClient, mark: str, base: str, bench_image: Image) -> Iterator[Image]:
    if openmp_runtime() is None:
        pytest.skip("no OpenMP runtime on this machine: install libgomp1")
    yield build_target(engine, mark, base, "demo")
    engine.images.remove(f"{mark}:demo", force=True)


def output_of(engine: docker.DockerClient, image: Image, *command: str, **options: Any) -> str:
    """What a container prints; raises if it exits with another status than 0. It is removed in any case."""
    logs: bytes = engine.containers.run(
        image.id, list(command), remove=True, network_mode="none", stderr=True, stdout=True, **options
    )
    return logs.decode()


# --- the image ---------------------------------------------------------------------------------------------------


@pytest.mark.docker
def test_the_image_is_built_offline_and_answers(engine: docker.DockerClient, bench_image: Image) -> None:
    assert output_of(engine, bench_image, "--version") == f"loadproof, version {orchestrator.__version__}\n"
    assert "Commands:" in output_of(engine, bench_image)


@pytest.mark.docker
def test_the_image_holds_the_four_packages_installed(engine: docker.DockerClient, bench_image: Image) -> None:
    """From the wheel, not from the sources that were copied in; a folder where it runs is never a module."""
    code = (
        "import importlib.metadata as m, orchestrator, stacks, workloads, reports;"
        "print(m.version('loadproof'), *(p.__file__ for p in (orchestrator, stacks, workloads, reports)), sep='\\n')"
    )
    version, *files = output_of(engine, bench_image, "-P", "-c", code, entrypoint=["python3"]).split()
    assert version == orchestrator.__version__
    assert len(files) == 4
    assert all("-packages/" in file for file in files), files
    listed = output_of(engine, bench_image, "-c", "import os; print(*os.listdir('/src'))", entrypoint=["python3"])
    assert set(listed.split()) - {"build"} == {
        "LICENSE",
        "README.md",
        "orchestrator",
        "pyproject.toml",
        "reports",
        "stacks",
        "workloads",
    }


@pytest.mark.docker
def test_the_doctor_finds_no_engine_in_a_container_without_its_socket(
    engine: docker.DockerClient, bench_image: Image
) -> None:
    checks = json.loads(output_of(engine, bench_image, "doctor", "--json"))["checks"]
    found = {check["name"]: check["status"] for check in checks}
    assert found["container engine"] == "WARN"
    assert found["processors"] in ("OK", "WARN")
    with pytest.raises(docker.errors.ContainerError) as caught:
        output_of(engine, bench_image, "doctor", "--need", "docker")
    assert caught.value.exit_status == 3


@pytest.mark.docker
def test_the_demo_image_runs_the_demo(engine: docker.DockerClient, demo_image: Image) -> None:
    config = demo_image.attrs["Config"]
    assert config["Entrypoint"] + config["Cmd"] == ["python3", "-P", "-m", "orchestrator.cli", "demo"]
    assert "LOADPROOF_MODELS=/models" in config["Env"]
    assert output_of(engine, demo_image, "--version").startswith("loadproof, version ")


# --- compose -----------------------------------------------------------------------------------------------------


COMPOSE = ("docker", "compose")


def run(command: tuple[str, ...], *arguments: str, **environment: str) -> str:
    """Run compose in a clean environment; its output, with its errors if it fails."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "DOCKER_HOST", "DOCKER_CONFIG") if name in os.environ}
    done = subprocess.run(
        [*command, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=kept | environment,
        cwd=REPOSITORY,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def services(**environment: str) -> dict[str, Any]:
    profiles = [word for name in ("bench", "vllm", "tgi") for word in ("--profile", name)]
    text = run(COMPOSE, *profiles, "config", "--format", "json", **environment)
    found: dict[str, Any] = json.loads(text)["services"]
    return found


@pytest.mark.compose
def test_the_compose_file_is_valid_with_every_profile() -> None:
    run(COMPOSE, "--profile", "bench", "--profile", "vllm", "--profile", "tgi", "config", "--quiet")
    assert run(COMPOSE, "config", "--services").split() == ["demo"], "nothing that needs a GPU starts unasked"


@pytest.mark.compose
def test_what_the_services_are() -> None:
    found = services(BASE="local/base:1", MODEL="org/model", VLLM_ARGS="--quantization fp8 --max-num-seqs 64")
    assert set(found) == {"demo", "bench", "vllm", "tgi"}
    for name in ("demo", "bench"):
        assert found[name]["build"]["args"] == {"BASE": "local/base:1"}
        assert found[name]["build"]["target"] == name
    bench = found["bench"]
    assert (bench["network_mode"], bench["pid"]) == ("host", "host")
    mounts = {mount["target"]: mount for mount in bench["volumes"]}
    assert mounts["/var/run/docker.sock"]["source"] == "/var/run/docker.sock"
    assert mounts["/loadproof/plans"]["read_only"] is True
    assert mounts["/loadproof/runs"]["source"] == str(REPOSITORY / "runs")
    for name in ("bench", "vllm", "tgi"):
        (device,) = found[name]["deploy"]["resources"]["reservations"]["devices"]
        assert (device["driver"], device["count"], device["capabilities"]) == ("nvidia", -1, ["gpu"])
    assert found["vllm"]["command"][0] == "org/model"
    assert found["vllm"]["command"][-4:] == ["--quantization", "fp8", "--max-num-seqs", "64"]
    for name, port in (("vllm", 8000), ("tgi", 80)):
        (published,) = found[name]["ports"]
        assert (published["host_ip"], published["target"]) == ("127.0.0.1", port)


@pytest.mark.compose
def test_a_token_goes_by_name_and_its_value_is_not_in_the_file() -> None:
    for name in ("bench", "vllm", "tgi"):
        assert services()[name]["environment"]["HF_TOKEN"] is None
    assert "HF_TOKEN=" not in (REPOSITORY / "docker-compose.yml").read_text()


@pytest.fixture
def project(mark: str, engine: docker.DockerClient, tmp_path: Path) -> Iterator[tuple[str, ...]]:
    """Compose with the images that were built here, and without the GPUs that this machine may lack."""
    changes = tmp_path / "changes.yml"
    changes.write_text(
        f"services:\n"
        f"  demo: {{image: '{mark}:demo', pull_policy: never, build: !reset null}}\n"
        f"  bench: {{image: '{mark}:bench', pull_policy: never, build: !reset null, deploy: !reset null}}\n"
    )
    files = ("-f", str(REPOSITORY / "docker-compose.yml"), "-f", str(changes))
    command = (*COMPOSE, "-p", mark, "--project-directory", str(tmp_path), *files)
    yield command
    run(command, "--profile", "bench", "down", "--volumes", "--remove-orphans")
    assert engine.containers.list(all=True, filters={"label": f"com.docker.compose.project={mark}"}) == []


@pytest.mark.docker
@pytest.mark.compose
def test_the_service_demo_runs(project: tuple[str, ...], demo_image: Image) -> None:
    assert run(project, "run", "--rm", "-T", "demo", "--version").startswith("loadproof, version ")


@pytest.mark.docker
@pytest.mark.compose
@pytest.mark.skipif(sys.platform != "linux", reason="the host's network and processes are Linux's")
def test_the_service_bench_reaches_the_engine(project: tuple[str, ...], bench_image: Image, docker_host: str) -> None:
    """Through the mounted socket: the doctor in the container sees the engine that runs it."""
    if not docker_host.startswith("unix://"):
        pytest.skip("the engine has no local socket to mount")
    socket = docker_host.removeprefix("unix://")
    out = run(project, "run", "--rm", "-T", "bench", "doctor", "--json", "--need", "docker", DOCKER_SOCKET=socket)
    checks = {check["name"]: check for check in json.loads(out)["checks"]}
    assert checks["container engine"]["status"] == "OK"
    assert "answers at unix:///var/run/docker.sock" in checks["container engine"]["found"]
