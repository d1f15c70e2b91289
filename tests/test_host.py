from __future__ import annotations

import os
import platform
import resource
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import orchestrator
from orchestrator import host
from orchestrator.errors import HostError
from orchestrator.host import (
    cgroup_cpus,
    cgroup_memory_bytes,
    cgroup_throttled_s,
    clock_source,
    file_limits,
    free_bytes,
    host_facts,
    kernel_stamps_work,
    raise_file_limit,
    require_free,
    usable_cpus,
)

GIB = 1024**3


def put(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


# --- facts -------------------------------------------------------------------------------------------------------


def test_facts_of_this_machine() -> None:
    facts = host_facts()
    assert facts["loadproof"] == orchestrator.__version__
    assert facts["python"] == f"CPython {platform.python_version()}"
    assert facts["kernel"] == f"{platform.system()} {platform.release()}"
    assert facts["cpu_threads"] == psutil.cpu_count()
    assert facts["memory_bytes"] == psutil.virtual_memory().total
    assert all(value is None or isinstance(value, str | float) for value in facts.values())
    assert platform.node() not in facts.values(), "a report may be published: no host name"


def test_facts_of_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    root = put(
        tmp_path,
        {
            "etc/os-release": 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
            "proc/cpuinfo": "processor\t: 0\nmodel name\t: AMD EPYC 9654\nflags\t\t: fpu hypervisor avx2\n",
            "sys/class/dmi/id/sys_vendor": "Amazon EC2\n",
            "sys/class/dmi/id/product_name": "p5.48xlarge\n",
            "sys/devices/system/clocksource/clocksource0/current_clocksource": "kvm-clock\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
            "sys/devices/system/node/node0/x": "",
            "sys/devices/system/node/node1/x": "",
            "run/.containerenv": "",
        },
    )
    facts = host_facts(root)
    assert facts["os"] == "Debian GNU/Linux 12 (bookworm)"
    assert facts["cpu_model"] == "AMD EPYC 9654"
    assert facts["virtualisation"] == "Amazon EC2 p5.48xlarge"
    assert facts["clock_source"] == clock_source(root) == "kvm-clock"
    assert facts["cpu_governor"] == "powersave"
    assert facts["numa_nodes"] == 2
    assert facts["container"] == "podman"


def test_what_a_machine_does_not_tell_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    facts = host_facts(tmp_path)
    unknown = {"cpu_governor", "numa_nodes", "cgroup_cpus", "cgroup_memory_bytes", "clock_source", "container"}
    assert {name for name in unknown if facts[name] is None} == unknown


# --- control groups ----------------------------------------------------------------------------------------------


def test_the_tightest_limit_of_version_2_binds(tmp_path: Path) -> None:
    root = put(
        tmp_path,
        {
            "proc/self/cgroup": "0::/system.slice/run.service\n",
            "sys/fs/cgroup/system.slice/run.service/cpu.max": "max 100000\n",
            "sys/fs/cgroup/system.slice/run.service/memory.max": f"{8 * GIB}\n",
            "sys/fs/cgroup/system.slice/run.service/cpu.stat": "usage_usec 5\nthrottled_usec 1500000\n",
            "sys/fs/cgroup/system.slice/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/system.slice/memory.max": f"{4 * GIB}\n",
            "sys/fs/cgroup/cpu.stat": "usage_usec 9\nthrottled_usec 9000000\n",
        },
    )
    assert cgroup_cpus(root) == 1.5
    assert cgroup_memory_bytes(root) == 4 * GIB
    assert cgroup_throttled_s(root) == 1.5
    assert usable_cpus(root) == min(1.5, float(len(os.sched_getaffinity(0))))


def test_version_1_has_a_tree_for_each_controller(tmp_path: Path) -> None:
    root = put(
        tmp_path,
        {
            "proc/self/cgroup": "9:name=systemd:/\n4:memory:/pod/c1\n1:cpu,cpuacct:/pod/c1\n0::/\n",
            "sys/fs/cgroup/cpu/pod/c1/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu/pod/c1/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu/pod/c1/cpu.stat": "nr_periods 3\nthrottled_time 2500000000\n",
            "sys/fs/cgroup/cpu/pod/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/memory/pod/c1/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/pod/memory.limit_in_bytes": f"{GIB}\n",
        },
    )
    assert cgroup_cpus(root) == 0.5
    assert cgroup_memory_bytes(root) == GIB
    assert cgroup_throttled_s(root) == 2.5


def test_in_a_container_the_mount_itself_is_our_group(tmp_path: Path) -> None:
    """The kernel names the group's path on the host; below the container's mount that path does not exist."""
    root = put(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/docker/0123abcd\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GIB}\n",
        },
    )
    assert cgroup_memory_bytes(root) == 2 * GIB


@pytest.mark.parametrize("text", ["", "garbage", "0::", "0::/../../etc\n", "::::\n"])
def test_no_group_file_no_limit(tmp_path: Path, text: str) -> None:
    put(tmp_path, {"proc/self/cgroup": text})
    assert cgroup_cpus(tmp_path) is None
    assert cgroup_memory_bytes(tmp_path) is None
    assert cgroup_throttled_s(tmp_path) is None


# --- stamps ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="SO_TIMESTAMPNS is Linux's")
def test_the_kernel_stamps_what_arrives_here() -> None:
    assert kernel_stamps_work()


def test_a_kernel_that_refuses_the_option_has_no_stamps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "SO_TIMESTAMPNS", 9999)
    assert not kernel_stamps_work()


def test_an_option_that_brings_no_stamp_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sandbox may take the option and do nothing with it."""
    monkeypatch.setattr(host, "SO_TIMESTAMPNS", socket.SO_KEEPALIVE)
    assert not kernel_stamps_work()


# --- files and disk ----------------------------------------------------------------------------------------------


@pytest.fixture
def few_files() -> Iterator[int]:
    """A soft limit that is below the hard one; gives the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = 512
    resource.setrlimit(resource.RLIMIT_NOFILE, (low, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_file_limit_is_raised_as_far_as_asked(few_files: int) -> None:
    assert file_limits()[0] == 512
    assert raise_file_limit(700) == 700
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (700, few_files)


def test_the_file_limit_is_never_lowered(few_files: int) -> None:
    assert raise_file_limit(100) == 512
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 512


def test_the_file_limit_stops_at_the_hard_one(few_files: int) -> None:
    if few_files == resource.RLIM_INFINITY or few_files > 1 << 40:
        pytest.skip("this system sets no hard limit")
    assert raise_file_limit(few_files + 1) == few_files


def test_room_on_a_disk_is_that_of_the_folder_to_be(tmp_path: Path) -> None:
    assert free_bytes(tmp_path) > 0
    assert abs(free_bytes(tmp_path / "not" / "yet" / "made") - free_bytes(tmp_path)) < GIB


def test_a_disk_without_room_is_told_before_the_run(tmp_path: Path) -> None:
    require_free(tmp_path, 1)
    with pytest.raises(HostError, match="MiB left") as caught:
        require_free(tmp_path, 1 << 60)
    assert caught.value.exit_code == 3
    assert "--out" in caught.value.remedy
