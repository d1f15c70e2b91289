"""Ports: one that is free, and the proof that what listens on it is what we started."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from orchestrator.errors import HostError
from orchestrator.launch.tree import PROC

PORTS = range(20_000, 32_000)
"""Below the range from which the kernel gives ports to outgoing connections (32768 on Linux): a client of anything
cannot take the port while a server loads for minutes before it listens."""
TRIES = 200
_LISTEN = "0A"
_REACHED_BY_LOOPBACK = frozenset(
    {
        "0100007F",  # 127.0.0.1
        "00000000",  # 0.0.0.0
        "0" * 32,  # ::
        "0" * 24 + "01000000",  # ::1
        "0" * 16 + "FFFF00000100007F",  # ::ffff:127.0.0.1
    }
)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody holds at this moment. Raises HostError if there is none."""
    for port in random.sample(PORTS, min(TRIES, len(PORTS))):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise HostError(
        f"No free port between {PORTS.start} and {PORTS.stop} was found in {TRIES} tries.",
        "See what holds them: ss -ltnp",
    )


def parse_listeners(table: str, port: int) -> set[str]:
    """Inodes of the sockets that listen on a port where 127.0.0.1 reaches them, from /proc/net/tcp or tcp6."""
    inodes = set()
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 10 or fields[3] != _LISTEN:
            continue
        address, _, number = fields[1].partition(":")
        if address in _REACHED_BY_LOOPBACK and int(number, 16) == port:
            inodes.add(fields[9])
    return inodes


def listeners(port: int, proc: Path = PROC) -> set[str]:
    """Inodes of the sockets that listen on a port."""
    inodes: set[str] = set()
    for name in ("tcp", "tcp6"):
        with suppress(FileNotFoundError):  # a kernel without IPv6
            inodes |= parse_listeners((proc / "net" / name).read_text(encoding="ascii"), port)
    return inodes


def sockets_of(pids: Iterable[int], proc: Path = PROC) -> set[str]:
    """Inodes of the sockets that these processes hold; a process that has ended holds none."""
    inodes = set()
    for pid in pids:
        with suppress(OSError):
            for descriptor in (proc / str(pid) / "fd").iterdir():
                with suppress(OSError):
                    kind, _, inode = str(descriptor.readlink()).partition(":")
                    if kind == "socket":
                        inodes.add(inode.strip("[]"))
    return inodes
