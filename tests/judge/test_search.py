from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import JournalError
from orchestrator.judge.search import STEPS_DOWN, Measure, Outcome, SearchRules, Stop, bracket, next_step
from orchestrator.records import Purpose

Word = Literal["PASS", "FAIL", "UNDECIDED"]
Card = Callable[[Measure], Outcome]


def outcome(step: Measure, verdict: Word, *, valid: bool = True, hard_break: str | None = None) -> Outcome:
    return Outcome(
        concurrency=step.concurrency, purpose=step.purpose, valid=valid, verdict=verdict, hard_break=hard_break
    )


def breaks_at(limit: int) -> Card:
    """A card that holds every level below `limit`."""
    return lambda step: outcome(step, "PASS" if step.concurrency < limit else "FAIL")


def search(card: Card, rules: SearchRules, most: int = 400) -> tuple[list[Measure], list[Outcome], Stop]:
    """Run a search to its end, every step found anew from the history alone, as after a resume."""
    steps: list[Measure] = []
    history: list[Outcome] = []
    while isinstance(step := next_step(history, rules), Measure):
        steps.append(step)
        history.append(card(step))
        assert len(steps) <= most, "the search does not end"
    return steps, history, step


def shown(steps: Sequence[Measure]) -> list[tuple[Purpose, int]]:
    return [(step.purpose, step.concurrency) for step in steps]


# --- examples ---


def test_where_the_first_level_does_not_hold_it_looks_below() -> None:
    steps, _, stop = search(breaks_at(4), SearchRules(start=16, confirm=0))
    assert shown(steps) == [("bracket", 16), *(("bisect", c) for c in (8, 4, 2, 3))]
    assert (stop.c_ok, stop.c_bad, stop.why) == (3, 4, "3 holds and 4 does not.")
    steps, _, stop = search(breaks_at(1), SearchRules(start=2, confirm=0))
    assert shown(steps) == [("bracket", 2), ("bisect", 1)]
    assert (stop.c_ok, stop.c_bad, stop.why) == (None, 1, "The lowest level that was tried, 1, does not hold.")


def test_a_whole_search() -> None:
    steps, _, stop = search(breaks_at(24), SearchRules())
    assert shown(steps) == [
        *(("bracket", c) for c in (1, 2, 4, 8, 16, 32)),
        ("bisect", 24),
        ("bisect", 20),
        ("bisect", 22),
        ("confirm", 22),
        ("confirm-break", 24),
    ]
    assert stop == Stop(
        c_ok=22, c_bad=24, confirmed_ok=True, confirmed_bad=True, monotone=True, why="22 holds and 24 does not."
    )


def test_fresh_runs_that_are_all_invalid_take_nothing_from_the_card() -> None:
    def measure(step: Measure) -> Outcome:
        return outcome(step, "PASS" if step.concurrency < 24 else "FAIL", valid=step.purpose != "confirm")

    steps, _, stop = search(measure, SearchRules())
    assert sum(step.purpose == "confirm" for step in steps) == 2 * (1 + STEPS_DOWN)
    assert (stop.c_ok, stop.c_bad, stop.confirmed_ok, stop.confirmed_bad) == (22, 24, False, True)


def test_the_first_level_fails() -> None:
    steps, _, stop = search(breaks_at(1), SearchRules())
    assert shown(steps) == [("bracket", 1), ("confirm-break", 1)]
    assert (stop.c_ok, stop.c_bad, stop.confirmed_ok, stop.confirmed_bad) == (None, 1, False, True)
    assert stop.why == "The lowest level that was tried, 1, does not hold."


def test_the_cap_passes() -> None:
    steps, _, stop = search(breaks_at(1000), SearchRules(start=3, maximum=20))
    assert shown(steps) == [("bracket", 3), ("bracket", 6), ("bracket", 12), ("bracket", 20), ("confirm", 20)]
    assert (stop.c_ok, stop.c_bad, stop.confirmed_ok, stop.confirmed_bad) == (20, None, True, False)
    assert stop.why == "No break was found up to 20, the highest level that was tried."


