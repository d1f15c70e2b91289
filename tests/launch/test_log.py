"""Logs: whole on disk, without secrets, plain and bounded in memory, however the bytes are cut."""

from __future__ import annotations

import errno
import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.launch import log
from orchestrator.launch.log import Secrets, ServerLog, plain_lines

SECRET = "hf_0123456789"


def cut(data: bytes, at: list[int]) -> list[bytes]:
    places = [0, *sorted(min(place, len(data)) for place in at), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(places)]


@given(
    st.lists(st.sampled_from(["\n", "\r", "\r\n", "a", "[", "é", SECRET, "\x1b[31m", "x" * 50]), max_size=40),
    st.lists(st.integers(0, 600), max_size=12),
)
def test_no_cut_of_the_bytes_changes_the_log_or_shows_a_secret(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str], places: list[int]
) -> None:
    data = "".join(parts).encode()
    path = tmp_path_factory.mktemp("log") / "server.log"
    with ServerLog(path, Secrets({"HF_TOKEN": SECRET})) as taken:
        taken.pump(cut(data, places))
        assert not any(SECRET in line for line in taken.lines())
    wanted = data.replace(SECRET.encode(), b"[HF_TOKEN]")
    assert path.read_bytes() == wanted
    assert taken.lines() == plain_lines(wanted)


@given(st.integers(0, 300), st.lists(st.integers(0, 400), max_size=10))
def test_a_secret_in_an_endless_line_is_hidden_too(
    tmp_path_factory: pytest.TempPathFactory, before: int, places: list[int]
) -> None:
    data = b"x" * before + SECRET.encode() + b"y" * 80
    path = tmp_path_factory.mktemp("log") / "server.log"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(log, "MAX_LINE_BYTES", 40)
        with ServerLog(path, Secrets({"T": SECRET})) as taken:
            taken.pump(cut(data, places))
    assert path.read_bytes() == data.replace(SECRET.encode(), b"[T]")


def test_progress_bars_colours_and_prefixed_lines_are_read_as_people_read_them() -> None:
    data = b"\x1b[32mINFO\x1b[0m a\r\n  1%|#\r 50%|##\r100%|###\nlast \x07\xff line  \n\n"
    assert plain_lines(data) == ["INFO a", "  1%|#", " 50%|##", "100%|###", "last � line"]


def test_the_longer_of_two_secrets_goes_first() -> None:
    assert Secrets({"A": "abcd", "B": "abcdefgh"}).hidden(b"abcdefgh abcd") == b"[B] [A]"


def test_a_value_too_short_to_be_a_secret_blanks_nothing() -> None:
    assert Secrets({"A": "1", "B": ""}).hidden(b"1 of 11") == b"1 of 11"


def test_memory_is_bounded_and_keeps_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "MAX_KEPT_CHARACTERS", 1000)
    with ServerLog(tmp_path / "l", Secrets({})) as taken:
        taken.pump(f"line {number}\n".encode() for number in range(1000))
        lines = taken.lines()
    assert lines[-1] == "line 999"
    assert 90 < len(lines) < 112


def test_the_file_is_bounded_and_ends_with_the_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "MAX_FILE_BYTES", 1000)
    monkeypatch.setattr(log, "MAX_KEPT_CHARACTERS", 100)
    with ServerLog(tmp_path / "l", Secrets({})) as taken:
        taken.pump(f"line {number}\n".encode() for number in range(1000))
    text = (tmp_path / "l").read_text()
    assert text.startswith("line 0\nline 1\n")
    assert text.endswith("line 998\nline 999\n")
    assert "[the log is cut here" in text
    assert len(text) < 1300


class _FullDisk:
    closed = False

    def write(self, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def close(self) -> None:
        self.closed = True


def test_a_full_disk_does_not_stop_the_server_s_output(tmp_path: Path) -> None:
    taken = ServerLog(tmp_path / "l", Secrets({}))
    taken._file.close()
    taken._file = _FullDisk()  # type: ignore[assignment]  # a file whose disk is full
    taken.pump([b"one\n", b"two\n"])
    assert taken.lines() == ["one", "two"]
    taken.close()
    assert taken._file.closed
