"""Scales, ticks and axes of the report's charts, as pieces of SVG: rounded numbers and escaped text, nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, pairwise
from typing import NamedTuple

from markupsafe import Markup, escape

from reports.figures import clean

WIDTH, PLOT = 400, 200
"""Of a chart, and height of its plot."""
TOP, RIGHT, FOOT = 24, 12, 42
"""Around a plot."""
FONT_PX = 12
_CHARACTER_PX = 6.9
"""Width of a digit at that size, on the wide side."""


class Scale(NamedTuple):
    """From a quantity to pixels."""

    low: float
    high: float
    start: float
    """Pixel of `low`."""
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Values beyond the ends stand at the ends."""
        if self.log:
            low, high, value = math.log(self.low), math.log(self.high), math.log(max(value, self.low))
        else:
            low, high = self.low, self.high
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + (self.end - self.start) * min(1.0, max(0.0, share))


def px(value: float) -> str:
    """A coordinate, to a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0")


def text_width(text: str) -> float:
    return len(text) * _CHARACTER_PX


def left_of_plot(labels: Iterable[str]) -> float:
    """Where a plot begins: its values beside it, and charts side by side in one line as far as they go."""
    return 12 + max(36.0, *map(text_width, labels))


# --- ticks ------------------------------------------------------------------------------------------------------


def tick_text(value: float) -> str:
    """``0.05``, ``1,500``: no exponent, no more digits than the tick has."""
    return f"{value:,.10g}"


def even_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within the domain, at most `most` of them."""
    if high <= low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for step in (power, 2 * power, 5 * power, 10 * power, 20 * power):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            break
    return [round(i * step, 9) for i in range(first, last + 1)]


def decade_ticks(low: float, high: float, most: int = 8) -> list[float]:
    """1, 2, 5 times powers of ten within the domain; powers of ten alone where that gives more than `most`."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1,)):
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        ticks = [round(tick, 9) for tick in ticks if low <= tick <= high]
        if len(ticks) <= most:
            break
    return ticks


def octave_ticks(low: float, high: float, most: int = 9) -> list[float]:
    """Powers of two within the domain, every second or third of them where there are more than `most`."""
    exponents = range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)
    return [2.0**exponent for exponent in exponents[:: -(-len(exponents) // most) or 1]]


# --- pieces of a drawing ----------------------------------------------------------------------------------------


def text(x: float, y: float, words: str, *, anchor: str = "start", fill: str = "--muted", size: int = FONT_PX) -> str:
    """A line of text. `words` may come from outside."""
    shape = "" if anchor == "start" else f' text-anchor="{anchor}"'
    shape += "" if size == FONT_PX else f' font-size="{size}"'
    return f'<text x="{px(x)}" y="{px(y)}" fill="var({fill})"{shape}>{escape(clean(words, 120))}</text>'


def line(points: Iterable[tuple[float, float]]) -> str:
    """Path data of a line through points, to a tenth of a pixel, in the fewest characters.

    A point on the one before it and one within a level or an upright stretch are not written: the picture is the same.
    """
    corners = _corners([(round(10 * x), round(10 * y)) for x, y in points])
    steps = (_step(x - x0, y - y0) for (x0, y0), (x, y) in pairwise(corners))
    return "".join([*(_start(corner) for corner in corners[:1]), *steps])


def _corners(places: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    corners: list[tuple[int, int]] = []
    for place in places:
        if corners and place == corners[-1]:
            continue
        if len(corners) > 1 and _is_between(corners[-2], corners[-1], place):
            corners.pop()
        corners.append(place)
    return corners


def _is_between(a: tuple[int, int], b: tuple[int, int], c: tuple[int, int]) -> bool:
    """On a level or upright way from one to the other."""
    return any(a[i] == b[i] == c[i] and (b[j] - a[j]) * (c[j] - b[j]) > 0 for i, j in ((0, 1), (1, 0)))


def _start(place: tuple[int, int]) -> str:
    return f"M{px(place[0] / 10)},{px(place[1] / 10)}"


def _step(dx: int, dy: int) -> str:
    """From one corner to the next, in tenths of a pixel."""
    if dy == 0:
        return f"h{_tenths(dx)}"
    if dx == 0:
        return f"v{_tenths(dy)}"
    return f"l{_pair(dx, dy)}"


def _pair(dx: int, dy: int) -> str:
    return f"{_tenths(dx)}{'' if dy < 0 else ','}{_tenths(dy)}"


def _tenths(value: int) -> str:
    """``-.3``, ``7.5``, ``12``."""
    shown = px(abs(value) / 10)
    return ("-" if value < 0 else "") + (shown[1:] if shown.startswith("0.") else shown)


def dots(points: Iterable[tuple[float, float]]) -> str:
    """Path data of dots, which round line caps draw; one that is hidden by another is not written."""
    places = list(dict.fromkeys((round(10 * x), round(10 * y)) for x, y in points))
    steps = (f"m{_pair(x - x0, y - y0)}h0" for (x0, y0), (x, y) in pairwise(places))
    return "".join([*(f"{_start(place)}h0" for place in places[:1]), *steps])


def stepped(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The corners of a line that keeps each value until the next one."""
    corners = (((x, before), (x, y)) for (_, before), (x, y) in pairwise(points))
    return [*points[:1], *chain.from_iterable(corners)]


def left_axis(
    scale: Scale, ticks: Sequence[float], words: Callable[[float], str], left: float, right: float
) -> Iterator[str]:
    """Grid lines across the plot and their values beside it."""
    for tick in ticks:
        y = scale.at(tick)
        yield f'<path d="M{px(left)},{px(y)}H{px(right)}" stroke="var(--grid)"/>'
        yield text(left - 7, y + 4, words(tick), anchor="end")


def foot_axis(
    scale: Scale, ticks: Sequence[float], title: str, y: float, *, words: Callable[[float], str] = tick_text
) -> Iterator[str]:
    """The line at the foot with its ticks, their values and a title. Values that would touch are left out."""
    yield f'<path d="M{px(scale.start)},{px(y)}H{px(scale.end)}" stroke="var(--line)"/>'
    free = -math.inf
    for tick in ticks:
        x, said = scale.at(tick), words(tick)
        yield f'<path d="M{px(x)},{px(y)}v4" stroke="var(--line)"/>'
        if x - text_width(said) / 2 > free:
            yield text(x, y + 17, said, anchor="middle")
            free = x + text_width(said) / 2 + 4
    yield text((scale.start + scale.end) / 2, y + 36, title, anchor="middle")


def drawing(parts: Iterable[str], described: str, width: float, height: float, kind: str = "") -> Markup:
    """The element of the page: scaled to its place, told to screen readers."""
    return Markup(
        f'<svg class="chart{" " + kind if kind else ""}" role="img" aria-label="{escape(clean(described, 1200))}" '
        f'viewBox="0 0 {px(width)} {px(height)}" font-family="sans-serif" font-size="{FONT_PX}">'
        + "".join(parts)
        + "</svg>"
    )