def test_an_invalid_level_is_measured_again_once() -> None:
    def card(step: Measure) -> Outcome:
        flaky = step.concurrency == 8 and step.replicate == 0
        return outcome(step, "UNDECIDED", valid=False) if flaky else breaks_at(24)(step)

    steps, _, stop = search(card, SearchRules())
    assert [step.replicate for step in steps if step.concurrency == 8] == [0, 1]
    assert (stop.c_ok, stop.c_bad, stop.monotone) == (22, 24, True)


def test_an_invalid_level_ends_what_can_be_known_and_is_no_break() -> None:
    def card(step: Measure) -> Outcome:
        blind = step.concurrency >= 32
        return outcome(step, "UNDECIDED", valid=False) if blind else outcome(step, "PASS")

    steps, _, stop = search(card, SearchRules())
    assert shown(steps)[-1] == ("confirm", 30)
    assert (stop.c_ok, stop.c_bad, stop.confirmed_ok, stop.confirmed_bad) == (30, None, True, False)
    assert stop.why == "30 holds; the measurement at 32 is INVALID, so nothing is known above."


def test_an_invalid_level_below_the_break_is_told() -> None:
    def card(step: Measure) -> Outcome:
        return outcome(step, "FAIL", valid=False) if step.concurrency == 24 else breaks_at(30)(step)

    _, _, stop = search(card, SearchRules())
    assert (stop.c_ok, stop.c_bad) == (22, 32)
    assert (
        stop.why
        == "22 holds; the measurement at 24 is INVALID, so nothing is known above up to 32, which does not hold."
    )


def test_the_first_level_is_invalid() -> None:
    steps, _, stop = search(lambda step: outcome(step, "FAIL", valid=False), SearchRules(start=4))
    assert [(step.concurrency, step.replicate) for step in steps] == [(4, 0), (4, 1)]
    assert (stop.c_ok, stop.c_bad) == (None, None)
    assert stop.why == "The measurement at 4 is INVALID, so nothing is known of the card."


def test_an_unconfirmed_level_gives_way_to_one_five_percent_lower() -> None:
    def card(step: Measure) -> Outcome:
        unsure = step.purpose == "confirm" and step.concurrency >= 38
        return outcome(step, "FAIL") if unsure else breaks_at(44)(step)

    steps, _, stop = search(card, SearchRules())
    assert [c for purpose, c in shown(steps) if purpose == "confirm"] == [40, 38, 36]
    assert shown(steps)[-1] == ("confirm-break", 38)
    assert (stop.c_ok, stop.c_bad, stop.confirmed_ok) == (36, 38, True)
    assert not stop.confirmed_bad  # below 44 the card holds


def test_nothing_is_confirmed() -> None:
    def card(step: Measure) -> Outcome:
        return outcome(step, "FAIL") if step.purpose == "confirm" else breaks_at(100)(step)

    steps, _, stop = search(card, SearchRules())
    confirms = [c for purpose, c in shown(steps) if purpose == "confirm"]
    assert len(confirms) == 1 + STEPS_DOWN
    assert all(b == min(a - 1, int(0.95 * a)) for a, b in itertools.pairwise(confirms))
    assert (stop.c_ok, stop.confirmed_ok) == (None, False)
    assert stop.why == f"No level was confirmed: {confirms[0]} held at first, but not in fresh runs."


def test_every_confirmation_must_hold() -> None:
    def card(step: Measure) -> Outcome:
        second = step.purpose == "confirm" and step.concurrency == 22 and step.replicate == 2
        return outcome(step, "FAIL") if second else breaks_at(24)(step)

    steps, _, stop = search(card, SearchRules(confirm=3))
    assert [(s.concurrency, s.replicate) for s in steps if s.purpose == "confirm"] == [
        (22, 1),
        (22, 2),
        (20, 1),
        (20, 2),
        (20, 3),
    ]
    assert (stop.c_ok, stop.c_bad) == (20, 22)


