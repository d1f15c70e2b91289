"""loadproof watching itself while it loads: how late its own loop is, how late it sends, what CPU it takes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import time
from array import array
from collections.abc import AsyncIterator, Iterator, Sequence

from orchestrator.clock import NS_PER_MS, NS_PER_S, now_ns
from orchestrator.host import usable_cpus
from orchestrator.load.reads import WAITS
from orchestrator.records import ClientHealth, RequestRecord

TICK_S = 0.01
COLLECTOR = (10_000, 50, 100)
"""Thresholds of the garbage collector during a level."""


class SelfWatch:
    """Looks at the loop every 10 ms, so that a short level has a p99; lag = how much later than asked it was woken."""

    def __init__(self) -> None:
        self._lags_ns = array("q")
        self._late_ns = array("q")
        """How late each request was sent."""
        self._kernel = 0
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

    def see(self, record: RequestRecord) -> None:
        """A request has ended. One that was never sent tells nothing of how late we send."""
        if record.failure is None or record.failure.kind != "dropped":
            self._late_ns.append(record.sent_ns - record.due_ns)
            self._kernel += record.stamp == "kernel"

    def health(self) -> ClientHealth:
        """What was seen since the start."""
        return ClientHealth(
            loop_lag_ms_p99=p99(self._lags_ns) / NS_PER_MS,
            read_backlog_ms_p99=p99(WAITS) / NS_PER_MS,
            send_lag_ms_p99=p99(self._late_ns) / NS_PER_MS,
            cpu_s=time.process_time() - self._cpu_started_s,
            wall_s=(now_ns() - self._started_ns) / NS_PER_S,
            kernel_share=self._kernel / len(self._late_ns) if self._late_ns else 0.0,
            sent=len(self._late_ns),
            cores=usable_cpus(),
        )


def together(workers: Sequence[ClientHealth], lost: str | None) -> ClientHealth:
    """The health of several processes as one: the worst of their lags, the sum of their CPU. `lost`: see the record."""
    sent = sum(health.sent for health in workers)
    stamped = sum(health.sent * health.kernel_share for health in workers)
    backlogs = [health.read_backlog_ms_p99 for health in workers if health.read_backlog_ms_p99 is not None]
    return ClientHealth(
        loop_lag_ms_p99=max((health.loop_lag_ms_p99 for health in workers), default=0.0),
        read_backlog_ms_p99=max(backlogs, default=None),
        send_lag_ms_p99=max((health.send_lag_ms_p99 for health in workers), default=0.0),
        cpu_s=sum(health.cpu_s for health in workers),
        wall_s=max((health.wall_s for health in workers), default=0.0),
        kernel_share=stamped / sent if sent else 0.0,
        workers=len(workers),
        sent=sent,
        cores=usable_cpus(),
        lost=lost,
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
