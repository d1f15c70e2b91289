"""A real Docker Engine, and what tests need on it: an image of this Python with the fake server, and a clean end."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
from fakes.python_image import build
from fakes.stacks import SERVER

REPOSITORY = "loadproof-test/fake"
CHANGES = ["ENV PATH=/usr/bin PYTHONUNBUFFERED=1 PYTHONPATH=/opt/site", 'CMD ["python3"]']


@contextmanager
def docker_client() -> Iterator[Any]:
    """The engine of DOCKER_HOST."""
    client = docker.from_env()
    try:
        yield client
    finally:
        client.close()


@contextmanager
def fake_image(scratch: Path, server: Path = SERVER) -> Iterator[str]:
    """Name of an image of this Python that holds a server as /opt/site/server.py; removed at the end."""
    site = scratch / "site"
    site.mkdir(parents=True)
    shutil.copy(server, site / "server.py")
    archive = scratch / "image.tar"
    build(archive, site)
    tag = uuid.uuid4().hex[:8]
    with docker_client() as client:
        client.api.import_image_from_file(str(archive), repository=REPOSITORY, tag=tag, changes=CHANGES)
        archive.unlink()
        try:
            yield f"{REPOSITORY}:{tag}"
        finally:
            client.images.remove(f"{REPOSITORY}:{tag}", force=True)


def containers_of(run_id: str) -> list[str]:
    """Ids of the containers, running or not, that carry a run's label."""
    with docker_client() as client:
        return [found["Id"] for found in client.api.containers(all=True, filters={"label": f"loadproof.run={run_id}"})]
