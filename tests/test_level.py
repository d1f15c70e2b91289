"""Open levels on the bench over real sockets: sent when due, judged from due, committed, judged again the same."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakes.virtual_time import run_virtually

from orchestrator.asked import open_traffic
from orchestrator.clock import NS_PER_S
from orchestrator.commands.display import Quiet
from orchestrator.journal import Journal, read_records
from orchestrator.judge.level import judge_level
from orchestrator.judge.search import Measure
from orchestrator.launch.external import ExternalServer
from orchestrator.level import Bench
from orchestrator.load.closed import run_closed
from orchestrator.load.engine import Load, OnRecord
from orchestrator.load.supply import Drawn
from orchestrator.machine import Machine, SocketLoad
from orchestrator.metrics import level_stats, measured_records
from orchestrator.plan.plan import Plan
from orchestrator.plan.reading import parse_plan
from orchestrator.records import (
    LevelCommitted,
    LevelRun,
    LevelStats,
    Phase,
    Purpose,
    Request,
    RequestRecord,
    Sample,
    ServerRecord,
    Slo,
    StopEarly,
    never,
)
from stacks.catalog import stack

SERVER = Path(__file__).parent / "fakes" / "openai_server.py"
PLAN = """
seed = 3
[slo]
ttft_ms = 20000
tpot_ms = 20000
[model]
id = "fake"
context_tokens = 512
[[deployment]]
name = "fake"
stack = "llamacpp"
launch = "external"
url = "{url}"
[[workload]]
name = "w"
prompt_tokens = "uniform:4:12"
output_tokens = 3
[ramp]
ramp_seconds = 0.1
[open_loop]
check = true
arrivals = "{arrivals}"
max_in_flight = {most}
"""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    command = [sys.executable, str(SERVER), "--first", "0.05", "0.05", "--gap", "0.005", "0.005"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().split()[-1]}"
        process.terminate()


def plan_for(url: str, arrivals: str = "poisson", most: int = 1000) -> Plan:
    text = PLAN.format(url=url, arrivals=arrivals, most=most).encode()
    return parse_plan(text, "plan.toml", base=Path(), environ={})


def measure(plan: Plan, step: Measure, folder: Path) -> LevelCommitted:
    """One level on a bench of its own."""
    (cell,) = plan.cells()
    record = ServerRecord(deployment="fake", stack="llamacpp", launch="external", base_url=cell.deployment.url or "")
    server = ExternalServer(record)

    async def run(journal: Journal) -> LevelCommitted:
        died = asyncio.ensure_future(server.died())
        journal.files.attempt(cell.id, 1).mkdir(parents=True)
        samples = journal.files.samples(cell.id, 1)
        async with Machine().loading(server, stack("llamacpp"), plan, cell, samples, Quiet()) as load:
            with contextlib.closing(Bench(load, plan, cell, journal, 1, Quiet())) as bench:
                commit = await bench.measure(bench.spec(step), died, level=0)
        died.cancel()
        return commit

    with Journal.create(folder, plan.text) as journal:
        return asyncio.run(run(journal))


@pytest.mark.parametrize("purpose", ["rate", "replay"])
def test_an_open_level_is_sent_when_due_and_judged_from_due(url: str, tmp_path: Path, purpose: Purpose) -> None:
    plan = plan_for(url, "gamma:2")
    step = Measure(
        concurrency=0,
        purpose=purpose,
        replicate=0,
        looks=(80,),
        rate_per_s=60.0,
        min_seconds=0.0,
    )
    commit = measure(plan, step, tmp_path / "run")
    (cell,) = plan.cells()
    spec, records = commit.run.spec, read_records(tmp_path / "run", commit)
    due, asked = open_traffic(spec, plan, cell)
    demanded = list(asked)
    by_seq = sorted(records, key=lambda r: r.seq)
    assert len(by_seq) == len(due)
    assert [r.due_ns - commit.run.started_ns for r in by_seq] == list(due)
    assert [(r.asked_in, r.asked_out) for r in by_seq] == [
        (r.prompt_tokens, r.output_tokens) for r in demanded[: len(due)]
    ]
    assert [r.phase for r in by_seq] == ["warmup"] * (len(due) - spec.requests) + ["measured"] * spec.requests
    assert all(r.sent_ns >= r.due_ns for r in by_seq)
    assert (commit.run.cut, commit.stats.offered, commit.stats.failed) == (None, spec.requests, 0)
    measured = measured_records(records)
    first = sorted((r.first_ns or 0) - r.due_ns for r in measured)
    assert commit.stats.ttft_ms.p50 == pytest.approx(first[len(first) // 2 - 1] / 1e6)
    assert commit.stats.in_flight_p95 is not None
    assert commit.stats.in_flight_p95 >= (commit.stats.mean_in_flight or 0) > 1
    assert [c.id for c in commit.verdict.criteria if c.id == "S7"] == ["S7"]
    stats = level_stats(commit.run, records, [], plan.slo)
    again = judge_level(commit.run, stats, records, [], plan.slo)
    assert (again.verdict, again.good_per_batch) == (commit.verdict.verdict, commit.verdict.good_per_batch)


def test_beyond_the_safety_cap_requests_fail(url: str, tmp_path: Path) -> None:
    step = Measure(concurrency=0, purpose="rate", replicate=0, looks=(40,), rate_per_s=400.0)
    commit = measure(plan_for(url, most=2), step, tmp_path / "run")
    assert commit.stats.failures.get("dropped", 0) > 2
    assert commit.verdict.verdict in ("FAIL", "UNDECIDED")
    assert next(c for c in commit.verdict.criteria if c.id == "S1").verdict == "FAIL"


def test_the_prefill_probe_asks_one_token_of_the_same_prompts(url: str, tmp_path: Path) -> None:
    step = Measure(concurrency=4, purpose="prefill", replicate=0, looks=(40,), min_seconds=0.2)
    commit = measure(plan_for(url), step, tmp_path / "run")
    records = read_records(tmp_path / "run", commit)
    assert {(r.asked_out, r.out_tokens) for r in records} == {(1, 1)}
    assert {4 <= r.asked_in <= 12 for r in records} == {True}
    assert commit.stats.offered >= 40
    assert commit.stats.prompt_tokens_per_s is not None
    assert commit.stats.prompt_tokens_per_s > 0
    assert commit.stats.window_s >= 0.2


# --- ended early ------------------------------------------------------------------------------------------------


class Scripted:
    """An engine that sends nothing: the k-th measured request gets its first token after as many seconds as it is told,
    in the loop's own time."""

    def __init__(self, first_s: Callable[[int], float], tokens: int = 1) -> None:
        """`tokens` come in as many events, 50 a second, the last one at the end."""
        self._first_s = first_s
        self._tokens = tokens
        self._measured = 0

    async def run(
        self,
        load: Load,
        *,
        on_record: OnRecord,
        stop_early: StopEarly = never,
        abort: asyncio.Future[str] | None = None,
    ) -> LevelRun:
        return await run_closed(
            load.spec, measured=Drawn(load.measured), other=Drawn(load.other), send=self.send,
            prepare=lambda _: b"", on_record=on_record, stop_early=stop_early, abort=abort,
        )  # fmt: skip

    async def send(
        self, request: Request, *, seq: int, phase: Phase, due_ns: int, user: int | None = None,
        body: bytes | None = None,
    ) -> RequestRecord:  # fmt: skip
        loop = asyncio.get_running_loop()
        sent_ns = round(loop.time() * NS_PER_S)
        first_s = self._first_s(self._measured) if phase == "measured" else 0.5
        self._measured += phase == "measured"
        await asyncio.sleep(first_s + (self._tokens - 1) / 50)
        end_ns = round(loop.time() * NS_PER_S)
        token_ns = tuple(end_ns - 20_000_000 * n for n in reversed(range(self._tokens)))
        return RequestRecord(
            seq=seq, request_id=str(seq), phase=phase, due_ns=due_ns, sent_ns=sent_ns, end_ns=end_ns,
            asked_in=request.prompt_tokens, asked_out=self._tokens, first_ns=token_ns[0], last_ns=end_ns,
            out_tokens=self._tokens, token_ns=token_ns, user=user,
        )  # fmt: skip


