"""A run directory, read: cells with their attempts, servers and levels. Records and samples are read when asked for.

Everything a run can be is representable: not started, unfinished, interrupted, failed, resumed. Nothing is judged here.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.errors import JournalError
from orchestrator.journal import RunFiles, read_events, read_records, read_samples
from orchestrator.judge.steps import CHECKING
from orchestrator.records import (
    AnyEvent,
    Asked,
    AskedCell,
    AskedPairs,
    CellFinished,
    CellStarted,
    LevelCommitted,
    LevelSpec,
    LevelStarted,
    Neighbour,
    RequestRecord,
    RunClosed,
    RunOpened,
    Sample,
    ServerFailure,
    ServerReady,
    ServerRecord,
    ServerStarting,
    ServerStopped,
    Turn,
)

_LOG_TAIL_BYTES = 16 * 1024
_PLAN_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Attempt:
    """One server's life within a cell. Times are None for what did not happen."""

    run: Path
    cell: str
    number: int
    started_ns: int
    server: ServerRecord | None = None
    starting_ns: int | None = None
    neighbours: tuple[Neighbour, ...] = ()
    ready_ns: int | None = None
    stopped_ns: int | None = None
    failure: ServerFailure | None = None
    turn: Turn | None = None
    """Of a comparison in pairs: what this server was for."""

    def samples(self) -> list[Sample]:
        """Everything that was watched during the attempt, oldest first."""
        return sorted(read_samples(self.run, self.cell, self.number), key=lambda sample: sample.at_ns)

    def log_tail(self, lines: int = 20) -> tuple[str, ...]:
        """The last lines of the server's log; () if there is none. Reads a bounded piece of the file's end."""
        path = RunFiles(self.run).server_log(self.cell, self.number)
        try:
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - _LOG_TAIL_BYTES))
                tail = file.read(_LOG_TAIL_BYTES)
        except OSError:
            return ()
        return tuple(tail.decode("utf-8", "replace").splitlines()[-lines:])


@dataclass(frozen=True, slots=True)
class Level:
    """A committed level."""

    run: Path
    commit: LevelCommitted

    @property
    def concurrency(self) -> int:
        return self.commit.run.spec.concurrency

    def records(self) -> list[RequestRecord]:
        """Its request records, read from disk now and kept by nobody."""
        return read_records(self.run, self.commit)


@dataclass(frozen=True, slots=True)
class Cell:
    """Deployment x workload, with all that was tried."""

    asked: AskedCell
    attempts: tuple[Attempt, ...] = ()
    levels: tuple[Level, ...] = ()
    """By concurrency, then in the order in which they were measured."""
    checks: tuple[Level, ...] = ()
    """The levels of the open-loop check, in that order."""
    unfinished: LevelSpec | None = None
    """The level that was under way when the run ended."""
    finished: CellFinished | None = None

    @property
    def history(self) -> tuple[Level, ...]:
        """The levels in the order in which they were measured."""
        return tuple(sorted((*self.levels, *self.checks), key=lambda level: level.commit.level))

    @property
    def server(self) -> ServerRecord | None:
        """The latest server that became ready, else the latest that was started."""
        ready = [attempt.server for attempt in self.attempts if attempt.server and attempt.ready_ns is not None]
        started = [attempt.server for attempt in self.attempts if attempt.server]
        latest = ready or started
        return latest[-1] if latest else None


@dataclass(frozen=True, slots=True)
class Pairing:
    """A comparison in pairs, with all that was tried."""

    asked: AskedPairs
    attempts: tuple[Attempt, ...] = ()
    """A server for each turn, and for each that was interrupted and taken again."""
    levels: tuple[Level, ...] = ()
    """Sentinels and levels in the order in which they were measured."""
    finished: CellFinished | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """A run directory."""

    path: Path
    opened: RunOpened
    openings: int
    """How often the run was opened: 1 + the number of resumes."""
    closed: RunClosed | None
    asked: Asked
    cells: tuple[Cell, ...]
    comparisons: tuple[Pairing, ...] = ()

    def plan_text(self) -> str:
        """The plan as given, at most its first MiB; "" if the copy is gone."""
        try:
            with RunFiles(self.path).plan.open("rb") as file:
                return file.read(_PLAN_BYTES).decode("utf-8", "replace")
        except OSError:
            return ""


