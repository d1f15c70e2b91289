from __future__ import annotations

import asyncio
import os
import threading
from collections import Counter
from collections.abc import Callable

import pynvml
import pytest
from fakes.nvml import GIB, Card, Driver, Process
from fakes.pages import page, serving
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.clock import now_ns
from orchestrator.errors import HostError
from orchestrator.records import Sample
from orchestrator.watch import gpu
from orchestrator.watch import watch as module
from orchestrator.watch.watch import Target, next_tick, watching

UUID = Card().uuid
SOON = 0.005


def no_metrics(text: str) -> dict[str, float]:
    return {}


class Sink:
    """Keeps samples and the threads that brought them."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.threads: set[int] = set()

    def __call__(self, sample: Sample) -> None:
        self.samples.append(sample)
        self.threads.add(threading.get_ident())

    def count(self, source: str) -> int:
        return Counter(sample.source for sample in self.samples)[source]

    def of(self, source: str) -> list[Sample]:
        return [sample for sample in self.samples if sample.source == source]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 (conditions of other threads, which set no event of the loop)
            await asyncio.sleep(0.001)


def watch_threads() -> list[str]:
    """Those that do not end: the last words of one that ends come a moment before its end."""
    found = [thread for thread in threading.enumerate() if thread.name.startswith("watch ")]
    for thread in found:
        thread.join(1.0)
    return [thread.name for thread in found if thread.is_alive()]


def test_every_source_is_sampled_in_the_loops_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = os.getpid()
    card = Card(free=60 * GIB, computing=[Process(ours, 15 * GIB), Process(1, 3 * GIB)])
    monkeypatch.setattr(gpu, "pynvml", Driver([card]))
    monkeypatch.setattr(gpu, "_in_root_pid_namespace", lambda: True)

    async def main() -> None:
        sink = Sink()
        target = Target(
            metric_values=no_metrics, pids=lambda: [ours], usage=lambda: {"memory_used_bytes": 7.0}, gpus=("all",)
        )
        started_ns = now_ns()
        names = ("host", "tree", "container", f"gpu:{UUID}")
        async with watching(target, sink, interval_s=SOON) as watch:
            await until(lambda: all(sink.count(name) >= 3 for name in names))
            assert sorted(watch_threads()) == sorted(f"watch {name}" for name in names)
        assert watch.notes == ()
        assert watch.readings() == {name: sink.count(name) for name in names}
        assert {sample.source for sample in sink.samples} == set(names)
        assert sink.threads == {threading.get_ident()}
        for name in names:
            times = [sample.at_ns for sample in sink.of(name)]
            assert times == sorted(set(times))
            assert started_ns < times[0]
            assert times[-1] < now_ns()
        assert sink.of("container")[0].values == {"memory_used_bytes": 7.0}
        assert sink.of("tree")[0].values["processes"] == 1
        assert sink.of("host")[0].values["memory_available_bytes"] > 0
        last = sink.of(f"gpu:{UUID}")[-1].values
        assert (last["memory_used_bytes"], last["memory_ours_bytes"], last["memory_others_bytes"]) == (
            20 * GIB,
            15 * GIB,
            3 * GIB,
        )

    asyncio.run(main())
    assert watch_threads() == []


def test_nothing_is_delivered_after_the_end() -> None:
    async def main() -> None:
        sink = Sink()
        async with watching(Target(metric_values=no_metrics), sink, interval_s=SOON):
            await until(lambda: sink.count("host") >= 2)
        count = len(sink.samples)
        await asyncio.sleep(4 * SOON)
        assert len(sink.samples) == count

    asyncio.run(main())


def test_a_source_that_fails_is_noted_once_and_the_others_go_on() -> None:
    calls = 0

    def usage() -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls % 2:
            raise HostError(f"The engine said no\n{calls}.", "Try again.")
        return {"memory_used_bytes": float(calls)}

    async def main() -> None:
        sink = Sink()
        async with watching(Target(metric_values=no_metrics, usage=usage), sink, interval_s=SOON) as watch:
            await until(lambda: sink.count("container") >= 2 and sink.count("host") >= 2)
        assert [sample.values["memory_used_bytes"] for sample in sink.of("container")][:2] == [2.0, 4.0]
        failed, answered = (calls + 1) // 2, calls // 2
        assert watch.notes == (
            f"container: {failed} of {failed + answered} readings failed; first: The engine said no 1. Try again.",
        )

    asyncio.run(main())


def test_an_error_of_any_kind_is_a_note_with_its_name_and_bounded() -> None:
    def pids() -> list[int]:
        raise ZeroDivisionError("x" * 5000)

    async def main() -> tuple[str, ...]:
        sink = Sink()
        async with watching(Target(metric_values=no_metrics, pids=pids), sink, interval_s=SOON) as watch:
            await until(lambda: sink.count("host") >= 2 and bool(watch.notes))
        assert sink.of("tree") == []
        return watch.notes

    (note,) = asyncio.run(main())
    assert "first: ZeroDivisionError: xxx" in note
    assert len(note) < 400


def test_a_source_that_hangs_delays_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the other sources, not the loop, not the end; and what it says later is dropped."""
    monkeypatch.setattr(module, "PATIENCE_S", 0.05)
    hanging, release = threading.Event(), threading.Event()

    def usage() -> dict[str, float]:
        hanging.set()
        assert release.wait(20)
        return {"memory_used_bytes": 1.0}

    async def main() -> None:
        sink = Sink()
        async with watching(Target(metric_values=no_metrics, usage=usage), sink, interval_s=SOON):
            await until(lambda: hanging.is_set() and sink.count("host") >= 5)
        assert watch_threads() == ["watch container"]
        release.set()
        await until(lambda: watch_threads() == [])
        await asyncio.sleep(0)
        assert sink.of("container") == []

    asyncio.run(main())


