"""The full search on cards whose attainment is known: every step found anew from the history, as after a resume."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.judge.fresh import pooled_bounds
from orchestrator.judge.looks import deciding_look
from orchestrator.judge.search import Measure, Outcome, SearchRules, Stop, next_step
from orchestrator.judge.steps import last_pass, moved
from orchestrator.records import Purpose


def rules(precision: float = 0.05, start: int = 4, maximum: int = 512) -> SearchRules:
    return SearchRules.full(precision=precision, start=start, maximum=maximum, target=0.95, error_budget=0.001)


class Said(NamedTuple):
    """What a card answers at a level."""

    share: float
    use: float
    hard_break: str | None = None
    valid: bool = True
    failed: int = 0
    tpot_ms: float = 20.0


def card(answer: Callable[[Measure, int], Said], seed: int = 0) -> Callable[[Measure], Outcome]:
    """A card of independent requests; `answer` is given the step and how many levels were measured before."""
    draw = random.Random(seed)
    measured = 0

    def measure(step: Measure) -> Outcome:
        nonlocal measured
        said = answer(step, measured)
        measured += 1
        flags = [draw.random() < said.share for _ in range(step.looks[-1])]
        look = deciding_look(flags, step.looks, 0.95, step.alpha)
        assert look is not None
        fails = said.hard_break is not None or look.verdict == "FAIL"
        return Outcome(
            concurrency=step.concurrency,
            purpose=step.purpose,
            valid=said.valid,
            verdict="FAIL" if fails else look.verdict if said.valid else "UNDECIDED",
            hard_break=said.hard_break,
            good=look.good,
            batch=look.batch,
            offered=look.size,
            failed=said.failed,
            use=said.use,
            tpot_ms=said.tpot_ms,
            tokens_per_s=100.0,
        )

    return measure


def smooth(limit: float, steep: float = 12.0) -> Callable[[Measure, int], Said]:
    """Attainment 0.95 at `limit` and falling beyond; the use of the limits grows with c to the power 0.8."""

    def answer(step: Measure, _: int) -> Said:
        odds = math.log(0.95 / 0.05) - steep * math.log(step.concurrency / limit) * 3
        return Said(share=1 / (1 + math.exp(-odds)), use=(step.concurrency / limit) ** 0.8)

    return answer


def search(measure: Callable[[Measure], Outcome], given: SearchRules) -> tuple[list[Measure], list[Outcome], Stop]:
    steps: list[Measure] = []
    history: list[Outcome] = []
    while isinstance(step := next_step(history, given), Measure):
        steps.append(step)
        history.append(measure(step))
        assert len(steps) < 200, "the search does not end"
    return steps, history, step


def purposes(steps: Sequence[Measure]) -> list[Purpose]:
    """Without repetitions in a row."""
    found = [step.purpose for step in steps]
    return [p for i, p in enumerate(found) if i == 0 or found[i - 1] != p]


@pytest.mark.parametrize("limit", [3, 17, 60, 140, 400])
def test_the_break_is_found_and_both_ends_are_confirmed(limit: int) -> None:
    steps, _, stop = search(card(smooth(limit)), rules())
    assert stop.c_ok is not None
    assert stop.c_bad is not None
    assert 0.85 * limit - 1 <= stop.c_ok <= limit < stop.c_bad <= 1.15 * limit + 2
    assert (stop.confirmed_ok, stop.confirmed_bad, stop.drifted) == (True, True, False)
    assert purposes(steps)[-2:] == ["confirm-break", "sentinel"]
    assert sum(step.purpose == "sentinel" for step in steps) == 5
    assert sum(step.purpose == "confirm" and step.concurrency == stop.c_ok for step in steps) >= 3


def test_the_answers_are_safe_and_not_far_below() -> None:
    """Independent requests, many searches: hardly one is unsafe, and few are timid."""
    stops = [search(card(smooth(50.0 + seed % 7), seed), rules(0.10))[2] for seed in range(60)]
    unsafe = sum((stop.c_ok or 0) > 50 + seed % 7 for seed, stop in enumerate(stops))
    assert unsafe <= 2
    ratios = sorted((stop.c_ok or 0) / (50 + seed % 7) for seed, stop in enumerate(stops))
    assert ratios[30] >= 0.92


def test_a_break_that_comes_at_once_is_found_by_halving() -> None:
    """The use of the limits says nothing until the break is there: a full pool."""

    def answer(step: Measure, _: int) -> Said:
        return Said(1.0, 0.4) if step.concurrency <= 77 else Said(0.1, 20.0)

    steps, _, stop = search(card(answer), rules())
    assert stop.c_ok is not None
    assert 0.95 * 77 - 1 <= stop.c_ok <= 77
    assert sum(step.purpose == "bisect" for step in steps) <= 8


def test_the_cap_passes() -> None:
    _, _, stop = search(card(lambda step, _: Said(1.0, 0.1)), rules(maximum=40))
    assert (stop.c_ok, stop.c_bad, stop.confirmed_ok, stop.confirmed_bad) == (40, None, True, False)
    assert stop.why == "No break was found up to 40, the highest level that was tried."


def test_nothing_holds() -> None:
    _, _, stop = search(card(lambda step, _: Said(0.2, 3.0)), rules())
    assert (stop.c_ok, stop.c_bad, stop.confirmed_bad) == (None, 1, True)


def test_a_break_below_the_start_is_still_found() -> None:
    _, _, stop = search(card(lambda step, _: Said(1.0, 0.5) if step.concurrency <= 2 else Said(0.1, 3.0)), rules())
    assert (stop.c_ok, stop.c_bad) == (2, 3)


def test_an_invalid_client_is_no_break() -> None:
    _, _, stop = search(card(lambda step, _: Said(1.0, 0.5, valid=step.concurrency <= 20)), rules())
    assert stop.c_bad is None
    assert not stop.confirmed_bad
    assert stop.c_ok is not None
    assert stop.c_ok <= 20
    assert "INVALID" in stop.why


def test_fresh_runs_that_are_all_invalid_take_nothing_from_the_card() -> None:
    """A time limit that cuts every long run, say: what held is unconfirmed, and no failure."""

    def answer(step: Measure, measured: int) -> Said:
        return smooth(60)(step, measured)._replace(valid=step.purpose != "confirm")

    steps, history, stop = search(card(answer), rules())
    assert sum(step.purpose == "confirm" for step in steps) == 4, "two levels, each measured once more"
    assert stop.c_ok == max(o.concurrency for o in history if o.valid and o.purpose == "bisect" and o.share >= 0.97)
    assert (stop.confirmed_ok, stop.confirmed_bad) == (False, True)
    assert stop.c_bad is not None
    assert stop.c_ok < stop.c_bad


def test_a_card_that_drifts_twice_has_no_confirmed_answer() -> None:
    """It slows down all the time; the second ladder drifts as the first did."""

    def answer(step: Measure, measured: int) -> Said:
        return smooth(60)(step, measured)._replace(tpot_ms=20.0 * 1.01**measured)

    steps, _, stop = search(card(answer), rules())
    assert (stop.drifted, stop.confirmed_ok, stop.confirmed_bad) == (True, False, False)
    assert [step.purpose for step in steps].count("sentinel") >= 4
    assert "drifted" in stop.why


def test_a_drift_that_is_gone_again_at_the_end_is_seen() -> None:
    """It is slow only while the fresh runs are made: the sentinels around them know."""

    before: list[Purpose] = []

    def answer(step: Measure, measured: int) -> Said:
        slow = bool(before) and before[-1] in ("bisect", "confirm")
        if step.purpose != "sentinel":
            before.append(step.purpose)
        return smooth(60)(step, measured)._replace(tpot_ms=22.0 if slow else 20.0)

    steps, _, stop = search(card(answer), rules())
    assert purposes(steps)[-1] == "sentinel"
    assert (stop.drifted, stop.confirmed_ok) == (True, False)


def test_a_card_that_drifted_once_is_measured_anew() -> None:
    def answer(step: Measure, measured: int) -> Said:
        return smooth(60)(step, measured)._replace(tpot_ms=20.0 if measured == 0 else 22.0)

    steps, _, stop = search(card(answer), rules())
    assert (stop.drifted, stop.confirmed_ok, stop.confirmed_bad) == (False, True, True)
    assert [step.purpose for step in steps].count("sentinel") == 7
    assert len({(step.concurrency, step.replicate) for step in steps}) == len(steps)


def test_the_last_pass_begins_behind_the_sentinel_that_moved() -> None:
    def sentinel(tpot_ms: float) -> Outcome:
        return Outcome(concurrency=1, purpose="sentinel", valid=True, verdict="PASS", tpot_ms=tpot_ms)

    other = Outcome(concurrency=8, purpose="confirm", valid=True, verdict="PASS", tpot_ms=30.0)
    history = [sentinel(20.0), other, sentinel(20.1), sentinel(22.0), sentinel(22.1), other, sentinel(22.2)]
    assert last_pass(history) == [history[4], history[6]]
    assert last_pass(history[:3]) == [history[0], history[2]]


def test_a_sentinel_whose_requests_failed_has_moved() -> None:
    good = Outcome(concurrency=1, purpose="sentinel", valid=True, verdict="PASS", tpot_ms=20.0, tokens_per_s=50.0)
    failed = msgspec.structs.replace(good, verdict="FAIL", tpot_ms=None)
    assert moved(good, failed)
    assert moved(failed, good)
    one_token = msgspec.structs.replace(good, tpot_ms=None)
    assert not moved(one_token, one_token)


def test_a_level_with_more_failures_than_the_budget_is_not_confirmed() -> None:
    def answer(step: Measure, measured: int) -> Said:
        failing = step.concurrency > 30 and step.purpose == "confirm"
        return smooth(60)(step, measured)._replace(failed=5 if failing else 0)

    _, _, stop = search(card(answer), rules())
    assert stop.c_ok is None or stop.c_ok <= 30


def test_a_dead_server_is_a_break() -> None:
    def answer(step: Measure, _: int) -> Said:
        return Said(1.0, 0.5) if step.concurrency < 33 else Said(1.0, 0.5, hard_break="out of memory")

    _, _, stop = search(card(answer), rules())
    assert stop.c_ok is not None
    assert 30 <= stop.c_ok <= 32
    assert (stop.c_bad is not None and 33 <= stop.c_bad <= 36, stop.confirmed_bad) == (True, True)


def test_pooled_runs_are_cut_so_that_no_batch_spans_two() -> None:
    """Vector G of the method: three runs of 1,600 as fifteen batches of 320."""
    good = (316, 310, 318, 305, 312, 309, 319, 314, 307, 311, 317, 313, 308, 315, 310)
    runs = [
        Outcome(
            concurrency=32,
            purpose="confirm",
            valid=True,
            verdict="UNDECIDED",
            good=tuple(half for g in good[5 * run : 5 * run + 5] for half in (g // 2, g - g // 2)),
            batch=160,
        )
        for run in range(3)
    ]
    bounds = pooled_bounds(runs, 0.05)
    assert bounds is not None
    assert bounds.lower == pytest.approx(0.968972, abs=1e-6)
    assert bounds.n_eff == pytest.approx(1791.079150, rel=1e-6)
    assert pooled_bounds([], 0.05) is None


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from([0.05, 0.10]))
def test_any_card_whatever_it_does(data: st.DataObject, precision: float) -> None:
    words = st.sampled_from(["good", "good", "bad", "edge", "invalid", "broke"])

    def answer(step: Measure, _: int) -> Said:
        word = data.draw(words)
        use = data.draw(st.sampled_from([0.1, 0.9, 1.0, 5.0]))
        if word == "broke":
            return Said(1.0, use, hard_break="server died")
        return Said({"good": 1.0, "bad": 0.5, "edge": 0.95, "invalid": 0.5}[word], use, valid=word != "invalid")

    steps, history, stop = search(card(answer), rules(precision))
    assert len({(step.concurrency, step.replicate) for step in steps}) == len(steps)
    assert all(1 <= step.concurrency <= 512 for step in steps)
    cut = data.draw(st.integers(0, len(history)))
    expected: Measure | Stop = steps[cut] if cut < len(steps) else stop
    assert next_step(history[:cut], rules(precision)) == expected
    if stop.c_bad is not None:
        assert stop.c_bad > (stop.c_ok or 0)
