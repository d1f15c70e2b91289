"""The processes that belong to a server, read from /proc: its root, all that came from it, wherever they went.

A child may change its group and session, and its parent may die; then the marks in its environment still tell. All of
it is identity by (pid, start time): a pid alone may have been given to somebody else meanwhile.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from orchestrator.clock import NS_PER_S, now_ns

PROC = Path("/proc")
MAX_ENVIRON_BYTES = 1024 * 1024
LAST_CHANCE_S = 2.0
"""What is left when the root has ended may take this long to end by itself."""
KILL_PATIENCE_S = 10.0
"""A killed process that is still there after this long hangs in the kernel (a driver, a network disk)."""
_TICKS_PER_S = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


class Entry(NamedTuple):
    """One process, as /proc/PID/stat has it."""

    pid: int
    parent: int
    session: int
    started: float
    """Seconds since the boot."""
    zombie: bool


def parse_stat(text: str) -> Entry | None:
    """An entry from a line of /proc/PID/stat; the name in it may hold spaces and brackets."""
    head, _, tail = text.rpartition(")")
    pid, fields = head.partition(" ")[0], tail.split()
    if not pid.isdecimal() or len(fields) < 20:
        return None
    return Entry(int(pid), int(fields[1]), int(fields[3]), int(fields[19]) / _TICKS_PER_S, fields[0] in "ZX")


def read_process(pid: int, proc: Path = PROC) -> Entry | None:
    """The process with this pid, or None if there is none."""
    try:
        return parse_stat((proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None


def read_table(proc: Path = PROC) -> dict[int, Entry]:
    """Every living process that we may see, by pid."""
    with os.scandir(proc) as found:
        pids = [int(entry.name) for entry in found if entry.name.isdecimal()]
    entries = (read_process(pid, proc) for pid in pids)
    return {entry.pid: entry for entry in entries if entry is not None and not entry.zombie}


def read_environment(pid: int, proc: Path = PROC) -> dict[str, str]:
    """The environment with which a process was started; {} if it is gone or not ours to read."""
    try:
        with (proc / str(pid) / "environ").open("rb") as file:
            data = file.read(MAX_ENVIRON_BYTES)
    except OSError:
        return {}
    pairs = (item.decode("utf-8", "replace").partition("=") for item in data.split(b"\0") if item)
    return {name: value for name, _, value in pairs}


def belonging(table: Mapping[int, Entry], seeds: Iterable[int], session: int | None) -> set[int]:
    """Pids of the seeds, of their descendants, and of everything in `session` with its descendants."""
    children: dict[int, list[int]] = {}
    for entry in table.values():
        children.setdefault(entry.parent, []).append(entry.pid)
    pending = [pid for pid in seeds if pid in table]
    pending += [entry.pid for entry in table.values() if session is not None and entry.session == session]
    found: set[int] = set()
    while pending:
        pid = pending.pop()
        if pid not in found:
            found.add(pid)
            pending += children.get(pid, ())
    return found


class Tree:
    """A server's processes. Who once belonged to it belongs to it until it ends. Safe to ask from any thread."""

    def __init__(self, root: Entry | None, marks: Mapping[str, str], proc: Path = PROC) -> None:
        """`root` leads a session of its own; None = it has ended. `marks`: the environment that names this server."""
        self.root = root
        self._marks = dict(marks)
        self._proc = proc
        self._known: dict[int, float] = {} if root is None else {root.pid: root.started}
        self._strangers: dict[int, float] = {}
        self._lock = threading.Lock()

    def pids(self) -> tuple[int, ...]:
        """Living processes, the root first."""
        return tuple(entry.pid for entry in self.entries())

    def entries(self) -> tuple[Entry, ...]:
        """Living processes, the root first, then by pid."""
        with self._lock:
            table = read_table(self._proc)
            self._known = {pid: at for pid, at in self._known.items() if pid in table and table[pid].started == at}
            seeds = [*self._known, *self._marked(table)]
            root = None if self.root is None else self.root.pid
            # The root's pid names its session, and stays reserved only as long as the session has a member.
            session = root if any(table[pid].session == root for pid in seeds) else None
            found = belonging(table, seeds, session)
            self._known = {pid: table[pid].started for pid in found}
        return tuple(table[pid] for pid in sorted(found, key=lambda pid: (pid != root, pid)))

    def _marked(self, table: Mapping[int, Entry]) -> list[int]:
        """Pids whose environment carries our marks. Each process is looked at once: the environment of a process that
        others started is read but once, not once a second."""
        self._strangers = {pid: at for pid, at in self._strangers.items() if pid in table and table[pid].started == at}
        found = []
        for pid, entry in table.items():
            if pid in self._known or pid in self._strangers:
                continue
            environment = read_environment(pid, self._proc)
            if all(environment.get(name) == value for name, value in self._marks.items()):
                found.append(pid)
            else:
                self._strangers[pid] = entry.started
        return found


# --- the end ----------------------------------------------------------------------------------------------------


def stop_tree(tree: Tree, grace_s: float) -> tuple[int, ...]:
    """End a server, blocking: SIGTERM to its root, which ends its children its own way; then SIGKILL to what is left.

    Returns the pids that are still there: () unless the kernel itself holds them.
    """
    if tree.root is not None:
        _end(tree.root, signal.SIGTERM, grace_s)
    _await_all(tree.entries(), LAST_CHANCE_S)
    until_ns = now_ns() + round(KILL_PATIENCE_S * NS_PER_S)
    while left := tree.entries():
        if now_ns() > until_ns:
            return tuple(entry.pid for entry in left)
        # Again and again: between the look and the kill a process may have made another.
        for entry in left:
            _end(entry, signal.SIGKILL, 0)
        _await_all(left, 1.0)
    return ()


def _end(entry: Entry, signum: signal.Signals, patience_s: float) -> None:
    with _handle(entry) as handle:
        if handle is None:
            return
        with suppress(ProcessLookupError, PermissionError):  # another user's child is told of as still there
            signal.pidfd_send_signal(handle, signum)
        _wait(handle, patience_s)


def _await_all(entries: Iterable[Entry], patience_s: float) -> None:
    until_ns = now_ns() + round(patience_s * NS_PER_S)
    for entry in entries:
        with _handle(entry) as handle:
            if handle is not None:
                _wait(handle, max(0, until_ns - now_ns()) / NS_PER_S)


@contextmanager
def _handle(entry: Entry) -> Iterator[int | None]:
    """A descriptor of exactly this process, or None if it has ended: no signal reaches a later owner of its pid."""
    try:
        handle = os.pidfd_open(entry.pid)
    except ProcessLookupError:
        yield None
        return
    try:
        now = read_process(entry.pid)
        yield handle if now is not None and now.started == entry.started and not now.zombie else None
    finally:
        os.close(handle)


def _wait(handle: int, patience_s: float) -> None:
    """Until the process of a descriptor has ended, at most for a while."""
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    poll.poll(round(patience_s * 1000))