def measure_scripted(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    min_seconds: float,
    first_s: Callable[[int], float],
    purpose: Purpose = "ladder",
    tokens: int = 1,
) -> LevelCommitted:
    """A closed level of two users and at least 40 requests, of which 90 % have to come within a second."""
    text = PLAN.format(url="http://127.0.0.1:1", arrivals="poisson", most=1)
    text = text.replace("[slo]\nttft_ms = 20000", "[slo]\nattainment = 0.9\nttft_ms = 1000").replace(
        "[ramp]", f"[ramp]\nrequests = 40\nrequests_per_user = 1\nmin_seconds = {min_seconds}"
    )
    plan = parse_plan(text.encode(), "plan.toml", base=Path(), environ={})
    (cell,) = plan.cells()
    record = ServerRecord(deployment="fake", stack="llamacpp", launch="external", base_url="")

    async def run(journal: Journal) -> LevelCommitted:
        died = asyncio.ensure_future(ExternalServer(record).died())
        journal.files.attempt(cell.id, 1).mkdir(parents=True)
        load = SocketLoad(Scripted(first_s, tokens), journal.files.samples(cell.id, 1), Quiet())
        with contextlib.closing(load), contextlib.closing(Bench(load, plan, cell, journal, 1, Quiet())) as bench:
            spec = bench.spec(Measure(concurrency=2, purpose=purpose, replicate=0))
            commit = await bench.measure(spec, died, level=0)
        died.cancel()
        return commit

    with Journal.create(folder, plan.text) as journal:
        return run_virtually(monkeypatch, run(journal))


