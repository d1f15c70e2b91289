"""The reaper's other end: a small process beside each server that stops it if we die without a goodbye."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from orchestrator.launch.reaper import GOODBYE, arguments, root_line
from orchestrator.launch.running import Order, see_through
from orchestrator.launch.tree import Tree

NEEDED = (
    *("PATH", "HOME", "LANG", "PYTHONPATH", "SSH_AUTH_SOCK", "XDG_RUNTIME_DIR"),
    *("DOCKER_HOST", "DOCKER_CONFIG", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"),
)
PATIENCE_S = 60.0
"""A reaper that must act stops a server gently first, as we do."""


class Guard:
    """A reaper that waits for our death. Without `release`, the end of the guard is taken for it."""

    def __init__(self, order: Order) -> None:
        environment = {name: os.environ[name] for name in NEEDED if name in os.environ}
        package = str(Path(__file__).parents[2])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (package, environment.get("PYTHONPATH"))))
        log = order.directory / "reaper.log"
        self._released = False
        self._reaper = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.launch.reaper", *arguments(order.owner, order.deployment.launch, log)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def watch(self, tree: Tree) -> None:
        """Name the root of a process tree: it is then found even if it wipes its environment."""
        if tree.root is not None:
            self._tell(root_line(tree.root))

    def release(self) -> None:
        """The server is gone: nothing is left to be reaped."""
        self._released = True

    def close(self) -> None:
        """Say goodbye, or leave the rest to the reaper; it is gone afterwards. Blocking."""
        if self._released:
            self._tell(GOODBYE)
        assert self._reaper.stdin is not None
        with suppress(BrokenPipeError):
            self._reaper.stdin.close()
        try:
            self._reaper.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._reaper.kill()
            self._reaper.wait()

    def _tell(self, line: str) -> None:
        assert self._reaper.stdin is not None
        # A reaper that somebody killed cannot help; what it would do is found again by `loadproof clean`.
        with suppress(BrokenPipeError):
            self._reaper.stdin.write(line.encode())
            self._reaper.stdin.flush()


@asynccontextmanager
async def guarded(order: Order) -> AsyncIterator[Guard]:
    """A reaper beside whatever is started in the body."""
    guard = Guard(order)
    try:
        yield guard
    finally:
        await see_through(asyncio.to_thread(guard.close))
