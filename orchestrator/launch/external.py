"""A server that is not ours: proved ready, never started and never stopped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from orchestrator.clock import now_ns
from orchestrator.errors import HostError
from orchestrator.launch.environment import secret_values
from orchestrator.launch.ready import completed, prove_ready
from orchestrator.launch.running import Order, Server
from orchestrator.records import ServerFailure, ServerRecord

PATIENCE_S = 60.0
"""It is said to run already: so long may it take to answer, unless the deployment's start_timeout_s says otherwise."""


class ExternalServer(Server):
    """Somebody else's server, at a URL."""

    def __init__(self, record: ServerRecord) -> None:
        self.record = record
        self.base_url = record.base_url

    async def died(self) -> ServerFailure:
        """Never returns: whether it lives is not ours to know; requests that fail tell of it."""
        never: asyncio.Future[ServerFailure] = asyncio.get_running_loop().create_future()
        return await never


def root_url(url: str) -> str:
    """The URL below which the stack's paths hang: many give theirs with the ``/v1`` that those paths begin with."""
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def bearer(secrets: Mapping[str, str]) -> dict[str, str]:
    """The header that carries the first secret, where there is one."""
    return {"authorization": f"Bearer {next(iter(secrets.values()))}"} if secrets else {}


@asynccontextmanager
async def open_external(order: Order) -> AsyncIterator[Server]:
    deployment = order.deployment
    if not deployment.url:
        raise HostError(f"The deployment {deployment.name} has no url to measure.", "Set its url.")
    record = ServerRecord(
        deployment=deployment.name,
        stack=order.stack.name,
        launch="external",
        base_url=root_url(deployment.url),
        secret_env=deployment.secrets,
    )
    secrets = secret_values(deployment.secrets)
    order.on_starting(record)
    ready = await prove_ready(
        order,
        base_url=record.base_url,
        timeout_s=deployment.start_timeout_s or PATIENCE_S,
        started_ns=now_ns(),
        died=asyncio.get_running_loop().create_future(),
        lines=list,
        secrets=secrets,
        headers=bearer(secrets),
    )
    yield ExternalServer(completed(record, ready, order.stack, deployment, ()))