def early_misses(place: int) -> float:
    return 3.0 if place < 6 else 0.5


def test_misses_that_the_minimum_time_makes_good_cut_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """6 of 40 would be too many; in a minute there are more than 60, and the level holds."""
    commit = measure_scripted(monkeypatch, tmp_path / "run", 60.0, early_misses)
    assert (commit.run.cut, commit.verdict.invalid) == (None, ())
    assert commit.stats.offered >= 200
    assert commit.stats.offered - commit.stats.good == 6
    assert commit.verdict.verdict == "PASS"


def test_without_a_minimum_time_the_same_misses_decide(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commit = measure_scripted(monkeypatch, tmp_path / "run", 0.0, early_misses)
    assert commit.run.cut is not None
    assert commit.run.cut.startswith("decided: 5 of 40 requests missed")
    assert (commit.verdict.verdict, commit.verdict.invalid) == ("FAIL", ())


def test_what_cannot_hold_any_more_is_cut_when_the_minimum_time_is_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The last request before the end of the minute is a long one: it is not waited for."""
    commit = measure_scripted(monkeypatch, tmp_path / "run", 60.0, lambda place: 3.0 if place % 2 else 0.5)
    assert commit.run.cut is not None
    decided, of = (int(word) for word in commit.run.cut.split() if word.isdigit())
    assert (of - decided) / of < 0.9
    assert of >= commit.stats.offered > 40
    assert (commit.verdict.verdict, commit.verdict.invalid) == ("FAIL", ())


@pytest.mark.parametrize(("purpose", "kept"), [("soak", 4), ("ladder", 151)])
def test_of_a_soak_no_stamp_of_a_token_is_held_that_the_file_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, purpose: Purpose, kept: int
) -> None:
    """Answers of 151 tokens in three seconds: a stamp a second is kept in memory, and all of them on disk."""
    judged: list[RequestRecord] = []

    def spied(run: LevelRun, records: list[RequestRecord], samples: list[Sample], slo: Slo) -> LevelStats:
        judged.extend(records)
        return level_stats(run, records, samples, slo)

    monkeypatch.setattr("orchestrator.level.level_stats", spied)
    commit = measure_scripted(monkeypatch, tmp_path / "run", 60.0, lambda _: 0.5, purpose, tokens=151)
    written = read_records(tmp_path / "run", commit)
    assert len(judged) == len(written) >= 40
    assert {len(record.token_ns) for record in judged} == {kept}
    assert {len(record.token_ns) for record in written} == {151}
    whole = level_stats(commit.run, written, [], Slo(attainment=0.9, ttft_ms=1000, tpot_ms=20000))
    assert (commit.stats.good, commit.stats.ttft_ms, commit.stats.tpot_ms) == (whole.good, whole.ttft_ms, whole.tpot_ms)
    assert commit.stats.output_tokens_per_s == pytest.approx(whole.output_tokens_per_s, rel=0.02)