def test_without_confirmation_neither_end_is_confirmed() -> None:
    steps, _, stop = search(breaks_at(24), SearchRules(confirm=0))
    assert {step.purpose for step in steps} == {"bracket", "bisect"}
    assert (stop.c_ok, stop.c_bad, stop.confirmed_ok, stop.confirmed_bad) == (22, 24, False, False)


def test_a_break_that_does_not_repeat_is_not_confirmed() -> None:
    def card(step: Measure) -> Outcome:
        once = step.concurrency == 4 and step.replicate == 0
        return outcome(step, "FAIL", hard_break="out of memory") if once else outcome(step, "PASS")

    steps, _, stop = search(card, SearchRules())
    assert shown(steps)[-1] == ("confirm-break", 4)
    assert (stop.c_ok, stop.c_bad, stop.confirmed_ok, stop.confirmed_bad) == (3, 4, True, False)


def test_a_hard_break_is_a_break() -> None:
    def card(step: Measure) -> Outcome:
        died = step.concurrency >= 12
        return outcome(step, "FAIL", hard_break="out of memory") if died else outcome(step, "PASS")

    _, history, stop = search(card, SearchRules())
    assert history[4].hard_break == "out of memory"
    assert (stop.c_ok, stop.c_bad, stop.confirmed_bad) == (11, 12, True)


def test_an_undecided_level_ends_the_climb_and_is_not_a_confirmed_break() -> None:
    def card(step: Measure) -> Outcome:
        return outcome(step, "UNDECIDED" if step.concurrency >= 8 else "PASS")

    _, _, stop = search(card, SearchRules())
    assert (stop.c_ok, stop.c_bad, stop.confirmed_bad) == (7, 8, False)


def test_a_ladder_measures_what_it_names() -> None:
    steps, _, stop = search(breaks_at(10), SearchRules(levels=(16, 1, 4, 16)))
    assert shown(steps) == [("ladder", 1), ("ladder", 4), ("ladder", 16)]
    assert (stop.c_ok, stop.c_bad, stop.confirmed_ok, stop.confirmed_bad) == (4, 16, False, False)


def test_a_ladder_goes_on_above_a_level_that_misses_the_slo_but_not_above_a_dead_server() -> None:
    def card(step: Measure) -> Outcome:
        if step.concurrency == 8:
            return outcome(step, "FAIL", hard_break="out of memory")
        return outcome(step, "PASS" if step.concurrency == 1 else "FAIL")

    steps, _, stop = search(card, SearchRules(levels=(1, 2, 4, 8, 16)))
    assert [step.concurrency for step in steps] == [1, 2, 4, 8]
    assert (stop.c_ok, stop.c_bad) == (1, 2)
    assert stop.why == "The server broke at 8 (out of memory): the levels above were not tried."


def test_a_level_that_holds_above_one_that_does_not_is_no_c_ok() -> None:
    _, _, stop = search(lambda s: outcome(s, "FAIL" if s.concurrency == 4 else "PASS"), SearchRules(levels=(2, 4, 8)))
    assert (stop.c_ok, stop.c_bad, stop.monotone) == (2, 4, False)


def test_sentinels_are_no_part_of_the_search() -> None:
    sentinel = Outcome(concurrency=4, purpose="sentinel", valid=True, verdict="FAIL")
    _, history, stop = search(breaks_at(24), SearchRules())
    assert next_step([sentinel, *history, sentinel], SearchRules()) == stop
    assert bracket([sentinel]) == (None, None, True)


def test_another_searchs_history_is_refused() -> None:
    _, history, _ = search(breaks_at(24), SearchRules())
    with pytest.raises(JournalError, match="asks for bracket at 3") as error:
        next_step(history, SearchRules(start=3))
    assert "start a new run" in error.value.remedy


