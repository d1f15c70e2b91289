"""What may be claimed: words from ratios of pairs, from intervals within one pair, and where a word is withheld."""

from __future__ import annotations

import pytest

from orchestrator.judge.bounds import Estimate
from orchestrator.judge.claims import (
    THROUGHPUT,
    TTFT,
    Bracket,
    Metric,
    Reading,
    adjusted,
    claim_of,
    what_holds,
    withheld,
)

A = (1840.0, 1862.0, 1851.0, 1835.0, 1848.0)
B = (1902.0, 1931.0, 1910.0, 1899.0, 1916.0)
"""The pairs of METHOD.md's log-ratio."""


def pairs(a: tuple[float | None, ...], b: tuple[float | None, ...]) -> list[tuple[Reading, Reading]]:
    return [(Reading(x, Estimate(value=x)), Reading(y, Estimate(value=y))) for x, y in zip(a, b, strict=True)]


def word(metric: Metric, a: tuple[float | None, ...], b: tuple[float | None, ...]) -> str:
    ((claim,),) = adjusted([[claim_of(metric, pairs(a, b))]])
    return claim.word


def test_five_pairs_tell_the_two_apart() -> None:
    ((claim,),) = adjusted([[claim_of(THROUGHPUT, pairs(A, B))]])
    assert (claim.pairs, claim.word) == (5, "better")
    assert claim.ratio == pytest.approx(1.034858, abs=5e-7)
    assert claim.lower == pytest.approx(1.032166, abs=5e-7)
    assert claim.upper == pytest.approx(1.037558, abs=5e-7)
    assert claim.p_adjusted == pytest.approx(3.356337e-06, rel=1e-6)


def test_the_word_follows_what_is_better_and_the_margin_that_was_declared() -> None:
    assert (word(THROUGHPUT, A, B), word(THROUGHPUT, B, A)) == ("better", "worse")
    assert (word(TTFT, A, B), word(TTFT, B, A)) == ("no different", "no different")
    assert word(TTFT._replace(margin=0.02), A, B) == "worse"
    assert word(THROUGHPUT._replace(margin=0.10), A, B) == "no different"


def test_a_pair_without_a_value_on_one_side_leaves_the_metric_open() -> None:
    claim = claim_of(TTFT, pairs(A, (*B[:4], None)))
    assert (claim.word, claim.ratio, claim.p) == ("not decided", None, None)
    assert "1 of 5 pairs have no value" in claim.why


def test_what_is_withheld_keeps_its_ratio_and_counts_among_no_p_values() -> None:
    claim = claim_of(THROUGHPUT, pairs(A, B))
    held_back = withheld(claim, "The machine drifted.")
    assert (held_back.ratio, held_back.lower, held_back.upper) == (claim.ratio, claim.lower, claim.upper)
    ((first, second),) = adjusted([[held_back, claim]])
    assert (first.word, first.why, first.p, first.p_adjusted) == ("not decided", "The machine drifted.", None, None)
    assert (second.word, second.p_adjusted) == ("better", claim.p), "alone among the p-values"


def test_p_values_are_adjusted_over_all_comparisons() -> None:
    claim = claim_of(THROUGHPUT, pairs(A, B))
    ((one,), (other,)) = adjusted([[claim], [claim]])
    assert claim.p is not None
    assert one.p_adjusted == other.p_adjusted == pytest.approx(2 * claim.p)


def test_what_holds_is_told_apart_by_brackets_alone() -> None:
    assert what_holds(Bracket(24, 26), Bracket(16, 18)).word == "worse"
    assert what_holds(Bracket(16, 18), Bracket(24, 26)).word == "better"
    assert what_holds(Bracket(16, 18), Bracket(17, 19)).word == "not decided"
    assert what_holds(Bracket(16, None), Bracket(None, None)).why == "no break was found on both sides"
