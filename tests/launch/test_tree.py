"""Process tables are read right, and whoever belongs to a server is found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.launch.tree import (
    Entry,
    Tree,
    belonging,
    parse_stat,
    read_environment,
    read_process,
    read_table,
    stop_tree,
)

NOT_FORK = "import sys; sys.stdin.read()"


def entry(pid: int, parent: int, session: int = 0, started: float = 1.0) -> Entry:
    return Entry(pid, parent, session, started, zombie=False)


def table(*entries: Entry) -> dict[int, Entry]:
    return {found.pid: found for found in entries}


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_a_name_may_hold_spaces_and_brackets(name: str) -> None:
    line = f"42 ({name}) S 7 41 40 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 12345 99 88"
    found = parse_stat(line)
    assert found is not None
    assert (found.pid, found.parent, found.session, found.zombie) == (42, 7, 40, False)
    assert found.started == 12345 / os.sysconf("SC_CLK_TCK")


@given(st.text(max_size=60))
def test_garbage_is_no_process(text: str) -> None:
    assert parse_stat(text) is None


def test_we_are_in_the_table() -> None:
    found = read_table()[os.getpid()]
    assert found == read_process(os.getpid())
    assert found.parent == os.getppid()
    assert read_process(2**30) is None
    assert read_environment(2**30) == {}
    assert read_environment(os.getpid())["PATH"]


def test_descendants_and_session_mates_belong() -> None:
    processes = table(
        entry(10, 1, session=10), entry(11, 10, session=10), entry(12, 11, session=12), entry(13, 1, session=10),
        entry(14, 13, session=14), entry(20, 1, session=20), entry(21, 20, session=20),
    )  # fmt: skip
    assert belonging(processes, [10], None) == {10, 11, 12}
    assert belonging(processes, [10], 10) == {10, 11, 12, 13, 14}
    assert belonging(processes, [99], None) == set()


@given(st.dictionaries(st.integers(2, 30), st.integers(1, 30), max_size=25), st.sets(st.integers(2, 30), max_size=3))
def test_belonging_ends_and_is_closed(parents: dict[int, int], seeds: set[int]) -> None:
    processes = table(*(entry(pid, parent) for pid, parent in parents.items()))
    found = belonging(processes, seeds, None)
    assert seeds & processes.keys() <= found <= processes.keys()
    assert {pid for pid, parent in parents.items() if parent in found} <= found


def _proc(root: Path, *entries: Entry, marked: frozenset[int] = frozenset()) -> Path:
    for old in root.iterdir():
        for file in old.iterdir():
            file.unlink()
        old.rmdir()
    for found in entries:
        folder = root / str(found.pid)
        folder.mkdir()
        ticks = round(found.started * os.sysconf("SC_CLK_TCK"))
        (folder / "stat").write_text(
            f"{found.pid} (x) S {found.parent} {found.pid} {found.session} " + "0 " * 15 + f"{ticks} 0 0"
        )
        (folder / "environ").write_bytes(b"M=1\0A=b\0" if found.pid in marked else b"A=b\0")
    return root


def test_a_reused_pid_does_not_belong(tmp_path: Path) -> None:
    root = entry(10, 1, session=10)
    tree = Tree(root, {"M": "1"}, _proc(tmp_path, root, entry(11, 10, session=11)))
    assert tree.pids() == (10, 11)
    # Both are gone; strangers have their pids, and one of them leads a session of the root's number.
    _proc(tmp_path, entry(10, 1, session=10, started=9), entry(11, 1, session=10, started=9))
    assert tree.pids() == ()


def test_who_once_belonged_belongs_when_its_parents_are_gone(tmp_path: Path) -> None:
    root = entry(10, 1, session=10)
    tree = Tree(root, {"M": "1"}, _proc(tmp_path, root, entry(11, 10, session=11)))
    assert tree.pids() == (10, 11)
    _proc(tmp_path, entry(11, 1, session=11), entry(12, 11, session=12))
    assert tree.pids() == (11, 12)


def test_the_mark_finds_who_left_unseen(tmp_path: Path) -> None:
    root = entry(10, 1, session=10)
    _proc(tmp_path, root, entry(30, 1, session=30), entry(31, 30, session=31), entry(40, 1), marked=frozenset({30}))
    assert Tree(root, {"M": "1"}, tmp_path).pids() == (10, 30, 31)
    assert Tree(None, {"M": "1"}, tmp_path).pids() == (30, 31)


def test_stopping_what_has_ended_is_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", NOT_FORK], stdin=subprocess.PIPE) as popen:
        root = read_process(popen.pid)
        assert root is not None
        popen.kill()
    assert stop_tree(Tree(root, {"LOADPROOF_RUN": "no such run"}), grace_s=1) == ()


def test_a_gentle_end_is_given_time(tmp_path: Path) -> None:
    told = tmp_path / "told"
    gentle = (
        "import pathlib, signal, sys, time\n"
        f"def end(*_): time.sleep(0.3); pathlib.Path({str(told)!r}).write_text('goodbye'); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end); print('up', flush=True); signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", gentle], stdout=subprocess.PIPE, start_new_session=True) as popen:
        assert popen.stdout is not None
        assert popen.stdout.readline() == b"up\n"
        assert stop_tree(Tree(read_process(popen.pid), {"LOADPROOF_RUN": "no such run"}), grace_s=10) == ()
        assert popen.wait() == 0
    assert told.read_text() == "goodbye"