def test_a_finished_search_stays_finished() -> None:
    _, history, stop = search(breaks_at(24), SearchRules())
    late = Outcome(concurrency=99, purpose="bracket", valid=True, verdict="PASS")
    assert next_step([*history, late], SearchRules()) == stop


def test_a_cut_search_is_bracketed_by_what_it_saw() -> None:
    _, history, _ = search(breaks_at(24), SearchRules())
    assert bracket(history[:5]) == (16, None, True)
    assert bracket(history[:7]) == (16, 24, True)
    assert bracket([]) == (None, None, True)


# --- properties ---

rules_given = st.builds(
    SearchRules,
    start=st.integers(1, 6),
    maximum=st.integers(6, 2000),
    factor=st.sampled_from([1.5, 2.0, 4.0]),
    precision=st.sampled_from([0.05, 0.1, 0.25]),
    confirm=st.integers(0, 3),
)
limits = st.integers(1, 3000)


def most_levels(rules: SearchRules) -> int:
    """Cost bound of a search without INVALID levels."""
    climb = math.ceil(math.log(max(2, rules.maximum / rules.start)) / math.log(rules.factor)) + rules.start + 2
    bisect = math.ceil(math.log2(max(1.0, rules.factor - 1) / rules.precision)) + 2
    return climb + bisect + (1 + STEPS_DOWN) * rules.confirm + 1


@given(rules_given, limits)
def test_the_break_of_a_monotone_card_is_found(rules: SearchRules, limit: int) -> None:
    steps, _, stop = search(breaks_at(limit), rules)
    assert len(steps) <= most_levels(rules)
    low, high = stop.c_ok, stop.c_bad
    if low is None:
        assert limit == high == 1, "nothing holds"
    elif high is None:
        assert low == rules.maximum < limit
    else:
        assert low < limit <= high
        assert high - low <= max(1, rules.precision * high)
    assert stop.monotone
    assert stop.confirmed_ok is (low is not None and rules.confirm > 0)
    assert stop.confirmed_bad is (high is not None and rules.confirm > 0)


@given(rules_given, st.data())
def test_any_card_whatever_it_does(rules: SearchRules, data: st.DataObject) -> None:
    """Random outcomes: the search ends, repeats nothing, and its answer is what it saw."""
    words = st.sampled_from(["PASS", "PASS", "FAIL", "UNDECIDED", "INVALID", "BROKE"])

    def card(step: Measure) -> Outcome:
        word = data.draw(words)
        if word == "INVALID":
            return outcome(step, "UNDECIDED", valid=False)
        if word == "BROKE":
            return outcome(step, "FAIL", hard_break="server died")
        return outcome(step, word)  # type: ignore[arg-type]

    steps, history, stop = search(card, rules, most=2 * most_levels(rules))
    assert len({(step.concurrency, step.replicate) for step in steps}) == len(steps) == len(history) > 0
    assert all(1 <= step.concurrency <= rules.maximum for step in steps)
    if stop.c_bad is not None:
        assert any(o.valid and not o.holds for o in history if o.concurrency == stop.c_bad)
        assert stop.c_bad > (stop.c_ok or 0)
    if stop.c_ok is not None:
        assert any(o.holds for o in history if o.concurrency == stop.c_ok)
    if stop.confirmed_ok:
        fresh = [o for o in history if o.concurrency == stop.c_ok and o.purpose == "confirm"]
        assert sum(o.holds for o in fresh) == rules.confirm
    if stop.confirmed_bad:
        assert all(o.fails for o in history if o.concurrency == stop.c_bad and o.valid)


@given(rules_given, limits, st.data())
def test_a_resumed_search_goes_on_as_if_never_interrupted(rules: SearchRules, limit: int, data: st.DataObject) -> None:
    steps, history, stop = search(breaks_at(limit), rules)
    cut = data.draw(st.integers(0, len(history)))
    expected: Measure | Stop = steps[cut] if cut < len(steps) else stop
    assert next_step(history[:cut], rules) == expected
    assert next_step(tuple(history[:cut]), rules) == expected
