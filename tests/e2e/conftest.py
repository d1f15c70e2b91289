"""What the tests on a real engine share."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from fakes.engine import containers_of

from orchestrator.launch.docker import Engine


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
