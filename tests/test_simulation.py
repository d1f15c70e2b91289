"""A run on cards that are not there: the same loop, the same files, virtual time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from fakes.simulated_study import CELLS, REFUSED, STUDY, simulate, study_plan

from orchestrator.campaign import Campaign, site_of
from orchestrator.clock import NS_PER_S
from orchestrator.commands.display import Quiet
from orchestrator.errors import JournalError
from orchestrator.journal import Journal, read_events, read_records, read_samples
from orchestrator.machine import Machine
from orchestrator.plan import Plan
from orchestrator.records import (
    AnyEvent,
    CellFinished,
    LevelCommitted,
    RequestRecord,
    RunOpened,
    ServerReady,
    ServerStopped,
)
from orchestrator.simulation import Simulation
from reports.result import Result, result
from reports.run import read_run

OPEN = """
title = "signed in virtual time"
seed = 5
[model]
id = "meta-llama/Llama-3.1-8B-Instruct"
context_tokens = 4096
[slo]
ttft_ms = 2000
tpot_ms = 60
[[deployment]]
name = "vllm"
stack = "vllm"
launch = "simulated"
card = "H100-SXM-80GB"
max_concurrency = 3
[[workload]]
name = "chat"
preset = "azure-conv-2023"
context_tokens = 4096
[ramp]
method = "full"
start = 2
max = 64
precision = 0.10
max_seconds = 7200
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(tmp_path_factory.mktemp("runs") / "study")


@pytest.fixture(scope="module")
def events(study: Path) -> list[AnyEvent]:
    return read_events(study)


@pytest.fixture(scope="module")
def found(study: Path) -> Result:
    return result(read_run(study))


def commits(events: Sequence[AnyEvent], cell: str) -> list[LevelCommitted]:
    return [event for event in events if isinstance(event, LevelCommitted) and event.cell == cell]


def test_every_cell_is_finished_in_virtual_time(events: list[AnyEvent]) -> None:
    finished = {event.cell: event.outcome for event in events if isinstance(event, CellFinished)}
    assert finished == dict.fromkeys(CELLS[:3], "measured") | {REFUSED: "failed"}
    levels = sum(len(commits(events, cell)) for cell in CELLS)
    assert levels >= 15
    times = [event.at_ns for event in events]
    assert times[0] == 0
    assert times == sorted(times)
    assert times[-1] > levels * 10 * NS_PER_S, "the levels' own time, not this machine's"


def test_what_is_asked_says_that_it_is_simulated(events: list[AnyEvent], found: Result) -> None:
    opened = events[0]
    assert isinstance(opened, RunOpened)
    assert opened.asked is not None
    assert [(cell.simulated, cell.card, cell.launch) for cell in opened.asked.cells] == [
        (True, "RTX-4090-24GB", "simulated")
    ] * 4
    assert found.simulated
    assert {cell.hardware for cell in found.cells} == {"simulated"}
    assert not [name for name in found.host if name.startswith("gpu")]


def test_records_and_samples_are_those_of_a_real_run(study: Path, events: list[AnyEvent]) -> None:
    for commit in commits(events, "vllm--chat"):
        records: list[RequestRecord] = read_records(study, commit)
        measured = [record for record in records if record.phase == "measured"]
        assert len(measured) == commit.stats.offered
        assert len(measured) >= 20
        assert all(record.sent_ns >= commit.run.started_ns for record in records)
        assert max(record.end_ns for record in records) <= commit.at_ns
    samples = list(read_samples(study, "vllm--chat", 1))
    watched = [sample for sample in samples if sample.source == "engine" and "running" in sample.values]
    assert len(watched) >= 50
    assert {"running", "waiting", "kv_use", "preemptions_total", "memory_used_bytes"} <= watched[0].values.keys()
    assert all(before.at_ns <= after.at_ns for before, after in pairwise(watched))
    tgi = [sample for sample in read_samples(study, "tgi--chat", 1) if "running" in sample.values]
    assert tgi
    assert "preemptions_total" not in tgi[0].values, "TGI counts none"


