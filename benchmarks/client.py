"""How true and how light the client is, against a server that knows when it sent what.

    python -m benchmarks.client [--clients kernel,user,httpx] [--streams 1,16,64] [--check]

Server and client are pinned to one core each, at the highest priority that is permitted. `--check` exits 1 if a target
is missed.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.client_worker import Load, Measured

CLIENTS = {
    "kernel": "loadproof, kernel stamps",
    "user": "loadproof, user stamps",
    "httpx": "httpx's default transport",
}

LOADS = (
    Load(streams=1, tokens_per_s=50, tokens=100, ramp_s=0.0, hold_s=6),
    Load(streams=16, tokens_per_s=50, tokens=100, ramp_s=1.0, hold_s=6),
    Load(streams=64, tokens_per_s=50, tokens=100, ramp_s=1.0, hold_s=6),
    Load(streams=256, tokens_per_s=50, tokens=100, ramp_s=1.0, hold_s=6),
    Load(streams=1024, tokens_per_s=50, tokens=500, ramp_s=4.0, hold_s=12),
    Load(streams=4096, tokens_per_s=10, tokens=100, ramp_s=8.0, hold_s=12),
)

MIB = 2**20


class Errors(NamedTuple):
    """How late stamps are against the truth, ms."""

    p50: float
    p99: float
    max: float

    @classmethod
    def of(cls, late_ns: NDArray[np.int64]) -> Errors:
        if not len(late_ns):
            return cls(float("nan"), float("nan"), float("nan"))
        p50, p99 = np.percentile(late_ns, [50, 99], method="inverted_cdf")
        return cls(p50 / 1e6, p99 / 1e6, float(late_ns.max()) / 1e6)

    def __str__(self) -> str:
        return f"{self.p50:.3f} / {self.p99:.3f} / {self.max:.2f}"


class Row(NamedTuple):
    """One client at one load."""

    client: str
    load: Load
    offered_per_s: float
    achieved_per_s: float
    ttft: Errors
    token: Errors
    truth_width: Errors
    """How long the server's send took: the truth is known to within this."""
    server_late: Errors
    """How much later than due the server sent: what of the load was lost there."""
    cpu_us: float
    """Per token event."""
    cpu_share: float
    memory_bytes: int
    failures: dict[str, int]

    @property
    def achieved(self) -> float:
        return self.achieved_per_s / self.offered_per_s


class Truth(msgspec.Struct):
    """One answer as the server sent it."""

    id: str
    first_due_ns: int
    period_ns: int
    before_ns: list[int]
    after_ns: list[int]


