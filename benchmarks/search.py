"""How far the answers of the search can be trusted: many searches of simulated cards whose true break is known.

    python -m benchmarks.search [--searches N] [--workers N] [--check]

Every search is the real one: its steps (`judge.search`), its levels and looks (`judge.level`), the records and figures
that a level is judged by. Only the card is not there: `stacks.simulated` answers in virtual time. Prints the table of
targets with the seeds; `--check` exits 1 if one is missed.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from orchestrator.asked import level_seed, level_spec
from orchestrator.judge.cause import JudgedLevel
from orchestrator.judge.level import decided_early, judge_level
from orchestrator.judge.looks import RunningLooks
from orchestrator.judge.search import Measure, Outcome, SearchRules, Stop, next_step
from orchestrator.metrics import is_good, level_stats
from orchestrator.plan.settings import Ramp
from orchestrator.records import LevelSpec, Request, RequestRecord, Slo
from stacks.memory.cards import find_card
from stacks.memory.formats import find_kv_format, find_weight_format
from stacks.memory.models import find_model
from stacks.memory.setup import Setup
from stacks.simulated.card import SimulatedCard, simulated_card
from stacks.simulated.closed import Client, VirtualLevel, run_virtual
from stacks.simulated.engine import NOISE
from workloads.presets import preset
from workloads.synthetic import synthetic
from workloads.workload import Workload

TRUTH = Path(__file__).with_name("search-truth.json")
"""The true breaks, found once with very long levels; made again with `--truth`."""
SEED = 20261125
RAMP = Ramp(max_seconds=86_400.0)


class Case(NamedTuple):
    """A deployment under a workload, and what limits it."""

    workload: str
    stack: str
    slo: Slo
    weights: str = "fp16"
    card: str = "RTX-4090-24GB"
    model: str = "meta-llama/Llama-3.1-8B-Instruct"
    context: int = 8192
    seqs: int = 256
    batched: int = 2048
    fraction: float | None = None
    kv_tokens: int | None = None
    limiter: str = ""

    @property
    def id(self) -> str:
        return f"{self.workload}/{self.stack}"


@functools.cache
def workload_of(name: str) -> Workload:
    if name == "chat":
        return synthetic(prompt="lognormal:350:300", output="lognormal:220:180", seed=1, name="chat")
    if name == "reasoning":
        return preset("reasoning-2025").scaled(0.5, 0.25)
    return preset(name)


@functools.cache
def card_of(case: Case) -> SimulatedCard:
    weights = find_weight_format(case.weights)
    model = find_model(case.model)
    setup = Setup(
        model=model,
        weights=weights,
        kv=find_kv_format("auto", weights),
        card=find_card(case.card),
        stack=case.stack,
        max_model_len=case.context,
        max_num_seqs=case.seqs,
        max_num_batched_tokens=case.batched,
        memory_fraction=case.fraction,
    )
    card = simulated_card(setup, admitted=4096)
    if case.kv_tokens is not None:
        card = msgspec.structs.replace(
            card, limits=msgspec.structs.replace(card.limits, blocks=case.kv_tokens // card.limits.block_tokens)
        )
    return card


# --- the cases --------------------------------------------------------------------------------------------------

GPU_STACKS = ("vllm", "tgi")


def _case(workload: str, stack: str, ttft_ms: float, tpot_ms: float, **more: Any) -> Case:
    return Case(workload, stack, Slo(ttft_ms=ttft_ms, tpot_ms=tpot_ms), **more)


H100, A100 = "H100-SXM-80GB", "A100-80GB"
CASES = (
    *(_case("chat", stack, 1000, 50, context=4096) for stack in GPU_STACKS),
    *(_case("azure-conv-2023", stack, 2000, 80, weights="awq") for stack in GPU_STACKS),
    *(_case("azure-code-2023", stack, 3000, 200, card=H100) for stack in GPU_STACKS),
    *(
        _case("mooncake-conv-2025", stack, 15_000, 150, card=H100, weights="fp8", context=32_768, batched=8192)
        for stack in GPU_STACKS
    ),
    *(_case("rag-2025", stack, 4000, 100, card=A100) for stack in GPU_STACKS),
    *(_case("reasoning", stack, 3000, 20, card=H100, context=16_384) for stack in GPU_STACKS),
    # llama.cpp where it is used: quantized files on smaller cards, one cache for all slots.
    _case("chat", "llamacpp", 1000, 50, context=40_960),
    _case("azure-conv-2023", "llamacpp", 2000, 80, weights="gguf-q4_k_m", context=65_536),
    _case("azure-code-2023", "llamacpp", 5000, 300, weights="gguf-q4_k_m", context=98_304),
    _case("mooncake-conv-2025", "llamacpp", 20_000, 150, card=A100, weights="gguf-q4_k_m", context=400_000),
    _case("rag-2025", "llamacpp", 6000, 150, weights="gguf-q4_k_m", context=131_072),
    _case("reasoning", "llamacpp", 3000, 40, weights="gguf-q4_k_m", context=131_072),
)
"""Six workloads under three policies. What breaks them is the KV pool, prefill, decoding or the pool's failures."""

