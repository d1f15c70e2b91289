"""The machine as it is: facts for the journal's opening line, limits that bind us, room on the disk.

Linux is read through /proc and /sys; elsewhere, and where a file is not there, the fact is None.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from orchestrator import __version__
from orchestrator.clock import NS_PER_S, now_ns
from orchestrator.errors import HostError

ROOT = Path("/")
UNLIMITED_BYTES = 1 << 60
"""cgroup v1 writes "no limit" as a number near 2^63."""
CONTAINER_MARKS = {".dockerenv": "docker", "run/.containerenv": "podman"}
SO_TIMESTAMPNS = 35
"""Linux: ask the kernel for the arrival time of what was received; Python's socket module has no name for it."""


def host_facts(root: Path = ROOT) -> dict[str, str | float | None]:
    """Everything about this machine that a reader of the report would ask. `root`: where /proc, /sys and /etc hang."""
    return {
        "loadproof": __version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "os": _os_name(root),
        "kernel": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cpu_model": _cpu_model(root),
        "cpu_cores": _number(psutil.cpu_count(logical=False)),
        "cpu_threads": _number(psutil.cpu_count(logical=True)),
        "cpu_usable": float(usable_cpus(root)),
        "cpu_governor": _line(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "numa_nodes": _number(len(list((root / "sys/devices/system/node").glob("node[0-9]*"))) or None),
        "memory_bytes": float(psutil.virtual_memory().total),
        "swap_bytes": float(psutil.swap_memory().total),
        "cgroup_cpus": cgroup_cpus(root),
        "cgroup_memory_bytes": cgroup_memory_bytes(root),
        "clock_source": clock_source(root),
        "virtualisation": _virtualisation(root),
        "container": _container(root),
        "load_1min": os.getloadavg()[0],
        "file_limit": _number(file_limits()[0]),
    }


# --- processors, memory, clock -----------------------------------------------------------------------------------


def usable_cpus(root: Path = ROOT) -> float:
    """Processors that we may use at once: affinity, and the cgroup's quota where that is less."""
    count = float(len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1)
    quota = cgroup_cpus(root)
    return count if quota is None else min(count, quota)


def cgroup_cpus(root: Path = ROOT) -> float | None:
    """The tightest CPU quota above us, in processors; None = none."""
    quotas: list[float] = []
    for group in _groups(root, "cpu"):
        quota, _, period = (_line(group / "cpu.max") or "").partition(" ")
        if not quota:
            quota, period = _line(group / "cpu.cfs_quota_us") or "", _line(group / "cpu.cfs_period_us") or ""
        if quota.isdecimal() and period.isdecimal() and int(period):
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def cgroup_memory_bytes(root: Path = ROOT) -> float | None:
    """The tightest memory limit above us, in bytes; None = none."""
    limits: list[float] = []
    for group in _groups(root, "memory"):
        limit = _line(group / "memory.max") or _line(group / "memory.limit_in_bytes") or ""
        if limit.isdecimal() and int(limit) < UNLIMITED_BYTES:
            limits.append(float(limit))
    return min(limits, default=None)


def cgroup_throttled_s(root: Path = ROOT) -> float | None:
    """Seconds, so far, in which a CPU quota kept our own group waiting; None where the kernel does not count it."""
    for group in _groups(root, "cpu"):
        stat = dict(line.split(maxsplit=1) for line in _text(group / "cpu.stat").splitlines() if " " in line)
        if "throttled_usec" in stat:
            return int(stat["throttled_usec"]) / 1e6
        if "throttled_time" in stat:
            return int(stat["throttled_time"]) / 1e9
    return None


def clock_source(root: Path = ROOT) -> str | None:
    """What the kernel reads the time from; ``hpet`` and ``acpi_pm`` make every stamp slow."""
    return _line(root / "sys/devices/system/clocksource/clocksource0/current_clocksource")


def kernel_stamps_work(within_s: float = 0.25) -> bool:
    """Whether the kernel stamps what arrives on a TCP socket (SO_TIMESTAMPNS), tried over loopback.

    The first socket that asks switches the stamping on for the whole machine, a moment later and not at once: so bytes
    are sent until one comes with its stamp, `within_s` at most.
    """
    if not hasattr(socket.socket, "recvmsg"):
        return False
    give_up_ns = now_ns() + round(within_s * NS_PER_S)
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as end:
        end.settimeout(1.0)
        try:
            end.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            accepted, _ = listener.accept()
            with accepted:
                while now_ns() < give_up_ns:
                    accepted.sendall(b"x")
                    _, ancillary, _, _ = end.recvmsg(1, socket.CMSG_SPACE(16))
                    if any(level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS for level, kind, _ in ancillary):
                        return True
        except OSError:
            return False
    return False


# --- files and disk ----------------------------------------------------------------------------------------------


def file_limits() -> tuple[int | None, int | None]:
    """How many files we may have open: now, and at most without more rights. None = unlimited or unknown."""
    if sys.platform == "win32":
        return None, None
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _finite(soft), _finite(hard)


def raise_file_limit(files: int) -> int | None:
    """Let us have `files` files open (each stream is one), or as many as we may; returns the limit that holds now."""
    soft, hard = file_limits()
    if sys.platform == "win32" or soft is None or soft >= files:
        return soft
    import resource

    wanted = files if hard is None else min(files, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, resource.RLIM_INFINITY if hard is None else hard))
    return wanted


