"""What holds and what breaks over the prompt length: intervals, hollow where not confirmed, arrows where not found.

Axes and looks are those of `reports.axes` and `reports.charts`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from markupsafe import Markup

from reports.axes import (
    FOOT,
    PLOT,
    RIGHT,
    TOP,
    WIDTH,
    Scale,
    drawing,
    foot_axis,
    left_axis,
    left_of_plot,
    line,
    octave_ticks,
    px,
    text,
    tick_text,
)
from reports.charts import SHAPES, curve_start, dashed, level_mark, series_colour

_SIDE, _ARROW, _DODGE = 26, 22, 10
_CAP = "M-5,-1.5H5V1.5H-5Z"
_END_WIDTH = 1.25


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

    @property
    def said(self) -> str:
        held = "nothing held" if self.held is None else f"{self.held:,} held"
        return f"{held}, {'no break found' if self.broke is None else f'{self.broke:,} did not'}"


class Line(NamedTuple):
    """One deployment; its points by rising prompt length."""

    points: tuple[Point, ...]
    slot: int
    """Which colour and dash; the same in every chart of a report."""
    name: str = ""


def frontier_chart(lines: Sequence[Line], lengths: Sequence[int], described: str) -> Markup:
    """Users over prompt length, both logarithmic: a bar from what held to what broke, the line through what held.

    `lengths`: all that were asked for, rising. At least one line has a point.
    """
    points = [point for along in lines for point in along.points]
    users = [n for point in points for n in (point.held, point.broke) if n is not None]
    below = _ARROW + 6 if any(point.held is None for point in points) else 12
    above = _ARROW + 6 if any(point.broke is None for point in points) else 12
    foot = TOP + PLOT
    up = Scale(min(users), max(*users, min(users) + 1), foot - below, TOP + above, log=True)
    octaves = octave_ticks(up.low, up.high)
    ticks = octaves if len(octaves) > 1 else [up.low, up.high]
    left = left_of_plot(map(tick_text, ticks))
    across = _lengths_scale(lengths, left)
    parts = [text(0, 11, "concurrent users, log scale"), *left_axis(up, ticks, tick_text, left, WIDTH - RIGHT)]
    parts += foot_axis(across, lengths, "prompt tokens, log scale", foot)
    for position, along in enumerate(lines):
        parts += _curve(along, _aside(position, len(lines), lengths, across), across, up)
    return drawing(parts, described, WIDTH, foot + FOOT, "levels")


def _lengths_scale(lengths: Sequence[int], left: float) -> Scale:
    """The lengths with a margin on both sides, for lines that stand beside them."""
    low, high = lengths[0], max(lengths[-1], lengths[0] + 1)
    margin = (high / low) ** (_SIDE / (WIDTH - RIGHT - left - 2 * _SIDE))
    return Scale(low / margin, high * margin, left, WIDTH - RIGHT, log=True)


def _aside(position: int, number: int, lengths: Sequence[int], across: Scale) -> float:
    """How far a line stands beside its lengths, so that equal bars of several deployments do not hide each other."""
    gaps = [across.at(b) - across.at(a) for a, b in itertools.pairwise(lengths)]
    step = min([_DODGE, 2 * (_SIDE - 6) / number, *(0.6 * gap / number for gap in gaps)])
    return (position - (number - 1) / 2) * step


def _curve(along: Line, aside: float, across: Scale, up: Scale) -> Iterator[str]:
    yield curve_start(along.slot, along.name, aside)
    for stretch in _stretches(along.points):
        path = line((across.at(point.prompt_tokens), up.at(point.held or 1)) for point in stretch)
        yield f'<path d="{path}" fill="none" stroke-width="1.5"{dashed(along.slot)}/>'
    for point in along.points:
        yield from _interval(point, across.at(point.prompt_tokens), up, series_colour(along.slot))
    yield "</g>"


def _stretches(points: Sequence[Point]) -> Iterator[list[Point]]:
    """Neighbouring lengths at which something held, two or more at a time."""
    for held, stretch in itertools.groupby(points, lambda point: point.held is not None):
        found = list(stretch)
        if held and len(found) > 1:
            yield found


def _interval(point: Point, x: float, up: Scale, colour: str) -> Iterator[str]:
    """A bar between what held (a dot) and what broke (a cap); an arrow where one of the two was not found."""
    ends = [None if users is None else up.at(users) for users in (point.held, point.broke)]
    held, broke = ends
    if held is not None and broke is not None:
        yield f'<path d="M{px(x)},{px(held)}V{px(broke)}" stroke-width="2.5"/>'
    elif held is not None:
        yield _arrow(x, held, held - _ARROW)
    elif broke is not None:
        yield _arrow(x, broke, broke + _ARROW)
    if broke is not None:
        yield _end(point, (x, broke), _CAP, _ink(colour, point.broke_surely), is_read=held is None)
    if held is not None:
        yield _end(point, (x, held), SHAPES["PASS"], _ink(colour, point.held_surely), is_read=True)


def _end(point: Point, place: tuple[float, float], shape: str, fill: str, *, is_read: bool) -> str:
    """`is_read`: the one end of an interval by which both are read out."""
    if is_read:
        return level_mark(f"{point.prompt_tokens:,} prompt tokens", place, shape, fill, point.said, width=_END_WIDTH)
    moved = f"translate({px(place[0])},{px(place[1])})"
    return f'<path transform="{moved}" d="{shape}" fill="{fill}" stroke-width="{_END_WIDTH}"/>'


def _ink(colour: str, surely: bool) -> str:
    """Filled where it was confirmed by fresh runs, else hollow."""
    return colour if surely else "var(--paper)"


def _arrow(x: float, start: float, end: float) -> str:
    back = 5 if end < start else -5
    head = line([(x - 4, end + back), (x, end), (x + 4, end + back)])
    return f'<path d="M{px(x)},{px(start)}V{px(end)}{head}" fill="none" stroke-width="1.5"/>'