def test_a_thread_that_outlives_the_loop_ends_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.0)
    hanging, release = threading.Event(), threading.Event()

    def usage() -> dict[str, float]:
        hanging.set()
        assert release.wait(20)
        return {"memory_used_bytes": 1.0}

    async def main() -> None:
        async with watching(Target(metric_values=no_metrics, usage=usage), Sink(), interval_s=SOON):
            await until(hanging.is_set)

    asyncio.run(main())
    (left,) = [thread for thread in threading.enumerate() if thread.name == "watch container"]
    release.set()
    left.join(20)  # pytest turns an exception in a thread into a failure
    assert not left.is_alive()


def test_a_slow_source_skips_ticks_instead_of_queueing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    blocked, release = threading.Event(), threading.Event()

    def usage() -> dict[str, float]:
        asked.append(now_ns())
        if len(asked) == 1:
            blocked.set()
            assert release.wait(20)
        return {"readings": float(len(asked))}

    async def main() -> None:
        sink = Sink()
        async with watching(Target(metric_values=no_metrics, usage=usage), sink, interval_s=SOON):
            await until(lambda: blocked.is_set() and sink.count("host") >= 20)
            assert len(asked) == 1
            released_ns = now_ns()
            release.set()
            await until(lambda: sink.count("container") >= 3)
        samples = sink.of("container")
        assert samples[0].at_ns >= released_ns, "a late sample carries the time at which it was read"
        assert all(at_ns >= released_ns for at_ns in asked[1:])

    asyncio.run(main())


def test_a_sink_that_fails_ends_the_watch_with_its_error() -> None:
    delivered = 0

    def full(sample: Sample) -> None:
        nonlocal delivered
        delivered += 1
        raise OSError(28, "No space left on device")

    async def main() -> None:
        async with watching(Target(metric_values=no_metrics), full, interval_s=SOON) as watch:
            await until(lambda: watch.sink_error is not None and watch.readings()["host"] >= 3)

    with pytest.raises(OSError, match="No space left"):
        asyncio.run(main())
    assert delivered == 1


def test_the_bodys_own_error_wins() -> None:
    def full(sample: Sample) -> None:
        raise OSError(28, "No space left on device")

    async def main() -> None:
        async with watching(Target(metric_values=no_metrics), full, interval_s=SOON) as watch:
            await until(lambda: watch.sink_error is not None)
            raise KeyError("body")

    with pytest.raises(KeyError, match="body"):
        asyncio.run(main())
    assert watch_threads() == []


def test_a_cancelled_body_leaves_no_thread() -> None:
    async def main() -> None:
        ready = asyncio.Event()

        async def body() -> None:
            async with watching(Target(metric_values=no_metrics), Sink(), interval_s=SOON):
                ready.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(body())
        await ready.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert watch_threads() == []


@pytest.mark.parametrize("asked", ["0", "all", UUID])
def test_a_card_that_cannot_be_seen_is_a_note(monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    monkeypatch.setattr(gpu, "pynvml", Driver(init_error=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND))

    async def main() -> tuple[str, ...]:
        sink = Sink()
        async with watching(Target(metric_values=no_metrics, gpus=(asked,)), sink, interval_s=SOON) as watch:
            await until(lambda: sink.count("host") >= 2 and bool(watch.notes))
        return watch.notes

    (note,) = asyncio.run(main())
    assert note.startswith("gpu: 1 of 1 readings failed; first: No NVIDIA GPU")


def test_a_card_that_is_lost_under_load_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card()
    driver = Driver([card])
    monkeypatch.setattr(gpu, "pynvml", driver)

    async def main() -> tuple[str, ...]:
        sink = Sink()
        async with watching(Target(metric_values=no_metrics, gpus=("0",)), sink, interval_s=SOON) as watch:
            await until(lambda: sink.count(f"gpu:{UUID}") >= 2)
            card.lost = True
            await until(lambda: bool(watch.notes))
        return watch.notes

    (note,) = asyncio.run(main())
    assert note.startswith(f"gpu:{UUID}: ")
    assert "does not answer" in note
    assert driver.opened == driver.closed == 2


def test_the_engines_metrics_are_sampled_in_the_stacks_names() -> None:
    def values(text: str) -> dict[str, float]:
        return {"running": float(text.split()[1])}

    async def main() -> None:
        sink = Sink()
        with serving(page(b"vllm:num_requests_running 3\n")) as (url, _):
            target = Target(metric_values=values, base_url=url, metrics_path="/metrics")
            async with watching(target, sink, interval_s=SOON) as watch:
                await until(lambda: sink.count("engine") >= 3)
        assert watch.notes == ()
        assert sink.of("engine")[0].values == {"running": 3.0}

    asyncio.run(main())


def test_an_engine_that_is_gone_is_a_note() -> None:
    async def main() -> tuple[str, ...]:
        target = Target(metric_values=no_metrics, base_url="http://127.0.0.1:9", metrics_path="/metrics")
        async with watching(target, Sink(), interval_s=SOON) as watch:
            await until(lambda: bool(watch.notes))
        return watch.notes

    (note,) = asyncio.run(main())
    assert note.startswith("engine: ")
    assert "http://127.0.0.1:9/metrics" in note


@given(due=st.integers(0, 10**18), late=st.integers(-(10**10), 10**12), interval=st.integers(1, 10**10))
def test_the_next_tick_is_the_first_of_the_grid_after_now(due: int, late: int, interval: int) -> None:
    now = due + late
    tick = next_tick(due, now, interval)
    assert tick > now
    assert (tick - due) % interval == 0
    assert tick == due or tick - interval <= now
