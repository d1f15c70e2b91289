"""A server's life outside its levels: the machine before it, its growth while it starts, what is left after it.

The readings go to the attempt's ``samples.jsonl``, where `orchestrator.level` adds those of the levels; together they
are what the report's ledger is made of.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from orchestrator.errors import HostError, StackError
from orchestrator.journal import Lines
from orchestrator.launch.log import plain_lines
from orchestrator.launch.server import Server
from orchestrator.watch.watch import Target, look, watching
from stacks.base import Deployment, Stack

GROWTH_INTERVAL_S = 0.5
_MOST_LOG_BYTES = 4 * 2**20


def target_of(server: Server, stack: Stack, deployment: Deployment) -> Target:
    """All that can be watched of a server that is ready."""
    return Target(
        base_url=server.base_url,
        metrics_path=stack.metrics_path,
        metric_values=stack.metric_values,
        pids=server.pids,
        usage=server.usage,
        gpus=deployment.gpus,
    )


class Life:
    """Looks at one attempt's server, and at the machine before and after it."""

    def __init__(self, stack: Stack, deployment: Deployment, samples: Path) -> None:
        self._stack = stack
        self._deployment = deployment
        self._lines = Lines(samples)
        self._ready = asyncio.Event()
        self._growth: asyncio.Task[None] | None = None

    def grows(self, server: Server) -> None:
        """Follow a server that has been started, until `is_ready`."""
        if self._growth is None:
            self._growth = asyncio.ensure_future(self._follow(server))

    async def is_ready(self, server: Server) -> None:
        """The growth is over: one more look, before the first request of a level."""
        await self._end_growth()
        await self.look(server)

    async def look(self, server: Server | None = None) -> None:
        """One reading; of the machine alone where no server is named. Raises HostError when the disk is full."""
        deployment = self._deployment
        alone = Target(metric_values=self._stack.metric_values, gpus=deployment.gpus)
        for sample in await look(alone if server is None else target_of(server, self._stack, deployment)):
            self._lines.append(sample)
        self._lines.flush()

    async def close(self) -> None:
        with contextlib.suppress(HostError):  # a full disk is told by the commit that hit it first
            await self._end_growth()
        self._lines.close()

    async def _follow(self, server: Server) -> None:
        log = server.log_path
        target = Target(
            metric_values=self._stack.metric_values,
            pids=server.pids,
            usage=server.usage,
            gpus=self._deployment.gpus,
            log_facts=None if log is None else log_facts(self._stack, log),
        )
        async with watching(target, self._lines.append, interval_s=GROWTH_INTERVAL_S):
            await self._ready.wait()

    async def _end_growth(self) -> None:
        self._ready.set()
        growth, self._growth = self._growth, None
        if growth is not None:
            await growth


@asynccontextmanager
async def attending(stack: Stack, deployment: Deployment, samples: Path) -> AsyncIterator[Life]:
    """A life to be lived in the body: looked at before it, and once more when everything has been stopped."""
    life = Life(stack, deployment, samples)
    try:
        await life.look()
        try:
            yield life
        except StackError:
            with contextlib.suppress(HostError):  # the death of the server is what counts
                await life.look()
            raise
        await life.look()
    finally:
        await life.close()


def log_facts(stack: Stack, path: Path) -> Callable[[], dict[str, float]]:
    """Readings of a log that is being written: its numbers so far, or {} where nothing was added."""
    seen = 0

    def read() -> dict[str, float]:
        nonlocal seen
        with path.open("rb") as file:
            data = file.read(_MOST_LOG_BYTES)
        if len(data) == seen:
            return {}
        seen = len(data)
        facts = stack.log_facts(plain_lines(data))
        return {name: value for name, value in facts.items() if isinstance(value, int | float)}

    return read
