"""The frontier: how many users each prompt length allows, a line for each deployment, and what the formats differ by.

A difference is told only where the brackets do not overlap: one deployment holds what another breaks at.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from reports.frontier_chart import Line, Point, frontier_chart
from reports.result import CellResult, Result, broke_at
from reports.sections.breaks import slots
from reports.sections.decision import Card, cards

_NO_LIMITER = ("unknown", "none found")


class Place(NamedTuple):
    """One cell of the table."""

    card: Card
    limiter: str
    """What limits there; "" where that is not known."""
    unconfirmed: str
    """What fresh runs did not confirm; ""."""


class Row(NamedTuple):
    """One deployment."""

    deployment: str
    slot: int
    places: tuple[Place | None, ...]
    """By prompt length; None = it has no such cell."""


class Frontier(NamedTuple):
    lengths: tuple[int, ...]
    """Prompt tokens, rising."""
    output_tokens: int | None
    rows: tuple[Row, ...]
    picture: Markup | None
    """None where nothing was measured."""
    arrows: bool
    """Some end of an interval was not found."""
    hollow: bool
    """Some end was not confirmed."""
    sentences: tuple[str, ...]


def frontier(result: Result) -> Frontier | None:
    """The frontier of a run; None where its plan asks for none."""
    cells = [cell for cell in result.cells if cell.asked.frontier_prompt_tokens is not None]
    lengths = tuple(sorted({length for cell in cells if (length := cell.asked.frontier_prompt_tokens)}))
    if not cells:
        return None
    colours = slots(result)
    by_place = {(cell.asked.deployment, cell.asked.frontier_prompt_tokens): cell for cell in cells}
    card_of = {cell.asked.cell: card for cell, card in zip(result.cells, cards(result), strict=True)}
    names = tuple(dict.fromkeys(cell.asked.deployment for cell in cells))
    found = {name: [by_place.get((name, length)) for length in lengths] for name in names}
    lines = {name: Line(_points(along), colours[name], name) for name, along in found.items()}
    points = [point for line in lines.values() for point in line.points]
    outputs = {cell.asked.mean_output_tokens for cell in cells}
    return Frontier(
        lengths=lengths,
        output_tokens=round(next(iter(outputs)) or 0) or None,
        rows=tuple(
            Row(name, colours[name], tuple(_place(cell, card_of) for cell in along)) for name, along in found.items()
        ),
        picture=frontier_chart(list(lines.values()), lengths, _told(lines)) if points else None,
        arrows=any(point.held is None or point.broke is None for point in points),
        hollow=any(
            (point.held is not None and not point.held_surely) or (point.broke is not None and not point.broke_surely)
            for point in points
        ),
        sentences=tuple(_sentences(found)),
    )


def _points(along: Sequence[CellResult | None]) -> tuple[Point, ...]:
    """What was found, by rising length."""
    return tuple(
        Point(
            prompt_tokens=cell.asked.frontier_prompt_tokens or 0,
            held=cell.verdict.c_ok,
            broke=cell.verdict.c_bad,
            held_surely=cell.verdict.confirmed_ok,
            broke_surely=cell.verdict.confirmed_bad,
        )
        for cell in along
        if cell is not None and (cell.verdict.c_ok is not None or cell.verdict.c_bad is not None)
    )


def _place(cell: CellResult | None, card_of: Mapping[str, Card]) -> Place | None:
    if cell is None:
        return None
    verdict = cell.verdict
    ends = [
        name
        for name, number, surely in (
            ("holds", verdict.c_ok, verdict.confirmed_ok),
            ("breaks", verdict.c_bad, verdict.confirmed_bad),
        )
        if number is not None and not surely
    ]
    limiter = "" if verdict.limiter in _NO_LIMITER else verdict.limiter
    return Place(card_of[cell.asked.cell], limiter, f"{' and '.join(ends)}: not confirmed" if ends else "")


def _told(lines: Mapping[str, Line]) -> str:
    """The chart in words."""
    parts = []
    for name, line in lines.items():
        said = [f"{p.prompt_tokens:,}: {p.said}" for p in line.points]
        parts.append(f"{name}, users by prompt tokens: {', '.join(said) if said else 'nothing was measured'}")
    return f"What holds and what breaks over the prompt length. {'; '.join(parts)}"


# --- sentences --------------------------------------------------------------------------------------------------


def _sentences(found: Mapping[str, Sequence[CellResult | None]]) -> Iterator[str]:
    yield from _courses(found)
    for name, along in found.items():
        yield from _changes(name, [cell for cell in along if cell is not None])
    by_length = list(zip(*found.values(), strict=True))
    for column in (by_length[0], by_length[-1]):
        yield from _apart([cell for cell in column if cell is not None])


def _length(cell: CellResult) -> str:
    return f"{cell.asked.frontier_prompt_tokens:,}"


def _courses(found: Mapping[str, Sequence[CellResult | None]]) -> Iterator[str]:
    """What holds at the shortest and at the longest prompt that is known of each deployment."""
    spans: dict[tuple[str, str], list[str]] = {}
    for name, along in found.items():
        known = [cell for cell in along if cell is not None and cell.verdict.c_ok is not None]
        if len(known) > 1:
            ends = _length(known[0]), _length(known[-1])
            spans.setdefault(ends, []).append(f"{name} {known[0].verdict.c_ok:,} to {known[-1].verdict.c_ok:,}")
    for (first, last), told in spans.items():
        yield f"Users that hold, from {first} to {last} prompt tokens: {', '.join(told)}."


def _changes(name: str, along: Sequence[CellResult]) -> Iterator[str]:
    """Where what limits a deployment changes, if it changes once."""
    known = [cell for cell in along if cell.verdict.limiter not in _NO_LIMITER]
    turns = [(a, b) for a, b in itertools.pairwise(known) if a.verdict.limiter != b.verdict.limiter]
    if len(turns) == 1:
        ((a, b),) = turns
        yield (
            f"What limits {name}: {a.verdict.limiter} up to {_length(a)} prompt tokens, "
            f"{b.verdict.limiter} from {_length(b)} on."
        )


def _apart(column: Sequence[CellResult]) -> Iterator[str]:
    """Whether deployments differ at one length: the most that held against the first that broke below or there."""
    held = [cell for cell in column if cell.verdict.c_ok is not None]
    broke = [cell for cell in column if broke_at(cell) is not None]
    if not held or not broke or len(column) < 2:
        return
    best = max(held, key=lambda cell: cell.verdict.c_ok or 0)
    worst = min(broke, key=lambda cell: broke_at(cell) or 0)
    most, fewest = best.verdict.c_ok or 0, broke_at(worst) or 0
    if most >= fewest and best is not worst:
        yield (
            f"At {_length(best)} prompt tokens {best.asked.deployment} holds {most:,} user{'' if most == 1 else 's'} "
            f"and {worst.asked.deployment} breaks at {fewest:,}."
        )
    else:
        where = f"At {_length(column[0])} prompt tokens"
        yield f"{where} no deployment holds what another breaks at: no difference was shown."
