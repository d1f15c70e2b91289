"""How far the answers of the search can be trusted: many searches of simulated cards whose true break is known.

    python -m benchmarks.search [--each N] [--workers N] [--results FILE] [--truth] [--check]

Every search is the real one: its steps (`judge.search`), its levels and looks (`judge.level`), the records and figures
that a level is judged by. Only the card is not there: `stacks.simulated` answers in virtual time. Prints the table of
targets with the seeds; `--check` exits 1 if one is missed. Results are kept in a file, so that a study can be
interrupted and enlarged; delete it after a change of the rules.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import multiprocessing
import multiprocessing.pool
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, TypeVar

import msgspec
from rich.console import Console
from rich.table import Table

from orchestrator.asked import level_seed, level_spec
from orchestrator.judge.cause import JudgedLevel, cause_of_break
from orchestrator.judge.compare import log_ratio
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
from stacks.simulated.closed import run_virtual
from stacks.simulated.engine import NOISE
from stacks.simulated.level import Client, VirtualLevel
from workloads.presets import preset
from workloads.synthetic import synthetic
from workloads.workload import Workload

Answer = TypeVar("Answer")
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
    _case("rag-2025", "vllm", 800, 500, card=A100, limiter="prefill"),
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

        def stop_early(record: RequestRecord, position: int, of: int | None) -> str | None:
            nonlocal bad
            if step.purpose == "sentinel":
                return None
            good = is_good(record, slo)
            bad += not good
            return looks.add(position, good=good) or (decided_early(bad, of, slo) if of is not None else None)

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


class LongRun(NamedTuple):
    """Long-run figures of a level."""

    attainment: float
    failures: float
    preemptions: float


def true_level(case: Case, c: int) -> LongRun:
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
    return LongRun(good / offered, failed / offered, preempted / offered)


class Truth(msgspec.Struct, frozen=True):
    """The true break: the highest level that holds in the long run."""

    by_slo: int
    """... by its attainment alone."""
    by_all: int
    """... by attainment, failures and preemptions."""


def find_truth(case: Case) -> Truth:
    known: dict[int, LongRun] = {}

    def at(c: int) -> LongRun:
        if c not in known:
            known[c] = true_level(case, c)
        return known[c]

    def highest(holds: Callable[[LongRun], bool]) -> int:
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


def truths() -> dict[str, Truth]:
    return msgspec.json.decode(TRUTH.read_bytes(), type=dict[str, Truth])


# --- the studies ------------------------------------------------------------------------------------------------


class Searched(NamedTuple):
    case: str
    seed: int
    stop: Stop
    sent: int
    """Requests sent, warm-up and fillers included."""
    measured: int
    limiter: str
    """The cause that is named at the break; empty where there is none."""


def rules_for(case: Case, precision: float) -> SearchRules:
    slo = case.slo
    return SearchRules.full(
        precision=precision, start=4, maximum=512, target=slo.attainment, error_budget=slo.error_budget
    )


def searched(
    case: Case,
    seed: int,
    precision: float,
    slowdown: Callable[[float], float] | None = None,
    client: Client | None = None,
) -> Searched:
    cell = VirtualCell(case, seed, slowdown=slowdown, client=client)
    stop = cell.search(rules_for(case, precision))
    measured = sum(stats.offered for _, stats, _ in cell.levels)
    return Searched(case.id, seed, stop, cell.sent, measured, _limiter(cell.levels, stop))


def _limiter(levels: list[JudgedLevel], stop: Stop) -> str:
    broke = [level for level in levels if level[0].spec.concurrency == stop.c_bad and level[2].verdict == "FAIL"]
    return cause_of_break(broke[-1], levels).limiter if broke else ""


def plain(job: tuple[int, int, float]) -> Searched:
    number, seed, precision = job
    return searched(CASES[number], seed, precision)


def limited(job: tuple[int, int]) -> Searched:
    number, seed = job
    return searched(LIMITED[number], seed, 0.10)


CLIENTS = (0, 2, 4)
"""Cases under an invalid client and on a drifting card: one a limiter."""


def with_a_slow_client(seed: int) -> Searched:
    """A client that is late above a concurrency below the break, by up to ten times what the limits allow."""
    random = Random(seed)
    case = CASES[CLIENTS[seed % len(CLIENTS)]]
    keeps_up, late_s = random.randint(6, 30), random.uniform(0.05, 1.0) * (case.slo.ttft_ms or 0) / 1000
    return searched(case, seed, 0.10, client=Client(lambda c: 0.0 if c <= keeps_up else late_s))


class Drifted(NamedTuple):
    moved: float
    """How much slower it was at its slowest than when the search began."""
    searched: Searched


def on_a_card_that_keeps_drifting(seed: int) -> Drifted:
    """A card whose steps get slower by 6 to 40 % an hour, or slower and faster again in cycles of 20 to 90 minutes.

    One that got slower once and stays so is another card, and the second ladder says what that one holds.
    """
    random = Random(seed)
    case = CASES[CLIENTS[seed % len(CLIENTS)]]
    by, period_s = random.uniform(0.06, 0.40), random.uniform(1200, 5400)
    cyclic, slowest = random.random() < 0.5, 1.0

    def slowdown(now_s: float) -> float:
        nonlocal slowest
        wave = 0.5 - 0.5 * math.cos(2 * math.pi * now_s / period_s)
        factor = 1 + by * (wave if cyclic else now_s / 3600)
        slowest = max(slowest, factor)
        return factor

    found = searched(case, seed, 0.10, slowdown)
    return Drifted(slowest - 1, found)


PAIRS = 5


def same_against_same(seed: int) -> bool:
    """Whether B is called slower than A though both are the same: five pairs on the same lists, other noise."""
    case = CASES[seed % len(CASES)]
    rates = [[_rate(case, seed * PAIRS + pair, noise) for pair in range(PAIRS)] for noise in (0, 1)]
    return log_ratio(rates[0], rates[1]).upper < 1


def _rate(case: Case, lists: int, noise: int) -> float:
    cell = VirtualCell(case, lists)
    cell.engine = card_of(case).engine(2 * lists + noise + 1)
    step = Measure(concurrency=12, purpose="load", replicate=0)
    spec = level_spec(step, Ramp(requests=200, min_seconds=0.0, max_seconds=1e9), 0, 5.0)
    level = run_virtual(cell.engine, spec, measured=cell.draws(spec, "measured"), other=cell.draws(spec, "other"))
    return level_stats(level.run, level.records, level.samples, case.slo).output_tokens_per_s or 0.0


# --- the table --------------------------------------------------------------------------------------------------


class Line(NamedTuple):
    name: str
    reached: str
    of: str
    target: str
    met: bool


def search_lines(found: list[Searched], truth: dict[str, Truth], precision: float, most: int) -> Iterator[Line]:
    n = len(found)
    unsafe = [s for s in found if (s.stop.c_ok or 0) > truth[s.case].by_slo]
    ratio = statistics.median((s.stop.c_ok or 0) / truth[s.case].by_slo for s in found)
    sent, measured = (statistics.median(getattr(s, name) for s in found) for name in ("sent", "measured"))
    at = f"at {precision:.0%}"
    share = len(unsafe) / n
    yield Line(f"unsafe c_ok {at}", f"{share:.2%} ({len(unsafe)})", f"{n} searches", "<= 1 %", share <= 0.01)
    yield Line(f"median c_ok / true break {at}", f"{ratio:.3f}", f"{n} searches", ">= 0.92", ratio >= 0.92)
    yield Line(f"median requests {at}, all sent", f"{sent:,.0f}", f"{n} searches", f"<= {most:,}", sent <= most)
    yield Line(f"median requests {at}, measured", f"{measured:,.0f}", f"{n} searches", "", True)


def called_a_break(found: list[Searched]) -> int:
    """Searches that state a confirmed break though nothing was known of the card."""
    return sum(s.stop.confirmed_bad for s in found)


def case_table(found: list[Searched], truth: dict[str, Truth], precision: float) -> Table:
    columns = ("case", "true break", "median c_ok", "median requests", "no answer", "break confirmed", "unsafe seeds")
    table = Table(*columns, title=f"By case, precision {precision:.0%}")
    for case in CASES:
        rows = [s for s in found if s.case == case.id]
        if not rows:
            continue
        true = truth[case.id].by_slo
        unsafe = ", ".join(f"{s.seed}: {s.stop.c_ok}" for s in rows if (s.stop.c_ok or 0) > true)
        table.add_row(
            case.id,
            str(true),
            f"{statistics.median(s.stop.c_ok or 0 for s in rows):.0f}",
            f"{statistics.median(s.sent for s in rows):,.0f}",
            str(sum(s.stop.c_ok is None for s in rows)),
            f"{sum(s.stop.confirmed_bad for s in rows)}/{len(rows)}",
            unsafe,
        )
    return table


class Results:
    """What was computed, kept in a file as it comes: an interrupted study goes on where it was."""

    def __init__(self, path: Path, pool: multiprocessing.pool.Pool) -> None:
        self._path, self._pool = path, pool
        self._known: dict[str, Any] = {}
        if path.exists():
            for line in path.read_bytes().splitlines():
                key, value = msgspec.json.decode(line)
                self._known[key] = value

    def map(self, function: Callable[[Any], Answer], jobs: list[Any], kind: type[Answer]) -> list[Answer]:
        """The function's answer to every job, in their order. `kind` is the type of an answer."""
        keys = [f"{function.__name__} {job}" for job in jobs]
        missing = [(key, function, job) for key, job in zip(keys, jobs, strict=True) if key not in self._known]
        with self._path.open("ab") as file:
            for key, value in self._pool.imap_unordered(_answer, missing):
                line = msgspec.json.encode((key, value))
                file.write(line + b"\n")
                file.flush()
                self._known[key] = msgspec.json.decode(line)[1]
        return [msgspec.convert(self._known[key], kind) for key in keys]