def free_bytes(path: Path) -> int:
    """Room for us on the disk that holds `path`, or will hold it once it is made."""
    place = path.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


def require_free(path: Path, least_bytes: int) -> None:
    """Raises `HostError` when the disk under `path` has less than `least_bytes` left: a run would lose its records."""
    free = free_bytes(path)
    if free < least_bytes:
        raise HostError(
            f"The disk under {path} has {free >> 20:,} MiB left, and the run needs {least_bytes >> 20:,} MiB.",
            "Free some space, or put the run elsewhere with --out.",
        )


def require_folder(file: Path) -> None:
    """Raises `HostError` when a file that is to be written has no folder to lie in: told before the work for it."""
    if not file.parent.is_dir():
        raise HostError(
            f"{file} cannot be written: there is no folder {file.parent}.", "Make it, or name another file."
        )


# --- reading -----------------------------------------------------------------------------------------------------


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of our control groups from the innermost to the root, for version 2 and for version 1 of cgroups.

    In a container the path that the kernel names may not exist below the mount; then the mount itself is our group.
    """
    for line in _text(root / "proc/self/cgroup").splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / (controller if controllers else "")
        group = base / path.lstrip("/")
        while True:
            if group.is_dir():
                yield group
            if group == base or base not in group.parents:
                break
            group = group.parent


def _text(path: Path) -> str:
    """A small file of the kernel's; empty where it is not there or not ours to read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _line(path: Path) -> str | None:
    return _text(path).strip() or None


def _number(value: int | None) -> float | None:
    return None if value is None else float(value)


def _finite(limit: int) -> int | None:
    return None if limit < 0 or limit >= 1 << 62 else limit


def _os_name(root: Path) -> str | None:
    for name in ("etc/os-release", "usr/lib/os-release"):
        if found := re.search(r'^PRETTY_NAME="?([^"\n]+)', _text(root / name), re.MULTILINE):
            return found[1]
    return platform.platform(terse=True) or None


def _cpu_model(root: Path) -> str | None:
    found = re.search(r"^(?:model name|Model|cpu model)\s*:\s*(.+)$", _text(root / "proc/cpuinfo"), re.MULTILINE)
    return found[1].strip() if found else platform.processor() or None


def _virtualisation(root: Path) -> str | None:
    """Name of the hypervisor as far as the machine tells; None = none seen."""
    if "microsoft" in platform.release().lower():
        return "WSL"
    if kind := _line(root / "sys/hypervisor/type"):
        return kind
    if not re.search(r"^flags\s*:.*\bhypervisor\b", _text(root / "proc/cpuinfo"), re.MULTILINE):
        return None
    dmi = root / "sys/class/dmi/id"
    names = [name for name in (_line(dmi / "sys_vendor"), _line(dmi / "product_name")) if name]
    return " ".join(names) or "virtual machine"


def _container(root: Path) -> str | None:
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return "kubernetes"
    return next((name for mark, name in CONTAINER_MARKS.items() if (root / mark).exists()), None)
