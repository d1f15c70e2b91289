"""What the tests on a real engine share."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from fakes.engine import containers_of

from orchestrator.launch.docker import Engine
from orchestrator.launch.orphans import find_orphans, remove


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_of_earlier_tests() -> None:
    """Tests look for what their run left; a test session that was killed, its engine too, may have left a container
    of a run of the same name."""
    remove(find_orphans(None))


@pytest.fixture
def run_id() -> Iterator[str]:
    """A run that leaves nothing on the engine."""
    run_id = f"test-{uuid.uuid4().hex}"
    yield run_id
    left = containers_of(run_id)
    with Engine.connect() as engine:
        for container in left:
            engine.remove(container)
    assert left == []
