"""The question of a run, as it goes into the journal before the first level: what a reader needs without the plan."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from orchestrator.foreseen import foresee
from orchestrator.judge.search import Measure, SearchRules
from orchestrator.plan import Cell, Plan
from orchestrator.plan.settings import Ramp
from orchestrator.records import Asked, AskedCell, LevelSpec
from orchestrator.watch.gpu import GpuInfo
from stacks.catalog import stack as stack_named


def search_rules(plan: Plan, cell: Cell) -> SearchRules:
    """The search of a cell, from the plan alone."""
    ramp = plan.ramp
    if ramp.method == "full" and not cell.workload.levels:
        return SearchRules.full(
            precision=ramp.precision,
            start=ramp.start,
            maximum=ramp.max,
            target=plan.slo.attainment,
            error_budget=plan.slo.error_budget,
        )
    return SearchRules(
        start=ramp.start,
        maximum=ramp.max,
        factor=ramp.factor,
        precision=ramp.precision,
        confirm=ramp.confirm,
        levels=cell.workload.levels,
    )


def level_seed(plan_seed: int, workload: str, concurrency: int, purpose: str, replicate: int) -> int:
    """Seed of a level's request list: the same on every stack, another for every level and replicate, so that no
    prompt comes twice to one server and no prefix cache can help."""
    text = f"{plan_seed}/{workload}/{concurrency}/{purpose}/{replicate}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6])


def level_spec(step: Measure, ramp: Ramp, seed: int, expected_s: float) -> LevelSpec:
    """The level that a step of the search asks for, under the plan's rules.

    `expected_s`: mean end-to-end time of a request that is expected at this level; 0 = unknown.
    """
    concurrency = step.concurrency
    ramp_seconds = max(2 * expected_s, 10.0) if ramp.ramp_seconds is None else ramp.ramp_seconds
    own = -(-max(ramp.requests, ramp.requests_per_user * concurrency) // 10) * 10
    return LevelSpec(
        concurrency=concurrency,
        purpose=step.purpose,
        seed=seed,
        requests=step.looks[-1] if step.looks else own,
        min_seconds=0.0 if step.looks else ramp.min_seconds,
        max_seconds=ramp.max_seconds,
        ramp_seconds=0.0 if concurrency == 1 else ramp_seconds,
        warmup_generations=ramp.warmup_generations,
        warmup_seconds=min(2 * expected_s, ramp.max_seconds / 4),
        filler_seconds=max(3 * expected_s, ramp.filler_seconds),
        deadline_seconds=ramp.deadline_seconds,
        looks=step.looks,
        alpha=step.alpha,
    )


def asked(plan: Plan, gpus: Sequence[GpuInfo] = ()) -> Asked:
    """Every cell as the plan resolved it, in its order, with its memory as predicted on `gpus`, this machine's."""
    return Asked(
        title=plan.title,
        slo=plan.slo,
        cells=tuple(_cell(plan, cell, gpus) for cell in plan.cells()),
        budget_minutes=plan.budget.minutes,
        cost=plan.cost,
    )


def _cell(plan: Plan, cell: Cell, gpus: Sequence[GpuInfo]) -> AskedCell:
    deployment = cell.deployment
    stack = stack_named(deployment.stack)
    workload = plan.workload(cell)
    lengths = workload.stats(cell.workload.context_tokens)
    foreseen = foresee(plan, cell, gpus)
    return AskedCell(
        cell=cell.id,
        deployment=deployment.name,
        workload=cell.workload.name,
        stack=deployment.stack,
        launch=deployment.launch,
        model=deployment.model,
        quantization=deployment.quantization,
        kv_dtype=deployment.kv_dtype,
        dtype=deployment.dtype,
        context_tokens=deployment.context_tokens,
        max_concurrency=deployment.max_concurrency,
        gpus=deployment.gpus,
        workload_title=workload.title,
        workload_source=workload.source,
        mean_prompt_tokens=lengths.prompt_mean,
        mean_output_tokens=lengths.output_mean,
        lengths_forced=stack.wire(deployment).forces_length,
        search=msgspec.to_builtins(search_rules(plan, cell)),
        notes=(*workload.notes, *stack.notes(deployment)),
        predicted=foreseen.predicted,
        unpredicted=foreseen.unpredicted,
    )
