"""Who else is on the cards, before anything of ours is started there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import psutil

from orchestrator.errors import HostError
from orchestrator.records import Neighbour
from orchestrator.watch.gpu import gpu_processes, gpu_uuids, list_gpus


def neighbours(asked: Sequence[str]) -> tuple[Neighbour, ...]:
    """Processes with memory on the devices that `asked` names, by card and pid; () where there are none, or where the
    devices cannot be read (the watch says why). Blocking."""
    try:
        uuids = gpu_uuids(asked, list_gpus()) if asked else ()
        return tuple(neighbour for uuid in uuids for neighbour in _on(uuid))
    except HostError:  # a missing card is told by what needs it
        return ()


def _on(uuid: str) -> Iterator[Neighbour]:
    for process in gpu_processes(uuid) or ():
        yield Neighbour(gpu=uuid, pid=process.pid, name=_name(process.pid), memory_bytes=process.memory_bytes)


def _name(pid: int) -> str:
    """Of a process as this machine numbers them; NVML numbers them as the host does, so within a container a name may
    be missing."""
    try:
        return str(psutil.Process(pid).name())
    except psutil.Error:
        return ""
