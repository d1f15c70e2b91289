from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pynvml
import pytest
from click.testing import CliRunner
from fakes.nvml import GIB, Card, Driver, Process

from orchestrator.cli import loadproof
from orchestrator.commands import doctor
from orchestrator.commands.doctor import (
    Check,
    clock_check,
    cpu_check,
    disk_check,
    driver_check,
    engine_check,
    files_check,
    gpu_check,
    leftovers_check,
    line,
    runtime_check,
    shm_check,
    stamps_check,
    token_check,
)
from orchestrator.errors import HostError
from orchestrator.watch import gpu as door
from orchestrator.watch.gpu import GpuInfo, GpuProcess, NoCardError

ENGINE = {"version": "28.5.2", "address": "unix:///run/docker.sock", "root_dir": "/nowhere", "runtimes": ["runc"]}
CARD = GpuInfo(index=0, uuid="GPU-1", name="NVIDIA L4", driver="570.86.15", cuda="12.8")
SECRET = "hf_" + "x" * 30


# --- decisions ---------------------------------------------------------------------------------------------------


def test_an_engine_that_answers_is_named() -> None:
    check = engine_check(ENGINE, needed=True)
    assert check.status == "OK"
    assert "28.5.2" in check.found


@pytest.mark.parametrize(("needed", "status"), [(False, "WARN"), (True, "FAIL")])
def test_an_engine_that_is_missing_fails_only_where_it_is_needed(needed: bool, status: str) -> None:
    check = engine_check(HostError("No engine answers.", "Start it."), needed=needed)
    assert (check.status, check.found) == (status, "No engine answers.")
    assert check.remedy.startswith("Start it.")


@pytest.mark.parametrize(
    ("problem", "gpus", "needed", "status"),
    [
        (NoCardError("none", absent=True), (), False, "WARN"),
        (NoCardError("none", absent=True), (), True, "FAIL"),
        (NoCardError("broken"), (), False, "FAIL"),
        (None, (), False, "FAIL"),
        (None, (CARD,), True, "WARN"),
        (None, (GpuInfo(index=0, uuid="GPU-1", name="x", driver="580.1", cuda="13.0"),), True, "OK"),
        (None, (GpuInfo(index=0, uuid="GPU-1", name="x"),), True, "OK"),
    ],
)
def test_the_driver(problem: NoCardError | None, gpus: tuple[GpuInfo, ...], needed: bool, status: str) -> None:
    assert driver_check(problem, gpus, needed=needed).status == status


def reading(used_gib: float, **more: float) -> dict[str, float]:
    return {"memory_used_bytes": used_gib * GIB, "memory_total_bytes": 24.0 * GIB, **more}


@pytest.mark.parametrize(
    ("values", "users", "status", "part"),
    [
        (reading(0.4), [], "OK", "free"),
        (reading(0.4), None, "OK", "free"),
        ({}, [], "OK", "free"),
        (reading(9), [(GpuProcess(42, 8 * GIB), "python3")], "WARN", "python3 (pid 42, 8.0 GiB)"),
        (reading(9), [(GpuProcess(42, None), "python3")], "WARN", "python3 (pid 42)"),
        (reading(9), [], "WARN", "nobody that is to be seen"),
        (reading(9), None, "WARN", "nobody that is to be seen"),
        (reading(0.4, ecc_uncorrected=3.0), [], "FAIL", "3 uncorrected memory errors"),
    ],
)
def test_a_card_is_free_or_says_who_uses_it(
    values: dict[str, float], users: list[tuple[GpuProcess, str]] | None, status: str, part: str
) -> None:
    check = gpu_check(CARD, values, users)
    assert check.status == status
    assert part in check.found
    assert check.status == "OK" or check.remedy


@pytest.mark.parametrize(
    ("runtimes", "cdi", "hook", "status"),
    [
        (["runc", "nvidia"], [], None, "OK"),
        (["runc"], ["/etc/cdi/nvidia.yaml"], None, "OK"),
        (["runc"], [], "/usr/bin/nvidia-container-runtime-hook", "OK"),
        (["runc"], [], None, "FAIL"),
    ],
)
def test_how_containers_get_cards(runtimes: list[str], cdi: list[str], hook: str | None, status: str) -> None:
    check = runtime_check({"runtimes": runtimes}, cdi, hook)
    assert check.status == status
    assert ("nvidia-ctk" in check.remedy) == (status == "FAIL")


@pytest.mark.parametrize(("free", "status"), [(100, "OK"), (99, "WARN"), (10, "WARN"), (9, "FAIL")])
def test_a_disk_is_enough_doubtful_or_hopeless(free: int, status: str) -> None:
    assert disk_check("disk", Path("/x"), free, 100, "Clean up.").status == status


@pytest.mark.parametrize(
    ("check", "status"),
    [
        (shm_check(None), "WARN"),
        (shm_check(64 * 1024**2), "WARN"),
        (shm_check(8 * GIB), "OK"),
        (clock_check("tsc"), "OK"),
        (clock_check("hpet"), "WARN"),
        (clock_check(None), "OK"),
        (stamps_check(True), "OK"),
        (stamps_check(False), "WARN"),
        (files_check(1024, 1_048_576), "OK"),
        (files_check(None, None), "OK"),
        (files_check(1024, 4096), "WARN"),
        (cpu_check(16, "EPYC"), "OK"),
        (cpu_check(1.5, "EPYC"), "WARN"),
        (leftovers_check([]), "OK"),
        (leftovers_check(["a", "b", "c", "d"]), "WARN"),
    ],
)
def test_the_other_lines(check: Check, status: str) -> None:
    assert check.status == status
    assert status == "OK" or check.remedy


