"""The door to the Docker SDK without an engine: who is refused, who is gone, and who is waited for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import requests
import urllib3
from docker.errors import APIError, DockerException

from orchestrator.errors import HostError
from orchestrator.launch import docker as door
from orchestrator.launch.docker import EngineGoneError, patient

ADDRESS = "unix:///no/such/engine.sock"


@pytest.fixture(autouse=True)
def _address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", ADDRESS)
    monkeypatch.setattr(door, "_answered", set())
    monkeypatch.setattr(door, "ASK_AGAIN_S", 0.0)


def gone_for(times: int) -> Callable[[], int]:
    """An engine that is away for so many calls; then the number of calls that it took."""
    calls = 0

    def call() -> int:
        nonlocal calls
        calls += 1
        if calls <= times:
            raise EngineGoneError("No Docker Engine answers.")
        return calls

    return call


def test_an_engine_that_answered_before_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "_answered", {ADDRESS})
    assert patient(gone_for(3))() == 4


def test_an_engine_that_never_answered_is_not() -> None:
    with pytest.raises(EngineGoneError):
        patient(gone_for(1))()


def test_nor_one_that_stays_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "_answered", {ADDRESS})
    monkeypatch.setattr(door, "RESTART_S", 0.01)
    with pytest.raises(EngineGoneError):
        patient(gone_for(10**9))()


@pytest.mark.parametrize(
    ("act", "error", "gone"),
    [
        ("start", requests.exceptions.ConnectionError("Connection aborted"), True),
        ("connect", urllib3.exceptions.ProtocolError("IncompleteRead"), True),
        ("connect", DockerException("Error while fetching server API version: FileNotFoundError(2)"), True),
        ("connect", APIError("409 Client Error", explanation="container is running"), False),
        ("start", APIError("500 Server Error", explanation="port is already allocated"), False),
        ("pull", DockerException("manifest unknown"), False),
    ],
)
def test_a_refusal_is_no_absence(act: str, error: Exception, gone: bool) -> None:
    with pytest.raises(HostError) as caught, door._told(act, image="x"):
        raise error
    assert isinstance(caught.value, EngineGoneError) == gone
    assert caught.value.remedy
