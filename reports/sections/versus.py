"""B against A: the page of two runs side by side, and the section of a run's own comparisons in pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import msgspec

from orchestrator.judge.claims import Claim
from reports.comparison import CellComparison, Comparison
from reports.figures import NONE, count, latency, significant
from reports.levels import LevelResult
from reports.pairs import Pair, PairsResult
from reports.result import CellResult, Result
from reports.sections.breaks import Picture, pictures

CHIPS = {"better": "PASS", "worse": "FAIL", "no different": "INVALID", "not decided": "UNDECIDED"}
"""Which chip's colours a word wears."""


class Row(NamedTuple):
    """One claim in the table."""

    metric: str
    term: str
    a: str
    b: str
    ratio: str
    interval: str
    p: str
    word: str
    chip: str
    why: str


class PairRow(NamedTuple):
    """One pair in the table."""

    pair: int
    throughput: tuple[float | None, float | None, float | None]
    """A, B, and their ratio."""
    ttft_p95_ms: tuple[float | None, float | None, float | None]
    void: str
    list_sha256: str


class InPairs(NamedTuple):
    """One comparison of a run in pairs."""

    found: PairsResult
    sentence: str
    """How many pairs count, and in what order they were measured."""
    words: str
    rows: tuple[Row, ...]
    pairs: tuple[PairRow, ...]


class Versus(NamedTuple):
    """One pair of cells."""

    cell: CellComparison
    names: tuple[tuple[str, int], ...]
    """(name, colour slot) of A and B."""
    rows: tuple[Row, ...]
    pictures: tuple[Picture, ...]
    sentence: str


def versus(a: Result, b: Result, found: Comparison) -> tuple[Versus, ...]:
    return tuple(_versus(a, b, cell) for cell in found.cells)


def in_pairs(result: Result) -> tuple[InPairs, ...]:
    """The comparisons that the plan asks for."""
    return tuple(
        InPairs(
            found=found,
            sentence=pairs_sentence(found),
            words=" ".join(_sentences(found.claims)),
            rows=tuple(map(_row, found.claims)),
            pairs=tuple(map(_pair_row, found.pairs)),
        )
        for found in result.comparisons
    )


def pairs_sentence(found: PairsResult) -> str:
    """``5 of 6 pairs at 24 users count, in the order ABBA BAAB ABBA.``, and why it ended early, if it did."""
    told = f"{len(found.counted)} of {len(found.pairs)} pairs"
    if found.concurrency is not None:
        users = f"{found.concurrency:,} user{'' if found.concurrency == 1 else 's'}"
        told = f"{told} at {users} count, in the order {found.order}"
    else:
        told = f"{told} were measured"
    if found.outcome != "measured":
        ended = "It is not finished" if found.outcome in ("unfinished", "not started") else "It ended early"
        told = f"{told}. {ended}" + (f": {found.note}" if found.note else "")
    return f"{told}."


def _pair_row(pair: Pair) -> PairRow:
    level = pair.a or pair.b
    return PairRow(
        pair=pair.pair,
        throughput=_both(pair, lambda level: level.stats.output_tokens_per_s),
        ttft_p95_ms=_both(pair, lambda level: level.stats.ttft_ms.p95),
        void=pair.void,
        list_sha256="" if level is None else level.list_sha256,
    )


def _both(pair: Pair, read: Callable[[LevelResult], float | None]) -> tuple[float | None, float | None, float | None]:
    a, b = (None if level is None else read(level) for level in (pair.a, pair.b))
    return a, b, b / a if a and b else None


def _versus(a: Result, b: Result, cell: CellComparison) -> Versus:
    sides = [_named(a, cell.a, cell.workload, "A"), _named(b, cell.b, cell.workload, "B")]
    slots = {side.asked.deployment: slot for slot, side in enumerate(sides)}
    several = len({level.concurrency for side in sides for level in side.levels}) > 1
    return Versus(
        cell=cell,
        names=tuple(slots.items()),
        rows=tuple(map(_row, cell.claims)),
        pictures=pictures(sides, slots, a.slo) if several else (),
        sentence=" ".join(_sentences(cell.claims)),
    )


def _named(run: Result, deployment: str, workload: str, letter: str) -> CellResult:
    """The cell under a name that says which side it is."""
    cell = next(c for c in run.cells if (c.asked.deployment, c.asked.workload) == (deployment, workload))
    asked = msgspec.structs.replace(cell.asked, deployment=f"{letter}: {deployment}")
    return msgspec.structs.replace(cell, asked=asked)


def _sentences(claims: Iterable[Claim]) -> Iterator[str]:
    by_word: dict[str, list[str]] = {}
    for claim in claims:
        by_word.setdefault(claim.word, []).append(claim.metric)
    for word in CHIPS:
        if word in by_word:
            yield f"{', '.join(by_word[word])}: {word}."


def _value(claim: Claim, value: float | None) -> str:
    if value is None or claim.unit == "ms":
        return latency(value)
    return f"{count(value) if claim.unit == 'users' else significant(value)} {claim.unit}"


def _row(claim: Claim) -> Row:
    return Row(
        metric=claim.metric,
        term=claim.term,
        a=_value(claim, claim.a.value),
        b=_value(claim, claim.b.value),
        ratio=NONE if claim.ratio is None else significant(claim.ratio),
        interval=NONE if claim.lower is None else f"{significant(claim.lower)} to {significant(claim.upper)}",
        p=NONE if claim.p_adjusted is None else p_text(claim.p_adjusted),
        word=claim.word,
        chip=CHIPS[claim.word],
        why=claim.why,
    )


def p_text(p: float) -> str:
    """A p-value with two digits; never 0."""
    return "< 0.001" if p < 0.001 else significant(p, 2)
