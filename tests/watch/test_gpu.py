from __future__ import annotations

import inspect
from pathlib import Path

import pynvml
import pytest
from fakes.nvml import GIB, Card, Driver, Process

from orchestrator.errors import HostError
from orchestrator.watch import gpu
from orchestrator.watch.gpu import (
    THROTTLES,
    GpuInfo,
    GpuProcess,
    NoCardError,
    attribute_memory,
    gpu_processes,
    gpu_reader,
    gpu_uuids,
    list_gpus,
    nvml,
    read_gpu,
    throttle_values,
)

A = "GPU-aaaaaaaa-0000-0000-0000-000000000000"
B = "GPU-bbbbbbbb-0000-0000-0000-000000000000"


def install(monkeypatch: pytest.MonkeyPatch, driver: Driver, *, root_namespace: bool = True) -> Driver:
    monkeypatch.setattr(gpu, "pynvml", driver)
    monkeypatch.setattr(gpu, "_in_root_pid_namespace", lambda: root_namespace)
    return driver


def test_the_fake_takes_what_pynvml_takes() -> None:
    calls = [name for name in vars(Driver) if name.startswith("nvml")]
    assert len(calls) == 26
    for name in calls:
        real = inspect.signature(getattr(pynvml, name)).parameters
        fake = list(inspect.signature(getattr(Driver, name)).parameters)[1:]
        assert fake == list(real), name


# --- what is here ------------------------------------------------------------------------------------------------


def test_cards_are_listed_with_what_does_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = install(monkeypatch, Driver([Card(uuid=A), Card(uuid=B, name="NVIDIA L4", capability=(8, 9))]))
    first, second = list_gpus()
    assert first == GpuInfo(
        index=0,
        uuid=A,
        name="NVIDIA H100 80GB HBM3",
        memory_total_bytes=80 * GIB,
        driver="570.86.15",
        cuda="12.8",
        compute_capability="9.0",
        power_limit_w=700.0,
    )
    assert (second.index, second.uuid, second.name, second.compute_capability) == (1, B, "NVIDIA L4", "8.9")
    assert (driver.opened, driver.closed) == (1, 1)


def test_a_split_card_is_followed_by_its_instances(monkeypatch: pytest.MonkeyPatch) -> None:
    instances = [Card(uuid="MIG-1", total=20 * GIB), Card(uuid="MIG-2", total=10 * GIB)]
    install(monkeypatch, Driver([Card(uuid=A, instances=instances), Card(uuid=B)]))
    found = list_gpus()
    assert [(g.index, g.uuid, g.mig, g.parent_uuid) for g in found] == [
        (0, A, True, None),
        (0, "MIG-1", True, A),
        (0, "MIG-2", True, A),
        (1, B, False, None),
    ]
    assert gpu_uuids(("all",), found) == ("MIG-1", "MIG-2", B)
    assert gpu_uuids(("0",), found) == ("MIG-1", "MIG-2")
    assert gpu_uuids(("MIG-2",), found) == ("MIG-2",)


def test_a_card_that_supports_nothing_is_listed_without_values(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Driver([Card(uuid=A, total=None, capability=None, limit_mw=None)]))
    (found,) = list_gpus()
    assert (found.memory_total_bytes, found.compute_capability, found.power_limit_w) == (None, None, None)


@pytest.mark.parametrize(
    ("code", "absent", "part"),
    [
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, True, "no NVIDIA driver"),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, False, "not loaded"),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, False, "updated"),
        (pynvml.NVML_ERROR_NO_PERMISSION, False, "cannot be opened"),
    ],
)
def test_a_driver_that_cannot_be_opened(monkeypatch: pytest.MonkeyPatch, code: int, absent: bool, part: str) -> None:
    driver = install(monkeypatch, Driver([Card()], init_error=code))
    assert list_gpus() == ()
    with pytest.raises(NoCardError, match=part) as caught, nvml():
        pass
    assert caught.value.absent is absent
    assert caught.value.remedy
    assert driver.closed == 0, "what was not opened must not be closed"


def test_without_a_driver_the_real_module_lists_nothing() -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has an NVIDIA driver")
    assert list_gpus() == ()


# --- names -------------------------------------------------------------------------------------------------------

HERE = (GpuInfo(index=0, uuid=A, name="x"), GpuInfo(index=1, uuid=B, name="x"))


@pytest.mark.parametrize(
    ("asked", "uuids"),
    [((), ()), (("all",), (A, B)), (("1",), (B,)), (("1", "0"), (B, A)), ((A, "0"), (A,)), (("GPU-bbbb",), (B,))],
)
def test_devices_are_named_by_number_or_uuid(asked: tuple[str, ...], uuids: tuple[str, ...]) -> None:
    assert gpu_uuids(asked, HERE) == uuids


@pytest.mark.parametrize("name", ["2", "GPU-cccc", "GPU-", "G", "banana"])
def test_a_device_that_is_not_here_is_told_with_those_that_are(name: str) -> None:
    with pytest.raises(HostError, match="not on this machine") as caught:
        gpu_uuids((name,), HERE)
    assert A in caught.value.message
    assert B in caught.value.message


@pytest.mark.parametrize("asked", ["0", "all", A])
def test_without_a_card_no_name_is_right(asked: str) -> None:
    with pytest.raises(HostError, match="No NVIDIA GPU"):
        gpu_uuids((asked,), ())


# --- a reading ---------------------------------------------------------------------------------------------------


