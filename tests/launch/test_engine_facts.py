"""What the SDK is asked for, and what the engine's documents mean; no engine needed."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.errors import HostError
from orchestrator.launch.docker import Engine, creation, device_request, is_local
from orchestrator.launch.engine_facts import Plan, PullProgress, usage_values
from stacks.base import Mount


def plan(**settings: Any) -> Plan:
    given: dict[str, Any] = {
        "name": "n",
        "image": "i:1",
        "command": ("--a",),
        "entrypoint": None,
        "environment": {"A": "b"},
        "labels": {"loadproof": "1"},
        "port": 8000,
        "network": None,
    }
    return Plan(**(given | settings))


def test_the_least_that_is_asked_for() -> None:
    asked = creation(plan())
    assert asked["ports"] == {"8000/tcp": ("127.0.0.1", None)}
    assert asked["command"] == ["--a"]
    assert asked.keys().isdisjoint(
        {"entrypoint", "network", "device_requests", "mem_limit", "nano_cpus", "shm_size", "ipc_mode", "auto_remove"}
    )


def test_limits_are_asked_for_in_the_engine_s_units() -> None:
    asked = creation(plan(memory_limit_bytes=5, cpus=1.5, shm_bytes=7))
    assert (asked["mem_limit"], asked["memswap_limit"], asked["nano_cpus"], asked["shm_size"]) == (
        5,
        5,
        10**9 * 3 // 2,
        7,
    )
    shared = creation(plan(ipc_host=True, shm_bytes=7))
    assert shared["ipc_mode"] == "host"
    assert "shm_size" not in shared


def test_on_a_shared_network_nothing_is_published() -> None:
    asked = creation(plan(network="net", entrypoint=("x",)))
    assert (asked["network"], asked["entrypoint"]) == ("net", ["x"])
    assert "ports" not in asked


def test_cards_by_index_by_uuid_and_all() -> None:
    every = device_request(("all",))
    assert (every["Count"], every["DeviceIDs"]) == (-1, [])
    some = device_request(("0", "GPU-x"))
    assert (some["Count"], some["DeviceIDs"]) == (0, ["0", "GPU-x"])
    assert some["Capabilities"] == [["gpu", "compute", "utility"]]
    assert creation(plan(gpus=("0",)))["device_requests"] == [device_request(("0",))]


def test_mounts_refuse_a_missing_folder_and_take_volumes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/x")
    mounts = creation(plan(mounts=(Mount("/m", "/a", read_only=True), Mount("cache", "/b"), Mount("~/hub", "/c"))))[
        "mounts"
    ]
    assert [(m["Type"], m["Source"], m["Target"], m["ReadOnly"]) for m in mounts] == [
        ("bind", "/m", "/a", True),
        ("volume", "cache", "/b", False),
        ("bind", "/home/x/hub", "/c", False),
    ]


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("unix:///var/run/docker.sock", True),
        ("tcp://127.0.0.1:2375", True),
        ("tcp://localhost:2375", True),
        ("tcp://10.0.0.5:2375", False),
        ("ssh://gpu-box", False),
    ],
)
def test_where_published_ports_are_ours(address: str, local: bool) -> None:
    assert is_local(address) is local


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("unix:///no/such.sock", "No Docker Engine answers at unix:///no/such.sock."),
        ("tcp://127.0.0.1:1", "No Docker Engine answers at tcp://127.0.0.1:1."),
        ("nonsense", "The Docker Engine at nonsense does not answer: Invalid bind address"),
    ],
)
def test_no_engine_is_one_sentence(monkeypatch: pytest.MonkeyPatch, address: str, sentence: str) -> None:
    monkeypatch.setenv("DOCKER_HOST", address)
    with pytest.raises(HostError) as caught, Engine.connect():
        pytest.fail("it answered")
    assert caught.value.message.startswith(sentence)


def test_memory_under_both_versions_of_cgroups() -> None:
    v1 = {"memory_stats": {"usage": 100, "limit": 500, "stats": {"total_inactive_file": 30, "total_cache": 40}}}
    v2 = {"memory_stats": {"usage": 100, "limit": 500, "stats": {"inactive_file": 30, "file": 40}}}
    cpu = {"cpu_stats": {"cpu_usage": {"total_usage": 2_500_000_000}}}
    wanted = {
        "memory_used_bytes": 70.0,
        "memory_usage_bytes": 100.0,
        "memory_limit_bytes": 500.0,
        "memory_file_bytes": 40.0,
        "cpu_s": 2.5,
    }
    assert usage_values(v1 | cpu) == usage_values(v2 | cpu) == wanted


def test_a_stopped_container_uses_nothing_rather_than_zero() -> None:
    assert usage_values({"memory_stats": {}, "cpu_stats": {"cpu_usage": {"total_usage": 0}}}) == {}


def test_a_pull_tells_its_progress_in_steps() -> None:
    progress = PullProgress("i:1")
    assert progress.text({"status": "Pulling fs layer", "id": "a", "progressDetail": {}}) is None
    texts = [
        progress.text({"status": "Downloading", "id": "a", "progressDetail": {"current": at, "total": 2_000_000_000}})
        for at in range(0, 2_000_000_001, 10_000_000)
    ]
    told = [text for text in texts if text]
    assert len(told) == 21
    assert told[-1] == "pulling i:1: 2.0 of 2.0 GB seen so far"
