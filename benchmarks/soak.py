"""How often a soak calls a stable server unsteady, and how often it finds one that gets slower: simulated cards.

    python -m benchmarks.soak [--soaks N] [--minutes M]

Llama 3.1 8B in fp8 on an RTX 4090, vLLM, in virtual time at 16 users; every soak has seeds of its own.
"""

from __future__ import annotations

import argparse
import itertools
from collections import Counter
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.table import Table

from orchestrator.judge.soak import soak_of
from orchestrator.records import LevelSpec, Request
from stacks.memory.cards import find_card
from stacks.memory.formats import find_kv_format, find_weight_format
from stacks.memory.models import find_model
from stacks.memory.setup import Setup
from stacks.simulated.card import SimulatedCard, simulated_card
from stacks.simulated.closed import run_virtual
from workloads.presets import preset
from workloads.workload import Workload

USERS, CONTEXT = 16, 8192
WORKLOADS = ("azure-conv-2023", "azure-code-2023")
SLOWER = (0.0, 0.1, 0.2, 0.4)
"""By what share a step takes longer at the end of the soak than at its beginning."""


def card() -> SimulatedCard:
    weights = find_weight_format("fp8")
    setup = Setup(
        model=find_model("meta-llama/Llama-3.1-8B-Instruct"),
        weights=weights,
        kv=find_kv_format("auto", weights),
        card=find_card("RTX-4090-24GB"),
        max_model_len=CONTEXT,
    )
    return simulated_card(setup)


def draws(workload: Workload, seed: int) -> Iterator[Request]:
    for number in itertools.count():
        yield from workload.draw(1_000 * seed + number, 1000, CONTEXT)


def growing(slower: float, seconds: float) -> Callable[[float], float]:
    return lambda now_s: 1 + slower * min(1.0, now_s / seconds)


def words(workload: Workload, slower: float, soaks: int, seconds: float) -> Counter[str]:
    """Verdicts of both trends of so many soaks, as ``TTFT FAIL``."""
    found: Counter[str] = Counter()
    for seed in range(soaks):
        spec = LevelSpec(
            concurrency=USERS,
            purpose="soak",
            seed=seed,
            requests=100,
            min_seconds=seconds,
            max_seconds=2 * seconds + 600,
            ramp_seconds=10.0,
            warmup_generations=3.0,
            warmup_seconds=10.0,
            filler_seconds=30.0,
            deadline_seconds=600.0,
        )
        engine = card().engine(seed, slowdown=growing(slower, seconds))
        level = run_virtual(engine, spec, measured=draws(workload, seed), other=draws(workload, seed + 10**6))
        soak = soak_of(level.run, level.records, level.samples)
        for name, trend in (("TTFT", soak and soak.ttft_rise), ("TPOT", soak and soak.tpot_rise)):
            found[f"{name} {trend.verdict if trend else 'none'}"] += 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--soaks", type=int, default=50, help="for each row")
    parser.add_argument("--minutes", type=float, default=20.0)
    given = parser.parse_args()
    table = Table(title=f"{given.soaks} soaks a row, {given.minutes:g} min each, {USERS} users")
    kinds = [f"{name} {word}" for name in ("TTFT", "TPOT") for word in ("PASS", "UNDECIDED", "FAIL")]
    for heading in ("workload", "slower by", *kinds):
        table.add_column(heading, justify="left" if heading == "workload" else "right")
    for name, slower in itertools.product(WORKLOADS, SLOWER):
        found = words(preset(name), slower, given.soaks, 60 * given.minutes)
        table.add_row(name, f"{slower:.0%}", *(str(found[kind]) for kind in kinds))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
