"""The machine and the server's process tree, second by second. Linux through /proc; elsewhere what psutil has."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from orchestrator.clock import NS_PER_S, now_ns
from orchestrator.host import cgroup_throttled_s

PROC = Path("/proc")
PSS_DUTY = 0.05
"""Largest share of one processor that reading PSS may take. The kernel walks every mapped page for it: milliseconds for
a small server, a second for one that maps a hundred gigabytes of weights; such a tree is read less often."""
LEAST_S = 0.05
"""Shares of a shorter time would be noise: the kernel counts processor time in ticks of 1 to 10 ms."""


class ProcessUse(NamedTuple):
    """One process: CPU seconds with those of its ended children, resident and proportional bytes."""

    cpu_s: float
    rss_bytes: int
    pss_bytes: int | None


class TreeReader:
    """Readings of a server's whole process tree: processes, cpu_s, rss_bytes, and pss_bytes where it is known.

    PSS divides a shared page among those that share it; RSS counts it once for each. A sum of PSS in which one process
    is missing would be no memory of anything, so it is given for all processes or not at all.
    """

    def __init__(self, pids: Callable[[], Sequence[int]], proc: Path = PROC) -> None:
        self._pids = pids
        self._proc = proc
        self._pss_due_ns = 0
        self.seen: tuple[int, ...] = ()
        """The tree's pids at the last reading, for those that must not wait for a list."""

    def read(self) -> dict[str, float]:
        try:
            self.seen = tuple(self._pids())
        except BaseException:
            self.seen = ()
            raise
        started_ns = now_ns()
        with_pss = started_ns >= self._pss_due_ns
        uses = [use for pid in self.seen if (use := process_use(pid, self._proc, with_pss=with_pss))]
        if with_pss:
            ended_ns = now_ns()
            self._pss_due_ns = ended_ns + int((ended_ns - started_ns) / PSS_DUTY)
        return tree_values(uses)


def process_use(pid: int, proc: Path = PROC, *, with_pss: bool = True) -> ProcessUse | None:
    """What a process uses, or None if it is gone or not ours to look at."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            cpu = process.cpu_times()
            rss = process.memory_info().rss
    except psutil.Error:
        return None
    ended_children_s = getattr(cpu, "children_user", 0.0) + getattr(cpu, "children_system", 0.0)
    pss = _read_pss(proc / str(pid) / "smaps_rollup") if with_pss else None
    return ProcessUse(cpu.user + cpu.system + ended_children_s, rss, pss)


def tree_values(uses: Sequence[ProcessUse]) -> dict[str, float]:
    """Sums over the processes of a tree; an empty tree has no values."""
    if not uses:
        return {}
    values = {
        "processes": float(len(uses)),
        "cpu_s": sum(use.cpu_s for use in uses),
        "rss_bytes": float(sum(use.rss_bytes for use in uses)),
    }
    shares = [use.pss_bytes for use in uses if use.pss_bytes is not None]
    return values | {"pss_bytes": float(sum(shares))} if len(shares) == len(uses) else values


def _read_pss(path: Path) -> int | None:
    try:
        return parse_pss(path.read_text(encoding="ascii", errors="replace"))
    except OSError:  # gone meanwhile, another user's, or no such file in this kernel
        return None


def parse_pss(rollup: str) -> int | None:
    """Bytes of the line ``Pss:  123 kB`` of a smaps_rollup."""
    found = re.search(r"^Pss:\s+(\d+) kB$", rollup, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


# --- the whole machine -------------------------------------------------------------------------------------------


class _Counters(NamedTuple):
    at_ns: int
    cpu: Any
    stalled_us: Mapping[str, int]
    throttled_s: float | None


class HostReader:
    """Readings of the machine, as shares since the reading before: cpu_share (of all processors), steal_share,
    pressure_{cpu,memory,io}_{some,full}_share, quota_wait_share; and memory_available_bytes, swap_used_bytes."""

    def __init__(self, proc: Path = PROC) -> None:
        self._proc = proc
        self._before = self._count()

    def read(self) -> dict[str, float]:
        before, now = self._before, self._count()
        elapsed_s = (now.at_ns - before.at_ns) / NS_PER_S
        levels = {
            "memory_available_bytes": float(psutil.virtual_memory().available),
            "swap_used_bytes": float(psutil.swap_memory().used),
        }
        if elapsed_s < LEAST_S:
            return levels
        self._before = now
        return {
            **levels,
            **cpu_shares(before.cpu, now.cpu),
            **stall_shares(before.stalled_us, now.stalled_us, elapsed_s),
            **quota_wait(before.throttled_s, now.throttled_s, elapsed_s),
        }

    def _count(self) -> _Counters:
        stalled = _stalled_us((name, self._proc / "pressure" / name) for name in ("cpu", "memory", "io"))
        return _Counters(now_ns(), psutil.cpu_times(), stalled, cgroup_throttled_s())


def cpu_shares(before: Any, now: Any) -> dict[str, float]:
    """Busy and stolen share of all processors between two readings of psutil's cpu_times; {} if no time passed."""
    # Linux counts a guest's time in `user` and `nice` already.
    spent = {name: getattr(now, name) - getattr(before, name) for name in now._fields if not name.startswith("guest")}
    total = sum(spent.values())
    if total <= 0:
        return {}
    shares = {"cpu_share": 1 - (spent["idle"] + spent.get("iowait", 0.0)) / total}
    if "steal" in spent:
        shares["steal_share"] = spent["steal"] / total
    return {name: min(1.0, max(0.0, share)) for name, share in shares.items()}


def stall_shares(before: Mapping[str, int], now: Mapping[str, int], elapsed_s: float) -> dict[str, float]:
    """Share of the time in which some, or all, work waited for a resource (pressure stall information)."""
    if elapsed_s <= 0:
        return {}
    return {
        f"pressure_{name}_share": min(1.0, max(0.0, (total - before[name]) / 1e6 / elapsed_s))
        for name, total in now.items()
        if name in before
    }


def quota_wait(before_s: float | None, now_s: float | None, elapsed_s: float) -> dict[str, float]:
    """Seconds that a CPU quota made our group wait, per second; may exceed 1 with several processors."""
    if before_s is None or now_s is None or elapsed_s <= 0:
        return {}
    return {"quota_wait_share": max(0.0, (now_s - before_s) / elapsed_s)}


def parse_pressure(text: str) -> dict[str, int]:
    """Microseconds of stall so far, by ``some`` and ``full``, from a file of /proc/pressure."""
    return {kind: int(total) for kind, total in re.findall(r"^(some|full) .*\btotal=(\d+)\s*$", text, re.MULTILINE)}


def _stalled_us(files: Iterable[tuple[str, Path]]) -> dict[str, int]:
    stalled: dict[str, int] = {}
    for name, path in files:
        try:
            text = path.read_text(encoding="ascii", errors="replace")
        except OSError:  # no such file, or switched off in the kernel (EOPNOTSUPP)
            continue
        stalled |= {f"{name}_{kind}": total for kind, total in parse_pressure(text).items()}
    return stalled
