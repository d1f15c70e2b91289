"""The gate: may this run be launched on? One word for each cell, and what got worse against a baseline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

from reports.comparison import Comparison, Side, comparison
from reports.result import CellResult, Result, broke_at
from reports.sections.decision import in_short

GateWord = Literal["SIGNED", "PROVISIONAL", "REFUSED", "UNDECIDED"]


class GateCell(msgspec.Struct, frozen=True, kw_only=True):
    """One cell at the gate."""

    cell: str
    word: GateWord
    why: str


class Gate(msgspec.Struct, frozen=True, kw_only=True):
    """What the gate says of a run."""

    simulated: bool
    """No card was there: the word is that of a model."""
    word: GateWord
    """The worst of its cells; REFUSED too where something got worse."""
    cells: tuple[GateCell, ...]
    regressions: tuple[str, ...]
    """What is worse than in the baseline: a sentence each."""
    unmatched: tuple[str, ...]
    """Cells of the baseline that this run did not measure."""


_WORST: tuple[GateWord, ...] = ("REFUSED", "UNDECIDED", "PROVISIONAL", "SIGNED")


def gate(found: Result, baseline: Result | None = None, under_test: Sequence[str] = ()) -> Gate:
    """The word of a run. Raises JournalError where the baseline is not comparable."""
    cells = tuple(GateCell(cell=cell.asked.cell, word=word(cell), why=_why(cell)) for cell in found.cells)
    regressions: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()
    if baseline is not None:
        ours = {cell.asked.cell: cell for cell in found.cells if cell.levels}
        unmatched = tuple(cell.asked.cell for cell in baseline.cells if cell.levels and cell.asked.cell not in ours)
        sides = [
            (Side(baseline, cell), Side(found, ours[cell.asked.cell]))
            for cell in baseline.cells
            if cell.levels and cell.asked.cell in ours
        ]
        regressions = tuple(_worse(comparison(baseline, found, sides, under_test)))
    words = {cell.word for cell in cells} | ({"UNDECIDED"} if unmatched or not cells else set())
    worst: GateWord = "REFUSED" if regressions else next(name for name in _WORST if name in words)
    return Gate(simulated=found.simulated, word=worst, cells=cells, regressions=regressions, unmatched=unmatched)


def word(cell: CellResult) -> GateWord:
    """The verdict; UNDECIDED where nothing was shown, neither that it holds nor that it breaks."""
    if cell.verdict.verdict != "REFUSED":
        return cell.verdict.verdict
    shown = cell.verdict.c_ok is not None or cell.incidents or broke_at(cell) is not None or _unstable(cell)
    return "REFUSED" if shown else "UNDECIDED"


def _why(cell: CellResult) -> str:
    """What it holds; and why it is refused, where what it holds does not say it: a demand that is not met, say."""
    short, sentence = in_short(cell), cell.verdict.sentence
    return f"{short} {sentence}" if cell.verdict.verdict == "REFUSED" and cell.verdict.c_ok is not None else short


def _unstable(cell: CellResult) -> bool:
    return any(level.verdict.valid and level.verdict.verdict == "FAIL" for level in cell.levels)


def _worse(found: Comparison) -> Iterator[str]:
    for cell in found.cells:
        at = "" if cell.reference is None else f" at {cell.reference} users"
        for claim in cell.claims:
            if claim.word == "worse":
                place = f"{cell.b}, {cell.workload}" + ("" if claim.term == "c_ok" else at)
                ratio = "" if claim.ratio is None else f" is {claim.ratio:.3g} times that of the baseline"
                yield f"{place}: {claim.metric}{ratio or ' is worse'} ({claim.why})."
