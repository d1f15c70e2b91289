"""What the three kinds of servers have in common: the order that they are started by, and what others see of them."""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from orchestrator.launch.owner import Owner
from orchestrator.records import ServerFailure, ServerRecord
from stacks.base import Deployment, Stack

T = TypeVar("T")


def say_nothing(text: str) -> None:
    """The progress of somebody who does not want to know."""


def hear_nothing(server: Server) -> None:
    """Nobody looks at a server before it is ready."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be started, for whom, and who is to be told."""

    stack: Stack
    deployment: Deployment
    directory: Path
    owner: Owner
    on_starting: Callable[[ServerRecord], None]
    on_progress: Callable[[str], None]
    on_running: Callable[[Server], None] = hear_nothing


class Server(ABC):
    """One running instance of a deployment."""

    record: ServerRecord
    """Complete once the server is ready."""
    base_url: str
    log_path: Path | None = None
    """None: a server that is not ours; its log is elsewhere."""

    def pids(self) -> tuple[int, ...]:
        """Pids of the whole tree as this machine counts them, the root first; () where they cannot be seen. Blocking,
        for a thread; cheap enough for once a second."""
        return ()

    def usage(self) -> dict[str, float]:
        """What the container engine says of memory and CPU; {} where there is no container. Blocking, for a thread."""
        return {}

    @abstractmethod
    async def died(self) -> ServerFailure:
        """Returns when the server is gone although nobody stopped it. Any number of tasks may wait."""


# --- between the event loop and what blocks -----------------------------------------------------------------------


def in_daemon(call: Callable[[], T], name: str) -> asyncio.Future[T]:
    """Result of a blocking call that may last as long as a server lives, made in a thread of its own.

    Not in the loop's pool of threads: that is small, and the end of the loop waits for it.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
            return
        future.set_result(result)  # type: ignore[arg-type]  # None only where T allows it

    def work() -> None:
        try:
            outcome: tuple[T | None, BaseException | None] = (call(), None)
        except BaseException as error:  # whatever it is, it belongs to the one who waits
            outcome = (None, error)
        try:
            loop.call_soon_threadsafe(settle, *outcome)
        except RuntimeError:  # the loop has ended: nobody waits any more
            return

    threading.Thread(target=work, name=name, daemon=True).start()
    return future


async def see_through(work: Awaitable[T]) -> T:
    """Result of `work`, which goes on to its end also when we are cancelled meanwhile; then the cancellation is
    raised. For what must not be left half done: a container that is being made, a server that is being stopped."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None and not task.cancelled():
        raise cancelled from task.exception()
    return task.result()