LIMITED = (
    _case("chat", "vllm", 2000, 80, kv_tokens=24_000, context=4096, limiter="KV memory"),
    _case("chat", "tgi", 2000, 80, kv_tokens=24_000, context=4096, limiter="KV memory"),
    _case("chat", "vllm", 2000, 60, card=H100, seqs=24, limiter="the engine's limit on running requests"),
    _case("rag-2025", "tgi", 4000, 100, card=A100, seqs=16, limiter="the engine's limit on running requests"),
    _case("azure-code-2023", "vllm", 1500, 500, card=H100, limiter="prefill"),
    _case("rag-2025", "vllm", 2000, 500, card=A100, limiter="prefill"),
    _case("reasoning", "vllm", 10_000, 14, card=H100, context=16_384, limiter="decode (compute or memory bandwidth)"),
    _case("chat", "vllm", 10_000, 34, context=4096, limiter="decode (compute or memory bandwidth)"),
)
"""Deployments with exactly one limit made binding."""


# --- a cell in virtual time -------------------------------------------------------------------------------------


class VirtualCell:
    """A server in virtual time with the history of its search: what a campaign does, without a clock or a socket."""

    def __init__(
        self,
        case: Case,
        seed: int,
        *,
        noise: float = NOISE,
        slowdown: Callable[[float], float] | None = None,
        client: Client | None = None,
    ) -> None:
        self.case, self.seed = case, seed
        self.list_name = case.id
        self.client = client
        self.engine = card_of(case).engine(seed, noise=noise, slowdown=slowdown)
        self.levels: list[JudgedLevel] = []
        self.sent = 0

    def draws(self, spec: LevelSpec, part: str) -> Iterator[Request]:
        workload = workload_of(self.case.workload)
        fixed = 0 if spec.purpose == "sentinel" else len(self.levels)
        for number in itertools.count():
            seed = level_seed(self.seed, self.list_name, spec.concurrency, f"{fixed} {part}", number)
            yield from workload.draw(seed, spec.requests, self.case.context)

    def expected_s(self, concurrency: int) -> float:
        if not self.levels:
            return 0.0
        run, stats, _ = min(self.levels, key=lambda level: abs(level[0].spec.concurrency - concurrency))
        return (stats.e2e_ms.mean or 0.0) / 1000 * max(1.0, concurrency / run.spec.concurrency)

    def measure(self, step: Measure) -> JudgedLevel:
        slo = self.case.slo
        spec = level_spec(step, RAMP, len(self.levels), self.expected_s(step.concurrency))
        looks = RunningLooks(spec.looks if step.purpose != "sentinel" else (), slo.attainment, spec.alpha)
        bad = 0

        def stop_early(record: RequestRecord, position: int) -> str | None:
            nonlocal bad
            if step.purpose == "sentinel":
                return None
            good = is_good(record, slo)
            bad += not good
            return looks.add(position, good=good) or decided_early(bad, spec.requests, slo)

        level = run_virtual(
            self.engine,
            spec,
            measured=self.draws(spec, "measured"),
            other=self.draws(spec, "other"),
            stop_early=stop_early,
            client=self.client,
        )
        return self.judged(level)

    def judged(self, level: VirtualLevel) -> JudgedLevel:
        slo = self.case.slo
        stats = level_stats(level.run, level.records, level.samples, slo)
        verdict = judge_level(level.run, stats, level.records, level.samples, slo)
        self.levels.append((level.run, stats, verdict))
        self.sent += level.sent
        return self.levels[-1]

    def search(self, rules: SearchRules) -> Stop:
        history: list[Outcome] = []
        while isinstance(step := next_step(history, rules), Measure):
            history.append(Outcome.of(*self.measure(step)))
        return step


# --- the truth --------------------------------------------------------------------------------------------------

TRUE_REQUESTS = 15_000
TRUE_RUNS = 2


class True_(NamedTuple):
    """Long-run figures of a level."""

    attainment: float
    failures: float
    preemptions: float


def true_level(case: Case, c: int) -> True_:
    """Two runs of 15,000 measured requests with seeds that no search has."""
    good = failed = offered = 0
    preempted = 0.0
    for run in range(TRUE_RUNS):
        cell = VirtualCell(case, 10_000_000 + run)
        ramp = Ramp(requests=TRUE_REQUESTS, requests_per_user=1, min_seconds=0.0, max_seconds=1e12)
        step = Measure(concurrency=c, purpose="load", replicate=0)
        spec = level_spec(step, ramp, 0, 10.0)
        level = run_virtual(cell.engine, spec, measured=cell.draws(spec, "measured"), other=cell.draws(spec, "other"))
        measured = [r for r in level.records if r.phase == "measured"]
        good += sum(is_good(r, case.slo) for r in measured)
        failed += sum(r.failure is not None for r in measured)
        offered += len(measured)
        preempted += cell.engine.counters.preemptions * len(measured) / level.sent
    return True_(good / offered, failed / offered, preempted / offered)


class Truth(msgspec.Struct, frozen=True):
    """The true break: the highest level that holds in the long run."""

    by_slo: int
    """... by its attainment alone."""
    by_all: int
    """... by attainment, failures and preemptions."""


def find_truth(case: Case) -> Truth:
    known: dict[int, True_] = {}

    def at(c: int) -> True_:
        if c not in known:
            known[c] = true_level(case, c)
        return known[c]

    def highest(holds: Callable[[True_], bool]) -> int:
        low, high = 0, 1
        while holds(at(high)):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if holds(at(middle)) else (low, middle)
        return low

    target, errors = case.slo.attainment, case.slo.error_budget
    return Truth(
        by_slo=highest(lambda t: t.attainment >= target),
        by_all=highest(lambda t: t.attainment >= target and t.failures <= errors and t.preemptions <= 0.05),
    )
