"""What the machine can run, and what the run demands.

A test that needs a part (Docker Engine, compose, llama.cpp, Chromium, GPU) carries its marker. Where it is missing
the test is skipped with the reason and the remedy; `LOADPROOF_REQUIRE=docker,llamacpp,chromium` turns those skips into
failures.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import socket
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import settings

from orchestrator.demo import model_folder, models

settings.register_profile("loadproof", deadline=None)  # nothing is asserted on how fast this machine is
settings.load_profile("loadproof")

PARTS = ("docker", "compose", "llamacpp", "chromium", "gpu")


def _engine_answers(address: str) -> bool:
    url = urlsplit(address)
    try:
        if url.scheme == "unix":
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(2)
                connection.connect(url.path)
        else:
            socket.create_connection((url.hostname or "", url.port or 2375), 2).close()
    except OSError:
        return False
    return True


def _missing_docker() -> str | None:
    address = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if _engine_answers(address):
        return None
    return f"no Docker Engine answers at {address}: start one, or set DOCKER_HOST"


def _missing_compose() -> str | None:
    try:
        done = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    except OSError:
        return "no docker command on PATH: install it, with its compose plug-in"
    return None if done.returncode == 0 else "docker has no command compose: install the package docker-compose-plugin"


def _missing_llamacpp() -> str | None:
    lacking = [name for name in ("xllamacpp", "gguf") if importlib.util.find_spec(name) is None]
    if lacking:
        return f"not installed: {', '.join(lacking)} (pip install 'loadproof[demo]')"
    if not all(model.path.exists() for model in models(model_folder())):
        return "the demo's weights are not prepared: run loadproof demo --prepare"
    return None


def _missing_chromium() -> str | None:
    return None if chromium_path() else "no Chromium on PATH: install the package chromium"


def _missing_gpu() -> str | None:
    return None if Path("/dev/nvidiactl").exists() else "no NVIDIA GPU on this machine"


def chromium_path() -> str | None:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    return None


@functools.cache
def missing(part: str) -> str | None:
    """Why a part cannot be used here, or None."""
    probes = {
        "docker": _missing_docker,
        "compose": _missing_compose,
        "llamacpp": _missing_llamacpp,
        "chromium": _missing_chromium,
        "gpu": _missing_gpu,
    }
    return probes[part]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update", action="store_true", help="rewrite the golden files")


def pytest_runtest_setup(item: pytest.Item) -> None:
    required = [part for part in os.environ.get("LOADPROOF_REQUIRE", "").split(",") if part]
    for part in PARTS:
        if item.get_closest_marker(part) is None:
            continue
        if reason := missing(part):
            if part in required:
                pytest.fail(f"LOADPROOF_REQUIRE={part}, but {reason}", pytrace=False)
            pytest.skip(reason)


@pytest.fixture
def update(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be rewritten."""
    return bool(request.config.getoption("--update"))


@pytest.fixture(scope="session")
def docker_host() -> str:
    """Address of the Docker Engine (the test also carries the marker `docker`)."""
    return os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a Chromium (the test also carries the marker `chromium`)."""
    found = chromium_path()
    assert found is not None
    return found


@pytest.fixture(autouse=True)
def _no_proxy_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests speak to loopback and must not see the developer's own tokens."""
    for name in ("HF_TOKEN", "OPENAI_API_KEY", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
