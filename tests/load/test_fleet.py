"""Several load processes: the same requests as one sends, one order of records, and what becomes of the dead."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.load.capacity import EVENTS_PER_S, STREAMS, expected, workers_needed
from orchestrator.load.engine import Load, Target, open_engine
from orchestrator.load.fleet import Fleet, Worker, open_fleet
from orchestrator.load.merge import Merge
from orchestrator.load.tally import SharedTally, Tally, TallyHeldError
from orchestrator.records import LevelRun, LevelSpec, Request, RequestRecord
from stacks.openai import TextCompletionsWire
from workloads.text import PromptMaker

SERVER = Path(__file__).parents[1] / "fakes" / "openai_server.py"


@pytest.fixture
def server() -> Iterator[str]:
    command = [sys.executable, str(SERVER), "--capacity", "1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().split()[-1]}"
        process.terminate()


def target(url: str) -> Target:
    return Target(base_url=url, wire=TextCompletionsWire(), model="m", prompts=PromptMaker(form="text"))


def spec(**changes: float) -> LevelSpec:
    settings: dict[str, float] = {
        "concurrency": 6, "requests": 40, "min_seconds": 0.0, "max_seconds": 60.0, "ramp_seconds": 0.0,
        "warmup_generations": 0, "warmup_seconds": 0.0, "filler_seconds": 0.0, "deadline_seconds": 30.0, "workers": 2,
    }  # fmt: skip
    return LevelSpec(purpose="load", seed=1, **{**settings, **changes})  # type: ignore[arg-type]


def asked(first: int = 0) -> Iterator[Request]:
    return (
        Request(seq=n, prompt_tokens=5 + n % 300, output_tokens=1 + n % 7, prompt_seed=n)
        for n in itertools.count(first)
    )


def load(level: LevelSpec, due: tuple[int, ...] = ()) -> Load:
    return Load(level, asked(), asked(50_000), due)


Ran = tuple[LevelRun, list[RequestRecord]]


async def ran(fleet: Fleet, what: Load) -> Ran:
    records: list[RequestRecord] = []
    return await fleet.run(what, on_record=records.append), records


def with_fleet(url: str, body: Callable[[Fleet], Awaitable[None]]) -> None:
    async def main() -> None:
        async with open_fleet(target(url)) as fleet:
            await body(fleet)

    asyncio.run(main())


def children() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "orchestrator.load.worker" in p.cmdline()]


def lengths(records: list[RequestRecord]) -> list[tuple[int, int]]:
    return sorted((r.asked_in, r.asked_out) for r in records if r.phase == "measured")


# --- the same requests ------------------------------------------------------------------------------------------


def test_a_fleet_sends_what_one_process_sends_level_after_level(server: str) -> None:
    async def body(fleet: Fleet) -> None:
        for workers, count, due in ((2, 600, ()), (3, 40, ()), (2, 50, tuple(range(0, 50 * 10**7, 10**7)))):
            users = 0 if due else 12
            run, records = await ran(fleet, load(spec(workers=workers, requests=count, concurrency=users), due))
            assert (run.cut, run.health.lost, run.undrained, run.health.workers) == (None, None, 0, workers)
            assert sorted(r.seq for r in records) == list(range(count))
            assert {r.phase for r in records} == {"measured"}
            assert {r.failure for r in records} == {None}
            assert lengths(records) == sorted(
                (r.prompt_tokens, r.output_tokens) for r in itertools.islice(asked(), count)
            )
            assert len({r.request_id.split("-")[0] for r in records}) == workers
            assert [r.end_ns for r in records] == sorted(r.end_ns for r in records)
            assert run.health.sent == count
        assert len(children()) == 3

    with_fleet(server, body)
    assert children() == []


def test_one_process_is_enough_for_one_and_more_are_started_where_a_level_asks(server: str) -> None:
    async def main() -> None:
        async with open_engine(target(server)) as engine:
            for workers, started in ((1, 0), (2, 2), (1, 2)):
                records: list[RequestRecord] = []
                run = await engine.run(load(spec(workers=workers)), on_record=records.append)
                assert (run.cut, len(records), run.health.workers) == (None, 40, workers)
                assert len(children()) == started

    asyncio.run(main())
    assert children() == []


def test_a_reason_to_stop_ends_a_level_of_several(server: str) -> None:
    places: list[int] = []

    def stop_early(record: RequestRecord, place: int, of: int | None) -> str | None:
        assert of == 5000
        places.append(place)
        return "decided" if len(places) == 25 else None

    async def body(fleet: Fleet) -> None:
        level = spec(requests=5000, ramp_seconds=0.2, warmup_generations=1, filler_seconds=5)
        records: list[RequestRecord] = []
        run = await fleet.run(load(level), on_record=records.append, stop_early=stop_early)
        assert run.cut == "decided"
        measured = sorted(r.seq for r in records if r.phase == "measured")
        assert 25 <= len(measured) < 2500
        assert measured == list(range(measured[0], measured[0] + len(measured)))
        assert len(places) == 25
        assert set(places) <= set(range(len(measured)))

    with_fleet(server, body)


def test_an_open_level_of_several_ends_for_a_reason_too(server: str) -> None:
    async def body(fleet: Fleet) -> None:
        due = tuple(range(0, 4000 * 10**7, 10**7))
        records: list[RequestRecord] = []
        run = await fleet.run(
            load(spec(concurrency=0, requests=3990), due),
            on_record=records.append,
            stop_early=lambda _, place, of: "decided" if place >= 20 and of == 3990 else None,
        )
        assert run.cut == "decided"
        assert 30 < len(records) < 2000
        assert {r.phase for r in records if r.seq < 10} == {"warmup"}
        assert {r.phase for r in records if r.seq >= 10} == {"measured"}

    with_fleet(server, body)


def test_an_abort_ends_all_of_them(server: str) -> None:
    async def body(fleet: Fleet) -> None:
        abort: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        records: list[RequestRecord] = []

        def on_record(record: RequestRecord) -> None:
            records.append(record)
            if len(records) == 10:
                abort.set_result("the server died")

        run = await fleet.run(load(spec(requests=5000)), on_record=on_record, abort=abort)
        assert (run.cut, run.health.lost) == ("the server died", None)
        assert 10 <= len(records) < 5000
        assert len(children()) == 2

    with_fleet(server, body)


# --- the dead ---------------------------------------------------------------------------------------------------


def test_a_killed_worker_voids_its_level_and_is_replaced_for_the_next(server: str) -> None:
    async def body(fleet: Fleet) -> None:
        records: list[RequestRecord] = []

        def on_record(record: RequestRecord) -> None:
            records.append(record)
            if len(records) == 10:
                children()[0].send_signal(signal.SIGKILL)

        run = await fleet.run(load(spec(requests=5000)), on_record=on_record)
        assert run.health.lost in ("load worker 1 of 2 died of SIGKILL", "load worker 2 of 2 died of SIGKILL")
        assert run.cut == run.health.lost
        assert 10 <= len(records) < 5000
        run, records = await ran(fleet, load(spec()))
        assert (run.cut, run.health.lost, len(records)) == (None, None, 40)
        assert len(children()) == 2

    with_fleet(server, body)


def test_a_worker_that_hangs_is_lost_too(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.load.fleet.SILENT_S", 1.0)

    async def body(fleet: Fleet) -> None:
        records: list[RequestRecord] = []

        def on_record(record: RequestRecord) -> None:
            records.append(record)
            if len(records) == 10:
                children()[0].send_signal(signal.SIGSTOP)

        run = await fleet.run(load(spec(requests=100_000)), on_record=on_record)
        assert run.health.lost is not None
        assert run.health.lost.endswith("did not answer any more")

    with_fleet(server, body)
    assert children() == []


def test_what_goes_wrong_with_a_record_is_raised_and_no_worker_goes_on(server: str) -> None:
    def full(record: RequestRecord) -> None:
        raise OSError("the disk is full")

    async def body(fleet: Fleet) -> None:
        with pytest.raises(OSError, match="disk is full"):
            await fleet.run(load(spec(requests=5000)), on_record=full)
        assert children() == []

    with_fleet(server, body)


def test_a_process_that_cannot_be_started_leaves_none_behind(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    start = Worker.start
    started: list[Worker] = []

    async def second_fails(target: bytes, shared: SharedTally) -> Worker:
        if started:
            raise OSError("no more processes")
        started.append(await start(target, shared))
        return started[0]

    monkeypatch.setattr(Worker, "start", second_fails)

    async def body(fleet: Fleet) -> None:
        with pytest.raises(OSError, match="no more processes"):
            await ran(fleet, load(spec()))
        assert len(children()) == 1

    with_fleet(server, body)
    assert len(started) == 1
    assert children() == []


PARENT = """
import asyncio, sys
sys.path[:0] = sys.argv[2:]
from test_fleet import load, spec, target
from orchestrator.load.fleet import open_fleet