def _answer(job: tuple[str, Callable[[Any], Any], Any]) -> tuple[str, Any]:
    key, function, argument = job
    return key, function(argument)


def _seeds(count: int, study: int) -> range:
    """Seeds that no other study has."""
    return range(SEED + 1_000_000 * study, SEED + 1_000_000 * study + count)


def drift_lines(searches: int, results: Results) -> Iterator[Line]:
    """A search may end before its card has moved by the 3 % that make a drift: those are told apart."""
    found = results.map(on_a_card_that_keeps_drifting, list(_seeds(searches, 3)), Drifted)
    moved = [drifted.searched for drifted in found if drifted.moved > 0.03]
    wrong = called_a_break(moved)
    of = f"{len(moved)} of {searches} searches, it moved by over 3 %"
    yield Line("a drifting card called a break", str(wrong), of, "0", wrong == 0)


def limiter_lines(seeds: int, results: Results, console: Console) -> Iterator[Line]:
    jobs = [(number, seed) for seed in _seeds(seeds, 4) for number in range(len(LIMITED))]
    found = list(zip(results.map(limited, jobs, Searched), jobs, strict=True))
    for number, case in enumerate(LIMITED):
        named = Counter(s.limiter or "no break" for s, (n, _) in found if n == number)
        console.print(f"{case.id}, limited by {case.limiter}: {dict(named)}")
    share = sum(s.limiter == LIMITED[number].limiter for s, (number, _) in found) / len(jobs)
    yield Line("the right limiter named", f"{share:.1%}", f"{len(jobs)} searches", ">= 95 %", share >= 0.95)


