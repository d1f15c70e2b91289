"""One client under test at one load, as a process of its own: N users, each with one stream after another.

Writes one JSON object: CPU, peak memory, the window of steady load, and each request's id and token arrivals.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import msgspec

from benchmarks.truth_server import take_core
from orchestrator.clock import NS_PER_S, now_ns
from orchestrator.load.health import SelfWatch
from orchestrator.load.transport import RequestLimits, StampingTransport
from orchestrator.load.wire import Sender
from orchestrator.records import Prompt, Request, RequestRecord
from stacks.openai import ChatWire

UNBOUNDED = httpx.Limits(max_connections=None, max_keepalive_connections=None)

TRANSPORTS: dict[str, Callable[[], httpx.AsyncBaseTransport]] = {
    "kernel": StampingTransport,
    "user": lambda: StampingTransport(kernel_stamps=False),
    "httpx": lambda: httpx.AsyncHTTPTransport(limits=UNBOUNDED),
}


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of a client."""

    streams: int
    tokens_per_s: float
    """Of each stream."""
    tokens: int
    """Of each answer."""
    ramp_s: float
    """User i starts at i * ramp_s / streams."""
    hold_s: float
    """Length of the window, from the end of the ramp and one answer's first token on."""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What a client did; times in ns of CLOCK_MONOTONIC."""

    window: tuple[int, int]
    cpu_s: float
    peak_memory_bytes: int
    baseline_memory_bytes: int
    """Before the first request: the interpreter and what was imported."""
    events: int
    sent_ns: dict[str, int]
    token_ns: dict[str, tuple[int, ...]]
    failures: dict[str, int]


async def run(url: str, transport: httpx.AsyncBaseTransport, load: Load) -> Measured:
    records: list[RequestRecord] = []
    sender = Sender(
        base_url=url,
        wire=ChatWire(),
        model="truth",
        prompt=lambda _: Prompt(text="x"),
        headers={"x-tokens-per-s": str(load.tokens_per_s)},
        limits=RequestLimits(total_s=600.0),
        transport=transport,
    )
    started_ns = now_ns()
    window_start = started_ns + round((load.ramp_s + 2 / load.tokens_per_s) * NS_PER_S)
    window_end = window_start + round(load.hold_s * NS_PER_S)
    numbers = iter(range(sys.maxsize))

    async def user(number: int) -> None:
        await asyncio.sleep(number * load.ramp_s / load.streams)
        while now_ns() < window_end:
            seq = next(numbers)
            request = Request(seq=seq, prompt_tokens=1, output_tokens=load.tokens, prompt_seed=seq)
            records.append(await sender.send(request, seq=seq, phase="measured", due_ns=now_ns(), user=number))

    baseline = peak_memory_bytes()
    cpu_started = time.process_time()
    async with sender, SelfWatch().watching():
        users = [asyncio.create_task(user(number)) for number in range(load.streams)]
        await asyncio.wait(users, timeout=(window_end - now_ns()) / NS_PER_S)
        for task in users:
            task.cancel()
        await asyncio.gather(*users, return_exceptions=True)
    cpu_s = time.process_time() - cpu_started
    failures: dict[str, int] = {}
    for record in records:
        if record.failure is not None:
            failures[record.failure.kind] = failures.get(record.failure.kind, 0) + 1
    return Measured(
        window=(window_start, window_end),
        cpu_s=cpu_s,
        peak_memory_bytes=peak_memory_bytes(),
        baseline_memory_bytes=baseline,
        events=sum(len(record.token_ns) for record in records),
        sent_ns={record.request_id: record.sent_ns for record in records},
        token_ns={record.request_id: record.token_ns for record in records},
        failures=failures,
    )


def peak_memory_bytes() -> int:
    """Of this program alone: `ru_maxrss` would count the parent's, from before the exec."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--client", choices=TRANSPORTS, required=True)
    parser.add_argument("--load", required=True, help="a Load as JSON")
    parser.add_argument("--loop", choices=["uvloop", "asyncio"], default="uvloop")
    parser.add_argument("--cpu", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    take_core(options.cpu)
    factory = None
    if options.loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    load = msgspec.json.decode(options.load, type=Load)
    with asyncio.Runner(loop_factory=factory) as runner:
        measured = runner.run(run(options.url, TRANSPORTS[options.client](), load))
    options.out.write_bytes(msgspec.json.encode(measured))


if __name__ == "__main__":
    main()
