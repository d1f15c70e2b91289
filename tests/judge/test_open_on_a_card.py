"""The way to SIGNED on a simulated card in virtual time: the levels of a plan, the real judges, and the truth."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from orchestrator.asked import level_seed, level_spec, open_spec, open_traffic, search_rules
from orchestrator.judge.cause import JudgedLevel
from orchestrator.judge.level import decided_early, judge_level
from orchestrator.judge.margin import CellVerdict, cell_verdict
from orchestrator.judge.search import Measure, Outcome, Stop, progress
from orchestrator.metrics import is_good, level_stats, measured_records
from orchestrator.plan import Cell, Plan
from orchestrator.plan.reading import parse_plan
from orchestrator.records import LevelSpec, Request, RequestRecord
from stacks.memory.cards import find_card
from stacks.memory.formats import find_kv_format, find_weight_format
from stacks.memory.models import find_model
from stacks.memory.setup import Setup
from stacks.simulated.card import SimulatedCard, simulated_card
from stacks.simulated.closed import run_virtual
from stacks.simulated.engine import Engine
from stacks.simulated.level import VirtualLevel
from stacks.simulated.open import run_virtual_open

PLAN = b"""
seed = 7

[slo]
ttft_ms = 2000
tpot_ms = 80

[model]
context_tokens = 8192

[[deployment]]
name = "card"
stack = "vllm"
launch = "external"
url = "http://127.0.0.1:1"
model = "simulated"

[[workload]]
preset = "azure-conv-2023"