def studies(each: int, small: int, comparisons: int, results: Results, console: Console) -> Iterator[Line]:
    truth = truths()
    for study, (precision, most, seeds) in enumerate(((0.05, 20_000, each), (0.10, 10_000, max(1, each // 2)))):
        jobs = [(number, seed, precision) for seed in _seeds(seeds, study) for number in range(len(CASES))]
        found = results.map(plain, jobs, Searched)
        console.print(case_table(found, truth, precision))
        yield from search_lines(found, truth, precision, most)
    wrong = called_a_break(results.map(with_a_slow_client, list(_seeds(small, 2)), Searched))
    yield Line("an invalid client called a break", str(wrong), f"{small} searches", "0", wrong == 0)
    yield from drift_lines(small, results)
    yield from limiter_lines(max(1, small // len(LIMITED)), results, console)
    slower = sum(results.map(same_against_same, list(_seeds(comparisons, 5)), bool))
    share = slower / comparisons
    yield Line(
        '"slower" of A against A', f"{share:.2%} ({slower})", f"{comparisons} of {PAIRS} pairs", "<= 6 %", share <= 0.06
    )


def print_table(lines: list[Line], console: Console) -> None:
    table = Table("row", "reached", "of", "target", "met", title=f"Searches of the simulated card (seed {SEED})")
    for line in lines:
        table.add_row(*line[:4], "" if not line.target else "yes" if line.met else "NO")
    console.print(table)


def make_truth(pool: multiprocessing.pool.Pool) -> None:
    found = pool.map(find_truth, CASES, chunksize=1)
    table = {case.id: truth for case, truth in zip(CASES, found, strict=True)}
    TRUTH.write_bytes(msgspec.json.format(msgspec.json.encode(table)) + b"\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--each", type=int, default=24, help="searches of each of the 18 cases at 5 %%, half at 10 %%")
    parser.add_argument("--small", type=int, default=100, help="searches of each of the other studies")
    parser.add_argument("--comparisons", type=int, default=400)
    kept = Path(".bench-search.jsonl")
    parser.add_argument("--results", type=Path, default=kept, help="file of single results; those in it are kept")
    parser.add_argument("--workers", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--truth", action="store_true", help="find the true breaks anew and write them down")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    options = parser.parse_args()
    console = Console(width=140)
    started_s = time.perf_counter()
    with multiprocessing.Pool(options.workers) as pool:
        if options.truth:
            make_truth(pool)
        results = Results(options.results, pool)
        lines = list(studies(options.each, options.small, options.comparisons, results, console))
    print_table(lines, console)
    console.print(f"{time.perf_counter() - started_s:.0f} s")
    if options.check and not all(line.met for line in lines):
        sys.exit(1)


if __name__ == "__main__":
    main()
