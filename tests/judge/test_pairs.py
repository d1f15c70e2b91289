"""The order of turns, which one is next after any history, and which pairs are void."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.judge.pairs import (
    Taken,
    blocks_in_words,
    drifted,
    gave_up,
    is_last_of_its_side,
    next_turn,
    order,
    reference,
)
from orchestrator.judge.search import Outcome
from orchestrator.records import Purpose, Side, Turn

PAIRS = st.integers(2, 20).map(lambda half: 2 * half)
SEEDS = st.integers(0, 2**48)


def outcome(purpose: Purpose = "pair", **values: object) -> Outcome:
    told = {"concurrency": 8, "purpose": purpose, "valid": True, "verdict": "PASS"} | values
    return Outcome(**told)  # type: ignore[arg-type]


GOOD, INVALID, BROKE = outcome(), outcome(valid=False), outcome(verdict="FAIL", hard_break="server died")


@given(SEEDS, PAIRS)
def test_every_side_of_every_pair_comes_once_in_blocks_of_two_pairs(seed: int, pairs: int) -> None:
    turns = order(seed, pairs)
    assert Counter(turns) == Counter(Turn(pair=n, side=s) for n in range(1, pairs + 1) for s in ("a", "b"))
    blocks = blocks_in_words(turns).split()
    assert len(blocks) == pairs // 2
    counts = Counter(blocks)
    assert counts.keys() <= {"ABBA", "BAAB"}
    assert abs(counts["ABBA"] - counts["BAAB"]) <= 1
    assert [turn.pair for turn in turns] == [n for n in range(1, pairs + 1) for _ in range(2)]
    assert order(seed, pairs) == turns


@given(SEEDS, PAIRS)
def test_a_drift_that_goes_on_evenly_falls_on_both_sides_alike(seed: int, pairs: int) -> None:
    places: dict[Side, int] = {"a": 0, "b": 0}
    for place, turn in enumerate(order(seed, pairs)):
        places[turn.side] += place
    assert places["a"] == places["b"]


def test_the_order_of_the_blocks_is_the_seeds() -> None:
    assert {blocks_in_words(order(seed, 4)) for seed in range(20)} == {"ABBA BAAB", "BAAB ABBA"}
    assert {blocks_in_words(order(seed, 6)).count("ABBA") for seed in range(20)} == {1, 2}


@given(SEEDS, PAIRS, st.lists(st.sampled_from([GOOD, GOOD, GOOD, INVALID, BROKE, None]), min_size=80, max_size=80))
def test_any_history_comes_to_its_end_and_takes_no_turn_twice(
    seed: int, pairs: int, fates: list[Outcome | None]
) -> None:
    turns, taken = order(seed, pairs), list[Taken]()
    while (turn := next_turn(turns, taken)) is not None:
        assert turn not in {one.turn for one in taken}
        assert all(one.counts for one in taken if one.turn.pair == turn.pair), "nothing more is asked of a void pair"
        taken.append(Taken(turn, fates[len(taken)]))
    assert [one.turn for one in taken] == [turn for turn in turns if turn in {one.turn for one in taken}]
    if not gave_up(taken):
        void = {one.turn.pair for one in taken if not one.counts}
        whole = {pair for pair, n in Counter(one.turn.pair for one in taken).items() if n == 2} - void
        assert void | whole == set(range(1, pairs + 1))


def test_a_side_that_breaks_twice_in_a_row_ends_it_and_one_that_comes_back_does_not() -> None:
    def took(*fates: tuple[Side, Outcome | None]) -> list[Taken]:
        return [Taken(Turn(pair=n, side=side), fate) for n, (side, fate) in enumerate(fates, 1)]

    assert gave_up(took(("b", None), ("a", GOOD), ("b", BROKE)))
    assert not gave_up(took(("b", None), ("b", GOOD), ("b", BROKE)))
    assert not gave_up(took(("a", None), ("b", BROKE)))
    assert not gave_up(took(("a", INVALID), ("a", INVALID))), "the client's fault, not the server's"
    turns = order(0, 4)
    assert next_turn(turns, took(("b", None), ("b", None))) is None


def test_only_the_last_level_of_a_side_has_a_sentinel_behind_it() -> None:
    turns = order(3, 6)
    last = [turn for turn in turns if is_last_of_its_side(turns, turn)]
    assert sorted(turn.side for turn in last) == ["a", "b"]
    assert set(last) == set(turns[-2:])


def test_the_reference_is_the_most_that_both_hold() -> None:
    assert reference(24, 17) == 17
    assert reference(None, 17) is None
    assert reference(24, None) is None


def test_sentinels_that_moved_by_more_than_3_percent_are_a_drift() -> None:
    def sentinel(tpot_ms: float, *, valid: bool = True) -> Outcome:
        return outcome("sentinel", concurrency=1, tpot_ms=tpot_ms, tokens_per_s=1000 / tpot_ms, valid=valid)

    assert drifted([sentinel(10.0), sentinel(10.2), sentinel(9.8)]) is False
    assert drifted([sentinel(10.0), sentinel(10.4), sentinel(10.0)]) is True
    assert drifted([sentinel(10.0), sentinel(20.0, valid=False), sentinel(10.1)]) is False
    assert drifted([sentinel(10.0), sentinel(20.0, valid=False)]) is None