[ramp]
method = "full"
precision = 0.10
start = 24
max = 24
max_seconds = 86400
"""


@functools.cache
def card() -> SimulatedCard:
    weights = find_weight_format("awq")
    return simulated_card(
        Setup(
            model=find_model("meta-llama/Llama-3.1-8B-Instruct"),
            weights=weights,
            kv=find_kv_format("auto", weights),
            card=find_card("RTX-4090-24GB"),
            stack="vllm",
            max_model_len=8192,
            max_num_seqs=256,
            max_num_batched_tokens=2048,
        ),
        admitted=4096,
    )


class Measured(NamedTuple):
    plan: Plan
    cell: Cell
    levels: list[JudgedLevel]
    stop: Stop
    verdict: CellVerdict


def draws(plan: Plan, cell: Cell, spec: LevelSpec, part: str) -> Iterator[Request]:
    for number in itertools.count():
        seed = level_seed(plan.seed if spec.purpose == "sentinel" else spec.seed, "w", spec.concurrency, part, number)
        for request in plan.workload(cell).draw(seed, spec.requests, cell.workload.context_tokens):
            prefill = spec.purpose == "prefill"
            yield msgspec.structs.replace(request, output_tokens=1) if prefill else request


def run_level(engine: Engine, plan: Plan, cell: Cell, step: Measure) -> VirtualLevel:
    if step.rate_per_s is None:
        spec = level_spec(step, plan.ramp, 100 * step.replicate + step.concurrency, 5.0)
        measured, other = draws(plan, cell, spec, "measured"), draws(plan, cell, spec, "other")
        return run_virtual(engine, spec, measured=measured, other=other)
    spec, bad = open_spec(step, plan, cell), 0

    def stop_early(record: RequestRecord, _place: int, _of: int | None) -> str | None:
        nonlocal bad
        bad += not is_good(record, plan.slo, from_due=True)
        return decided_early(bad, spec.requests, plan.slo)

    due, requests = open_traffic(spec, plan, cell)
    return run_virtual_open(engine, spec, due, requests, stop_early=stop_early)


@pytest.fixture(scope="module")
def measured() -> Measured:
    plan = parse_plan(PLAN, "plan.toml", base=Path(), environ={})
    (cell,) = plan.cells()
    rules = search_rules(plan, cell)
    engine = card().engine(3)
    levels: list[JudgedLevel] = []
    history: list[Outcome] = []
    while isinstance(step := progress(history, rules).step, Measure):
        level = run_level(engine, plan, cell, step)
        stats = level_stats(level.run, level.records, level.samples, plan.slo)
        levels.append((level.run, stats, judge_level(level.run, stats, level.records, level.samples, plan.slo)))
        history.append(Outcome.of(*levels[-1]))
    verdict = cell_verdict(levels, step, plan.slo, lengths_forced=True, failure=None, rules=rules)
    return Measured(plan, cell, levels, step, verdict)


def purposes(measured: Measured) -> list[str]:
    """Without repetitions in a row."""
    return [purpose for purpose, _ in itertools.groupby(run.spec.purpose for run, _, _ in measured.levels)]


def test_every_step_was_taken_and_the_cell_is_signed(measured: Measured) -> None:
    assert purposes(measured) == [
        "sentinel", "bracket", "sentinel", "confirm", "sentinel",
        "prefill", "rate", "confirm-rate", "replay", "sentinel",
    ]  # fmt: skip
    assert all(verdict.valid for _, _, verdict in measured.levels)
    verdict, check = measured.verdict, measured.verdict.open_loop
    assert check is not None
    assert (verdict.verdict, verdict.missing, verdict.c_ok) == ("SIGNED", (), 24)
    assert check.throughput == pytest.approx(3.0, rel=0.1)
    assert check.rate_ok is not None
    assert 0.30 * check.throughput <= check.rate_ok < check.throughput
    assert check.rate_bad is not None
    assert check.rate_ok < check.rate_bad
    assert check.beta is not None
    assert 1 < check.beta < 10
    assert check.factor is not None
    assert 1.3 < check.factor < 1.9
    assert check.rate_sign is not None
    assert check.rate_sign <= check.rate_ok / check.factor * 1.000001
    assert verdict.c_sign == min(19, check.in_flight_p95 or 0)
    assert verdict.limit_users == 24


def test_open_levels_are_as_long_as_the_method_asks(measured: Measured) -> None:
    open_levels = [(run, stats) for run, stats, _ in measured.levels if run.spec.is_open]
    assert len(open_levels) >= 6
    for run, stats in open_levels:
        if run.cut is None:
            assert stats.offered == run.spec.requests >= 1600
            assert stats.window_s >= 0.8 * 300


def attainment(measured: Measured, purpose: str, rate: float, requests: int, seeds: range) -> float:
    """In the long run, with seeds that the check did not have; the same card, and no level ends early."""
    good = offered = 0
    for seed in seeds:
        step = Measure(concurrency=0, purpose=purpose, replicate=seed, looks=(requests,), rate_per_s=rate)  # type: ignore[arg-type]
        spec = open_spec(step, measured.plan, measured.cell)
        due, asked = open_traffic(spec, measured.plan, measured.cell)
        level = run_virtual_open(card().engine(seed), spec, due, asked)
        flags = [is_good(r, measured.plan.slo, from_due=True) for r in measured_records(level.records)]
        good, offered = good + sum(flags), offered + len(flags)
    assert offered >= requests * len(seeds)
    return good / offered


def test_what_was_found_is_true_in_the_long_run(measured: Measured) -> None:
    check = measured.verdict.open_loop
    assert check is not None
    assert check.rate_ok is not None
    assert check.rate_sign is not None
    assert attainment(measured, "rate", check.rate_ok, 10_000, range(1000, 1001)) >= 0.95
    assert attainment(measured, "replay", check.rate_sign, 1600, range(1000, 1004)) >= 0.95
    assert attainment(measured, "rate", check.throughput, 4_000, range(1000, 1001)) < 0.95


@pytest.mark.parametrize("left", [1, 2, 4, 9])
def test_a_step_that_was_cut_is_named_and_nothing_is_signed(measured: Measured, left: int) -> None:
    levels = measured.levels[:-left]
    rules = search_rules(measured.plan, measured.cell)
    come = progress([Outcome.of(*level) for level in levels], rules)
    assert isinstance(come.step, Measure)
    found = cell_verdict(
        levels, come.so_far, measured.plan.slo, lengths_forced=True, failure=None, rules=rules, pending=come.step
    )
    assert (found.verdict, found.c_ok, found.open_loop) == ("PROVISIONAL", 24, None)
    assert f"The open-loop check was cut before its step {come.step}." in found.missing
