"""loadproof watching itself while it loads: how late its own loop is, how late it sends, what CPU it takes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence

from orchestrator.clock import NS_PER_MS, NS_PER_S, now_ns
from orchestrator.load.reads import WAITS
from orchestrator.records import ClientHealth, RequestRecord

TICK_S = 0.01
COLLECTOR = (10_000, 50, 100)
"""Thresholds of the garbage collector during a level."""


class SelfWatch:
    """Looks at the loop every 10 ms, so that a short level has a p99; lag = how much later than asked it was woken."""

    def __init__(self) -> None:
        self._lags_ns: list[int] = []
        self._started_ns = now_ns()
        self._cpu_started_s = time.process_time()
        del WAITS[:]

    async def _tick(self) -> None:
        while True:
            due = now_ns() + round(TICK_S * NS_PER_S)
            await asyncio.sleep(TICK_S)
            self._lags_ns.append(max(0, now_ns() - due))

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._tick())
        try:
            with rare_collections():
                yield
        finally:
            task.cancel()

    def health(self, records: Iterable[RequestRecord]) -> ClientHealth:
        """What was seen since the start; send lag and stamps from the records of the same time."""
        seen = [r for r in records if r.failure is None or r.failure.kind != "dropped"]
        return ClientHealth(
            loop_lag_ms_p99=p99(self._lags_ns) / NS_PER_MS,
            read_backlog_ms_p99=p99(WAITS) / NS_PER_MS,
            send_lag_ms_p99=p99([r.sent_ns - r.due_ns for r in seen]) / NS_PER_MS,
            cpu_s=time.process_time() - self._cpu_started_s,
            wall_s=(now_ns() - self._started_ns) / NS_PER_S,
            kernel_share=sum(r.stamp == "kernel" for r in seen) / len(seen) if seen else 0.0,
        )


@contextlib.contextmanager
def rare_collections() -> Iterator[None]:
    """The garbage collector looks seldom, and only at what was made since: a look at all objects takes tens of
    milliseconds, in which nothing is sent or read. What is not part of a cycle is freed at once as ever."""
    before = gc.get_threshold()
    gc.freeze()  # with no collection before: that would be such a pause, in the level
    gc.set_threshold(*COLLECTOR)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def p99(values: Sequence[int]) -> float:
    """Nearest rank; 0 of nothing."""
    return float(sorted(values)[math.ceil(0.99 * len(values)) - 1]) if values else 0.0
