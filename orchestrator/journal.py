"""The run directory: an append-only log of decisions, and the raw files that it points into.

    runs/<run-id>/
      plan.toml            as given, byte for byte
      journal.jsonl        one event a line, fsynced at every commit
      cells/<cell-id>/attempt-1/requests.jsonl  samples.jsonl  server.log
      result.json  report.html      derived

One writer (an advisory lock on the journal); a thing happened if and only if its line is there; a torn last line is cut
when a run is resumed and ignored when it is read.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Self

import msgspec

from orchestrator.errors import HostError, JournalError
from orchestrator.records import SCHEMA, AnyEvent, LevelCommitted, Record, RequestRecord, RunOpened, Sample

_encode = msgspec.json.Encoder().encode
_decode_event = msgspec.json.Decoder(AnyEvent).decode
_decode_records = msgspec.json.Decoder(RequestRecord).decode_lines
_decode_samples = msgspec.json.Decoder(Sample).decode_lines


class RunFiles:
    """Where things lie in a run directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.plan = root / "plan.toml"
        self.journal = root / "journal.jsonl"
        self.result = root / "result.json"
        self.report = root / "report.html"

    def attempt(self, cell: str, attempt: int) -> Path:
        return self.root / "cells" / cell / f"attempt-{attempt}"

    def requests(self, cell: str, attempt: int) -> Path:
        return self.attempt(cell, attempt) / "requests.jsonl"

    def samples(self, cell: str, attempt: int) -> Path:
        return self.attempt(cell, attempt) / "samples.jsonl"

    def server_log(self, cell: str, attempt: int) -> Path:
        return self.attempt(cell, attempt) / "server.log"


# --- reading ----------------------------------------------------------------------------------------------------


def _event(line: bytes, where: str) -> AnyEvent | None:
    """One journal line; None for an event that this version does not know."""
    try:
        event: AnyEvent = _decode_event(line)
    except msgspec.ValidationError as error:
        if "Invalid value" in str(error) and "$.event" in str(error):
            return None
        raise JournalError(
            f"{where} does not read as a journal line ({error}).",
            "The run directory was changed by hand or is not one of loadproof's.",
        ) from error
    except msgspec.DecodeError as error:
        raise JournalError(
            f"{where} is not JSON ({error}).", "Only the last line of a journal may be torn; this one is damaged."
        ) from error
    return event


def _whole(data: bytes) -> bytes:
    """The lines that end in a newline; what follows the last newline was never written to its end."""
    return data[: data.rfind(b"\n") + 1]


def not_a_run(path: Path) -> JournalError:
    """A path that holds no run."""
    return JournalError(
        f"{path} is not a run directory: it holds no journal.jsonl.",
        "Name the folder that loadproof run made: runs/TIME-TITLE, or what --out said.",
    )


def read_events(run_dir: Path) -> list[AnyEvent]:
    """All events of a run, a torn last line left out.

    Raises JournalError if there is no journal, a line before the last does not read, or the schema is newer than ours.
    """
    path = RunFiles(run_dir).journal
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise not_a_run(run_dir) from error
    except OSError as error:
        raise JournalError(f"{path} cannot be read: {error.strerror}.") from error
    events = []
    for number, line in enumerate(_whole(data).split(b"\n")[:-1], 1):
        event = _event(line, f"{path}:{number}")
        if isinstance(event, RunOpened) and event.schema > SCHEMA:
            raise JournalError(
                f"{run_dir} was written with schema {event.schema}; this loadproof reads up to {SCHEMA}.",
                "Read it with the loadproof version that wrote it, or a newer one.",
            )
        if event is not None:
            events.append(event)
    if not any(isinstance(event, RunOpened) for event in events):
        raise JournalError(f"{path} has no opening line: the run was stopped before it began.", "Start it again.")
    return events


def read_records(run_dir: Path, commit: LevelCommitted) -> list[RequestRecord]:
    """The request records of a committed level, in the order in which they ended."""
    path = RunFiles(run_dir).requests(commit.cell, commit.attempt)
    try:
        with path.open("rb") as file:
            file.seek(commit.offset)
            data = file.read(commit.length)
    except OSError as error:
        raise JournalError(f"{path} cannot be read: {error.strerror}.") from error
    if len(data) != commit.length:
        raise JournalError(f"{path} is shorter than the journal says: records of a committed level are missing.")
    try:
        return _decode_records(_whole(data))
    except msgspec.DecodeError as error:
        raise JournalError(f"{path} does not read as request records ({error}).") from error