async def main():
    async with open_fleet(target(sys.argv[1])) as fleet:
        await fleet.run(load(spec(requests=10**6)), on_record=lambda record: print("record", flush=True))

asyncio.run(main())
"""


def test_no_worker_outlives_its_parent(server: str) -> None:
    path = [str(Path(__file__).parent), *sys.path]
    with subprocess.Popen([sys.executable, "-c", PARENT, server, *path], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"record\n"
        workers = psutil.Process(parent.pid).children()
        assert len(workers) == 2
        parent.kill()
    gone, alive = psutil.wait_procs(workers, timeout=20)
    assert (len(gone), alive) == (2, [])


def test_a_lock_of_the_dead_is_let_go() -> None:
    shared = SharedTally.create()
    program = (
        "import sys, os; sys.path[:0] = sys.argv[2:]\n"
        "from orchestrator.load.tally import SharedTally\n"
        "shared = SharedTally(int(sys.argv[1])); shared.lock.__enter__(); shared.tally.issued += 7\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(shared.fd), *sys.path]
    with subprocess.Popen(command, pass_fds=(shared.fd,), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        import fcntl

        with pytest.raises(BlockingIOError):
            fcntl.lockf(shared.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        holder.kill()
        holder.wait()
        with shared.lock:
            assert shared.tally.issued == 7
    shared.close()


HOLDER = (
    "import sys; sys.path[:0] = sys.argv[2:]\n"
    "from orchestrator.load.tally import SharedTally\n"
    "shared = SharedTally(int(sys.argv[1])); shared.lock.__enter__()\n"
    "print('held', flush=True); sys.stdin.read()"
)


@contextlib.contextmanager
def held(shared: SharedTally) -> Iterator[None]:
    """Another process has the lock, and keeps it until it is killed."""
    command = [sys.executable, "-c", HOLDER, str(shared.fd), *sys.path]
    with subprocess.Popen(command, pass_fds=(shared.fd,), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        try:
            yield
        finally:
            holder.kill()


def test_a_lock_that_is_held_is_waited_for_within_a_time() -> None:
    shared = SharedTally.create()
    with held(shared), pytest.raises(TallyHeldError, match=r"over 0\.05 s"), shared.lock_within(0.05):
        pass
    with shared.lock_within(0.05):
        shared.tally.issued += 1
    assert shared.tally.issued == 1
    shared.close()


def test_a_worker_that_freezes_with_the_lock_voids_its_level(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.load.fleet.SILENT_S", 2.0)
    monkeypatch.setattr("orchestrator.load.fleet.HELD_S", 0.2)

    async def body(fleet: Fleet) -> None:
        frozen = contextlib.ExitStack()
        records: list[RequestRecord] = []

        def on_record(record: RequestRecord) -> None:
            records.append(record)
            if len(records) == 10:
                frozen.enter_context(held(fleet._shared))

        with frozen:
            run = await fleet.run(load(spec(requests=100_000)), on_record=on_record)
        assert run.health.lost == "a load process held what all of them count in for over 0.2 s"
        assert run.cut == run.health.lost
        run, records = await ran(fleet, load(spec()))
        assert (run.cut, run.health.lost, len(records)) == (None, None, 40)

    with_fleet(server, body)


# --- what is decided --------------------------------------------------------------------------------------------


def record(end_ns: int, seq: int) -> RequestRecord:
    return RequestRecord(
        seq=seq, request_id="", phase="measured", due_ns=0, sent_ns=0, end_ns=end_ns, asked_in=1, asked_out=1
    )


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 50)), max_size=60), st.randoms(use_true_random=False))
def test_records_come_out_in_the_order_of_their_ends_and_none_is_lost(ends: list[tuple[int, int]], rng: object) -> None:
    """Each worker tells its own in order, the workers one against another in any."""
    merge, out = Merge(3), list[RequestRecord]()
    mine = {worker: sorted(end for of, end in ends if of == worker) for worker in range(3)}
    seqs = itertools.count()
    while any(mine.values()):
        worker = rng.choice([w for w in mine if mine[w]])  # type: ignore[attr-defined]
        end = mine[worker].pop(0)
        merge.add(record(end, next(seqs)))
        merge.told_until(worker, end)
        out += merge.take()
    for worker in range(3):
        merge.close(worker)
    out += merge.take()
    assert [r.end_ns for r in out] == sorted(end for _, end in ends)


def test_an_integral_does_not_care_in_which_order_workers_count() -> None:
    changes = [(+1, 10), (+1, 20), (-1, 35), (+1, 40), (-1, 70), (-1, 90)]
    found = set()
    for order in itertools.permutations(changes):
        tally = Tally()
        tally.begin(0)
        for step, at_ns in order:
            tally.count(step, at_ns)
        tally.count(0, 100)
        found.add(tally.integral)
    assert found == {25 + 50 + 50}


@pytest.mark.parametrize(
    ("streams", "each", "cores", "needed"),
    [
        (1, None, 64, 1),
        (512, None, 64, 1),
        (513, None, 64, 2),
        (STREAMS, 10.0, 64, 1),
        (STREAMS + 1, 10.0, 64, 2),
        (4096, 10.0, 64, 4),
        (100, 3 * EVENTS_PER_S / 100, 64, 3),
        (4096, None, 4.0, 3),
        (4096, None, 2.0, 1),
        (4096, None, 0.5, 1),
    ],
)
def test_as_many_workers_as_the_load_asks_for(streams: int, each: float | None, cores: float, needed: int) -> None:
    assert workers_needed(expected(streams, each), cores) == needed
