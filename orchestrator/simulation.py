"""Cards that are not there as the site of a run: starts and levels in virtual time, in the same files as real ones.

The clock is the engine's: it stands still while this machine computes, and a level of ten minutes takes seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from orchestrator.asked import level_seed
from orchestrator.clock import NS_PER_S
from orchestrator.errors import HostError
from orchestrator.journal import Lines
from orchestrator.launch.death import Exit, failure_of, stack_error
from orchestrator.launch.ready import Ready, completed
from orchestrator.launch.running import Server
from orchestrator.launch.server import Owner
from orchestrator.level import Asked, Load, Played, Users
from orchestrator.plan import Cell, Plan
from orchestrator.progress import Progress
from orchestrator.records import Neighbour, Sample, ServerFailure, ServerRecord
from orchestrator.watch.gpu import GpuInfo
from stacks.base import Deployment, Stack
from stacks.memory.versions import newest_known
from stacks.simulated.closed import run_virtual
from stacks.simulated.deployed import card_of, simulated_setup
from stacks.simulated.engine import Engine
from stacks.simulated.level import VirtualLevel
from stacks.simulated.open import run_virtual_open
from stacks.simulated.startup import Startup, startup

LINE_S = 1.0
"""A start takes this long for every line of its log: invented, for nothing of it is judged."""


class VirtualServer(Server):
    """A server in virtual time."""

    def __init__(self, record: ServerRecord, log: Path, growth: Sequence[Sample], engine: Engine, held: float) -> None:
        self.record = record
        self.base_url = record.base_url
        self.log_path = log
        self.growth = tuple(growth)
        """What its log and its card told while it started."""
        self.engine = engine
        """Idle between levels; its clock is that of the run."""
        self.held_bytes = held
        """What it holds on the card."""

    async def died(self) -> ServerFailure:
        """Never returns: a simulated engine does not die of what it is asked."""
        never: asyncio.Future[ServerFailure] = asyncio.get_running_loop().create_future()
        return await never


class Simulation:
    """The site of a run whose every card is simulated."""

    def __init__(self, seed: int, started_ns: int = 0) -> None:
        """`started_ns`: where the run's clock stands; a resumed run goes on from its last event."""
        self._seed = seed
        self._now_ns = started_ns

    def now_ns(self) -> int:
        return self._now_ns

    def passes(self, until_ns: int) -> None:
        self._now_ns = max(self._now_ns, until_ns)

    def gpus(self) -> Sequence[GpuInfo]:
        return ()

    def neighbours(self, deployment: Deployment) -> tuple[Neighbour, ...]:
        return ()

    @contextlib.asynccontextmanager
    async def attending(self, stack: Stack, deployment: Deployment, samples: Path) -> AsyncIterator[_Attendance]:
        life = _Attendance(self, samples)
        try:
            await life.look()
            yield life
            await life.look()
        finally:
            life.close()

    @contextlib.asynccontextmanager
    async def open_server(
        self,
        stack: Stack,
        deployment: Deployment,
        *,
        directory: Path,
        owner: Owner,
        on_starting: Callable[[ServerRecord], None],
        on_progress: Callable[[str], None],
        on_running: Callable[[Server], None],
    ) -> AsyncIterator[Server]:
        """Raises `StackError` with the stack's own sentence where the memory bill says that it does not start."""
        setup = simulated_setup(deployment)
        card = card_of(setup, deployment)
        told = startup(card.bill)
        began_ns = self.now_ns()
        record = ServerRecord(
            deployment=deployment.name,
            stack=stack.name,
            launch="simulated",
            base_url=f"simulated:{deployment.card}",
        )
        on_starting(record)
        log = directory / "server.log"
        _write_log(log, told)
        growth = list(_growth(stack, told, began_ns))
        self.passes(growth[-1].at_ns)
        lines = (*told.lines, *([told.refusal] if told.refusal else []))
        engine = card.engine(level_seed(self._seed, owner.cell, self.now_ns() // NS_PER_S, "engine", 0))
        engine.now_s = self.now_ns() / NS_PER_S
        took_s = (self.now_ns() - began_ns) / NS_PER_S
        ready = Ready(took_s, f"{setup.version or newest_known(stack.name)}", stack.served_name(deployment))
        server = VirtualServer(completed(record, ready, stack, deployment, lines), log, growth, engine, told.held_bytes)
        on_running(server)
        if told.refusal is not None:
            raise stack_error(failure_of(stack, Exit(code=1), lines, log))
        yield server

    @contextlib.asynccontextmanager
    async def loading(
        self, server: Server, stack: Stack, plan: Plan, cell: Cell, samples: Path, progress: Progress
    ) -> AsyncIterator[Load]:
        assert isinstance(server, VirtualServer)
        load = _VirtualLoad(self, server, samples)
        try:
            yield load
        finally:
            load.close()


def _write_log(path: Path, told: Startup) -> None:
    try:
        path.write_text("\n".join([*told.lines, *([told.refusal] if told.refusal else [])]) + "\n")
    except OSError as error:
        raise HostError(f"{path} cannot be written: {error.strerror}.", "Check the folder and the disk.") from error


def _growth(stack: Stack, told: Startup, began_ns: int) -> list[Sample]:
    """The readings of a start, two a line: what the card holds, and what the log has told by then."""
    found = []
    for number, said in enumerate(told.said, 1):
        at_ns = began_ns + round(number * LINE_S * NS_PER_S)
        found.append(held(at_ns, said.held_bytes))
        facts = stack.log_facts(told.lines[:number])
        numbers = {name: float(value) for name, value in facts.items() if isinstance(value, int | float)}
        if numbers:
            found.append(Sample(at_ns=at_ns, source="log", values=numbers))
    return found


def held(at_ns: int, bytes_: float) -> Sample:
    """A reading of the simulated card's memory."""
    return Sample(at_ns=at_ns, source="engine", values={"memory_used_bytes": float(round(bytes_))})


class _Attendance:
    """What a simulated card tells outside of levels."""

    def __init__(self, site: Simulation, samples: Path) -> None:
        self._site = site
        self._lines = Lines(samples)

    def grows(self, server: Server) -> None:
        assert isinstance(server, VirtualServer)
        for sample in server.growth:
            self._lines.append(sample)
        self._lines.flush()

    async def is_ready(self, server: Server) -> None:
        await self.look(server)

    async def look(self, server: Server | None = None) -> None:
        """One reading; a simulated card that nobody serves on has nothing to tell."""
        if isinstance(server, VirtualServer):
            self._lines.append(held(self._site.now_ns(), server.held_bytes))
            self._lines.flush()

    def close(self) -> None:
        self._lines.close()


class _VirtualLoad:
    """Plays levels on an engine in virtual time."""

    def __init__(self, site: Simulation, server: VirtualServer, samples: Path) -> None:
        self._site = site
        self._server = server
        self._lines = Lines(samples)

    async def play(self, asked: Asked) -> Played:
        await asyncio.sleep(0)  # between levels the loop may be told to stop
        level = _played(self._server.engine, asked)
        for record in level.records:
            asked.on_record(record)
        memory = {"memory_used_bytes": float(round(self._server.held_bytes))}
        samples = [Sample(at_ns=s.at_ns, source=s.source, values=s.values | memory) for s in level.samples]
        for sample in samples:
            self._lines.append(sample)
        self._lines.sync()
        self._site.passes(max([level.run.ended_ns, *(sample.at_ns for sample in samples[-1:])]))
        return Played(level.run, samples, self._site.now_ns(), None)

    def close(self) -> None:
        self._lines.close()


def _played(engine: Engine, asked: Asked) -> VirtualLevel:
    spec, traffic = asked.spec, asked.traffic
    if isinstance(traffic, Users):
        return run_virtual(engine, spec, measured=traffic.measured, other=traffic.other, stop_early=asked.stop_early)
    return run_virtual_open(
        engine,
        spec,
        traffic.due_ns,
        traffic.requests,
        stop_early=asked.stop_early,
        most_in_flight=traffic.most_in_flight,
    )