def read_samples(run_dir: Path, cell: str, attempt: int) -> list[Sample]:
    """Everything that was watched during an attempt, in the order of reading; [] if nothing was."""
    path = RunFiles(run_dir).samples(cell, attempt)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    try:
        return _decode_samples(_whole(data))
    except msgspec.DecodeError as error:
        raise JournalError(f"{path} does not read as samples ({error}).") from error


# --- writing ----------------------------------------------------------------------------------------------------


def _told(error: OSError, path: Path) -> HostError:
    """An OSError of a write, as a sentence."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return HostError(
            f"The disk that holds {path.parent} is full.",
            "Everything committed so far is kept: make room and run again with --resume.",
        )
    return HostError(f"{path} cannot be written: {error.strerror}.", "Check the folder's rights and the disk.")


class Lines:
    """An append-only file of JSON lines; offsets are bytes. Raises HostError when the disk does not take a line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = path.open("ab", buffering=1 << 16)
            self.offset = self._file.seek(0, os.SEEK_END)
        except OSError as error:
            raise _told(error, path) from error

    def append(self, record: Record | AnyEvent) -> None:
        line = _encode(record) + b"\n"
        try:
            self._file.write(line)
        except OSError as error:
            raise _told(error, self.path) from error
        self.offset += len(line)

    def flush(self) -> None:
        """To the operating system: survives our death, not the machine's."""
        try:
            self._file.flush()
        except OSError as error:
            raise _told(error, self.path) from error

    def sync(self) -> None:
        """To the disk: survives the machine's death too."""
        self.flush()
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _told(error, self.path) from error

    def lock(self) -> None:
        """Become the one writer; raises JournalError if another process is."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise JournalError(
                f"Another loadproof is writing {self.path.parent}.", "Wait for it to end, or stop it, then resume."
            ) from error

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            raise _told(error, self.path) from error


class Journal:
    """The writer of a run directory."""

    def __init__(self, files: RunFiles, lines: Lines, events: list[AnyEvent]) -> None:
        self.files = files
        self.events = events
        """Every event so far, those of earlier processes included."""
        self._lines = lines

    @classmethod
    def create(cls, root: Path, plan: bytes) -> Self:
        """A new run directory with the plan in it. Raises HostError if it exists or cannot be made."""
        files = RunFiles(root)
        try:
            root.mkdir(parents=True)
            files.plan.write_bytes(plan)
        except FileExistsError as error:
            raise HostError(f"{root} exists already.", "Name another folder with --out, or --resume it.") from error
        except OSError as error:
            raise _told(error, files.plan) from error
        lines = Lines(files.journal)
        lines.lock()
        return cls(files, lines, [])

    @classmethod
    def resume(cls, root: Path) -> Self:
        """Go on in an existing run directory; a torn last line is cut. Raises JournalError."""
        files = RunFiles(root)
        if not files.journal.exists():
            raise not_a_run(root)
        lines = Lines(files.journal)
        try:
            lines.lock()
            events = read_events(root)
        except JournalError:
            lines.close()
            raise
        data = files.journal.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(files.journal, whole)
        lines.offset = whole
        return cls(files, lines, events)

    def append(self, event: AnyEvent) -> None:
        """A line that survives our death."""
        self._lines.append(event)
        self._lines.flush()
        self.events.append(event)

    def commit(self, event: AnyEvent) -> None:
        """A line that survives the machine's death. What it points to must be synced before."""
        self._lines.append(event)
        self._lines.sync()
        self.events.append(event)

    def close(self) -> None:
        self._lines.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def hash_files(root: Path) -> Iterator[tuple[str, str]]:
    """(relative path, SHA-256) of every raw file of a run, sorted; the derived ones left out."""
    derived = {"result.json", "report.html"}
    for path in sorted(p for p in root.rglob("*") if p.is_file() and p.name not in derived):
        with path.open("rb") as file:
            yield path.relative_to(root).as_posix(), hashlib.file_digest(file, "sha256").hexdigest()