def test_a_whole_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = Card(
        uuid=A,
        free=30 * GIB,
        computing=[Process(10, 20 * GIB), Process(11, 22 * GIB), Process(99, 3 * GIB)],
        drawing=[Process(10, 20 * GIB), Process(98, GIB)],
        reasons=0x24,
        ecc=2,
    )
    driver = install(monkeypatch, Driver([busy]))
    values = read_gpu(A, ours=[10, 11, 12])
    throttled = {name: value for name, value in values.items() if name.startswith("throttle")}
    assert {name: value for name, value in values.items() if name not in throttled} == {
        "memory_total_bytes": 80 * GIB,
        "memory_free_bytes": 30 * GIB,
        "memory_used_bytes": 50 * GIB,
        "memory_reserved_bytes": GIB / 2,
        "memory_ours_bytes": 42 * GIB,
        "memory_others_bytes": 4 * GIB,
        "utilization": 0.5,
        "memory_utilization": 0.25,
        "power_w": 350.5,
        "power_limit_w": 700.0,
        "energy_j": 123.456,
        "temperature_c": 61,
        "sm_clock_mhz": 1980,
        "memory_clock_mhz": 2619,
        "ecc_uncorrected": 2,
    }
    assert throttled.pop("throttle") == 0x24
    assert {name for name, value in throttled.items() if value} == {"throttle_sw_power_cap", "throttle_sw_thermal"}
    assert len(throttled) == len(THROTTLES) == 8
    assert (driver.opened, driver.closed) == (1, 1)


def test_values_that_a_card_does_not_give_are_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    poor = Card(
        uuid=A,
        total=None,
        reserved=None,
        computing=None,
        gpu_percent=None,
        power_mw=None,
        limit_mw=None,
        energy_mj=None,
        celsius=None,
        clocks_mhz={},
        reasons=None,
        ecc=None,
    )
    install(monkeypatch, Driver([poor]))
    assert read_gpu(A, ours=[10]) == {}


def test_an_old_driver_knows_old_names_only(monkeypatch: pytest.MonkeyPatch) -> None:
    lacks = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetComputeRunningProcesses")
    install(monkeypatch, Driver([Card(uuid=A, reasons=0x8, computing=[Process(10, GIB)])], lacks=lacks))
    values = read_gpu(A, ours=[10])
    assert values["throttle_hw_slowdown"] == 1
    assert "memory_ours_bytes" not in values
    assert values["memory_used_bytes"] == GIB


def test_an_instance_shares_the_clocks_of_its_board(monkeypatch: pytest.MonkeyPatch) -> None:
    instance = Card(
        uuid="MIG-1", total=20 * GIB, free=15 * GIB, gpu_percent=None, power_mw=None, energy_mj=None, celsius=None
    )
    install(monkeypatch, Driver([Card(uuid=A, instances=[instance], celsius=70)]))
    values = read_gpu("MIG-1")
    assert values["memory_used_bytes"] == 5 * GIB
    assert values["temperature_c"] == 70
    assert not {"utilization", "power_w", "energy_j"} & set(values)


def test_the_pids_are_asked_for_at_every_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Driver([Card(uuid=A, computing=[Process(10, GIB), Process(11, 2 * GIB)])]))
    ours: list[int] = [10]
    with gpu_reader(A, lambda: ours) as read:
        assert read()["memory_ours_bytes"] == GIB
        ours.append(11)
        assert read()["memory_ours_bytes"] == 3 * GIB


def test_a_lost_card_is_an_error_and_not_an_empty_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(uuid=A)
    driver = install(monkeypatch, Driver([card]))
    with gpu_reader(A, lambda: ()) as read:
        assert read()
        card.lost = True
        with pytest.raises(HostError, match="does not answer"):
            read()
    assert (driver.opened, driver.closed) == (1, 1)


def test_an_unknown_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = install(monkeypatch, Driver([Card(uuid=A)]))
    with pytest.raises(HostError, match=f"{B} is not on this machine"):
        read_gpu(B)
    assert (driver.opened, driver.closed) == (1, 1)


def test_who_uses_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    install(
        monkeypatch, Driver([Card(uuid=A, computing=[Process(12, None), Process(10, GIB)]), Card(B, computing=None)])
    )
    assert gpu_processes(A) == (GpuProcess(10, GIB), GpuProcess(12, None))
    assert gpu_processes(B) is None


# --- whose memory ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("used", "ours", "whole_view", "expected"),
    [
        (None, {1}, True, {}),
        ({1: 5, 2: 7}, set(), True, {}),
        ({1: 5, 2: 7}, {1}, True, {"memory_ours_bytes": 5, "memory_others_bytes": 7}),
        ({}, {1}, True, {"memory_ours_bytes": 0, "memory_others_bytes": 0}),
        ({1: None, 2: 7}, {1}, True, {"memory_others_bytes": 7}),
        ({1: 5, 2: None}, {1}, True, {"memory_ours_bytes": 5}),
        ({}, {1}, False, {}),
        ({2: 7}, {1}, False, {}),
        ({1: 5, 2: 7}, {1}, False, {"memory_ours_bytes": 5}),
    ],
)
def test_memory_is_attributed_as_far_as_it_is_known(
    used: dict[int, int | None] | None, ours: set[int], whole_view: bool, expected: dict[str, float]
) -> None:
    assert attribute_memory(used, ours, whole_view=whole_view) == expected


def test_an_idle_card_is_not_throttled() -> None:
    values = throttle_values(pynvml.nvmlClocksEventReasonGpuIdle)
    assert values.pop("throttle") == 1
    assert set(values.values()) == {0.0}
