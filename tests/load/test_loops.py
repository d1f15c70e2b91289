"""The open and the closed loop in virtual time: how many requests are sent, when, and what becomes of them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence

import pytest
from fakes.virtual_time import run_virtually
from msgspec.structs import replace

from orchestrator.clock import NS_PER_MS, NS_PER_S
from orchestrator.judge.level import judge_level
from orchestrator.load.closed import run_closed
from orchestrator.load.open import run_open
from orchestrator.load.supply import Drawn
from orchestrator.load.tally import Part
from orchestrator.metrics import is_good, level_stats, ttft_due_ns, ttft_ns
from orchestrator.records import Failure, LevelRun, LevelSpec, Phase, Request, RequestRecord, Slo
from workloads.arrivals import Law, constant, gamma, modulated, poisson, schedule, trace

Ran = tuple[LevelRun, list[RequestRecord]]
Serve = Callable[[Request], float]


def spec(**changes: float) -> LevelSpec:
    settings: dict[str, float] = {
        "concurrency": 0, "requests": 1, "min_seconds": 0.0, "max_seconds": 3600.0, "ramp_seconds": 0.0,
        "warmup_generations": 0, "warmup_seconds": 0.0, "filler_seconds": 0.0, "deadline_seconds": 600.0,
    }  # fmt: skip
    return LevelSpec(purpose="load", seed=1, **{**settings, **changes})  # type: ignore[arg-type]


class Server:
    """Answers each request after as many seconds as it is told; keeps what it was sent and when."""

    def __init__(self, seconds: Serve = lambda _: 0.5, stalls: tuple[float, float] | None = None) -> None:
        self.seconds = seconds
        self.stalls = stalls
        self.sent: list[tuple[int, int]] = []
        self.most = self.running = 0

    async def send(
        self, request: Request, *, seq: int, phase: Phase, due_ns: int, user: int | None = None,
        body: bytes | None = None,
    ) -> RequestRecord:  # fmt: skip
        loop = asyncio.get_running_loop()
        sent_ns = round(loop.time() * NS_PER_S)
        self.sent.append((request.seq, sent_ns))
        self.running += 1
        self.most = max(self.most, self.running)
        failure = None
        try:
            await asyncio.sleep(self.seconds(request))
        except asyncio.CancelledError:
            failure = Failure(kind="cancelled")
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
        self.running -= 1
        end_ns = round(loop.time() * NS_PER_S)
        return RequestRecord(
            seq=seq, request_id=str(seq), phase=phase, due_ns=due_ns, sent_ns=sent_ns, end_ns=end_ns, asked_in=1,
            asked_out=1, first_ns=end_ns, last_ns=end_ns, out_tokens=1, token_ns=(end_ns,), failure=failure,
            user=user,
        )  # fmt: skip


def requests() -> itertools.count[int]:
    return itertools.count()


def request(seq: int) -> Request:
    return Request(seq=seq, prompt_tokens=1, output_tokens=1, prompt_seed=seq)


def open_run(
    monkeypatch: pytest.MonkeyPatch, server: Server, due: Sequence[int], *, most: int = 1000, **changes: float
) -> Ran:
    records: list[RequestRecord] = []
    level = run_open(
        spec(**{"requests": len(due), **changes}), due, requests=Drawn(map(request, requests())),
        send=server.send, prepare=lambda _: b"",
        on_record=records.append, most_in_flight=most,
    )  # fmt: skip
    return run_virtually(monkeypatch, level), records


def shared(workers: int) -> list[Part]:
    """The parts of a level whose workers share one tally, and here one loop."""
    whole = Part()
    return [Part(number, workers, whole.tally, over=whole.over) for number in range(workers)]


def divided_run(monkeypatch: pytest.MonkeyPatch, server: Server, workers: int, **changes: float) -> Ran:
    """A closed level by several workers, in virtual time."""
    records: list[RequestRecord] = []
    measured, other = Drawn(map(request, requests())), Drawn(map(request, itertools.count(10_000)))

    async def level() -> LevelRun:
        runs = [
            run_closed(
                spec(**changes), measured=measured, other=other, send=server.send, prepare=lambda _: b"",
                on_record=records.append, part=part,
            )
            for part in shared(workers)
        ]  # fmt: skip
        return (await asyncio.gather(*runs))[-1]

    return run_virtually(monkeypatch, level()), records


def closed_run(monkeypatch: pytest.MonkeyPatch, server: Server, **changes: float) -> Ran:
    records: list[RequestRecord] = []
    level = run_closed(
        spec(**changes), measured=Drawn(map(request, requests())), other=Drawn(map(request, itertools.count(10_000))),
        send=server.send, prepare=lambda _: b"", on_record=records.append,
    )  # fmt: skip
    return run_virtually(monkeypatch, level), records


# --- open -------------------------------------------------------------------------------------------------------

LAWS = {
    "constant": constant,
    "poisson": poisson,
    "gamma:2": gamma(2),
    "modulated": modulated([1, 3], bin_s=5),
    "trace": trace([n * n / 100 for n in range(200)]),
}


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_each_request_is_sent_when_it_is_due(monkeypatch: pytest.MonkeyPatch, law: Law) -> None:
    due = schedule(law(20, 7), requests=150)
    server = Server()
    run, records = open_run(monkeypatch, server, due)
    assert [seq for seq, _ in server.sent] == list(range(150))
    assert [at - run.started_ns for _, at in server.sent] == [pytest.approx(at, abs=1000) for at in due]
    assert sorted(record.seq for record in records) == list(range(150))
    assert (run.cut, run.undrained, {r.failure for r in records}) == (None, 0, {None})
    assert all(record.due_ns == run.started_ns + due[record.seq] for record in records)


def test_a_slow_server_is_sent_no_less(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(lambda _: 30.0)
    run, records = open_run(monkeypatch, server, schedule(constant(10, 0), seconds=20))
    assert len(records) == 200
    assert server.most == 200
    assert run.in_flight_integral_s == pytest.approx(sum(range(200)) / 10, rel=0.001)


def test_beyond_the_safety_cap_requests_are_dropped_and_count_against_the_level(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Server(lambda _: 10.0)
    _, records = open_run(monkeypatch, server, schedule(constant(10, 0), seconds=2), most=5)
    dropped = [r for r in records if r.failure is not None and r.failure.kind == "dropped"]
    assert (len(server.sent), server.most, len(dropped), len(records)) == (5, 5, 15, 20)
    assert not any(is_good(record, Slo(), from_due=True) for record in dropped)


def test_time_starts_when_a_request_was_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes a body holds up the loop for 2 s: the request is late, and its wait counts."""
    server = Server(lambda _: 0.1)
    records: list[RequestRecord] = []

    def prepare(request: Request) -> bytes:
        if request.seq == 1:
            asyncio.get_running_loop().now_s += 2.0  # type: ignore[attr-defined]
        return b""

    level = run_open(
        spec(requests=3), schedule(constant(10, 0), requests=3), requests=Drawn(map(request, requests())),
        send=server.send,
        prepare=prepare, on_record=records.append, most_in_flight=10,
    )  # fmt: skip
    run = run_virtually(monkeypatch, level)
    late = next(r for r in records if r.seq == 1)
    assert (ttft_ns(late), ttft_due_ns(late)) == (100 * NS_PER_MS, 2_000 * NS_PER_MS)
    assert run.health.send_lag_ms_p99 == pytest.approx(1900)