def read_run(path: Path) -> Run:
    """Read a run directory. Raises JournalError if it is none, is damaged, or is of a newer schema."""
    events = read_events(path)
    openings = [event for event in events if isinstance(event, RunOpened)]
    last = events[-1]
    asked = openings[0].asked or Asked()
    by_cell = _by_cell(events)
    known = {cell.cell: cell for cell in asked.cells}
    in_pairs = {pairs.id: pairs for pairs in asked.comparisons}
    names = list(known) + [name for name in by_cell if name not in known and name not in in_pairs]
    for name in (*names, *in_pairs):
        if name in ("", "..") or Path(name).name != name:
            raise JournalError(f"{path} names a cell {name[:80]!r}, which is no file name.", "The journal was changed.")
    return Run(
        path=path,
        opened=openings[0],
        openings=len(openings),
        closed=last if isinstance(last, RunClosed) else None,
        asked=asked,
        cells=tuple(_cell(path, name, known.get(name), by_cell.get(name, [])) for name in names),
        comparisons=tuple(_pairing(path, pairs, by_cell.get(name, [])) for name, pairs in in_pairs.items()),
    )


def _by_cell(events: Iterable[AnyEvent]) -> dict[str, list[AnyEvent]]:
    """Events by cell, cells in the order of their first event."""
    found: defaultdict[str, list[AnyEvent]] = defaultdict(list)
    for event in events:
        if not isinstance(event, RunOpened | RunClosed):
            found[event.cell].append(event)
    return dict(found)


def _cell(run: Path, name: str, asked: AskedCell | None, events: Sequence[AnyEvent]) -> Cell:
    attempts = _attempts(run, events)
    if asked is None:
        servers = [attempt.server for attempt in attempts if attempt.server]
        asked = AskedCell(
            cell=name,
            deployment=servers[0].deployment if servers else name,
            workload="",
            stack=servers[0].stack if servers else "",
            launch=servers[0].launch if servers else "",
        )
    commits = [event for event in events if isinstance(event, LevelCommitted)]
    levels = sorted(commits, key=lambda commit: (commit.run.spec.concurrency, commit.level))
    return Cell(
        asked=asked,
        attempts=attempts,
        levels=tuple(Level(run, commit) for commit in levels if commit.run.spec.purpose not in CHECKING),
        checks=tuple(Level(run, commit) for commit in commits if commit.run.spec.purpose in CHECKING),
        unfinished=_unfinished(events),
        finished=_finished(events),
    )


def _pairing(run: Path, asked: AskedPairs, events: Sequence[AnyEvent]) -> Pairing:
    commits = [event for event in events if isinstance(event, LevelCommitted)]
    return Pairing(
        asked=asked,
        attempts=_attempts(run, events),
        levels=tuple(Level(run, commit) for commit in commits),
        finished=_finished(events),
    )


def _finished(events: Sequence[AnyEvent]) -> CellFinished | None:
    return next((event for event in reversed(events) if isinstance(event, CellFinished)), None)


def _attempts(run: Path, events: Iterable[AnyEvent]) -> tuple[Attempt, ...]:
    found: dict[int, Attempt] = {}
    for event in events:
        match event:
            case CellStarted():
                found[event.attempt] = Attempt(
                    run, event.cell, event.attempt, event.at_ns, neighbours=event.neighbours, turn=event.turn
                )
            case ServerStarting() | ServerReady() | ServerStopped() if event.attempt in found:
                found[event.attempt] = _with(found[event.attempt], event)
    return tuple(found[number] for number in sorted(found))


def _with(attempt: Attempt, event: ServerStarting | ServerReady | ServerStopped) -> Attempt:
    match event:
        case ServerStarting():
            return replace(attempt, server=event.server, starting_ns=attempt.starting_ns or event.at_ns)
        case ServerReady():
            return replace(attempt, server=event.server, ready_ns=event.at_ns)
        case ServerStopped():
            return replace(attempt, stopped_ns=event.at_ns, failure=event.failure)


def _unfinished(events: Sequence[AnyEvent]) -> LevelSpec | None:
    """The level that was started last and never committed; None if the cell went on or came to its end."""
    for event in reversed(events):
        if isinstance(event, LevelStarted):
            return event.spec
        if isinstance(event, LevelCommitted | CellFinished):
            return None
    return None
