"""The question of a run, as it goes into the journal before the first level: what a reader needs without the plan."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence

import msgspec

from orchestrator.foreseen import foresee
from orchestrator.judge.pairs import order
from orchestrator.judge.search import Measure, SearchRules
from orchestrator.judge.steps import OpenRules
from orchestrator.judge.swings import Swings
from orchestrator.plan import Cell, Paired, Plan
from orchestrator.plan.settings import Ramp
from orchestrator.records import Asked, AskedCell, AskedPairs, LevelSpec, Request, Turn
from orchestrator.watch.gpu import GpuInfo
from stacks.catalog import stack as stack_named
from stacks.simulated.accuracy import NOTES
from workloads.arrivals import poisson, schedule
from workloads.expected import Expected
from workloads.workload import Arrivals


def search_rules(plan: Plan, cell: Cell) -> SearchRules:
    """The search of a cell, from the plan alone."""
    ramp = plan.ramp_of(cell.workload)
    if ramp.method == "full" and not cell.workload.levels:
        rules = SearchRules.full(
            precision=ramp.precision,
            start=ramp.start,
            maximum=ramp.max,
            target=plan.slo.attainment,
            error_budget=plan.slo.error_budget,
        )
        return _followed(rules, plan, cell)
    rules = SearchRules(
        start=ramp.start,
        maximum=ramp.max,
        factor=ramp.factor,
        precision=ramp.precision,
        confirm=ramp.confirm,
        levels=cell.workload.levels,
        target=plan.slo.attainment,
        error_budget=plan.slo.error_budget,
    )
    return _followed(rules, plan, cell)


def _followed(rules: SearchRules, plan: Plan, cell: Cell) -> SearchRules:
    """The search with what follows it."""
    return msgspec.structs.replace(
        rules,
        open_loop=open_rules(plan, cell),
        recovery=plan.ramp.recovery and plan.is_searched(cell.workload),
        soak_seconds=plan.soak_seconds(cell.workload),
    )


def open_rules(plan: Plan, cell: Cell) -> OpenRules | None:
    """The open-loop check of a cell; None = there is none."""
    if not plan.is_checked(cell.workload):
        return None
    own, traffic = plan.open_loop, plan.expected.get(cell.workload.name)
    return OpenRules(
        requests=own.requests,
        min_seconds=own.min_seconds,
        prefill_seconds=own.prefill_seconds,
        traffic="" if traffic is None else traffic.name,
        swings=_swings(traffic.arrivals) if traffic is not None else None,
    )


def _swings(arrivals: Arrivals | None) -> Swings | None:
    """Work per bin; by requests alone where the source does not tell their tokens."""
    if arrivals is None:
        return None
    prompt = arrivals.prompt_tokens_per_bin or arrivals.requests_per_bin
    return Swings.of(prompt, arrivals.output_tokens_per_bin or arrivals.requests_per_bin, arrivals.bin_s)


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
    least_seconds = (0.0 if step.looks else ramp.min_seconds) if step.min_seconds is None else step.min_seconds
    ramp_seconds = max(2 * expected_s, 10.0) if ramp.ramp_seconds is None else ramp.ramp_seconds
    own = -(-max(ramp.requests, ramp.requests_per_user * concurrency) // 10) * 10
    return LevelSpec(
        concurrency=concurrency,
        purpose=step.purpose,
        seed=seed,
        requests=step.looks[-1] if step.looks else own,
        min_seconds=least_seconds,
        max_seconds=ramp.longest_s + (step.min_seconds or 0.0),
        ramp_seconds=0.0 if concurrency == 1 else ramp_seconds,
        warmup_generations=ramp.warmup_generations,
        warmup_seconds=min(2 * expected_s, ramp.longest_s / 4),
        filler_seconds=max(3 * expected_s, ramp.filler_seconds),
        deadline_seconds=ramp.deadline_seconds,
        looks=step.looks,
        alpha=step.alpha,
    )


DISCARDED = 0.2
"""Share of an open level's requests, the first ones, that only warm the server up."""


