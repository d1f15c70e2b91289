"""``python -m orchestrator.launch.reaper``: waits beside a server for the death of the loadproof that started it.

It holds the read end of a pipe. A goodbye in it means that the server is gone; an end without one, or the end of the
owner's process, means that nobody is left to stop it. Then the reaper stops the processes and removes the containers
that carry the owner's marks, and ends. It leads a session of its own, so neither Ctrl-C nor a kill of loadproof's group
reaches it, and it imports nothing but the standard library until it has to act: a few megabytes, no CPU.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.launch.owner import Owner
    from orchestrator.launch.tree import Entry

GOODBYE = "goodbye\n"
GRACE_S = 5.0
LOOKS_S = {"process": (0.0, 0.2, 0.5), "docker": (0.0, 0.5, 2.0)}
"""Pauses before each look. What was on its way when the owner died (a fork before its exec, a container that the engine
was making) shows a moment later, and no event tells of it."""


# --- the other end's words ----------------------------------------------------------------------------------------


def arguments(owner: Owner, launch: str, log: Path) -> list[str]:
    """Command line of the reaper of a server. It is seen by everybody (``ps``) and holds no secret."""
    named = {"run": owner.run_id, "cell": owner.cell, "owner": owner.mark, "place": owner.place}
    named |= {"pid": str(owner.pid), "launch": launch, "log": str(log)}
    return [f"--{name}={value}" for name, value in named.items()]


def root_line(entry: Entry) -> str:
    """Tells the reaper which process is the root."""
    return f"root {entry.pid} {entry.started!r}\n"


# --- waiting ------------------------------------------------------------------------------------------------------


def wait_for_end(pipe: int, owner_pid: int) -> str:
    """Everything that was said, once there was a goodbye or the pipe or the owner has ended.

    The owner's own end counts too: a child that it forked may hold the pipe open.
    """
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    owner = _open_pid(owner_pid)
    if owner is not None:
        poll.register(owner, select.POLLIN)
    told = b""
    while True:
        ready = {descriptor for descriptor, _ in poll.poll()}
        if pipe in ready:
            chunk = os.read(pipe, 4096)
            told += chunk
            if not chunk or told.endswith(GOODBYE.encode()):
                break
        elif owner in ready:
            break
    return told.decode()


def _open_pid(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except OSError:  # it has ended already: then the pipe has, too
        return None


# --- acting -------------------------------------------------------------------------------------------------------


def reap(named: argparse.Namespace, told: str, say: Callable[[str], None]) -> None:
    """Stop and remove whatever carries the owner's marks."""
    from orchestrator.launch.owner import CELL_MARK, OWNER_MARK, PLACE_MARK, RUN_MARK

    marks = {RUN_MARK: named.run, CELL_MARK: named.cell, OWNER_MARK: named.owner, PLACE_MARK: named.place}
    for pause_s in LOOKS_S[named.launch]:
        time.sleep(pause_s)
        if named.launch == "process":
            _stop_processes(marks, told, say)
        else:
            _remove_containers(marks, say)


def _stop_processes(marks: dict[str, str], told: str, say: Callable[[str], None]) -> None:
    from orchestrator.launch.tree import Entry, Tree, stop_tree

    words = next((line.split() for line in told.splitlines() if line.startswith("root ")), None)
    root = None if words is None else Entry(int(words[1]), 0, int(words[1]), float(words[2]), zombie=False)
    tree = Tree(root, marks)
    before = tree.pids()
    if before:
        left = stop_tree(tree, GRACE_S)
        say(f"stopped processes {before}" + (f"; still there: {left}" if left else ""))


def _remove_containers(marks: dict[str, str], say: Callable[[str], None]) -> None:
    from orchestrator.errors import HostError
    from orchestrator.launch.docker import Engine
    from orchestrator.launch.owner import LABELS

    try:
        with Engine.connect() as engine:
            for found in engine.labelled({LABELS[name]: value for name, value in marks.items()}):
                engine.remove(found.id)
                say(f"removed container {found.id[:12]}")
    except HostError as error:
        say(str(error))


def _parse(command_line: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m orchestrator.launch.reaper", description=__doc__)
    for name in ("run", "cell", "owner", "place", "launch"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--pid", type=int, required=True)
    return parser.parse_args(command_line)


def main(command_line: Sequence[str]) -> None:
    # It ends when its owner has ended, and never before: a service manager signals all processes of a service at once.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    named = _parse(command_line)
    told = wait_for_end(sys.stdin.fileno(), named.pid)
    if told.endswith(GOODBYE):
        return

    def say(text: str) -> None:
        with named.log.open("a", encoding="utf-8") as log:
            log.write(f"loadproof (pid {named.pid}) ended without a goodbye: {text}\n")

    reap(named, told, say)


if __name__ == "__main__":
    main(sys.argv[1:])
