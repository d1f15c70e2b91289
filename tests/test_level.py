"""Open levels on the bench over real sockets: sent when due, judged from due, committed, judged again the same."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.asked import open_traffic
from orchestrator.commands.display import Quiet
from orchestrator.journal import Journal, read_records
from orchestrator.judge.level import judge_level
from orchestrator.judge.search import Measure
from orchestrator.launch.external import ExternalServer
from orchestrator.level import Bench
from orchestrator.machine import Machine
from orchestrator.metrics import level_stats, measured_records
from orchestrator.plan.plan import Plan
from orchestrator.plan.reading import parse_plan
from orchestrator.records import LevelCommitted, Purpose, ServerRecord
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