def measure(client: str, load: Load, server_cpu: int, client_cpu: int, loop: str) -> Row | None:
    """Run one client at one load against a fresh server; None if it has not ended a minute after it should."""
    with tempfile.TemporaryDirectory() as folder:
        truth_file, measured_file = Path(folder) / "truth.jsonl", Path(folder) / "measured.json"
        server_command = [sys.executable, "-m", "benchmarks.truth_server", "--truth", str(truth_file)]
        with subprocess.Popen([*server_command, "--cpu", str(server_cpu)], stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            url = f"http://127.0.0.1:{int(server.stdout.readline())}"
            worker = [sys.executable, "-m", "benchmarks.client_worker", "--url", url, "--client", client]
            asked = ["--load", msgspec.json.encode(load).decode(), "--loop", loop, "--cpu", str(client_cpu)]
            patience_s = load.ramp_s + load.hold_s + 60
            try:
                subprocess.run([*worker, *asked, "--out", str(measured_file)], check=True, timeout=patience_s)
            except subprocess.TimeoutExpired:
                return None
            finally:
                server.terminate()
        truths = {truth.id: truth for truth in read_truth(truth_file)}
        return score(client, load, msgspec.json.decode(measured_file.read_bytes(), type=Measured), truths)


def read_truth(path: Path) -> Iterator[Truth]:
    decode = msgspec.json.Decoder(Truth).decode
    with path.open("rb") as file:
        for line in file:
            yield decode(line)


def score(client: str, load: Load, measured: Measured, truths: dict[str, Truth]) -> Row:
    """Every arrival beside the moment when it was sent."""
    start, end = measured.window
    arrivals: list[int] = []
    sent: list[int] = []
    width: list[int] = []
    behind: list[int] = []
    firsts: list[int] = []
    for request_id, token_ns in measured.token_ns.items():
        if not token_ns:  # the server may not even have read this one's request
            continue
        truth, seen = truths[request_id], len(token_ns)
        arrivals += token_ns
        sent += truth.before_ns[:seen]
        width += [after - before for before, after in zip(truth.before_ns, truth.after_ns[:seen], strict=False)]
        behind += [at - truth.first_due_ns - i * truth.period_ns for i, at in enumerate(truth.before_ns)]
        firsts += [True, *[False] * (seen - 1)]
    at, left = np.array(arrivals, np.int64), np.array(sent, np.int64)
    inside = (at > start) & (at <= end)
    late, first = at - left, np.array(firsts, bool)
    return Row(
        client=client,
        load=load,
        offered_per_s=load.streams * load.tokens_per_s,
        achieved_per_s=float(inside.sum()) / ((end - start) / 1e9),
        ttft=Errors.of(late[first]),
        token=Errors.of(late),
        truth_width=Errors.of(np.array(width, np.int64)),
        server_late=Errors.of(np.array(behind, np.int64)),
        cpu_us=measured.cpu_s * 1e6 / max(1, measured.events),
        cpu_share=measured.cpu_s / (load.hold_s + load.ramp_s),
        memory_bytes=measured.peak_memory_bytes,
        failures={kind: count for kind, count in measured.failures.items() if kind != "cancelled"},
    )


# --- what is told -------------------------------------------------------------------------------------------------


def table(rows: list[Row]) -> Table:
    shown = Table(title="How late a client's stamps are, and what they cost (times in ms: p50 / p99 / max)")
    for name in (
        "streams",
        "client",
        "offered/s",
        "achieved",
        "TTFT late by",
        "token late by",
        "truth within",
        "server late",
    ):
        shown.add_column(name, justify="left" if name == "client" else "right", no_wrap=True)
    for name in ("CPU us/event", "peak MiB", "failed"):
        shown.add_column(name, justify="right")
    for row in rows:
        shown.add_row(
            f"{row.load.streams} x {row.load.tokens_per_s:g}/s",
            CLIENTS[row.client],
            f"{row.offered_per_s:,.0f}",
            f"{row.achieved:.2%}",
            str(row.ttft),
            str(row.token),
            f"{row.truth_width.p99:.3f}",
            f"{row.server_late.p99:.1f}",
            f"{row.cpu_us:.1f}",
            f"{row.memory_bytes / MIB:.0f}",
            str(sum(row.failures.values()) or "-"),
            end_section=row.client == "httpx",
        )
    return shown


class Target(NamedTuple):
    name: str
    limit: str
    value: str
    met: bool


def targets(rows: list[Row]) -> Iterator[Target]:
    """The targets that these rows can answer."""
    by = {(row.client, row.load.streams): row for row in rows}
    if (big := by.get(("kernel", 1024))) is not None:
        late, share, memory = big.ttft.p99, big.achieved, big.memory_bytes / MIB
        yield Target("TTFT late by, p99, 1,024 streams", "<= 0.1 ms", f"{late:.3f} ms", late <= 0.1)
        yield Target("CPU per token event, 1,024 streams", "<= 12 us", f"{big.cpu_us:.1f} us", big.cpu_us <= 12)
        yield Target("achieved of offered, 1,024 streams", ">= 99.5 %", f"{share:.2%}", share >= 0.995)
        yield Target("peak memory, 1,024 streams of 500", "<= 150 MiB", f"{memory:.0f} MiB", memory <= 150)
    ours, theirs = by.get(("kernel", 64)), by.get(("httpx", 64))
    if ours is not None and theirs is not None:
        cpu, error = theirs.cpu_us / ours.cpu_us, theirs.token.p99 / ours.token.p99
        yield Target("httpx's CPU over ours, 64 streams", ">= 5", f"{cpu:.1f}", cpu >= 5)
        yield Target("httpx's p99 error over ours, 64 streams", ">= 20", f"{error:.0f}", error >= 20)


def machine() -> str:
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    return f"{cpu}, {os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", default=",".join(CLIENTS), help="default: %(default)s")
    parser.add_argument("--streams", help="only these loads, e.g. 64,1024")
    parser.add_argument("--loop", choices=["uvloop", "asyncio"], default="uvloop")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    options = parser.parse_args()
    only = {int(number) for number in options.streams.split(",")} if options.streams else None
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        sys.exit("Two cores are needed: one for the server, one for the client.")
    console = Console(width=200)
    rows = []
    for load in LOADS:
        if only is not None and load.streams not in only:
            continue
        for client in options.clients.split(","):
            row = measure(client, load, cpus[0], cpus[-1], options.loop)
            told = "did not end" if row is None else f"{row.achieved:.2%} of {row.offered_per_s:,.0f} events/s"
            console.print(f"{load.streams:>5} streams, {CLIENTS[client]}: {told}")
            if row is not None:
                rows.append(row)
    console.print(table(rows))
    found = list(targets(rows))
    for target in found:
        console.print(f"{'met   ' if target.met else 'MISSED'}  {target.name}: {target.value} ({target.limit})")
    console.print(machine())
    console.print("Other load tools beside `loadproof load`, where they are installed: make bench-tools.")
    sys.exit(options.check and not all(target.met for target in found))


if __name__ == "__main__":
    main()