def test_a_client_that_is_too_slow_is_invalid_and_no_break(monkeypatch: pytest.MonkeyPatch) -> None:
    records: list[RequestRecord] = []

    def prepare(_: Request) -> bytes:
        asyncio.get_running_loop().now_s += 0.3  # type: ignore[attr-defined]
        return b""

    level = run_open(
        spec(requests=100), schedule(constant(10, 0), requests=100), requests=Drawn(map(request, requests())),
        send=Server().send,
        prepare=prepare, on_record=records.append, most_in_flight=1000,
    )  # fmt: skip
    run = run_virtually(monkeypatch, level)
    slo = Slo()
    verdict = judge_level(run, level_stats(run, records, [], slo), records, [], slo)
    assert not verdict.valid
    assert verdict.invalid[0].startswith("I1: loadproof was too slow itself")


def test_the_time_limit_ends_it_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(lambda _: 100.0)
    run, records = open_run(monkeypatch, server, schedule(constant(1, 0), seconds=60), max_seconds=10.5)
    assert run.cut == "the time limit of 10.5 s for a level"
    assert [r.failure is not None and r.failure.kind for r in records] == ["cancelled"] * 11
    assert run.undrained == 11


def test_the_first_part_is_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    run, records = open_run(monkeypatch, Server(), schedule(constant(10, 0), requests=50), requests=40)
    assert [r.phase for r in sorted(records, key=lambda r: r.seq)] == ["warmup"] * 10 + ["measured"] * 40
    assert run.window_start_ns == pytest.approx(run.started_ns + 10 * NS_PER_S / 10, abs=1000)


