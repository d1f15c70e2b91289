"""A running server: exists only inside `async with open_server(...)`, and is gone afterwards, whatever happened.

Normal end, exception, Ctrl-C: the context stops it. SIGKILL of loadproof: the reaper does (see there).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from orchestrator.launch.container import open_container
from orchestrator.launch.external import open_external
from orchestrator.launch.owner import Owner
from orchestrator.launch.process import open_process
from orchestrator.launch.running import Order, Server, hear_nothing, say_nothing
from orchestrator.records import ServerRecord
from stacks.base import Deployment, Stack

__all__ = ["Owner", "Server", "open_server"]


@asynccontextmanager
async def open_server(
    stack: Stack,
    deployment: Deployment,
    *,
    directory: Path,
    owner: Owner,
    on_starting: Callable[[ServerRecord], None],
    on_progress: Callable[[str], None] = say_nothing,
    on_running: Callable[[Server], None] = hear_nothing,
) -> AsyncIterator[Server]:
    """Start a deployment and yield it once it is ready: health answers, the model is listed, two tokens came back.

    `directory`: an existing folder that takes ``server.log``. `on_starting` is called before anything is started and
    again when the pid or the container is known; `on_progress` gets one sentence now and then; `on_running` gets a
    server of ours that has been started and is not ready yet, for those who watch it grow. All are called on the event
    loop and must be quick.

    Raises `StackError` when the stack dies or does not come up in time, `HostError` when the machine lacks something.
    """
    order = Order(
        stack=stack,
        deployment=deployment,
        directory=directory,
        owner=owner,
        on_starting=on_starting,
        on_progress=on_progress,
        on_running=on_running,
    )
    openers = {"docker": open_container, "process": open_process, "external": open_external}
    async with openers[deployment.launch](order) as server:
        yield server
