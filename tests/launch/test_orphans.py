"""What a dead owner left is found and removed; what a living one owns is not."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from fakes.dying import dying_owner, marked, reapers_of
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.commands.clean import clean
from orchestrator.launch.engine_facts import Found
from orchestrator.launch.orphans import find_orphans, is_orphan, process_orphans, remove
from orchestrator.launch.owner import (
    Owner,
    is_alive,
    own_container_id,
    owner_of,
    owner_of_labels,
    this_place,
)

SLEEP = "import sys; sys.stdin.read()"


@pytest.fixture(autouse=True)
def _no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///no/such/docker.sock")


@pytest.fixture
def run_id() -> str:
    return f"test-{uuid.uuid4().hex}"


@contextmanager
def owned(owner: Owner) -> Iterator[subprocess.Popen[bytes]]:
    """A process that carries an owner's marks."""
    environment = os.environ | owner.environment()
    with subprocess.Popen([sys.executable, "-c", SLEEP], env=environment, stdin=subprocess.PIPE) as popen:
        try:
            yield popen
        finally:
            popen.kill()


def dead(run_id: str) -> Owner:
    living = Owner.current(run_id, "dead")
    return Owner(run_id=run_id, cell="dead", pid=living.pid, pid_started=living.pid_started - 1, place=living.place)


def test_a_dead_owner_s_processes_are_found_and_removed_and_a_living_one_s_stay(run_id: str) -> None:
    with owned(dead(run_id)) as orphan, owned(Owner.current(run_id, "living")) as kept:
        found = find_orphans(run_id)
        assert [(o.owner.cell, o.pids) for o in found] == [("dead", (orphan.pid,))]
        assert f"process {orphan.pid}: run {run_id}, cell dead" in str(found[0])
        remove(found)
        assert orphan.wait(5) != 0
        assert find_orphans(run_id) == []
        assert kept.poll() is None


def test_another_run_s_orphans_are_not_this_run_s(run_id: str) -> None:
    with owned(dead(run_id)) as orphan:
        assert find_orphans("test-some-other-run") == []
        assert (orphan.pid,) in [o.pids for o in process_orphans(None)]


def test_an_owner_in_another_place_is_not_judged_by_its_pid(run_id: str) -> None:
    elsewhere = Owner(run_id=run_id, cell="c", pid=1, pid_started=0.0, place="boot-2/pid:[1]")
    with owned(elsewhere):
        assert process_orphans(run_id) == []


def test_what_the_reaper_could_not_do_is_done_by_clean(tmp_path: Path, run_id: str) -> None:
    with dying_owner(tmp_path, run_id, "--spawn", "apart") as owner:
        pids = owner.hear("ready")["pids"]
        (reaper,) = reapers_of(run_id)
        reaper.kill()
        owner.kill_group()
        assert sorted(marked(run_id)) == sorted(pids)
        listed = CliRunner().invoke(clean, ["--dry-run"])
        assert listed.exit_code == 0
        assert f"run {run_id}, cell cell-1" in listed.output
        assert "would be stopped and removed" in listed.output
        assert "Containers were not looked at. No Docker Engine answers" in listed.output
        assert sorted(marked(run_id)) == sorted(pids)
        done = CliRunner().invoke(clean, [])
        assert done.exit_code == 0
        assert "stopped and removed." in done.output
        assert marked(run_id) == []


# --- the decision -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("running", "alive", "place_runs", "named", "orphan"),
    [
        (True, True, None, False, False),
        (True, True, None, True, False),  # a living owner's is nobody else's, even if the run is named
        (True, False, None, False, True),
        (False, False, None, False, True),
        (True, None, None, False, False),  # an owner on another machine, as far as we can see
        (False, None, None, False, True),  # stopped, and its owner is not here: nobody reads it any more
        (True, None, None, True, True),
        (True, None, True, False, False),  # its owner's container runs
        (False, None, True, False, False),
        (True, None, False, False, True),
    ],
)
def test_which_container_is_an_orphan(
    running: bool, alive: bool | None, place_runs: bool | None, named: bool, orphan: bool
) -> None:
    container = Found("id", "name", running, {})
    assert is_orphan(container, alive, place_runs, named=named) is orphan


# --- owners -------------------------------------------------------------------------------------------------------


def test_this_process_is_alive_and_its_earlier_self_is_not() -> None:
    assert is_alive(Owner.current("r", "c")) is True
    assert is_alive(dead("r")) is False
    elsewhere = Owner(run_id="r", cell="c", pid=os.getpid(), pid_started=1.0, place="container:" + "0" * 64)
    assert is_alive(elsewhere) is None


def test_an_ended_process_that_nobody_reaped_is_dead() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        stat = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        started = int(stat[19]) / os.sysconf("SC_CLK_TCK")
        assert stat[0] == "Z"
        assert is_alive(Owner(run_id="r", cell="c", pid=child.pid, pid_started=started, place=this_place())) is False


@given(
    run=st.text(max_size=40),
    cell=st.text(max_size=40),
    pid=st.integers(1, 2**22),
    ticks=st.integers(0, 10**9),
    place=st.text(max_size=40),
)
def test_marks_and_labels_name_the_same_owner(run: str, cell: str, pid: int, ticks: int, place: str) -> None:
    owner = Owner(run_id=run, cell=cell, pid=pid, pid_started=ticks / 100, place=place)
    assert owner_of(owner.environment()) == owner
    assert owner_of_labels(owner.labels()) == owner


@given(st.text(max_size=30))
def test_a_foreign_mark_names_nobody_or_a_pid(mark: str) -> None:
    found = owner_of({"LOADPROOF_OWNER": mark})
    assert found is None or found.pid >= 0


def test_our_own_container_is_read_from_its_mounts(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    mounts = tmp_path / "self/mountinfo"
    mounts.write_text("22 27 0:21 / /proc rw,relatime - proc proc rw\n")
    assert own_container_id(tmp_path) is None
    container = "0123456789abcdef" * 4
    mounts.write_text(f"600 590 254:0 /var/lib/docker/containers/{container}/resolv.conf /etc/resolv.conf rw - ext4\n")
    assert own_container_id(tmp_path) == container
    assert this_place(tmp_path) == f"container:{container}"