def test_many_leftovers_are_counted_not_listed() -> None:
    assert leftovers_check(["a", "b", "c", "d", "e"]).found == "of dead runs: a; b; c and 2 more"


def test_a_token_is_found_and_never_shown(tmp_path: Path) -> None:
    assert token_check({}, tmp_path).status == "WARN"
    assert token_check({"HF_TOKEN": ""}, tmp_path).status == "WARN"
    given = token_check({"HF_TOKEN": SECRET}, tmp_path)
    file = tmp_path / ".cache/huggingface/token"
    file.parent.mkdir(parents=True)
    file.write_text(SECRET)
    stored = token_check({}, tmp_path)
    elsewhere = token_check({"HF_HOME": str(tmp_path / ".cache/huggingface")}, Path("/nowhere"))
    assert (given.status, stored.status, elsewhere.status) == ("OK", "WARN", "WARN")
    assert "HF_TOKEN" in given.found
    assert "present" in stored.found
    assert "present" in elsewhere.found
    assert SECRET not in str((given, stored, elsewhere))


def test_a_line_shows_the_remedy_only_where_there_is_one_to_take() -> None:
    ok = line(Check(name="clock", status="OK", found="tsc", remedy="Nothing."))
    bad = line(Check(name="clock", status="FAIL", found="hpet", remedy="Set it."))
    assert "Nothing." not in ok
    assert bad.splitlines()[1].strip() == "Set it."


# --- the command -------------------------------------------------------------------------------------------------

Doctor = Callable[..., Any]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Doctor:
    """Runs the command on a machine with the given engine, driver and leftovers; everything else is this machine's."""

    def examine(*arguments: str, engine: object = ENGINE, driver: Driver, orphans: tuple[str, ...] = ()) -> Any:
        def facts() -> object:
            if isinstance(engine, HostError):
                raise engine
            return engine

        monkeypatch.setattr(doctor, "_engine_facts", facts)
        monkeypatch.setattr(doctor, "find_orphans", lambda run_id: list(orphans))
        monkeypatch.setattr(doctor, "CDI_FOLDERS", (str(tmp_path),))
        monkeypatch.setattr(door, "pynvml", driver)
        monkeypatch.setenv("HF_TOKEN", SECRET)
        return CliRunner().invoke(loadproof, ["doctor", *arguments])

    return examine


NO_DRIVER = pynvml.NVML_ERROR_LIBRARY_NOT_FOUND


def test_a_machine_without_engine_and_card_can_still_measure(machine: Doctor) -> None:
    done = machine(engine=HostError("No engine answers."), driver=Driver(init_error=NO_DRIVER))
    assert done.exit_code == 0, done.output
    assert "WARN  container engine" in done.output
    assert "WARN  NVIDIA driver" in done.output
    assert SECRET not in done.output


@pytest.mark.parametrize("part", ["docker", "gpu"])
def test_what_is_needed_and_absent_fails(machine: Doctor, part: str) -> None:
    done = machine("--need", part, engine=HostError("No engine."), driver=Driver(init_error=NO_DRIVER))
    assert done.exit_code == 3
    assert done.output.count("FAIL  ") == 1


def test_a_machine_with_cards_as_json(machine: Doctor, tmp_path: Path) -> None:
    busy = Card(uuid="GPU-b", free=70 * GIB, computing=[Process(2**22 + 1, 9 * GIB)])
    cdi = tmp_path / "nvidia.yaml"
    cdi.touch()
    done = machine("--json", driver=Driver([Card(uuid="GPU-a"), busy], cuda=13000), orphans=("container c1",))
    told = json.loads(done.output)
    checks = {check["name"]: check for check in told["checks"]}
    assert len(checks) == len(told["checks"]) >= 13
    assert (checks["GPU 0"]["status"], checks["GPU 1"]["status"]) == ("OK", "WARN")
    assert f"a process of another namespace (pid {2**22 + 1}, 9.0 GiB)" in checks["GPU 1"]["found"]
    assert checks["NVIDIA driver"]["status"] == "OK"
    assert checks["GPUs in containers"]["found"] == f"CDI ({cdi})"
    assert checks["leftovers"]["found"] == "of dead runs: container c1"
    assert done.exit_code == (3 if "FAIL" in {check["status"] for check in told["checks"]} else 0)
    assert SECRET not in done.output


def test_cards_that_containers_cannot_get_are_a_failure(machine: Doctor) -> None:
    done = machine(driver=Driver([Card()]))
    assert done.exit_code == 3
    assert "FAIL  GPUs in containers" in done.output
    assert "nvidia-ctk" in done.output


def test_a_lost_card_fails_alone(machine: Doctor) -> None:
    """The other lines are still told."""
    dying = Card(uuid="GPU-a")
    driver = Driver([dying])
    listed = driver.nvmlDeviceGetHandleByUUID

    def lose(uuid: str) -> Card:
        dying.lost = True
        return listed(uuid)

    driver.nvmlDeviceGetHandleByUUID = lose  # type: ignore[method-assign]
    done = machine(driver=driver)
    assert done.exit_code == 3
    assert "does not answer" in done.output
    assert "leftovers" in done.output
