"""The report's charts, drawn here as SVG: the same bytes for the same numbers, no script needed, no font of their own.

Colours are the page's variables, so that one picture serves light, dark and print. A verdict is told by the shape of a
mark, a deployment by colour and dash; neither by colour alone. What `templates/charts.js` reads of a drawing, where
scripts run, stands in its attributes and in the titles of its marks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

from reports.axes import (
    FOOT,
    PLOT,
    RIGHT,
    TOP,
    WIDTH,
    Scale,
    decade_ticks,
    drawing,
    even_ticks,
    foot_axis,
    left_axis,
    left_of_plot,
    line,
    octave_ticks,
    px,
    stepped,
    text,
    text_width,
    tick_text,
)
from reports.figures import clean, significant
from reports.traffic import EDGES

_BRACKETS_PX = 24
"""Foot of a plot, kept free for the brackets of the breaks."""
SERIES = 8
"""Colours that the page defines; further deployments take them again with another dash."""

DASHES: tuple[tuple[int, ...], ...] = ((1, 0), (6, 3), (2, 2), (8, 3, 2, 3))
SHAPES = {
    "PASS": "M-4,0A4,4 0 1 0 4,0A4,4 0 1 0 -4,0Z",
    "FAIL": "M-4,-4L4,4M4,-4L-4,4",
    "UNDECIDED": "M0,-5L4.5,0L0,5L-4.5,0Z",
    "INVALID": "M-4.5,-3.5L4.5,-3.5L0,4.5Z",
    "": "M-2,0a2,2 0 1 0 4,0a2,2 0 1 0-4,0Z",
}


class Mark(NamedTuple):
    """One level in a chart."""

    at: float
    """Concurrent users, or requests per second."""
    value: float | None
    """None = no value, because too many requests failed: drawn at the upper edge."""
    word: str
    """PASS, FAIL, UNDECIDED or INVALID; "" where it is not judged."""
    on_line: bool
    """The latest valid level there."""
    said: str = ""
    """The value with its interval, in words."""


class Curve(NamedTuple):
    """One deployment in a chart."""

    marks: tuple[Mark, ...]
    bracket: tuple[float, float] | None
    """Highest that held, lowest that broke."""
    slot: int
    """Which colour and dash; the same in every chart of a report."""
    name: str = ""


def colour_variable(slot: int) -> int:
    """Number of the page's colour for a slot, from 1."""
    return slot % SERIES + 1


