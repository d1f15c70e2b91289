"""The question of a run, as it goes into the journal before the first level: what a reader needs without the plan."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from orchestrator.foreseen import foresee
from orchestrator.judge.search import SearchRules
from orchestrator.plan import Cell, Plan
from orchestrator.records import Asked, AskedCell
from orchestrator.watch.gpu import GpuInfo
from stacks.catalog import stack as stack_named


def search_rules(plan: Plan, cell: Cell) -> SearchRules:
    """The search of a cell, from the plan alone."""
    ramp = plan.ramp
    return SearchRules(
        start=ramp.start,
        maximum=ramp.max,
        factor=ramp.factor,
        precision=ramp.precision,
        confirm=ramp.confirm,
        levels=cell.workload.levels,
    )


def asked(plan: Plan, gpus: Sequence[GpuInfo] = ()) -> Asked:
    """Every cell as the plan resolved it, in its order, with its memory as predicted on `gpus`, this machine's."""
    return Asked(
        title=plan.title,
        slo=plan.slo,
        cells=tuple(_cell(plan, cell, gpus) for cell in plan.cells()),
        budget_minutes=plan.budget.minutes,
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
