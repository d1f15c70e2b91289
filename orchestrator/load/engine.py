"""The seam of the load engine: something that runs a level on a target and yields its records.

`open_engine` gives the one that runs here, in this process or in several of this machine. Another, of a cluster's say,
takes its place by being an `Engine`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import httpx

from orchestrator.load.closed import run_closed
from orchestrator.load.open import run_open
from orchestrator.load.proxies import ProxiedTransport
from orchestrator.load.supply import Drawn, Supply
from orchestrator.load.tally import Part
from orchestrator.load.transport import RequestLimits, StampingTransport
from orchestrator.load.wire import Sender
from orchestrator.records import LevelRun, LevelSpec, Request, RequestRecord, StopEarly, never
from stacks.base import Wire
from workloads.text import PromptMaker

MOST_IN_FLIGHT = 16_384
"""Safety cap of the open loop: ports and memory of this machine, not the server's limit."""

OnRecord = Callable[[RequestRecord], None]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A server, and how to talk to it: all that a process needs to send to it. Can be pickled."""

    base_url: str
    wire: Wire
    model: str
    prompts: PromptMaker
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """May hold a key."""
    limits: RequestLimits = field(default_factory=RequestLimits)
    verify: bool = True
    unix_socket: str | None = None
    proxy: str | None = None

    def sender(self) -> Sender:
        """What sends to it. A proxy is spoken to by httpx's own transport, whose stamps are taken after the read."""
        transport: httpx.AsyncBaseTransport
        if self.proxy is not None:
            transport = ProxiedTransport(self.proxy, verify=self.verify)
        else:
            transport = StampingTransport(verify=self.verify, unix_socket=self.unix_socket)
        return Sender(
            base_url=self.base_url,
            wire=self.wire,
            model=self.model,
            prompt=self.prompts.prompt,
            headers=self.headers,
            limits=self.limits,
            transport=transport,
        )


class Load(NamedTuple):
    """What is sent at a level."""

    spec: LevelSpec
    measured: Iterator[Request]
    """The measured requests in issue order; of an open loop all, in the order in which they are due."""
    other: Iterator[Request] = iter(())
    """Closed loop: requests of the ramp, the warm-up and the filler."""
    due: tuple[int, ...] = ()
    """Open loop: when each request is due, ns after the start."""
    most_in_flight: int = MOST_IN_FLIGHT
    """Open loop: see `run_open`."""


class Engine(Protocol):
    """Runs levels on one target, one after another."""

    async def run(
        self,
        load: Load,
        *,
        on_record: OnRecord,
        stop_early: StopEarly = never,
        abort: asyncio.Future[str] | None = None,
    ) -> LevelRun:
        """One level by `load.spec.workers` processes. Each record is handed over once, in the order of their ends.

        A reason from `stop_early`, or of `abort`, ends the level and is its `cut`. What `on_record`
        raises ends it and is raised. A worker that is lost ends it too: `run.health.lost` says which, and the level is
        INVALID.
        """
        ...


async def run_part(
    spec: LevelSpec,
    due: tuple[int, ...],
    most_in_flight: int,
    sender: Sender,
    *,
    measured: Supply,
    other: Supply,
    on_record: OnRecord,
    stop_early: StopEarly = never,
    abort: asyncio.Future[str] | None = None,
    part: Part | None = None,
) -> LevelRun:
    """A level, or a worker's part of it, in this process."""
    if due:
        return await run_open(
            spec,
            due,
            requests=measured,
            send=sender.send,
            prepare=sender.prepare,
            on_record=on_record,
            most_in_flight=most_in_flight,
            stop_early=stop_early,
            abort=abort,
            part=part,
        )
    return await run_closed(
        spec,
        measured=measured,
        other=other,
        send=sender.send,
        prepare=sender.prepare,
        on_record=on_record,
        stop_early=stop_early,
        abort=abort,
        part=part,
    )


class LocalEngine:
    """In this process where a level asks for one; else by a fleet that is started when it is first needed."""

    def __init__(self, target: Target, sender: Sender, rest: contextlib.AsyncExitStack) -> None:
        self._target = target
        self._sender = sender
        self._rest = rest
        self._fleet: Engine | None = None

    async def run(
        self,
        load: Load,
        *,
        on_record: OnRecord,
        stop_early: StopEarly = never,
        abort: asyncio.Future[str] | None = None,
    ) -> LevelRun:
        """See `Engine`."""
        if load.spec.workers > 1:
            fleet = await self._hired()
            return await fleet.run(load, on_record=on_record, stop_early=stop_early, abort=abort)
        return await run_part(
            load.spec,
            load.due,
            load.most_in_flight,
            self._sender,
            measured=Drawn(load.measured),
            other=Drawn(load.other),
            on_record=on_record,
            stop_early=stop_early,
            abort=abort,
        )

    async def _hired(self) -> Engine:
        if self._fleet is None:
            from orchestrator.load.fleet import open_fleet  # one process is the usual thing

            self._fleet = await self._rest.enter_async_context(open_fleet(self._target))
        return self._fleet


@contextlib.asynccontextmanager
async def open_engine(target: Target) -> AsyncIterator[Engine]:
    """The load engine of this machine; no process and no connection of it is left afterwards."""
    async with contextlib.AsyncExitStack() as rest:
        sender = await rest.enter_async_context(target.sender())
        yield LocalEngine(target, sender, rest)