def test_what_does_not_end_within_the_drain_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(lambda request: 100.0 if request.seq in (2, 9) else 1.0)
    run, records = open_run(monkeypatch, server, schedule(constant(10, 0), requests=20), drain_seconds=5.0)
    lost = [r for r in records if r.failure is not None]
    assert sorted((r.seq, r.failure and r.failure.kind) for r in lost) == [(2, "timeout"), (9, "timeout")]
    assert run.cut is None
    assert len(records) == 20
    assert run.ended_ns - run.started_ns == pytest.approx(6.9 * NS_PER_S, abs=1000)


def test_a_reason_ends_it_early(monkeypatch: pytest.MonkeyPatch) -> None:
    records: list[RequestRecord] = []
    level = run_open(
        spec(requests=90), schedule(constant(10, 0), requests=100), requests=Drawn(map(request, requests())),
        send=Server().send, prepare=lambda _: b"", on_record=records.append, most_in_flight=100,
        stop_early=lambda record, place, of: "decided" if (record.seq, place, of) == (30, 20, 90) else None,
    )  # fmt: skip
    run = run_virtually(monkeypatch, level)
    assert run.cut == "decided"
    assert sum(r.failure is None for r in records) == 31
    assert {r.failure.kind for r in records if r.failure is not None} == {"cancelled"}


