"""Everything that is watched while a server is under load: one thread a source, one `Sample` a tick.

Each source is read in a thread of its own, on the grid start + k * interval. A reading that takes longer than the
interval skips the ticks that it missed; one source that hangs delays no other, and none ever blocks the event loop. A
source that fails is absent and is reported once, in `Watch.notes`; it is tried again at each tick.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

from orchestrator.clock import NS_PER_S, now_ns
from orchestrator.errors import HostError, LoadproofError
from orchestrator.records import Sample
from orchestrator.watch.engine import engine_reader
from orchestrator.watch.gpu import gpu_reader, gpu_uuids, list_gpus
from orchestrator.watch.host import HostReader, TreeReader

Read = Callable[[], dict[str, float]]
"""One blocking reading of a source; values that were not reported are absent."""
PATIENCE_S = 1.0
"""How long the end of a watch waits for readings under way; a thread that hangs longer is left behind (a daemon)."""
MAX_NOTE_CHARACTERS = 300
_ONCE_S = 3600.0
"""Interval of a watch that ends after its first readings."""


def _no_pids() -> Sequence[int]:
    return ()


def _no_usage() -> dict[str, float]:
    return {}


@dataclass(frozen=True)
class Target:
    """What is to be watched. The callables may block; each is called in a thread, by one thread at a time."""

    metric_values: Callable[[str], dict[str, float]]
    """Text of the metrics page -> canonical values (`Stack.metric_values`)."""
    base_url: str | None = None
    metrics_path: str | None = None
    """None: the engine has no metrics page."""
    pids: Callable[[], Sequence[int]] = _no_pids
    """The server's process tree, in the host's numbers; empty for a server that is not ours."""
    usage: Callable[[], dict[str, float]] = _no_usage
    """What the container engine says; {} where there is no container."""
    gpus: tuple[str, ...] = ()
    """As a plan names them: numbers, UUIDs, or ``all``."""
    log_facts: Callable[[], dict[str, float]] | None = None
    """What the server's log has told of itself so far, where that is new; None: it is not followed."""


@dataclass
class _Source:
    """One source and how it fared; written by its thread alone."""

    name: str
    open: Callable[[], AbstractContextManager[Read]]
    looks: int = 0
    answered: int = 0
    failed: int = 0
    note: str = ""

    def failure(self, error: Exception) -> None:
        self.failed += 1
        if not self.note:
            told = str(error) if isinstance(error, LoadproofError) else f"{type(error).__name__}: {error}"
            self.note = " ".join(told.split())[:MAX_NOTE_CHARACTERS]


