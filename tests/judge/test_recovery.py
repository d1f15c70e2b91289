"""After the break: which level is asked for, what is made of it, and in which words it is told."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.judge.recovery import recovery_gaps, recovery_sentence
from orchestrator.judge.search import Measure, Outcome, SearchRules, Stop, next_step, progress
from orchestrator.judge.steps import Recovery

MIB = 1 << 20
RULES = SearchRules(recovery=True, maximum=64)
Card = Callable[[Measure], Outcome]


def card(limit: int, *, slower: float = 1.0, died: bool = False, valid: bool = True) -> Card:
    """Holds fewer than `limit` users; after the break everything takes `slower` times as long."""
    broken = False

    def answer(step: Measure) -> Outcome:
        nonlocal broken
        worn = slower if broken else 1.0
        fails = step.concurrency >= limit
        broken = broken or fails
        size = step.looks[-1] if step.looks else 100
        return Outcome(
            concurrency=step.concurrency,
            purpose=step.purpose,
            valid=valid or step.purpose != "recovery",
            verdict="FAIL" if fails else "PASS",
            hard_break="out of memory" if fails and died else None,
            good=(0 if fails else size // 10,) * 10,
            batch=size // 10,
            offered=size,
            use=step.concurrency / limit,
            tpot_ms=20.0 * worn,
            tokens_per_s=1000.0 / worn,
            drain_s=4.1 if fails else 0.2,
            memory_bytes=(400 + 10 * step.concurrency) * MIB,
        )

    return answer


def walk(answer: Card, rules: SearchRules = RULES) -> tuple[list[Measure], list[Outcome], Stop]:
    steps: list[Measure] = []
    history: list[Outcome] = []
    while isinstance(step := next_step(history, rules), Measure):
        steps.append(step)
        history.append(answer(step))
        assert len(steps) < 100
    return steps, history, step


def test_the_lowest_level_that_held_is_asked_again_with_its_lengths() -> None:
    steps, _, stop = walk(card(24))
    assert [(s.purpose, s.concurrency) for s in steps[-2:]] == [("confirm-break", 24), ("recovery", 1)]
    assert (steps[-1].replicate, steps[-1].lengths_of) == (1, 0)
    assert stop.recovery == Recovery(
        broke_at=24,
        drain_s=4.1,
        concurrency=1,
        tokens_ratio=1.0,
        tpot_ratio=1.0,
        memory_before_bytes=410 * MIB,
        memory_broken_bytes=640 * MIB,
        memory_after_bytes=410 * MIB,
    )
    assert recovery_sentence(stop.recovery) == (
        "After the break at 24 users it drained in 4.1 s, gave back 100 % of the 230 MiB by which it had grown and "
        "served as before (1 user: throughput +0.0 %, TPOT +0.0 %)."
    )
    assert list(recovery_gaps(stop)) == []


def test_the_search_is_over_before_it() -> None:
    """A budget that ends here costs the look after the break and not the search."""
    _, history, stop = walk(card(24))
    come = progress(history[:-1], RULES)
    assert isinstance(come.step, Measure)
    assert come.so_far is not None
    assert (come.so_far.c_ok, come.so_far.recovery) == (stop.c_ok, None)


def test_a_server_that_stays_slower_is_told_and_stands_in_the_way() -> None:
    *_, stop = walk(card(24, slower=1.12))
    assert stop.recovery is not None
    assert stop.recovery.as_before is False
    assert "served 12 % slower than before (1 user: throughput \u221210.7 %, TPOT +12.0 %)" in recovery_sentence(
        stop.recovery
    )
    assert list(recovery_gaps(stop)) == [recovery_sentence(stop.recovery)]
    assert list(recovery_gaps(msgspec.structs.replace(stop, drifted=True))) == []


def test_a_break_that_ended_the_server_is_told_as_that() -> None:
    *_, stop = walk(card(24, died=True))
    assert stop.recovery is not None
    assert recovery_sentence(stop.recovery) == (
        "The break ended the server (out of memory); started again, it served as before (1 user: throughput +0.0 %, "
        "TPOT +0.0 %)."
    )


def test_a_level_that_could_not_be_measured_says_nothing() -> None:
    *_, stop = walk(card(24, valid=False, slower=2.0))
    assert stop.recovery is not None
    assert stop.recovery.as_before is None
    assert "was not measured validly again (1 user)" in recovery_sentence(stop.recovery)
    assert list(recovery_gaps(stop)) == []


@pytest.mark.parametrize(
    ("answer", "rules"),
    [
        (card(1000), RULES),  # no break
        (card(1), RULES),  # nothing held
        (card(24), SearchRules(maximum=64)),  # not asked for: runs of before
        (card(24), SearchRules(levels=(1, 32), recovery=True)),  # a ladder
    ],
)
def test_where_there_is_nothing_to_look_at_nothing_is_asked(answer: Card, rules: SearchRules) -> None:
    steps, _, stop = walk(answer, rules)
    assert steps
    assert "recovery" not in [s.purpose for s in steps]
    assert stop.recovery is None


@pytest.mark.parametrize(("slower", "passes"), [(1.0, 1), (1.02, 1), (1.3, 2)])
def test_the_full_search_compares_its_own_sentinels(slower: float, passes: int) -> None:
    """One that gets slower by more than 3 % is searched anew: then it is slow before the second break too."""
    full = SearchRules.full(precision=0.1, start=4, maximum=64, target=0.95, error_budget=0.001)
    steps, _, stop = walk(card(24, slower=slower), msgspec.structs.replace(full, recovery=True))
    assert "recovery" not in [s.purpose for s in steps]
    assert [s.purpose for s in steps].count("sentinel") == {1: 5, 2: 7}[passes]
    assert stop.recovery is not None
    assert stop.recovery.concurrency == 1
    assert stop.recovery.slower == pytest.approx(slower - 1 if passes == 1 else 0.0)


def test_memory_that_did_not_grow_or_is_kept_is_told() -> None:
    base = Recovery(broke_at=8, concurrency=1, tpot_ratio=1.0, memory_before_bytes=1000 * MIB)
    flat = msgspec.structs.replace(base, memory_broken_bytes=1005 * MIB, memory_after_bytes=1005 * MIB)
    kept = msgspec.structs.replace(base, memory_broken_bytes=1500 * MIB, memory_after_bytes=1495 * MIB)
    half = msgspec.structs.replace(base, memory_broken_bytes=1500 * MIB, memory_after_bytes=1250 * MIB)
    assert "it had not grown in memory and served as before" in recovery_sentence(flat)
    assert "it gave back nothing of the 500 MiB by which it had grown" in recovery_sentence(kept)
    assert "it gave back 50 % of the 500 MiB" in recovery_sentence(half)


@settings(deadline=None)
@given(st.integers(2, 64), st.integers(1, 8), st.integers(0, 3), st.booleans())
def test_a_resumed_run_takes_the_same_steps(limit: int, start: int, confirm: int, died: bool) -> None:
    rules = SearchRules(recovery=True, start=start, maximum=64, confirm=confirm)
    steps, history, stop = walk(card(limit, died=died), rules)
    for number, step in enumerate(steps):
        assert next_step(history[:number], rules) == step
    assert [s.purpose for s in steps].count("recovery") == (stop.c_bad is not None and stop.c_ok is not None)
    asked = [(s.concurrency, s.replicate) for s in steps]
    assert len(set(asked)) == len(asked), "no list of prompts comes twice"