def dash(slot: int) -> tuple[int, ...]:
    return DASHES[(slot + slot // SERIES) % len(DASHES)]


def series_colour(slot: int) -> str:
    return f"var(--series-{colour_variable(slot)})"


def dashed(slot: int) -> str:
    """The attribute of a line."""
    return "" if dash(slot) == DASHES[0] else f' stroke-dasharray="{" ".join(map(str, dash(slot)))}"'


# --- levels -----------------------------------------------------------------------------------------------------


class _Across(NamedTuple):
    """What levels are drawn against."""

    scale: Scale
    ticks: list[float]
    title: str
    level: Callable[[float], str]
    """A value of it in words: the same in every chart of a page."""


def concurrency_chart(
    curves: Sequence[Curve], *, title: str, unit: str, described: str, limit: float | None = None, share: bool = False
) -> Markup:
    """One quantity against concurrency, a line for each deployment, its limit and the brackets of the breaks."""
    return _level_chart(curves, _users, unit, limit, f"{title}. {described}", share=share)


def rate_chart(curves: Sequence[Curve], *, title: str, described: str, limit: float) -> Markup:
    """The share of good requests against the rate of an open loop, a line for each way of arriving."""
    return _level_chart(curves, _rates, "good requests", limit, f"{title}. {described}", share=True)


def _level_chart(
    curves: Sequence[Curve],
    axis: Callable[[Sequence[float], float], _Across],
    unit: str,
    limit: float | None,
    described: str,
    *,
    share: bool,
) -> Markup:
    values = [mark.value for curve in curves for mark in curve.marks if mark.value is not None]
    shown = [value for value in [*values, limit] if value is not None]
    log = not share and _spread(shown) > 20
    foot = TOP + PLOT
    strip = _BRACKETS_PX if any(curve.bracket for curve in curves) else 0
    low, high = (_share_foot(shown), 1.0) if share else _domain(shown, log=log)
    y = Scale(low, high, foot - strip, TOP, log)
    ticks = decade_ticks(low, high) if log else even_ticks(low, high)

    def words(tick: float) -> str:
        return f"{tick * 100:.10g}%" if share else tick_text(tick)

    left = left_of_plot(map(words, ticks))
    across = axis([mark.at for curve in curves for mark in curve.marks], left)
    parts = [text(0, 11, f"{unit}, log scale" if log else unit)]
    parts += left_axis(y, ticks, words, left, WIDTH - RIGHT)
    parts += foot_axis(across.scale, across.ticks, across.title, foot)
    parts += [] if limit is None else _limit(y.at(limit), left)
    for position, curve in enumerate(curves):
        parts += _curve(curve, across, y, foot - strip + (position + 0.75) * strip / len(curves))
    return drawing(parts, described, WIDTH, foot + FOOT, "levels")


def _limit(y: float, left: float) -> Iterator[str]:
    right = WIDTH - RIGHT
    yield f'<path d="M{px(left)},{px(y)}H{right}" stroke="var(--slo)" stroke-width="1.5" stroke-dasharray="5 3"/>'
    below = y < TOP + PLOT / 2  # At the left, where few users are far from it on its good side.
    yield (
        f'<text x="{px(left + 4)}" y="{px(y + 13 if below else y - 5)}" fill="var(--slo)" font-size="11" '
        'stroke="var(--paper)" stroke-width="3" paint-order="stroke">limit</text>'
    )


def _curve(curve: Curve, across: _Across, y: Scale, foot: float) -> Iterator[str]:
    """A line, its marks, and at the foot a bar from what held to what broke."""
    x, colour = across.scale, series_colour(curve.slot)
    yield curve_start(curve.slot, curve.name)
    points = [(x.at(mark.at), _height(mark, y)) for mark in curve.marks if mark.on_line]
    if len(points) > 1:
        yield f'<path d="{line(points)}" fill="none" stroke-width="1.75"{dashed(curve.slot)}/>'
    for mark in curve.marks:
        place = x.at(mark.at), _height(mark, y)
        fill = colour if mark.word == "PASS" else "var(--paper)"
        yield level_mark(across.level(mark.at), place, SHAPES[mark.word], fill, mark.said, word=mark.word)
    if curve.bracket is not None:
        held, broke = map(x.at, curve.bracket)
        yield f'<path d="M{px(held)},{px(foot)}H{px(broke)}" stroke-width="4"/>'
    yield "</g>"


def curve_start(slot: int, name: str, aside: float = 0) -> str:
    """The group of all that belongs to one deployment; `aside`: pixels by which it stands beside its levels."""
    moved = f' transform="translate({px(aside)})"' if aside else ""
    return f'<g class="curve" data-slot="{slot}" data-name="{_escaped(name)}" stroke="{series_colour(slot)}"{moved}>'


def level_mark(
    level: str, place: tuple[float, float], shape: str, fill: str, said: str, *, word: str = "", width: float = 1.75
) -> str:
    """A mark that can be read out: `said` at `level`, and the verdict's `word` if it is about one."""
    told = f' data-word="{word}"' if word else ""
    return (
        f'<path class="mark" data-level="{_escaped(level)}"{told} transform="translate({px(place[0])},{px(place[1])})" '
        f'd="{shape}" fill="{fill}" stroke-width="{width}"><title>{_escaped(said)}</title></path>'
    )


def _escaped(words: str) -> str:
    return escape(clean(words, 120))


def _height(mark: Mark, y: Scale) -> float:
    return y.end if mark.value is None else y.at(mark.value)


def _users(levels: Sequence[float], left: float) -> _Across:
    """Logarithmic from a spread of eight times on."""
    low, high = min(levels, default=1), max(levels, default=1)
    ends = left + 4, WIDTH - RIGHT
    if high >= 8 * low:
        scale = Scale(low / 1.15, high * 1.15, *ends, log=True)
        ticks = octave_ticks(scale.low, scale.high)
        return _Across(scale, ticks, "concurrent users, log scale", users_text)
    beyond = max(0.5, (high - low) * 0.06)
    scale = Scale(low - beyond, high + beyond, *ends)
    ticks = [tick for tick in even_ticks(scale.low, scale.high, 9) if tick == round(tick)]
    return _Across(scale, ticks, "concurrent users", users_text)


def users_text(number: float) -> str:
    return f"{number:,.0f} user{'' if number == 1 else 's'}"


def _rates(rates: Sequence[float], left: float) -> _Across:
    scale = Scale(0, 1.06 * (max(rates, default=1.0) or 1.0), left + 4, WIDTH - RIGHT)
    return _Across(
        scale, even_ticks(0, scale.high, 8), "requests per second", lambda rate: f"{significant(rate)} requests/s"
    )


def _spread(values: Sequence[float]) -> float:
    positive = [value for value in values if value > 0]
    return max(positive) / min(positive) if positive else 1.0


def _share_foot(values: Sequence[float]) -> float:
    """Where an axis of shares begins: near what is shown, so that what happens about the limit can be seen."""
    return max(foot for foot in (0.0, 0.5, 0.8) if foot == 0 or foot < min(values, default=0.0) - 0.02)


def _domain(values: Sequence[float], *, log: bool) -> tuple[float, float]:
    highest = max(values, default=1.0) or 1.0
    if not log:
        return 0.0, highest * 1.08
    return min(value for value in values if value > 0) / 1.3, highest * 1.3


# --- memory -----------------------------------------------------------------------------------------------------


def _bytes_unit(highest: float) -> tuple[int, str]:
    return (1 << 30, "GiB") if highest >= 1 << 30 else (1 << 20, "MiB")


def memory_chart(
    servers: Sequence[Sequence[tuple[float, float]]], levels: Sequence[tuple[float, float, int]], *, described: str
) -> Markup:
    """Memory over time; the levels are bands with their number of users. `servers`: (seconds, bytes) line by line."""
    highest = max((value for points in servers for _, value in points), default=1.0)
    unit, name = _bytes_unit(highest)
    end_s = max([1.0, *(points[-1][0] for points in servers if points), *(end for _, end, _ in levels)])
    per, word = (60.0, "minutes") if end_s >= 180 else (1.0, "seconds")
    foot = TOP + PLOT
    y = Scale(0, highest / unit * 1.12, foot, TOP)
    ticks = even_ticks(0, y.high)
    left = left_of_plot(map(tick_text, ticks))
    x = Scale(0, end_s / per, left, WIDTH - RIGHT)
    parts = [*_bands(levels, x, per, foot), text(0, 11, name)]
    parts += left_axis(y, ticks, tick_text, left, WIDTH - RIGHT)
    parts += foot_axis(x, even_ticks(0, x.high), f"{word} since the start of the server", foot)
    for points in servers:
        if points:
            places = [(x.at(at_s / per), y.at(value / unit)) for at_s, value in points]
            parts.append(
                f'<path d="{line(stepped(places))}" fill="none" stroke="var(--series-1)" stroke-width="1.75"/>'
            )
    return drawing(parts, f"Memory over time. {described}", WIDTH, foot + FOOT)


def _bands(levels: Sequence[tuple[float, float, int]], x: Scale, per: float, foot: float) -> Iterator[str]:
    """A band for each level, with its users where they fit; an open level has none."""
    for start, end, users in levels:
        left, right = x.at(start / per), x.at(end / per)
        yield (
            f'<rect x="{px(left)}" y="{TOP}" width="{px(max(0.5, right - left))}" height="{px(foot - TOP)}" '
            'fill="var(--grid)" opacity=".55" stroke="var(--paper)"/>'
        )
        if users and right - left >= text_width(str(users)) + 2:
            yield text((left + right) / 2, TOP + 13, str(users), anchor="middle", size=11)


_FADED = 0.55
_BAR, _ROW = 20, 46


def bill_chart(
    bars: Sequence[tuple[str, Sequence[float]]], items: Sequence[str], *, described: str, faded: Sequence[int] = ()
) -> Markup:
    """The memory of each deployment, item by item. `bars`: (name, bytes of each item); at most four items. `faded`:
    numbers of the bars that were not measured."""
    highest = max((sum(values) for _, values in bars), default=1.0)
    unit, name = _bytes_unit(highest)
    foot = _ROW * max(1, len(bars)) + 4
    x = Scale(0, highest / unit * 1.02, 5, WIDTH - 20)
    ticks = even_ticks(0, x.high, 7)
    parts = [f'<path d="M{px(x.at(tick))},0V{foot}" stroke="var(--grid)"/>' for tick in ticks]
    parts += foot_axis(x, ticks, name, foot)
    for row, (bar, values) in enumerate(bars):
        top = row * _ROW + 22
        parts.append(text(5, top - 6, clean(bar, 52), fill="--ink"))
        parts += _stack(values, items, x, unit, top, _FADED if row in faded else 1)
    return drawing(parts, f"Memory by item. {described}", WIDTH, foot + FOOT)


def _stack(
    values: Sequence[float], items: Sequence[str], x: Scale, unit: int, top: float, shade: float
) -> Iterator[str]:
    end = 0.0
    opacity = "" if shade == 1 else f' opacity="{shade}"'
    for number, (value, item) in enumerate(zip(values, items, strict=True), 1):
        left, right = x.at(end / unit), x.at((end + value) / unit)
        end += value
        if right - left >= 0.05:
            yield (
                f'<rect x="{px(left)}" y="{px(top)}" width="{px(right - left)}" height="{_BAR}" '
                f'fill="var(--item-{number})" stroke="var(--paper)"{opacity}><title>{escape(item)}</title></rect>'
            )


# --- lengths ----------------------------------------------------------------------------------------------------


class LengthCurve(NamedTuple):
    """A distribution of token counts."""

    name: str
    """asked (filled), served, or preset."""
    counts: tuple[int, ...]
    """In half octaves from 1 token (`reports.traffic.EDGES`)."""


LENGTH_SLOTS = {"served": 1, "preset": 6}
_LENGTH_PLOT = 150


def length_chart(curves: Sequence[LengthCurve], *, title: str, described: str) -> Markup:
    """Share of the requests by length, on a logarithmic axis."""
    used = [i for curve in curves for i, number in enumerate(curve.counts) if number]
    first, last = max(0, min(used) - 1), min(max(used) + 2, len(EDGES) - 1)
    shares = [[number / sum(curve.counts) for number in curve.counts] for curve in curves]
    foot = TOP + _LENGTH_PLOT
    y = Scale(0, max(map(max, shares)) * 1.05, foot, TOP)
    ticks = even_ticks(0, y.high, 5)

    def words(tick: float) -> str:
        return f"{tick * 100:.10g}%"

    left = left_of_plot(map(words, ticks))
    x = Scale(EDGES[first], EDGES[last], left, WIDTH - RIGHT, log=True)
    parts = [text(0, 11, "share of requests"), *left_axis(y, ticks, words, left, WIDTH - RIGHT)]
    for curve, heights in zip(curves, shares, strict=True):
        places = [(x.at(EDGES[i]), y.at(share)) for i, share in enumerate(heights[:last]) if i >= first]
        corners = stepped([*places, (x.at(EDGES[last]), y.at(0))])
        if curve.name == "asked":
            outline = line([(corners[0][0], foot), *corners, (corners[-1][0], foot)])
            parts.append(f'<path d="{outline}Z" fill="var(--item-1)" opacity=".3"/>')
        else:
            slot = LENGTH_SLOTS[curve.name]
            stroke = f'stroke="{series_colour(slot)}" stroke-width="1.75"{dashed(slot)}'
            parts.append(f'<path d="{line(corners)}" fill="none" {stroke}/>')
    parts += foot_axis(x, octave_ticks(x.low, x.high), "tokens, log scale", foot)
    return drawing(parts, f"{title}. {described}", WIDTH, foot + FOOT)