def test_the_raw_records_give_the_stored_verdicts_again(found: Result) -> None:
    levels = [level for cell in found.cells for level in cell.levels]
    assert len(levels) >= 15
    assert {level.judged_again for level in levels} == {"same"}
    assert all(level.verdict.valid for level in levels)
    for cell in found.cells[:3]:
        assert cell.verdict.c_ok is not None
        assert cell.verdict.c_bad is not None
        assert cell.verdict.c_ok < cell.verdict.c_bad
        assert cell.search


def test_what_does_not_fit_is_refused_with_the_stacks_own_sentence(study: Path, found: Result) -> None:
    cell = found.cells[3]
    (incident,) = cell.incidents
    assert cell.verdict.verdict == "REFUSED"
    assert incident.failure.failure_class == "ctx-too-long"
    assert "max seq len (131072)" in incident.failure.message
    assert "at most" in incident.failure.remedy
    log = study / "cells" / REFUSED / "attempt-1" / "server.log"
    assert "ValueError: To serve at least one request" in log.read_text()
    stopped = [e for e in read_events(study) if isinstance(e, ServerStopped) and e.cell == REFUSED]
    assert [event.failure is not None for event in stopped] == [True]
    assert not [e for e in read_events(study) if isinstance(e, ServerReady) and e.cell == REFUSED]


def test_the_ledger_is_filled_by_what_the_card_reports(found: Result) -> None:
    cell = found.cells[0]
    life = cell.ledger
    assert life.source == "memory of the simulated card, as it reports"
    stages = [point.stage for point in life.checkpoints]
    assert stages[:5] == ["process up", "weights loaded", "pool reserved", "graphs captured", "ready"]
    assert stages.count("level") == len(cell.levels)
    assert stages[-1] == "drained"
    held = [point.server_bytes for point in life.checkpoints]
    assert all(value is not None and value > 0 for value in held)
    assert held[0] < held[1] < held[2] < held[3] == held[-1]  # type: ignore[operator]
    assert all(point.kv_from == "gauge" for point in life.checkpoints if point.stage == "level")
    assert life.findings == ()
    assert life.peak_bytes == cell.bill.peak_bytes


def test_the_reconciliation_is_filled(found: Result) -> None:
    bill = found.cells[0].reconciliation
    lines = {line.name: line for line in bill.lines}
    assert bill.unpredicted == ""
    for name in ("weights", "KV cache", "CUDA graphs", "total", "KV tokens"):
        line = lines[name]
        assert line.predicted is not None
        assert line.measured == pytest.approx(line.predicted, rel=0.01)
        assert line.outside is False
    assert bill.unexplained_bytes is not None
    assert abs(bill.unexplained_bytes) < 0.02 * 2**30, "what a log line's last digit hides"
    tgi = {line.name: line for line in found.cells[1].reconciliation.lines}
    assert tgi["KV tokens"].difference == 0


def test_4_bit_buys_more_room_than_users(found: Result) -> None:
    """Three times the tokens, and nothing like three times the users: prompts cost what they cost."""
    sixteen, four = found.cells[0], found.cells[2]
    assert four.bill.kv_tokens is not None
    assert sixteen.bill.kv_tokens is not None
    assert four.bill.kv_tokens > 2.5 * sixteen.bill.kv_tokens
    assert sixteen.verdict.c_ok is not None
    assert four.verdict.c_ok is not None
    assert four.verdict.c_ok < 1.5 * sixteen.verdict.c_ok


def test_the_same_seed_gives_the_same_run(study: Path, tmp_path: Path) -> None:
    again = simulate(tmp_path / "again")
    for cell in CELLS[:3]:
        for name in ("requests.jsonl", "samples.jsonl", "server.log"):
            path = Path("cells") / cell / "attempt-1" / name
            assert (study / path).stat().st_size > 100
            assert (study / path).read_bytes() == (again / path).read_bytes()


