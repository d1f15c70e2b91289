from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.watch import host
from orchestrator.watch.host import (
    HostReader,
    ProcessUse,
    TreeReader,
    cpu_shares,
    parse_pressure,
    parse_pss,
    process_use,
    quota_wait,
    stall_shares,
    tree_values,
)

ROLLUP = """5581cd4a7000-7ffe1a8f9000 ---p 00000000 00:00 0                          [rollup]
Rss:               10452 kB
Pss:                3051 kB
Pss_Dirty:          1292 kB
Pss_Anon:           1292 kB
Shared_Clean:       7924 kB
SwapPss:               0 kB
"""
PRESSURE = """some avg10=1.50 avg60=0.90 avg300=0.20 total=20400
full avg10=0.00 avg60=0.00 avg300=0.00 total=17
"""
MIB = 1024**2


@contextmanager
def child(code: str) -> Iterator[int]:
    """A Python that runs `code` and then waits to be told to end; gives its pid once the code has run."""
    program = f"{code}\nprint(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        yield process.pid
        process.communicate(b"\n")


# --- a tree ------------------------------------------------------------------------------------------------------


def test_pss_is_the_line_pss() -> None:
    assert parse_pss(ROLLUP) == 3051 * 1024
    assert parse_pss("Pss_Anon: 12 kB\n") is None
    assert parse_pss("") is None


@given(st.text())
def test_no_text_breaks_the_parsers(text: str) -> None:
    assert parse_pss(text) is None or "Pss:" in text
    assert set(parse_pressure(text)) <= {"some", "full"}


def test_a_process_that_lives_is_read_and_one_that_is_gone_is_not() -> None:
    with child("kept = bytearray(b'x') * (64 << 20)") as pid:
        use = process_use(pid)
        assert use is not None
        assert use.rss_bytes > 64 * MIB
        assert use.pss_bytes is not None
        assert 64 * MIB < use.pss_bytes <= use.rss_bytes
        assert process_use(pid, with_pss=False) == ProcessUse(use.cpu_s, use.rss_bytes, None)
    assert process_use(pid) is None


def test_the_seconds_of_ended_children_are_kept() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'sum(range(8_000_000))'])"
    with child(code) as pid:
        use = process_use(pid)
        own = psutil.Process(pid).cpu_times()
    assert use is not None
    assert own.children_user > 0
    assert use.cpu_s >= own.user + own.system + own.children_user - 0.02


def test_a_tree_is_the_sum_of_its_processes() -> None:
    uses = [ProcessUse(1.5, 300, 200), ProcessUse(2.0, 100, 50)]
    assert tree_values(uses) == {"processes": 2.0, "cpu_s": 3.5, "rss_bytes": 400.0, "pss_bytes": 250.0}
    assert tree_values([]) == {}


def test_pss_is_given_for_all_processes_or_not_at_all() -> None:
    assert "pss_bytes" not in tree_values([ProcessUse(1.0, 300, 200), ProcessUse(1.0, 100, None)])


def test_a_tree_reader_reads_what_is_there() -> None:
    gone = 2**22 + 1  # above any pid that Linux gives
    reader = TreeReader(lambda: [os.getpid(), gone])
    values = reader.read()
    assert values["processes"] == 1
    assert 0 < values["pss_bytes"] <= values["rss_bytes"]
    assert reader.seen == (os.getpid(), gone)


def test_without_a_rollup_there_is_rss_alone(tmp_path: Path) -> None:
    values = TreeReader(lambda: [os.getpid()], tmp_path).read()
    assert set(values) == {"processes", "cpu_s", "rss_bytes"}


def test_a_list_that_fails_leaves_no_stale_pids() -> None:
    answers = iter([[os.getpid()]])
    reader = TreeReader(lambda: next(answers))
    reader.read()
    with pytest.raises(StopIteration):
        reader.read()
    assert reader.seen == ()


def test_pss_that_is_slow_to_read_is_read_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second for PSS, at most 5 % of the time: not again within ten seconds."""
    clock = 0

    def slow(pid: int, proc: Path, *, with_pss: bool) -> ProcessUse:
        nonlocal clock
        clock += 500_000_000 if with_pss else 0
        return ProcessUse(1.0, 300, 200 if with_pss else None)

    monkeypatch.setattr(host, "now_ns", lambda: clock)
    monkeypatch.setattr(host, "process_use", slow)
    reader = TreeReader(lambda: [1])
    had_pss = []
    for _ in range(25):
        had_pss.append("pss_bytes" in reader.read())
        clock += 1_000_000_000
    assert [tick for tick, had in enumerate(had_pss) if had] == [0, 10, 20]


# --- the machine -------------------------------------------------------------------------------------------------


class Cpu(NamedTuple):
    user: float
    system: float
    idle: float
    iowait: float
    steal: float
    guest: float


def test_shares_of_the_processors() -> None:
    before = Cpu(10, 10, 100, 5, 1, 3)
    now = Cpu(14, 11, 103, 6, 2, 6)
    assert cpu_shares(before, now) == {"cpu_share": pytest.approx(0.6), "steal_share": pytest.approx(0.1)}
    assert cpu_shares(now, now) == {}


def test_a_counter_that_goes_back_gives_no_share_outside_0_to_1() -> None:
    """Linux lets iowait and idle step back."""
    shares = cpu_shares(Cpu(10, 10, 100, 5, 1, 0), Cpu(12, 10, 99, 5, 1, 0))
    assert shares == {"cpu_share": 1.0, "steal_share": 0.0}


def test_systems_without_steal_have_none() -> None:
    class Plain(NamedTuple):
        user: float
        idle: float

    assert cpu_shares(Plain(0, 0), Plain(1, 3)) == {"cpu_share": 0.25}


def test_pressure_is_a_share_of_the_time_since() -> None:
    assert parse_pressure(PRESSURE) == {"some": 20400, "full": 17}
    shares = stall_shares({"cpu_some": 20_000, "io_some": 5}, {"cpu_some": 520_000, "new_some": 7}, 2.0)
    assert shares == {"pressure_cpu_some_share": 0.25}
    assert stall_shares({"cpu_some": 1}, {"cpu_some": 2}, 0.0) == {}


def test_waiting_for_a_quota() -> None:
    assert quota_wait(1.0, 2.5, 3.0) == {"quota_wait_share": 0.5}
    assert quota_wait(None, 2.5, 3.0) == {}


def test_the_first_moment_has_levels_and_no_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0
    monkeypatch.setattr(host, "now_ns", lambda: clock)
    reader = HostReader()
    assert set(reader.read()) == {"memory_available_bytes", "swap_used_bytes"}
    clock = 1_000_000_000
    while not (later := reader.read().keys() - {"memory_available_bytes", "swap_used_bytes"}) & {"cpu_share"}:
        clock += 1_000_000_000  # the kernel's tick has not come yet
    assert "cpu_share" in later


def test_a_kernel_without_pressure_files_reports_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0
    monkeypatch.setattr(host, "now_ns", lambda: clock)
    reader = HostReader(tmp_path)
    clock = 1_000_000_000
    assert not [name for name in reader.read() if name.startswith("pressure")]


def test_pressure_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0
    monkeypatch.setattr(host, "now_ns", lambda: clock)
    (tmp_path / "pressure").mkdir()
    file = tmp_path / "pressure/memory"
    file.write_text(PRESSURE)
    reader = HostReader(tmp_path)
    file.write_text(PRESSURE.replace("total=20400", "total=120400"))
    clock = 1_000_000_000
    values = reader.read()
    assert values["pressure_memory_some_share"] == pytest.approx(0.1)
    assert values["pressure_memory_full_share"] == 0
