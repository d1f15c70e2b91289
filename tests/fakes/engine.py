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

CHANGES = ("ENV PATH=/usr/bin PYTHONUNBUFFERED=1 PYTHONPATH=/opt/site", 'CMD ["python3"]')


@contextmanager
def docker_client() -> Iterator[Any]:
    """The engine of DOCKER_HOST."""
    client = docker.from_env()
    try:
        yield client
    finally:
        client.close()


@contextmanager
def python_image(scratch: Path, site: Path, name: str, *changes: str) -> Iterator[str]:
    """Name of an image of this Python that holds `site` as /opt/site, under a tag of its own; removed at the end."""
    archive, repository, tag = scratch / "image.tar", f"loadproof-test/{name}", uuid.uuid4().hex[:8]
    build(archive, site)
    with docker_client() as client:
        own = [*CHANGES, *changes]
        client.api.import_image_from_file(str(archive), repository=repository, tag=tag, changes=own)
        archive.unlink()
        try:
            yield f"{repository}:{tag}"
        finally:
            client.images.remove(f"{repository}:{tag}", force=True)


@contextmanager
def fake_image(scratch: Path, server: Path = SERVER) -> Iterator[str]:
    """Name of an image of this Python that holds a server as /opt/site/server.py; removed at the end."""
    site = scratch / "site"
    site.mkdir(parents=True)
    shutil.copy(server, site / "server.py")
    with python_image(scratch, site, "fake") as name:
        yield name


def containers_of(run_id: str) -> list[str]:
    """Ids of the containers, running or not, that carry a run's label."""
    with docker_client() as client:
        return [found["Id"] for found in client.api.containers(all=True, filters={"label": f"loadproof.run={run_id}"})]