class Enough(Exception):  # noqa: N818
    """The power goes."""


class Dies(Quiet):
    """After four levels."""

    def __init__(self) -> None:
        self.levels = 0

    def level_committed(self, *_: object) -> None:
        self.levels += 1
        if self.levels == 4:
            raise Enough


def test_an_interrupted_run_goes_on_where_its_clock_stood(tmp_path: Path, found: Result) -> None:
    plan, root = study_plan(), tmp_path / "run"
    with Journal.create(root, plan.text) as journal, pytest.raises(Enough):
        asyncio.run(Campaign(plan, journal, Dies()).run())
    stood_ns = read_events(root)[-1].at_ns
    with Journal.resume(root) as journal:
        asyncio.run(Campaign(plan, journal, Quiet()).run())
    events = read_events(root)
    times = [event.at_ns for event in events]
    assert times == sorted(times)
    assert times[-1] > stood_ns > 0
    assert len([event for event in events if isinstance(event, RunOpened)]) == 2
    again = result(read_run(root))
    assert [cell.outcome for cell in again.cells] == [cell.outcome for cell in found.cells]
    assert [len(cell.servers) for cell in again.cells] == [2, 1, 1, 1]


def test_a_cell_is_not_finished_with_other_requests_than_it_was_begun_with(tmp_path: Path) -> None:
    trace, root = tmp_path / "trace.csv", tmp_path / "run"
    text = OPEN.replace('preset = "azure-conv-2023"', f'trace = "{trace}"').replace('method = "full"', "")

    def plan_with(output_tokens: int) -> Plan:
        rows = "".join(f"2026-01-01 00:0{n // 60}:{n % 60:02},{100 + n},{output_tokens}\n" for n in range(200))
        trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
        return study_plan(text)

    plan = plan_with(20)
    with Journal.create(root, plan.text) as journal, pytest.raises(Enough):
        asyncio.run(Campaign(plan, journal, Dies()).run())
    with Journal.resume(root) as journal, pytest.raises(JournalError, match="has changed since it was begun: a trace"):
        asyncio.run(Campaign(plan_with(40), journal, Quiet()).run())
    with Journal.resume(root) as journal:
        assert asyncio.run(Campaign(plan_with(20), journal, Quiet()).run()) == []
    assert [event.outcome for event in read_events(root) if isinstance(event, CellFinished)] == ["measured"]


def test_the_site_is_where_the_plan_says() -> None:
    assert isinstance(site_of(study_plan(), []), Simulation)
    real = STUDY.replace('launch = "simulated"\ncard = "RTX-4090-24GB"', 'launch = "docker"')
    assert isinstance(site_of(study_plan(real), []), Machine)


def test_a_budget_is_counted_in_virtual_time(tmp_path: Path) -> None:
    before_s = time.monotonic()
    run = simulate(tmp_path / "run", STUDY + "[budget]\nminutes = 4\n")
    spent_s = time.monotonic() - before_s
    found = result(read_run(run))
    assert {cell.outcome for cell in found.cells} == {"cut", "failed"}
    last = read_events(run)[-1].at_ns / NS_PER_S
    assert last < 6 * 60
    assert last > spent_s / 10


def test_a_cell_can_be_signed(tmp_path: Path) -> None:
    """The whole method: search, fresh runs, sentinels, rates of independent arrivals, the replay of a real day."""
    found = result(read_run(simulate(tmp_path / "run", OPEN)))
    (cell,) = found.cells
    levels = (*cell.levels, *cell.checks)
    purposes = {level.purpose for level in levels}
    assert {"sentinel", "bracket", "confirm", "prefill", "rate", "confirm-rate", "replay"} <= purposes
    assert {level.judged_again for level in levels} == {"same"}
    assert cell.verdict.missing == ()
    assert cell.verdict.verdict == "SIGNED"
    assert cell.verdict.open_loop is not None
    assert cell.verdict.open_loop.rate_sign is not None
    assert found.simulated
