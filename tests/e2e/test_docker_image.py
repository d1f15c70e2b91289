"""Images: here already, pulled with their digest, refused; and the way from inside a container to its neighbours."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.engine import docker_client, fake_image
from fakes.registry import Registry, digest, registry

from orchestrator.errors import HostError
from orchestrator.launch.docker import Engine

pytestmark = pytest.mark.docker


@pytest.fixture
def remote() -> Iterator[Registry]:
    """A registry, and an engine that keeps nothing of it."""
    with registry() as served:
        yield served
        with docker_client() as client:
            for image in client.images.list(f"{served.address}/loadproof/x"):
                client.images.remove(image.id, force=True)


def test_a_missing_image_is_pulled_and_known_by_its_digest(remote: Registry) -> None:
    reference = f"{remote.address}/loadproof/x:1"
    said: list[str] = []
    with Engine.connect() as engine:
        first = engine.image(reference, said.append)
        assert said[0] == f"pulling {reference}"
        assert first.digest == f"{remote.address}/loadproof/x@{digest(remote.manifest)}"
        assert engine.image(first.digest, said.append) == first
        said.clear()
        remote.locked = True  # whatever the registry says now: the image is here
        assert engine.image(reference, said.append) == first
        assert said == []


@pytest.mark.parametrize(
    ("name", "locked", "wrong", "sentence"),
    [
        ("x:2", False, False, "its registry does not have it"),
        ("y:1", False, False, "its registry does not have it"),
        ("x:1", True, False, "wants a login"),
        ("x:1", False, True, "cannot be pulled"),  # told by the stream's last item alone: the SDK raises nothing
    ],
)
def test_an_image_that_cannot_be_had(remote: Registry, name: str, locked: bool, wrong: bool, sentence: str) -> None:
    remote.locked, remote.wrong_layer = locked, wrong
    reference = f"{remote.address}/loadproof/{name}"
    with Engine.connect() as engine, pytest.raises(HostError) as caught:
        engine.image(reference, lambda _: None)
    assert sentence in caught.value.message
    assert reference in caught.value.message


def test_from_inside_a_container_neighbours_are_reached_on_its_own_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"loadproof-test-{uuid.uuid4().hex}"
    with fake_image(tmp_path) as image, docker_client() as client, Engine.connect() as engine:
        network = client.networks.create(name)
        made = [client.containers.create(image, network=name), client.containers.create(image, network_mode="host")]
        made.append(client.containers.create(image, network_mode="none"))
        try:
            found = []
            for container in made[:2]:
                monkeypatch.setattr("orchestrator.launch.docker.own_container_id", lambda id_=container.id: id_)
                found.append(engine.network())
            assert found == [name, None]
            monkeypatch.setattr("orchestrator.launch.docker.own_container_id", lambda: made[2].id)
            with pytest.raises(HostError, match="without a network"):
                engine.network()
            monkeypatch.setattr("orchestrator.launch.docker.own_container_id", lambda: "0" * 64)
            assert engine.network() is None  # a container of another engine
        finally:
            for container in made:
                container.remove(force=True)
            network.remove()


def test_an_engine_on_another_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine.connect() as engine:
        monkeypatch.setattr("orchestrator.launch.docker.engine_address", lambda: "tcp://10.0.0.5:2375")
        with pytest.raises(HostError, match="on another machine"):
            engine.network()
        monkeypatch.setenv("LOADPROOF_DOCKER_NETWORK", "shared")
        assert engine.network() == "shared"