def open_spec(step: Measure, plan: Plan, cell: Cell) -> LevelSpec:
    """The open level that a step of the check asks for, under the plan's rules."""
    assert step.rate_per_s is not None
    rate, measured = step.rate_per_s, step.looks[-1]
    seconds = measured / (1 - DISCARDED) / rate
    traffic = plan.expected.get(cell.workload.name) if step.purpose == "replay" else None
    drain = _drain_seconds(plan, cell)
    spec = LevelSpec(
        concurrency=0,
        rate_per_s=rate,
        arrivals="poisson" if traffic is None else traffic.name,
        purpose=step.purpose,
        seed=level_seed(plan.seed, cell.workload.name, 0, "open", step.replicate),
        requests=measured,
        min_seconds=seconds,
        max_seconds=2 * seconds + drain,
        ramp_seconds=0.0,
        warmup_generations=0.0,
        warmup_seconds=0.0,
        filler_seconds=drain,
        deadline_seconds=plan.ramp.deadline_seconds,
        drain_seconds=drain,
        looks=step.looks,
        alpha=step.alpha,
    )
    if traffic is None:
        return spec
    seconds = max(seconds, min(plan.open_loop.replay_seconds, traffic.length_s(rate)))
    measured = _tens_of(traffic, rate, spec.seed, seconds)
    while measured < step.looks[-1]:  # fewer came than on average
        seconds *= 1.05
        measured = _tens_of(traffic, rate, spec.seed, seconds)
    return msgspec.structs.replace(
        spec, requests=measured, looks=(measured,), min_seconds=seconds, max_seconds=2 * seconds + drain
    )


def _tens_of(traffic: Expected, rate: float, seed: int, seconds: float) -> int:
    """Measured requests of a replay, in whole tens."""
    return int((1 - DISCARDED) * len(traffic.replay(rate, seed, seconds).due_ns)) // 10 * 10


def open_traffic(spec: LevelSpec, plan: Plan, cell: Cell) -> tuple[tuple[int, ...], Iterator[Request]]:
    """When the requests of an open level are due (ns after its start), and what each asks."""
    assert spec.rate_per_s is not None
    context, workload = cell.workload.context_tokens, plan.workload(cell)
    if spec.purpose == "replay":
        replay = plan.expected[cell.workload.name].replay(spec.rate_per_s, spec.seed, spec.min_seconds)
        if replay.pairs is not None:
            return replay.due_ns, replay.requests(spec.seed, context)
        due = replay.due_ns
    else:
        due = schedule(poisson(spec.rate_per_s, spec.seed), requests=math.ceil(spec.requests / (1 - DISCARDED)))
    return due, iter(workload.draw(spec.seed, len(due), context))


def _drain_seconds(plan: Plan, cell: Cell) -> float:
    """Three times what the SLO leaves to the longest answer; the request's deadline where it limits nothing."""
    slo, longest = plan.slo, plan.workload(cell).stats(cell.workload.context_tokens).output_max
    if slo.e2e_ms is not None:
        return min(plan.ramp.deadline_seconds, 3 * slo.e2e_ms / 1000)
    if slo.tpot_ms is None:
        return plan.ramp.deadline_seconds
    return min(plan.ramp.deadline_seconds, 3 * ((slo.ttft_ms or 0.0) + slo.tpot_ms * longest) / 1000)


def asked(plan: Plan, gpus: Sequence[GpuInfo] = ()) -> Asked:
    """Every cell as the plan resolved it, in its order, with its memory as predicted on `gpus`, this machine's."""
    return Asked(
        title=plan.title,
        slo=plan.slo,
        cells=tuple(_cell(plan, cell, gpus) for cell in plan.cells()),
        comparisons=tuple(_pairs(plan, paired) for paired in plan.comparisons()),
        budget_minutes=plan.budget.minutes,
        demand=plan.demand,
        cost=plan.cost,
    )


def turns(plan: Plan, paired: Paired) -> tuple[Turn, ...]:
    """In what order the sides of a comparison are measured."""
    return order(level_seed(plan.seed, paired.id, 0, "order", 0), paired.settings.pairs)


def _pairs(plan: Plan, paired: Paired) -> AskedPairs:
    settings = paired.settings
    return AskedPairs(
        id=paired.id,
        a=paired.a.id,
        b=paired.b.id,
        order=turns(plan, paired),
        concurrency=settings.concurrency,
        throughput_margin=settings.throughput_margin,
        ttft_margin=settings.ttft_margin,
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
        tensor_parallel=deployment.tensor_parallel,
        card=deployment.card or "",
        simulated=deployment.launch == "simulated",
        workload_title=workload.title,
        workload_source=workload.source,
        mean_prompt_tokens=lengths.prompt_mean,
        mean_output_tokens=lengths.output_mean,
        frontier_prompt_tokens=plan.frontier_prompt_tokens(cell.workload),
        # A simulated answer is as long as it is asked to be.
        lengths_forced=deployment.launch == "simulated" or stack.wire(deployment).forces_length,
        signable=workload.signable,
        search=msgspec.to_builtins(search_rules(plan, cell)),
        notes=(*workload.notes, *stack.notes(deployment), *(NOTES if deployment.launch == "simulated" else ())),
        predicted=foreseen.predicted,
        unpredicted=foreseen.unpredicted,
    )
