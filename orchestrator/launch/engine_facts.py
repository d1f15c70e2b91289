"""What a container engine is told and what it tells, as plain values. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from stacks.base import Mount


class Image(NamedTuple):
    id: str
    digest: str
    """``repository@sha256:...``; the id of an image that no registry knows."""


class State(NamedTuple):
    """A container as the engine sees it now."""

    status: str
    running: bool
    exit_code: int
    oom_killed: bool
    error: str
    pid: int | None
    memory_limit_bytes: int | None

    def evidence(self) -> tuple[str, ...]:
        """The engine's words on how it ended."""
        state = f"engine: State.Status={self.status} ExitCode={self.exit_code} OOMKilled={str(self.oom_killed).lower()}"
        lines = [state + (f" Error={self.error}" if self.error else "")]
        if self.memory_limit_bytes:
            lines.append(f"engine: HostConfig.Memory={self.memory_limit_bytes}")
        return tuple(lines)


class Found(NamedTuple):
    """A container in a list."""

    id: str
    name: str
    running: bool
    labels: dict[str, str]


class Plan(NamedTuple):
    """A container that is to be made."""

    name: str
    image: str
    command: tuple[str, ...]
    entrypoint: tuple[str, ...] | None
    environment: Mapping[str, str]
    labels: Mapping[str, str]
    port: int
    network: str | None
    """Joined by name and reached there by address; None = published on 127.0.0.1."""
    mounts: tuple[Mount, ...] = ()
    gpus: tuple[str, ...] = ()
    shm_bytes: int | None = None
    ipc_host: bool = False
    memory_limit_bytes: int | None = None
    cpus: float | None = None


def usage_values(stats: Mapping[str, Any]) -> dict[str, float]:
    """Values of a stats document of cgroup v1 or v2; those that are not in it are absent.

    ``memory_used_bytes`` is what the docker command shows: usage without the files that could be dropped at once.
    ``memory_file_bytes`` is all of its cached files; weights that are mapped from a file are there.
    """
    memory = stats.get("memory_stats") or {}
    details = memory.get("stats") or {}
    values: dict[str, float] = {}
    if "usage" in memory:
        inactive = details.get("total_inactive_file", details.get("inactive_file", 0))
        values["memory_used_bytes"] = float(max(0, memory["usage"] - inactive))
        values["memory_usage_bytes"] = float(memory["usage"])
    if "limit" in memory:
        values["memory_limit_bytes"] = float(memory["limit"])
    cached = details.get("total_cache", details.get("file"))
    if cached is not None:
        values["memory_file_bytes"] = float(cached)
    total = ((stats.get("cpu_stats") or {}).get("cpu_usage") or {}).get("total_usage")
    if total and "usage" in memory:
        values["cpu_s"] = total / 1e9
    return values


class PullProgress:
    """How far a pull is, in steps of 5 %."""

    def __init__(self, reference: str) -> None:
        self._reference = reference
        self._layers: dict[str, tuple[int, int]] = {}
        self._step = -1

    def text(self, item: Mapping[str, Any]) -> str | None:
        """A sentence when an item of the stream brings a new step."""
        detail = item.get("progressDetail") or {}
        if item.get("status") != "Downloading" or not detail.get("total"):
            return None
        self._layers[item.get("id", "")] = (detail.get("current", 0), detail["total"])
        done = sum(current for current, _ in self._layers.values())
        total = sum(size for _, size in self._layers.values())
        step = done * 20 // total
        if step == self._step:
            return None
        self._step = step
        return f"pulling {self._reference}: {done / 1e9:.1f} of {total / 1e9:.1f} GB seen so far"
