"""The run directory: what is committed survives, what is torn is cut, what is not ours is refused."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import HostError, JournalError
from orchestrator.journal import Journal, Lines, RunFiles, hash_files, read_events, read_samples
from orchestrator.records import SCHEMA, CellStarted, RunOpened, Sample


def opened(schema: int = SCHEMA) -> RunOpened:
    return RunOpened(
        schema=schema,
        at_ns=1,
        run_id="r",
        wall_time="2026-01-01T00:00:00+00:00",
        loadproof_version="0",
        plan_sha256="p",
        pid=1,
        pid_started=1.0,
    )


def started(attempt: int) -> CellStarted:
    return CellStarted(at_ns=2, cell="c", fingerprint="f", attempt=attempt)


def a_run(root: Path, attempts: int = 2) -> Path:
    with Journal.create(root, b"title = 'x'\n") as journal:
        journal.commit(opened())
        for attempt in range(1, attempts + 1):
            journal.append(started(attempt))
    return root


def test_events_come_back_in_order_and_the_plan_byte_for_byte(tmp_path: Path) -> None:
    root = a_run(tmp_path / "run")
    assert read_events(root) == [opened(), started(1), started(2)]
    assert RunFiles(root).plan.read_bytes() == b"title = 'x'\n"


@given(cut=st.integers(min_value=1, max_value=40))
def test_a_torn_last_line_is_ignored_when_read_and_cut_when_resumed(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    root = a_run(tmp_path_factory.mktemp("torn") / "run")
    path = RunFiles(root).journal
    path.write_bytes(path.read_bytes()[:-cut])
    assert read_events(root) == [opened(), started(1)]
    with Journal.resume(root) as journal:
        journal.commit(started(9))
    assert read_events(root) == [opened(), started(1), started(9)]


def test_a_damaged_line_in_the_middle_is_refused_by_number(tmp_path: Path) -> None:
    root = a_run(tmp_path / "run")
    path = RunFiles(root).journal
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b'{"event":"cell-sta\n' + lines[2])
    with pytest.raises(JournalError, match=r"journal\.jsonl:2 is not JSON"):
        read_events(root)


def test_a_newer_schema_is_refused_and_unknown_events_and_keys_are_not(tmp_path: Path) -> None:
    root = a_run(tmp_path / "run")
    with RunFiles(root).journal.open("ab") as file:
        file.write(b'{"event":"of-the-future","x":1}\n')
        file.write(b'{"event":"cell-started","at_ns":2,"cell":"c","fingerprint":"f","attempt":7,"new":1}\n')
    assert read_events(root)[-1] == started(7)
    newer = tmp_path / "newer"
    with Journal.create(newer, b"") as journal:
        journal.commit(opened(SCHEMA + 1))
    with pytest.raises(JournalError, match=f"schema {SCHEMA + 1}"):
        read_events(newer)


def test_only_one_writer(tmp_path: Path) -> None:
    root = a_run(tmp_path / "run")
    with Journal.resume(root), pytest.raises(JournalError, match="Another loadproof is writing"):
        Journal.resume(root)
    Journal.resume(root).close()


def test_a_run_directory_is_never_overwritten(tmp_path: Path) -> None:
    a_run(tmp_path / "run")
    with pytest.raises(HostError, match="exists already"):
        Journal.create(tmp_path / "run", b"")


@pytest.mark.parametrize("content", [None, b"", b'{"event":'])
def test_what_is_no_run_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "journal.jsonl").write_bytes(content)
    with pytest.raises(JournalError):
        read_events(tmp_path)


class _FullDisk:
    """A file on a disk that takes no more."""

    def write(self, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def close(self) -> None: ...


def test_a_full_disk_is_one_sentence_and_keeps_what_was_committed(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "samples.jsonl")
    kept = Sample(at_ns=1, source="host", values={"cpu_share": 0.5})
    lines.append(kept)
    lines.sync()
    lines._file.close()
    lines._file = _FullDisk()  # type: ignore[assignment]
    with pytest.raises(HostError, match=r"disk that holds .* is full.*--resume"):
        lines.append(kept)
    assert lines.path.read_bytes().count(b"\n") == 1


def test_samples_read_back_without_the_torn_end(tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    lines = Lines(files.samples("c", 1))
    samples = [Sample(at_ns=n, source="engine", values={"running": float(n)}) for n in range(5)]
    for sample in samples:
        lines.append(sample)
    lines.close()
    with files.samples("c", 1).open("ab") as file:
        file.write(b'{"at_ns":9,"sou')
    assert read_samples(tmp_path, "c", 1) == samples
    assert read_samples(tmp_path, "c", 2) == []


def test_hashes_name_every_raw_file_and_leave_the_derived_out(tmp_path: Path) -> None:
    root = a_run(tmp_path / "run")
    RunFiles(root).result.write_text("{}")
    RunFiles(root).report.write_text("<html>")
    assert [name for name, _ in hash_files(root)] == ["journal.jsonl", "plan.toml"]
