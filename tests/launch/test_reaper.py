"""Nobody is left to stop it: SIGKILL of loadproof leaves no process, whatever the server did to hide."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from fakes.dying import dying_owner, is_running, marked, reapers_of, wait_until
from fakes.stacks import SERVER

from orchestrator.launch.owner import Owner
from orchestrator.launch.reaper import GOODBYE, arguments, root_line, wait_for_end
from orchestrator.launch.tree import Entry, read_environment


@pytest.fixture
def run_id() -> str:
    return f"test-{uuid.uuid4().hex}"


def gone(run_id: str) -> None:
    wait_until(lambda: not reapers_of(run_id), "the reaper has done its work and ended")
    assert marked(run_id) == []


def test_sigkill_of_the_whole_group_leaves_no_process(tmp_path: Path, run_id: str) -> None:
    with dying_owner(tmp_path, run_id, "--spawn", "apart") as owner:
        pids = owner.hear("ready")["pids"]
        assert len(pids) == 2
        assert len(reapers_of(run_id)) == 1
        owner.kill_group()
        gone(run_id)
    assert not any(map(is_running, pids))
    assert "stopped processes" in (tmp_path / "reaper.log").read_text()


def test_sigkill_during_the_start_leaves_no_process(tmp_path: Path, run_id: str) -> None:
    with dying_owner(tmp_path, run_id, "--ready-after", "99") as owner:
        owner.hear("starting")
        owner.kill_group()  # now or a moment later the server is started, or is not
        gone(run_id)


def test_ctrl_c_and_a_service_manager_s_signals_do_not_reach_the_reaper(tmp_path: Path, run_id: str) -> None:
    with dying_owner(tmp_path, run_id) as owner:
        owner.hear("ready")
        (reaper,) = reapers_of(run_id)
        assert os.getsid(reaper.pid) == reaper.pid
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            reaper.send_signal(number)
        assert reaper.memory_info().rss < 40 << 20
        assert "LOADPROOF_OWNER" not in reaper.environ()
        owner.kill_group()
        gone(run_id)
    assert (tmp_path / "reaper.log").exists()


def test_ctrl_c_of_loadproof_stops_the_server_without_the_reaper(tmp_path: Path, run_id: str) -> None:
    with dying_owner(tmp_path, run_id) as owner:
        pids = owner.hear("ready")["pids"]
        owner.popen.send_signal(signal.SIGINT)
        owner.popen.wait(30)
        assert not any(map(is_running, pids))
        assert reapers_of(run_id) == []
    assert not (tmp_path / "reaper.log").exists()


def test_a_server_that_wipes_its_environment_is_found_by_its_root(tmp_path: Path, run_id: str) -> None:
    hiding = [*("env", "-i", sys.executable, str(SERVER)), "--port", "1", "--never-listen", "--spawn", "near"]
    owner = Owner.current(run_id, "c")
    with subprocess.Popen(hiding, start_new_session=True, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        child = int(server.stdout.readline())
        assert read_environment(server.pid).get("LOADPROOF_RUN") is None
        command = [sys.executable, "-m", "orchestrator.launch.reaper"]
        command += arguments(owner, "process", tmp_path / "reaper.log")
        with subprocess.Popen(command, stdin=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as reaper:
            started = Entry(server.pid, 0, 0, _started(server.pid), zombie=False)
            reaper.communicate(root_line(started), timeout=30)
        assert server.wait(10) == 0
    assert not is_running(child)


def _started(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def test_a_reaper_never_touches_a_later_owner_of_the_root_s_pid(tmp_path: Path, run_id: str) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as innocent:
        wrong = Entry(innocent.pid, 0, 0, _started(innocent.pid) - 5, zombie=False)
        command = [sys.executable, "-m", "orchestrator.launch.reaper"]
        command += arguments(Owner.current(run_id, "c"), "process", tmp_path / "reaper.log")
        with subprocess.Popen(command, stdin=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as reaper:
            reaper.communicate(root_line(wrong), timeout=30)
            assert reaper.returncode == 0
        assert innocent.poll() is None
        innocent.communicate(b"\n")
    assert not (tmp_path / "reaper.log").exists()


def test_a_goodbye_that_comes_in_pieces(run_id: str) -> None:
    read_end, write_end = os.pipe()
    try:
        os.write(write_end, b"root 7 1.5\ngood")
        subprocess.run([sys.executable, "-c", f"import os; os.write({write_end}, b'bye\\n')"], pass_fds=[write_end])
        assert wait_for_end(read_end, os.getpid()) == "root 7 1.5\n" + GOODBYE
    finally:
        os.close(read_end)
        os.close(write_end)


def test_the_owner_s_end_counts_even_while_a_child_of_it_holds_the_pipe() -> None:
    read_end, write_end = os.pipe()
    try:
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as owner:
            owner.kill()
            assert wait_for_end(read_end, owner.pid) == ""
    finally:
        os.close(read_end)
        os.close(write_end)


def test_the_command_line_holds_what_is_needed_and_no_more(tmp_path: Path) -> None:
    owner = Owner.current("run 1", "a/b c")
    command = arguments(owner, "docker", tmp_path / "l")
    assert command[:3] == ["--run=run 1", "--cell=a/b c", f"--owner={owner.mark}"]
    assert json.dumps(command).count("--") == 7
