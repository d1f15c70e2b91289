"""What may be claimed of B against A: words that rest on intervals, never on points.

Three metrics are declared before a run: output throughput, p95 TTFT, and what holds. A word on the first two takes
pairs of runs (their log-ratios), or at least intervals within one pair that lie apart; all p-values of a comparison
are adjusted together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import msgspec

from orchestrator.judge.bounds import Estimate
from orchestrator.judge.compare import equivalence, holm, log_ratio, log_ratios, pairs_needed

ALPHA = 0.05
Word = Literal["better", "worse", "no different", "not decided"]
"""Of B against A. ``no different``: within the margin, shown by two one-sided tests."""


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """One declared metric, B against A."""

    metric: str
    unit: str
    term: str
    more_is_better: bool
    a: Estimate
    b: Estimate
    ratio: float | None
    lower: float | None
    """Ends of the 95 % interval of the ratio between runs; None with fewer than two pairs."""
    upper: float | None
    pairs: int
    p: float | None
    p_adjusted: float | None
    """Holm's, over all claims of the comparison."""
    margin: float | None
    p_equivalent: float | None
    """Of two one-sided tests against the margin."""
    word: Word
    why: str
    pairs_needed: int | None = None
    """Pairs that would give an interval of +- the margin, with the scatter that was seen."""


class Metric(NamedTuple):
    """What is claimed of pairs of runs."""

    name: str
    unit: str
    term: str
    more_is_better: bool
    margin: float
    """Share within which two values are no different."""


THROUGHPUT = Metric("Output throughput", "tokens/s", "throughput", True, 0.03)
TTFT = Metric("TTFT p95", "ms", "ttft", False, 0.05)


class Reading(NamedTuple):
    """A metric of one run."""

    value: float | None
    within: Estimate
    """By the run's own requests."""


class Bracket(NamedTuple):
    """What one search found."""

    held: int | None
    broke: int | None


def claim_of(metric: Metric, used: Sequence[tuple[Reading, Reading]]) -> Claim:
    """By pairs of runs (A, B) on the same list at the same concurrency."""
    values = [(one.value, other.value) for one, other in used if one.value and other.value]
    a, b = [one for one, _ in values], [other for _, other in values]
    claim = Claim(
        metric=metric.name,
        unit=metric.unit,
        term=metric.term,
        more_is_better=metric.more_is_better,
        a=used[-1][0].within if used else Estimate(),
        b=used[-1][1].within if used else Estimate(),
        ratio=math.exp(sum(log_ratios(a, b)) / len(values)) if values else None,
        lower=None,
        upper=None,
        pairs=len(values),
        p=None,
        p_adjusted=None,
        margin=metric.margin,
        p_equivalent=None,
        word="not decided",
        why="no value in both runs at one concurrency",
    )
    if len(values) < len(used):
        # Of the pairs that are left one would be told only how they do where they do well.
        lost = f"{len(used) - len(values)} of {len(used)} pairs have no value on one side"
        return msgspec.structs.replace(claim, ratio=None, why=f"{lost}: too many requests failed, or it is not told")
    if len(values) == 1:
        return _within_runs(claim)
    if not values:
        return claim
    found, same = log_ratio(a, b, ALPHA), equivalence(log_ratios(a, b), metric.margin)
    means = [Estimate(value=math.exp(sum(map(math.log, side)) / len(side))) for side in (a, b)]
    return msgspec.structs.replace(
        claim,
        a=means[0],
        b=means[1],
        lower=found.lower,
        upper=found.upper,
        p=found.p,
        p_equivalent=same.p,
        pairs_needed=_pairs_needed(found.deviation, metric.margin),
    )


def _pairs_needed(deviation: float, margin: float) -> int | None:
    """None where the runs agree to the digit, or scatter so much that no number of pairs is practical."""
    half_width = math.log1p(margin)
    return pairs_needed(deviation, half_width, ALPHA) if 0 < deviation < 20 * half_width else None


def _within_runs(claim: Claim) -> Claim:
    """One pair: only intervals that do not overlap say anything, and nothing of the next run."""
    word = _apart(claim.a, claim.b, more_is_better=claim.more_is_better)
    why = "one pair: its intervals within the runs " + ("overlap" if word == "not decided" else "do not overlap")
    return msgspec.structs.replace(claim, word=word, why=why)


def _apart(a: Estimate, b: Estimate, *, more_is_better: bool) -> Word:
    """Whether two intervals lie apart; an end that is not bounded overlaps everything on its side."""
    if a.lower is not None and b.upper is not None and b.upper < a.lower:
        return "worse" if more_is_better else "better"
    if b.lower is not None and a.upper is not None and a.upper < b.lower:
        return "better" if more_is_better else "worse"
    return "not decided"


def what_holds(a: Bracket, b: Bracket) -> Claim:
    """A run's bracket is its interval, and brackets that do not overlap are the claim."""
    word: Word = "not decided"
    why = "the brackets of the two breaks overlap"
    if a.held is not None and b.broke is not None and b.broke <= a.held:
        word, why = "worse", f"A held {a.held} users, and B broke at {b.broke}"
    elif b.held is not None and a.broke is not None and a.broke <= b.held:
        word, why = "better", f"B held {b.held} users, and A broke at {a.broke}"
    elif a.broke is None or b.broke is None:
        why = "no break was found on both sides"
    return Claim(
        metric="Holds",
        unit="users",
        term="c_ok",
        more_is_better=True,
        a=Estimate(value=a.held, lower=a.held, upper=a.broke),
        b=Estimate(value=b.held, lower=b.held, upper=b.broke),
        ratio=b.held / a.held if a.held and b.held else None,
        lower=None,
        upper=None,
        pairs=1,
        p=None,
        p_adjusted=None,
        margin=None,
        p_equivalent=None,
        word=word,
        why=why,
    )


def withheld(claim: Claim, why: str) -> Claim:
    """The ratio and its interval without a word: what it rests on was not the same on both sides."""
    return msgspec.structs.replace(claim, p=None, p_equivalent=None, word="not decided", why=why)


def adjusted(claims: Sequence[Sequence[Claim]]) -> Iterator[tuple[Claim, ...]]:
    """Holm over the claims of all comparisons, and the words that follow; comparison by comparison."""
    adjusted_p = iter(holm([claim.p for group in claims for claim in group if claim.p is not None]))
    for group in claims:
        yield tuple(claim if claim.p is None else _decided(claim, next(adjusted_p)) for claim in group)


def _decided(claim: Claim, p_adjusted: float) -> Claim:
    word: Word = "not decided"
    why = f"{claim.pairs} pairs do not tell them apart, nor show them within {claim.margin or 0:.0%}"
    if claim.pairs_needed is not None and claim.pairs_needed > claim.pairs:
        why += (
            f"; with this scatter about {claim.pairs_needed} pairs give an interval of \u00b1 {claim.margin or 0:.0%}"
        )
    if claim.p_equivalent is not None and claim.p_equivalent < ALPHA:
        word, why = "no different", f"{claim.pairs} pairs show them within {claim.margin or 0:.0%}"
    elif p_adjusted < ALPHA:
        word = "better" if ((claim.ratio or 1.0) > 1) == claim.more_is_better else "worse"
        why = f"{claim.pairs} pairs tell them apart"
    return msgspec.structs.replace(claim, p_adjusted=p_adjusted, word=word, why=why)
