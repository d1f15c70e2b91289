"""Where the servers of a run stand: on this machine (`orchestrator.machine`), or on cards that are not there
(`orchestrator.simulation`). The campaign is one loop over either."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from orchestrator.launch.server import Owner, Server
from orchestrator.level import Load
from orchestrator.plan import Cell, Plan
from orchestrator.progress import Progress
from orchestrator.records import Neighbour, ServerRecord
from orchestrator.watch.gpu import GpuInfo
from stacks.base import Deployment, Stack


class Attendance(Protocol):
    """Looks at one attempt's server outside of its levels."""

    def grows(self, server: Server) -> None:
        """Follow a server that has been started, until `is_ready`."""

    async def is_ready(self, server: Server) -> None: ...

    async def look(self, server: Server | None = None) -> None:
        """One reading; of the machine alone where no server is named."""


class Site(Protocol):
    """Everything of a run that a server's being there or not makes a difference to."""

    def now_ns(self) -> int:
        """The clock of the run's journal: never goes back."""

    def gpus(self) -> Sequence[GpuInfo]: ...

    def neighbours(self, deployment: Deployment) -> tuple[Neighbour, ...]:
        """Who holds memory on the deployment's cards. May block, for a thread."""

    def attending(
        self, stack: Stack, deployment: Deployment, samples: Path
    ) -> AbstractAsyncContextManager[Attendance]: ...

    def open_server(
        self,
        stack: Stack,
        deployment: Deployment,
        *,
        directory: Path,
        owner: Owner,
        on_starting: Callable[[ServerRecord], None],
        on_progress: Callable[[str], None],
        on_running: Callable[[Server], None],
    ) -> AbstractAsyncContextManager[Server]:
        """See `orchestrator.launch.server`."""

    def loading(
        self, server: Server, stack: Stack, plan: Plan, cell: Cell, samples: Path, progress: Progress
    ) -> AbstractAsyncContextManager[Load]:
        """What plays levels on a ready server; it watches the server and appends to the file of `samples`."""
