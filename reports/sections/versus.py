"""Two runs side by side: what the page of a comparison shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from reports.comparison import CellComparison, Claim, Comparison
from reports.figures import NONE, latency, significant
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


def _versus(a: Result, b: Result, cell: CellComparison) -> Versus:
    sides = [_named(a, cell.a, cell.workload, "A"), _named(b, cell.b, cell.workload, "B")]
    slots = {side.asked.deployment: slot for slot, side in enumerate(sides)}
    several = len({level.concurrency for side in sides for level in side.levels}) > 1
    return Versus(
        cell=cell,
        names=tuple(slots.items()),
        rows=tuple(map(_row, cell.claims)),
        pictures=pictures(sides, slots, a.slo) if several else (),
        sentence=" ".join(_sentences(cell)),
    )


def _named(run: Result, deployment: str, workload: str, letter: str) -> CellResult:
    """The cell under a name that says which side it is."""
    cell = next(c for c in run.cells if (c.asked.deployment, c.asked.workload) == (deployment, workload))
    asked = msgspec.structs.replace(cell.asked, deployment=f"{letter}: {deployment}")
    return msgspec.structs.replace(cell, asked=asked)


def _sentences(cell: CellComparison) -> Iterator[str]:
    by_word: dict[str, list[str]] = {}
    for claim in cell.claims:
        by_word.setdefault(claim.word, []).append(claim.metric)
    for word in CHIPS:
        if word in by_word:
            yield f"{', '.join(by_word[word])}: {word}."


def _value(claim: Claim, value: float | None) -> str:
    return latency(value) if claim.unit == "ms" else f"{significant(value)} {claim.unit}" if value is not None else NONE


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
