"""Loadproofs that die: `owner_process` started, listened to, and killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from orchestrator.launch.tree import read_environment, read_process, read_table

OWNER = Path(__file__).with_name("owner_process.py")
PATIENCE_S = 60.0


class DyingOwner:
    """One loadproof in a process group of its own."""

    def __init__(self, popen: subprocess.Popen[str]) -> None:
        self.popen = popen

    def hear(self, event: str) -> dict[str, Any]:
        """The next thing it says of this kind."""
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            said: dict[str, Any] = json.loads(line)
            if said["event"] == event:
                return said
        raise AssertionError(f"it ended before it was {event}")

    def kill_group(self) -> None:
        """SIGKILL to it and to whoever shares its group."""
        os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()


@contextmanager
def dying_owner(
    directory: Path, run_id: str, *arguments: str, image: str | None = None, count: int = 1
) -> Iterator[DyingOwner]:
    more = [word for word in (image, str(count) if count > 1 else None) if word]
    command = [sys.executable, str(OWNER), str(directory), run_id, *more, "--", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, process_group=0) as popen:
        try:
            yield DyingOwner(popen)
        finally:
            popen.kill()


def is_running(pid: int) -> bool:
    """Whether a process lives; one that has ended and that nobody has reaped yet does not."""
    found = read_process(pid)
    return found is not None and not found.zombie


def marked(run_id: str) -> list[int]:
    """Living processes that carry a run's mark."""
    return [pid for pid in read_table() if read_environment(pid).get("LOADPROOF_RUN") == run_id]


def reapers_of(run_id: str) -> list[psutil.Process]:
    """Reapers of a run."""
    found = []
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
        except psutil.Error:
            continue
        if "orchestrator.launch.reaper" in command and f"--run={run_id}" in command:
            found.append(process)
    return found


def wait_until(what: Callable[[], bool], said: str) -> None:
    """Until something that no event tells of holds."""
    pause = threading.Event()
    for _ in range(round(PATIENCE_S / 0.05)):
        if what():
            return
        pause.wait(0.05)
    raise AssertionError(f"not within {PATIENCE_S:g} s: {said}")
