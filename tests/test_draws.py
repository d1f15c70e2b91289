"""What a level asks for: lists of its own, and once more the lengths of an earlier one."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import msgspec

from orchestrator.asked import level_spec
from orchestrator.judge.search import Measure
from orchestrator.level import Bench
from orchestrator.plan import parse_plan
from orchestrator.records import LevelSpec, Request

PLAN = parse_plan(
    b'[model]\nid = "org/model"\ncontext_tokens = 4096\n[[deployment]]\nname = "d"\nstack = "vllm"\n'
    b'[[workload]]\npreset = "azure-conv-2023"\n[soak]\nminutes = 60\n[ramp]\nmax_seconds = 100\n',
    "p.toml",
    base=Path("/nowhere"),
    environ={},
)
BENCH = cast(Bench, SimpleNamespace(_plan=PLAN, _cell=PLAN.cells()[0]))


def drawn(spec: LevelSpec, part: str = "measured") -> list[Request]:
    return list(itertools.islice(Bench._draws(BENCH, spec, part), 150))


def lengths(requests: list[Request]) -> list[tuple[int, int]]:
    return [(r.prompt_tokens, r.output_tokens) for r in requests]


def test_a_level_after_the_break_asks_the_lengths_of_the_first_with_prompts_of_its_own() -> None:
    first = level_spec(Measure(concurrency=2, purpose="bracket", replicate=0), PLAN.ramp, 11, 0.0)
    fresh = level_spec(Measure(concurrency=2, purpose="confirm", replicate=1), PLAN.ramp, 22, 0.0)
    again = msgspec.structs.replace(fresh, purpose="recovery", lengths_seed=11)
    for part in ("measured", "other"):
        before, other, after = (drawn(spec, part) for spec in (first, fresh, again))
        assert len(set(lengths(before))) > 20
        assert lengths(after) == lengths(before)
        assert lengths(other) != lengths(before)
        seeds = [r.prompt_seed for r in (*before, *other, *after)]
        assert len(set(seeds)) == 450, "no prompt comes twice"


def test_a_soak_may_last_longer_than_a_level() -> None:
    step = Measure(concurrency=8, purpose="soak", replicate=0, min_seconds=PLAN.soak_seconds(PLAN.workloads[0]))
    spec = level_spec(step, PLAN.ramp, 1, 0.5)
    assert (spec.min_seconds, spec.max_seconds) == (3600, 3700)
    assert PLAN.expected_seconds(PLAN.cells()[0]) > 3600