def test_what_goes_wrong_with_a_record_ends_the_level(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(record: RequestRecord) -> None:
        raise OSError("the disk is full")

    level = run_open(
        spec(requests=50), schedule(constant(10, 0), requests=50), requests=Drawn(map(request, requests())),
        send=Server().send,
        prepare=lambda _: b"", on_record=full, most_in_flight=10,
    )  # fmt: skip
    with pytest.raises(OSError, match="disk is full"):
        run_virtually(monkeypatch, level)


# --- closed -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 7, 40])
def test_without_fillers_exactly_the_asked_requests_are_sent(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    server = Server()
    run, records = closed_run(monkeypatch, server, concurrency=4, requests=count)
    assert (len(server.sent), len(records), run.cut) == (count, count, None)
    assert server.most == min(4, count)


def test_with_a_length_requests_are_sent_until_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(lambda _: 0.5)
    run, records = closed_run(monkeypatch, server, concurrency=3, requests=1, min_seconds=9.9)
    assert len(records) == 3 * 20
    assert max(at for _, at in server.sent) - run.started_ns < 10 * NS_PER_S


def test_users_think(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(lambda _: 0.5)
    _, records = closed_run(monkeypatch, server, concurrency=2, requests=20, think_seconds=1.5)
    assert max(at for _, at in server.sent) - min(at for _, at in server.sent) == pytest.approx(9 * 2 * NS_PER_S)
    assert all(r.sent_ns - r.due_ns < NS_PER_MS for r in records)


# --- by several workers -----------------------------------------------------------------------------------------

WORKERS = (1, 2, 3)


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("users", [1, 4])
@pytest.mark.parametrize("count", [1, 7, 40])
def test_however_many_workers_send_the_same_requests(
    monkeypatch: pytest.MonkeyPatch, workers: int, users: int, count: int
) -> None:
    server = Server()
    run, records = divided_run(monkeypatch, server, workers, concurrency=users, requests=count)
    assert sorted(seq for seq, _ in server.sent) == list(range(count))
    assert sorted(r.seq for r in records) == list(range(count))
    assert (run.cut, run.undrained, server.most) == (None, 0, min(users, count))
    assert {r.phase for r in records} == {"measured"}


@pytest.mark.parametrize("workers", WORKERS)
def test_the_measured_set_is_the_next_n_in_issue_order_whoever_issues_them(
    monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Ramp, three generations of warm-up, 50 measured, filler until the last of them has ended, drain."""
    server = Server(lambda asked: 0.5 + asked.seq % 7 / 10)
    run, records = divided_run(
        monkeypatch, server, workers, concurrency=5, requests=50, ramp_seconds=5, warmup_generations=3,
        warmup_seconds=2, filler_seconds=30,
    )  # fmt: skip
    by_seq = {r.seq: r for r in records}
    assert sorted(by_seq) == list(range(len(records)))
    phases = [by_seq[seq].phase for seq in range(len(records))]
    first = phases.index("measured")
    assert phases[first : first + 50] == ["measured"] * 50
    assert first >= 15
    assert set(phases[:first]) == {"ramp", "warmup"}
    assert len(phases) > first + 50
    assert set(phases[first + 50 :]) == {"filler"}
    measured = sorted(seq for seq, _ in server.sent if seq < 10_000)
    assert measured == list(range(50))
    assert sorted(seq for seq, _ in server.sent if seq >= 10_000) == [10_000 + i for i in range(len(records) - 50)]
    assert {r.user for r in records} == set(range(5))
    assert max(r.sent_ns for r in records) <= max(r.end_ns for r in records if r.phase == "measured")
    # The load is exactly c during the window, and the sum over workers says so.
    assert run.window_start_ns is not None
    assert run.window_end_ns is not None
    window_s = (run.window_end_ns - run.window_start_ns) / NS_PER_S
    assert run.in_flight_integral_s == pytest.approx(5 * window_s, rel=1e-6)
    assert run.window_end_ns == by_seq[first + 49].sent_ns


@pytest.mark.parametrize("workers", WORKERS)
def test_users_start_evenly_over_the_ramp(monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    server = Server(lambda _: 100.0)
    run, records = divided_run(
        monkeypatch, server, workers, concurrency=6, requests=1, ramp_seconds=12, warmup_generations=1, max_seconds=60
    )
    starts = sorted((at - run.started_ns) / NS_PER_S for _, at in server.sent)
    assert len(starts) == 6
    assert starts == pytest.approx([0, 2, 4, 6, 8, 10], abs=0.1)
    assert {r.user: round((r.sent_ns - run.started_ns) / NS_PER_S / 2) for r in records} == {i: i for i in range(6)}
    assert run.cut == "the time limit of 60 s for a level"


@pytest.mark.parametrize("workers", WORKERS)
def test_a_length_ends_a_level_for_all_workers(monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    server = Server(lambda _: 0.5)
    run, records = divided_run(monkeypatch, server, workers, concurrency=4, requests=1, min_seconds=9.9)
    assert len(records) == 4 * 20
    assert max(at for _, at in server.sent) - run.started_ns < 10 * NS_PER_S


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize(("least_s", "count"), [(0.0, 20), (0.0, 7), (9.9, 20), (9.9, 7), (1.0, 200)])
def test_how_many_are_measured_is_told_as_soon_as_it_is_certain(
    monkeypatch: pytest.MonkeyPatch, workers: int, least_s: float, count: int
) -> None:
    server = Server(lambda asked: 0.3 + asked.seq % 7 / 10)
    measured, records = Drawn(map(request, requests())), list[RequestRecord]()
    told: list[tuple[int, int | None]] = []

    def stop_early(record: RequestRecord, _place: int, of: int | None) -> None:
        told.append((record.end_ns, of))

    async def level() -> LevelRun:
        runs = [
            run_closed(
                spec(concurrency=4, requests=count, min_seconds=least_s), measured=measured, other=measured,
                send=server.send, prepare=lambda _: b"", on_record=records.append, stop_early=stop_early, part=part,
            )
            for part in shared(workers)
        ]  # fmt: skip
        return (await asyncio.gather(*runs))[-1]

    run = run_virtually(monkeypatch, level())
    certain_ns = (run.window_start_ns or 0) + round(least_s * NS_PER_S)
    assert len(told) == len(records) >= count
    assert {of for at, of in told if at < certain_ns} == ({None} if least_s else set())
    assert {of for at, of in told if at >= certain_ns} == {len(records)}
    assert len(records) == count or count % 10 or len(records) % 10 == 0


@pytest.mark.parametrize("workers", WORKERS)
def test_send_times_are_shared_out_and_none_is_missed(monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    due = schedule(poisson(20, 7), requests=150)
    server, records = Server(), list[RequestRecord]()
    asked = Drawn(map(request, requests()))

    async def level() -> LevelRun:
        runs = [
            run_open(
                spec(requests=150), due, requests=asked,
                send=server.send, prepare=lambda _: b"", on_record=records.append,
                most_in_flight=1000, part=part,
            )
            for part in shared(workers)
        ]  # fmt: skip
        return (await asyncio.gather(*runs))[-1]

    run = run_virtually(monkeypatch, level())
    assert [seq for seq, _ in server.sent] == list(range(150))
    assert [at - run.started_ns for _, at in server.sent] == [pytest.approx(at, abs=1000) for at in due]
    assert all(r.due_ns == run.started_ns + due[r.seq] for r in records)
    assert sorted(r.seq for r in records) == list(range(150))
    overlap = sum(min(r.end_ns, run.window_end_ns or 0) - r.sent_ns for r in records)
    assert run.in_flight_integral_s == pytest.approx(overlap / NS_PER_S, rel=1e-3)


# --- conversations ----------------------------------------------------------------------------------------------


def talk(seq: int, turns: int, think_s: float) -> Request:
    each = [
        Request(
            seq=seq * 10 + turn, prompt_tokens=10 * (turn + 1), output_tokens=1, prompt_seed=seq, session=str(seq),
            turn=turn, think_s=think_s if turn else 0.0,
        )
        for turn in range(turns)
    ]  # fmt: skip
    return replace(each[0], later=tuple(each[1:]))


@pytest.mark.parametrize("workers", WORKERS)
def test_conversations_come_openly_and_their_turns_wait_for_answer_and_thought(
    monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    due = schedule(constant(1, 0), requests=4)
    server, records = Server(lambda asked: 3.0 if asked.turn == 0 else 0.5), list[RequestRecord]()
    sessions = Drawn(talk(seq, 1 + seq % 3, think_s=2.0) for seq in itertools.count())

    async def level() -> LevelRun:
        runs = [
            run_open(
                spec(requests=7), due, requests=sessions,
                send=server.send, prepare=lambda _: b"", on_record=records.append,
                most_in_flight=1000, part=part,
            )
            for part in shared(workers)
        ]  # fmt: skip
        return (await asyncio.gather(*runs))[-1]

    run = run_virtually(monkeypatch, level())
    sent = {seq: (at - run.started_ns) / NS_PER_S for seq, at in server.sent}
    # Sessions of 1, 2, 3 and 1 turns: each begins when it is due, and a turn is due 2 s after the answer before it.
    assert sent == pytest.approx({0: 0, 10: 1, 11: 6, 20: 2, 21: 7, 22: 9.5, 30: 3}, abs=0.001)
    assert sorted(r.seq for r in records) == list(range(7))
    assert all(r.sent_ns - r.due_ns < NS_PER_MS for r in records)


def test_a_conversation_goes_on_after_a_turn_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    server, records = Server(lambda _: 10.0), list[RequestRecord]()
    level = run_open(
        spec(requests=4), schedule(constant(1, 0), requests=2),
        requests=Drawn(talk(seq, 2, 1.0) for seq in itertools.count()),
        send=server.send, prepare=lambda _: b"", on_record=records.append, most_in_flight=1,
    )  # fmt: skip
    run_virtually(monkeypatch, level)
    assert [seq for seq, _ in server.sent] == [0, 1]
    kinds = {(r.seq, r.failure and r.failure.kind) for r in records}
    assert kinds == {(0, None), (1, "dropped"), (2, "dropped"), (3, None)}
    assert len(records) == 4