class Watch:
    """A watch that runs. Its threads end with the `async with` that made it."""

    def __init__(self, sources: Sequence[_Source], sink: Callable[[Sample], None], interval_s: float) -> None:
        self._sources = tuple(sources)
        self._sink = sink
        self._interval_ns = round(interval_s * NS_PER_S)
        self._loop = asyncio.get_running_loop()
        self._stop = threading.Event()
        self._ended = asyncio.Event()
        self._looked = asyncio.Event()
        self._alive = len(self._sources)
        self.sink_error: Exception | None = None
        """The first error of the sink (a full disk); nothing is delivered after it."""

    @property
    def notes(self) -> tuple[str, ...]:
        """One sentence for each source that failed, with how often."""
        return tuple(
            f"{source.name}: {source.failed} of {source.failed + source.answered} readings failed; first: {source.note}"
            for source in self._sources
            if source.failed
        )

    def readings(self) -> dict[str, int]:
        """Readings that gave at least one value, by source."""
        return {source.name: source.answered for source in self._sources}

    def start(self) -> None:
        start_ns = now_ns()
        for source in self._sources:
            # A daemon: a device that hangs must not keep the program from ending.
            threading.Thread(
                target=self._follow, args=(source, start_ns), name=f"watch {source.name}", daemon=True
            ).start()

    async def looked(self, patience_s: float) -> None:
        """Wait until every source was read once, or failed; at most `patience_s`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._looked.wait(), patience_s)

    async def stop(self) -> None:
        """Read no more; wait for readings under way, for a moment."""
        self._stop.set()
        try:
            if self._alive:
                await asyncio.wait_for(self._ended.wait(), PATIENCE_S)
        except TimeoutError:  # `_drop` takes what the late ones still say
            return
        finally:
            self._sink = _drop

    # --- in the loop's thread ---

    def _deliver(self, sample: Sample) -> None:
        if self.sink_error is not None:
            return
        try:
            self._sink(sample)
        except Exception as error:  # kept for the end of the watch: a callback of the loop has nobody to raise to
            self.sink_error = error

    def _count_look(self) -> None:
        if all(source.looks for source in self._sources):
            self._looked.set()

    def _count_end(self) -> None:
        self._alive -= 1
        if not self._alive:
            self._ended.set()

    # --- in a source's thread ---

    def _follow(self, source: _Source, start_ns: int) -> None:
        try:
            with source.open() as read:
                self._poll(source, read, start_ns)
        except Exception as error:  # a device or an engine may fail in any way; the run goes on and the note says so
            source.failure(error)
        finally:
            source.looks += 1
            self._in_loop(self._count_look)
            self._in_loop(self._count_end)

    def _poll(self, source: _Source, read: Read, start_ns: int) -> None:
        due_ns = start_ns
        while not self._stop.wait(max(0, due_ns - now_ns()) / NS_PER_S):
            try:
                values = read()
            except Exception as error:  # as above: of one reading
                source.failure(error)
            else:
                at_ns = now_ns()
                if values:
                    source.answered += 1
                    self._in_loop(self._deliver, Sample(at_ns=at_ns, source=source.name, values=values))
            source.looks += 1
            self._in_loop(self._count_look)
            due_ns = next_tick(due_ns, now_ns(), self._interval_ns)

    def _in_loop(self, call: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:  # the loop is closed: this thread outlived the run, and nobody listens any more
            self._stop.set()


@asynccontextmanager
async def watching(target: Target, sink: Callable[[Sample], None], *, interval_s: float = 1.0) -> AsyncIterator[Watch]:
    """Samples of everything that `target` names go to `sink`, in the loop's thread, for as long as the body runs.

    Raises what `sink` raised, at the end, unless the body itself failed.
    """
    watch = Watch(await asyncio.to_thread(_sources, target), sink, interval_s)
    watch.start()
    try:
        yield watch
    finally:
        await watch.stop()
    if watch.sink_error is not None:
        raise watch.sink_error


async def look(target: Target, *, patience_s: float = 5.0) -> tuple[Sample, ...]:
    """One reading of everything that `target` names; a source that does not answer in time is absent."""
    samples: list[Sample] = []
    async with watching(target, samples.append, interval_s=_ONCE_S) as watch:
        await watch.looked(patience_s)
    return tuple(samples)


def next_tick(due_ns: int, now_ns: int, interval_ns: int) -> int:
    """The first point of the grid through `due_ns` that is after now: ticks that were missed are skipped."""
    if now_ns < due_ns:
        return due_ns
    return due_ns + ((now_ns - due_ns) // interval_ns + 1) * interval_ns


def _sources(target: Target) -> list[_Source]:
    tree = TreeReader(target.pids)
    sources = [
        _Source("host", lambda: nullcontext(HostReader().read)),
        _Source("tree", lambda: nullcontext(tree.read)),
        _Source("container", lambda: nullcontext(target.usage)),
    ]
    if target.log_facts is not None:
        told = target.log_facts
        sources.append(_Source("log", lambda: nullcontext(told)))
    if target.base_url is not None and target.metrics_path is not None:
        scraped = engine_reader(target.base_url, target.metrics_path, target.metric_values)
        sources.append(_Source("engine", lambda: scraped))
    return sources + _gpu_sources(target.gpus, lambda: tree.seen)


def _gpu_sources(asked: Sequence[str], ours: Callable[[], Sequence[int]]) -> list[_Source]:
    """One source a device. `ours` must not block: a card never waits for a list of pids, it takes the last one."""
    try:
        uuids = gpu_uuids(asked, list_gpus()) if asked else ()
    except HostError as error:
        return [_Source("gpu", partial(_fail_to_open, error))]
    return [_Source(f"gpu:{uuid}", partial(gpu_reader, uuid, ours)) for uuid in uuids]


def _fail_to_open(error: HostError) -> NoReturn:
    """A source that is not there: its thread notes why, and ends."""
    raise error


def _drop(sample: Sample) -> None:
    """Where samples go that come after the end."""
