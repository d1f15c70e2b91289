"""What holds and what breaks over the prompt length, drawn here for its intervals, hollow ends and arrows.

Pure SVG of rounded numbers and escaped text; colours and dashes are those of `reports.charts`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

from reports.charts import WIDTH, colour_variable, dash
from reports.figures import clean

HEIGHT = 250
_LEFT, _RIGHT, _TOP, _FOOT, _SIDE = 34, 8, 20, 38, 26
_ARROW, _RADIUS, _DODGE = 22, 3.5, 10
_MOST_TICKS = 8
_LEAST_GAP = 30
"""Pixels between two labels of the lower axis."""


class Point(NamedTuple):
    """One prompt length of one deployment, in concurrent users."""

    prompt_tokens: int
    held: int | None
    """The most that held; None = nothing did."""
    broke: int | None
    """The fewest above that did not; None = no break was found."""
    held_surely: bool
    """Held again in fresh runs."""
    broke_surely: bool


class Line(NamedTuple):
    """One deployment; its points by rising prompt length."""

    points: tuple[Point, ...]
    slot: int
    """Which colour and dash; the same in every chart of a report."""


class _Scale(NamedTuple):
    """A logarithmic axis: values from `low` to `high` over the pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)


def frontier_chart(lines: Sequence[Line], lengths: Sequence[int], described: str) -> Markup:
    """Users over prompt length, both logarithmic: a bar from what held to what broke, the line through what held.

    `lengths`: all that were asked for, rising. At least one line has a point.
    """
    points = [point for line in lines for point in line.points]
    users = [n for point in points for n in (point.held, point.broke) if n is not None]
    across = _Scale(lengths[0], max(lengths[-1], lengths[0] + 1), _LEFT + _SIDE, WIDTH - _RIGHT - _SIDE)
    below = _ARROW + 6 if any(point.held is None for point in points) else 12
    above = _ARROW + 6 if any(point.broke is None for point in points) else 12
    up = _Scale(min(users), max(*users, min(users) + 1), HEIGHT - _FOOT - below, _TOP + above)
    parts = [
        f'<svg class="chart" role="img" aria-label="{escape(clean(described, 1200))}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">'
    ]
    parts += _axes(lengths, across, up)
    for position, line in enumerate(lines):
        parts += _drawn(line, _aside(position, len(lines), lengths, across), across, up)
    return Markup("".join([*parts, "</svg>"]))


def _aside(position: int, number: int, lengths: Sequence[int], across: _Scale) -> float:
    """How far a line stands beside its lengths, so that equal bars of several deployments do not hide each other."""
    gaps = [across(b) - across(a) for a, b in itertools.pairwise(lengths)]
    step = min([_DODGE, 2 * (_SIDE - 6) / number, *(0.6 * gap / number for gap in gaps)])
    return (position - (number - 1) / 2) * step


def _axes(lengths: Sequence[int], across: _Scale, up: _Scale) -> Iterator[str]:
    yield '<text x="0" y="11" fill="var(--muted)">concurrent users, log scale</text>'
    for users in _ticks(up):
        y = up(users)
        yield f'<path d="M{_LEFT},{y:.1f}H{WIDTH - _RIGHT}" stroke="var(--grid)"/>'
        yield f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end" fill="var(--muted)">{users:,}</text>'
    foot, last = HEIGHT - _FOOT, -math.inf
    yield f'<path d="M{_LEFT},{foot}H{WIDTH - _RIGHT}" stroke="var(--line)"/>'
    for length in lengths:
        x = across(length)
        yield f'<path d="M{x:.1f},{foot}v4" stroke="var(--muted)"/>'
        if x - last >= _LEAST_GAP:
            last = x
            yield f'<text x="{x:.1f}" y="{foot + 17}" text-anchor="middle" fill="var(--muted)">{length:,}</text>'
    yield f'<text x="{(_LEFT + WIDTH - _RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle" fill="var(--muted)">'
    yield "prompt tokens, log scale</text>"


def _ticks(up: _Scale) -> list[int]:
    """Powers of two between the ends, every second or third one where there are many; the ends where there are few."""
    first, last = math.ceil(math.log2(up.low)), math.floor(math.log2(up.high))
    every = -(-(last - first + 1) // _MOST_TICKS) or 1
    ticks = [2**power for power in range(first, last + 1, every)]
    return ticks if len(ticks) > 1 else [round(up.low), round(up.high)]


def _drawn(line: Line, aside: float, across: _Scale, up: _Scale) -> Iterator[str]:
    colour = f"var(--series-{colour_variable(line.slot)})"
    dashes = " ".join(map(str, dash(line.slot)))
    places = [(across(p.prompt_tokens) + aside, p) for p in line.points]
    for stretch in _stretches(places):
        path = "L".join(f"{x:.1f},{up(held):.1f}" for x, held in stretch)
        yield f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.5" stroke-dasharray="{dashes}"/>'
    for x, point in places:
        yield from _interval(x, point, up, colour)


def _stretches(places: Sequence[tuple[float, Point]]) -> Iterator[list[tuple[float, int]]]:
    """Neighbouring lengths at which something held, two or more at a time."""
    stretch: list[tuple[float, int]] = []
    for x, point in places:
        if point.held is not None:
            stretch.append((x, point.held))
            continue
        if len(stretch) > 1:
            yield stretch
        stretch = []
    if len(stretch) > 1:
        yield stretch


def _interval(x: float, point: Point, up: _Scale, colour: str) -> Iterator[str]:
    """A bar between what held (a dot) and what broke (a cap); an arrow where one of the two was not found."""
    held, broke = point.held, point.broke
    if held is not None and broke is not None:
        yield f'<path d="M{x:.1f},{up(held):.1f}V{up(broke):.1f}" stroke="{colour}" stroke-width="2.5"/>'
    elif held is not None:
        yield _arrow(x, up(held), up(held) - _ARROW, colour)
    elif broke is not None:
        yield _arrow(x, up(broke), up(broke) + _ARROW, colour)
    if broke is not None:
        ink = _ink(colour, point.broke_surely)
        yield f'<rect x="{x - 5:.1f}" y="{up(broke) - 1.5:.1f}" width="10" height="3" {ink}/>'
    if held is not None:
        yield f'<circle cx="{x:.1f}" cy="{up(held):.1f}" r="{_RADIUS}" {_ink(colour, point.held_surely)}/>'


def _ink(colour: str, surely: bool) -> str:
    """Filled where it was confirmed by fresh runs, else hollow."""
    return f'fill="{colour if surely else "var(--paper)"}" stroke="{colour}" stroke-width="1.25"'


def _arrow(x: float, start: float, end: float, colour: str) -> str:
    back = 5 if end < start else -5
    head = f"M{x - 4:.1f},{end + back:.1f}L{x:.1f},{end:.1f}L{x + 4:.1f},{end + back:.1f}"
    return f'<path d="M{x:.1f},{start:.1f}V{end:.1f}{head}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
