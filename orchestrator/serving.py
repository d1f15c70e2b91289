"""One server of a run, from its start to its end, in the journal. What is measured on it is its caller's."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import NamedTuple

from orchestrator.errors import HostError, StackError
from orchestrator.journal import Journal
from orchestrator.known import commits
from orchestrator.launch.server import Owner, Server
from orchestrator.level import Bench
from orchestrator.plan import Cell, Plan
from orchestrator.progress import Progress
from orchestrator.records import (
    AnyEvent,
    CellStarted,
    LevelCommitted,
    LevelSpec,
    LevelStarted,
    ServerFailure,
    ServerReady,
    ServerRecord,
    ServerStarting,
    ServerStopped,
    Turn,
)
from orchestrator.site import Attendance, Site
from stacks.base import Stack
from stacks.catalog import stack as stack_named


def starts(events: Sequence[AnyEvent], cell: str) -> list[CellStarted]:
    """Its attempts so far."""
    return [event for event in events if isinstance(event, CellStarted) and event.cell == cell]


def failed(error: StackError) -> ServerFailure:
    """A StackError as the result that it is."""
    return ServerFailure(
        failure_class=error.failure_class,
        message=error.message,
        remedy=error.remedy,
        evidence=error.evidence,
        fits_tokens=error.fits_tokens,
    )


class Ended(NamedTuple):
    """Why nothing more is measured on a server."""

    note: str | None = None
    """The time budget has no room for what comes next."""
    failure: ServerFailure | None = None
    """It died."""


class Standing:
    """A server that is up: levels are measured on it one after another."""

    def __init__(self, serving: Serving, cell: Cell, attempt: int, bench: Bench, died: asyncio.Task[ServerFailure]):
        self._serving = serving
        self._cell = cell
        self._attempt = attempt
        self.bench = bench
        self._died = died

    @property
    def death(self) -> ServerFailure | None:
        return self._died.result() if self._died.done() else None

    async def measure(self, spec: LevelSpec, expected_s: float) -> LevelCommitted:
        """A level from its line in the journal that it begins to the one that it is measured; `expected_s` is told."""
        run, level = self._serving, len(commits(self._serving.journal.events, self._cell.id))
        run.journal.commit(
            LevelStarted(at_ns=run.site.now_ns(), cell=self._cell.id, attempt=self._attempt, level=level, spec=spec)
        )
        run.progress.level_started(self._cell, spec, expected_s)
        commit = await self.bench.measure(spec, self._died, level=level)
        run.progress.level_committed(self._cell, commit)
        return commit


Climb = Callable[[Standing], Awaitable[Ended]]
"""What is measured on a server that is up."""


class Serving:
    """The servers of a run, one at a time."""

    def __init__(self, plan: Plan, journal: Journal, progress: Progress, site: Site) -> None:
        self.plan = plan
        self.journal = journal
        self.progress = progress
        self.site = site
        self._warned: set[str] = set()

    async def serve(self, cell: Cell, climb: Climb, turn: Turn | None = None) -> str | None:
        """One server's life. Returns why the time budget cut what was measured on it, or None.

        Raises StackError if it did not come up.
        """
        attempt = len(starts(self.journal.events, cell.id)) + 1
        around = await asyncio.to_thread(self.site.neighbours, cell.deployment)
        self.journal.commit(
            CellStarted(
                at_ns=self.site.now_ns(),
                cell=cell.id,
                fingerprint=cell.fingerprint,
                attempt=attempt,
                neighbours=around,
                turn=turn,
            )
        )
        self.progress.cell_started(cell, attempt, turn)
        stack = stack_named(cell.deployment.stack)
        directory = self.journal.files.attempt(cell.id, attempt)
        directory.mkdir(parents=True, exist_ok=True)
        samples = self.journal.files.samples(cell.id, attempt)
        async with self.site.attending(stack, cell.deployment, samples) as life:
            return await self._live(cell, attempt, stack, life, climb)

    async def _live(self, cell: Cell, attempt: int, stack: Stack, life: Attendance, climb: Climb) -> str | None:
        """From the start of a server to its end."""
        files = self.journal.files
        ended = Ended()
        try:
            async with self.site.open_server(
                stack,
                cell.deployment,
                directory=files.attempt(cell.id, attempt),
                owner=Owner.current(files.root.name, cell.id),
                on_starting=self._starting(cell, attempt),
                on_progress=self.progress.server_says,
                on_running=life.grows,
            ) as server:
                await life.is_ready(server)
                self.journal.commit(
                    ServerReady(at_ns=self.site.now_ns(), cell=cell.id, attempt=attempt, server=server.record)
                )
                self.progress.server_ready(server.record)
                for name in ("version_note", "path_note"):
                    self._warn_once(cell, server.record.facts.get(name))
                samples = files.samples(cell.id, attempt)
                async with self.site.loading(server, stack, self.plan, cell, samples, self.progress) as load:
                    bench = Bench(load, self.plan, cell, self.journal, attempt, self.progress)
                    with contextlib.closing(bench), _death(server) as died:
                        ended = await climb(Standing(self, cell, attempt, bench, died))
                if ended.failure is None:
                    await life.look(server)
        except StackError as error:
            ended = Ended(failure=failed(error))
            raise
        finally:
            with contextlib.suppress(HostError):  # a full disk is told by the commit that hit it first
                self.journal.commit(
                    ServerStopped(at_ns=self.site.now_ns(), cell=cell.id, attempt=attempt, failure=ended.failure)
                )
        return ended.note

    def _warn_once(self, cell: Cell, note: str | float | None) -> None:
        """Of a release that is not known, or of another kernel than was asked for; not of every server of it."""
        if isinstance(note, str) and note not in self._warned:
            self._warned.add(note)
            self.progress.note(f"{cell.id}: {note}")

    def _starting(self, cell: Cell, attempt: int) -> Callable[[ServerRecord], None]:
        def starting(record: ServerRecord) -> None:
            self.journal.commit(ServerStarting(at_ns=self.site.now_ns(), cell=cell.id, attempt=attempt, server=record))

        return starting


@contextlib.contextmanager
def _death(server: Server) -> Iterator[asyncio.Task[ServerFailure]]:
    """A task that ends when the server is gone though nobody stopped it."""
    task = asyncio.ensure_future(server.died())
    try:
        yield task
    finally:
        task.cancel()
