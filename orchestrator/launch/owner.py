"""Whose a server is: the marks that everything we start carries, and whether the process that started it still lives.

A pid alone says little: pids are reused, and each container counts its own from 1. An owner is therefore a pid, the
moment when it started, counted from the boot (setting the clock never moves it), and the place in which the pid counts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from orchestrator.launch.tree import PROC, read_process
from orchestrator.records import Record

RUN_MARK = "LOADPROOF_RUN"
CELL_MARK = "LOADPROOF_CELL"
OWNER_MARK = "LOADPROOF_OWNER"
PLACE_MARK = "LOADPROOF_PLACE"
MARKS = (RUN_MARK, CELL_MARK, OWNER_MARK, PLACE_MARK)

LABEL = "loadproof"
LABELS = {RUN_MARK: "loadproof.run", CELL_MARK: "loadproof.cell", OWNER_MARK: "loadproof.owner"}
LABELS |= {PLACE_MARK: "loadproof.place"}

IN_CONTAINER = "container:"
"""A place that is a container begins with this; its id follows."""


class Owner(Record, frozen=True, kw_only=True):
    """The loadproof process to which a server belongs, and what the server is for."""

    run_id: str
    cell: str
    pid: int
    pid_started: float
    """Seconds since the boot."""
    place: str
    """Where `pid` counts: ``container:ID``, or ``BOOT-ID/PID-NAMESPACE`` outside of containers."""

    @classmethod
    def current(cls, run_id: str, cell: str) -> Self:
        """This process as an owner."""
        entry = read_process(os.getpid())
        started = entry.started if entry is not None else 0.0
        return cls(run_id=run_id, cell=cell, pid=os.getpid(), pid_started=started, place=this_place())

    @property
    def mark(self) -> str:
        """``PID:START``, as labels and environments carry it."""
        return f"{self.pid}:{self.pid_started:.2f}"

    def environment(self) -> dict[str, str]:
        """Variables by which a process of ours is found again, also after we died."""
        return {RUN_MARK: self.run_id, CELL_MARK: self.cell, OWNER_MARK: self.mark, PLACE_MARK: self.place}

    def labels(self) -> dict[str, str]:
        """The same for a container."""
        return {LABEL: "1"} | {LABELS[name]: value for name, value in self.environment().items()}


def owner_of(marks: Mapping[str, str]) -> Owner | None:
    """The owner that an environment names, or None if it is not one of ours."""
    found = re.fullmatch(r"(\d{1,10}):(\d{1,12}(?:\.\d+)?)", marks.get(OWNER_MARK, ""))
    if found is None:
        return None
    return Owner(
        run_id=marks.get(RUN_MARK, ""),
        cell=marks.get(CELL_MARK, ""),
        pid=int(found[1]),
        pid_started=float(found[2]),
        place=marks.get(PLACE_MARK, ""),
    )


def owner_of_labels(labels: Mapping[str, str]) -> Owner | None:
    """The owner that a container's labels name, or None if it is not one of ours."""
    return owner_of({name: labels.get(label, "") for name, label in LABELS.items()})


def is_alive(owner: Owner) -> bool | None:
    """Whether the owner still runs; None = it is not in our place, so its pid means nothing here."""
    if owner.place != this_place():
        return None
    entry = read_process(owner.pid)
    return entry is not None and not entry.zombie and abs(entry.started - owner.pid_started) < 0.02


def this_place(proc: Path = PROC) -> str:
    """Where our own pids count."""
    if container := own_container_id(proc):
        return IN_CONTAINER + container
    try:
        boot = (proc / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = (proc / "self/ns/pid").readlink()
    except OSError:  # not Linux: one place, as far as we can tell
        return "here"
    return f"{boot}/{namespace}"


def own_container_id(proc: Path = PROC) -> str | None:
    """Id of the Docker container in which we run, or None. From the files that the engine mounts into each of its
    containers (``.../containers/ID/resolv.conf``), which both versions of cgroups show alike."""
    try:
        mounts = (proc / "self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"/containers/([0-9a-f]{64})/(?:resolv\.conf|hostname|hosts) ", mounts)
    return found[1] if found else None
