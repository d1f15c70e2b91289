"""Static SVG charts, drawn by Vega-Lite at build time: no script, no network, no font of their own.

Colours are drawn as placeholders and replaced by CSS variables of the page, so that one picture serves light, dark and
print. A verdict is told by the shape of a mark, a deployment by colour and dash; neither by colour alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import altair as alt
import vl_convert
from altair.utils import schemapi
from markupsafe import Markup, escape

from reports.figures import clean
from reports.traffic import EDGES

WIDTH, HEIGHT = 370, 200
_BRACKETS_PX = 24
"""Foot of a chart, kept free for the brackets of the breaks."""
SERIES = 8
"""Colours that the page defines; further deployments take them again with another dash."""

DASHES: tuple[tuple[int, ...], ...] = ((1, 0), (6, 3), (2, 2), (8, 3, 2, 3))
SHAPES = {"PASS": "circle", "FAIL": "M-.9,-.9L.9,.9M.9,-.9L-.9,.9", "UNDECIDED": "diamond", "INVALID": "triangle-down"}

_INK, _MUTED, _GRID, _SLO, _PAPER = "#5e1000", "#5e1001", "#5e1002", "#5e1003", "#5e1004"
_VARIABLES = {_INK: "--ink", _MUTED: "--muted", _GRID: "--grid", _SLO: "--slo", _PAPER: "--paper"}
_VARIABLES |= {f"#5e000{i}": f"--series-{i + 1}" for i in range(SERIES)}
_VARIABLES |= {f"#5e200{i}": f"--item-{i + 1}" for i in range(4)}
_ITEM_COLOURS = [f"#5e200{i}" for i in range(4)]

_CONFIG = alt.Config(
    background="transparent",
    font="sans-serif",
    aria=False,
    view=alt.ViewConfig(stroke=None),
    axis=alt.AxisConfig(
        labelColor=_MUTED,
        titleColor=_MUTED,
        gridColor=_GRID,
        domainColor=_GRID,
        tickColor=_GRID,
        labelFontSize=12,
        titleFontSize=12,
        titleFontWeight="normal",
        titlePadding=8,
        labelPadding=4,
    ),
)


class Mark(NamedTuple):
    """One level in a chart."""

    at: float
    """Concurrent users, or requests per second."""
    value: float | None
    """None = no value, because too many requests failed: drawn at the upper edge."""
    word: str
    """PASS, FAIL, UNDECIDED or INVALID."""
    on_line: bool
    """The latest valid level there."""


class Curve(NamedTuple):
    """One deployment in a chart."""

    marks: tuple[Mark, ...]
    bracket: tuple[float, float] | None
    """Highest that held, lowest that broke."""
    slot: int
    """Which colour and dash; the same in every chart of a report."""


def unchecked() -> AbstractContextManager[None]:
    """Charts drawn inside are not held against Vega-Lite's schema, which takes longer than drawing them. Tests are."""
    return schemapi.debug_mode(False)


def colour_variable(slot: int) -> int:
    """Number of the page's colour for a slot, from 1."""
    return slot % SERIES + 1


def dash(slot: int) -> tuple[int, ...]:
    return DASHES[(slot + slot // SERIES) % len(DASHES)]


def concurrency_chart(
    curves: Sequence[Curve], *, title: str, unit: str, described: str, limit: float | None = None, share: bool = False
) -> Markup:
    """One quantity against concurrency, a line for each deployment, its limit and the brackets of the breaks."""
    x = _concurrency_axis([round(mark.at) for curve in curves for mark in curve.marks])
    return _quantity_chart(curves, x, title=title, unit=unit, described=described, limit=limit, share=share)


def rate_chart(curves: Sequence[Curve], *, title: str, described: str, limit: float) -> Markup:
    """The share of good requests against the rate of an open loop, a line for each way of arriving."""
    x = _rate_axis([mark.at for curve in curves for mark in curve.marks])
    return _quantity_chart(curves, x, title=title, unit="good requests", described=described, limit=limit, share=True)


def _quantity_chart(
    curves: Sequence[Curve], x: alt.X, *, title: str, unit: str, described: str, limit: float | None, share: bool
) -> Markup:
    values = [mark.value for curve in curves for mark in curve.marks if mark.value is not None]
    shown = [value for value in [*values, limit] if value is not None]
    log = not share and _spread(shown) > 20
    strip = _BRACKETS_PX if any(curve.bracket for curve in curves) else 0
    low, high = (0.0, 1.0) if share else _domain(shown, log=log)
    y = alt.Y(
        "y:Q",
        title=f"{unit}, log scale" if log else unit,
        scale=alt.Scale(
            type="log" if log else "linear", domain=[low, high], range=[HEIGHT - strip, 0], nice=False, zero=False
        ),
        axis=alt.Axis(
            values=_decade_ticks(low, high) if log else alt.Undefined,
            tickCount=5,
            labelOverlap=False,
            format="%" if share else ",~r",
            grid=True,
        ),
    )
    layers = [_limit_layer(limit, y)] if limit is not None else []
    layers += _curve_layers(curves, x, y, high)
    layers += _bracket_layers(curves, x, strip)
    return _svg(layers, title, described)


def _colours(curves: Sequence[Curve]) -> alt.Scale:
    """Colour of each curve, by its position."""
    slots = [f"#5e000{curve.slot % SERIES}" for curve in curves]
    return alt.Scale(domain=list(range(len(curves))), range=slots)


def _curve_layers(curves: Sequence[Curve], x: alt.X, y: alt.Y, high: float) -> list[alt.Chart]:
    """Lines, and one layer of marks for each verdict: few layers, since each costs time to draw."""
    scale = _colours(curves)
    rows = [
        {
            "c": mark.at,
            "y": high if mark.value is None else min(mark.value, high),
            "word": mark.word,
            "s": position,
            "line": mark.on_line,
        }
        for position, curve in enumerate(curves)
        for mark in curve.marks
    ]
    dashes = alt.Scale(domain=list(range(len(curves))), range=[list(dash(curve.slot)) for curve in curves])
    layers = [
        _chart([row for row in rows if row["line"]])
        .mark_line(strokeWidth=1.75)
        .encode(
            x=x,
            y=y,
            color=alt.Color("s:N", scale=scale, legend=None),
            strokeDash=alt.StrokeDash("s:N", scale=dashes, legend=None),
        )
    ]
    for word, shape in SHAPES.items():
        if found := [row for row in rows if row["word"] == word]:
            mark = _chart(found).mark_point(shape=shape, size=48, strokeWidth=1.75, opacity=1)
            stroke = alt.Stroke("s:N", scale=scale, legend=None)
            fill = alt.Fill("s:N", scale=scale, legend=None) if word == "PASS" else alt.value(_PAPER)
            layers.append(mark.encode(x=x, y=y, stroke=stroke, fill=fill))
    return layers


def _bracket_layers(curves: Sequence[Curve], x: alt.X, strip: int) -> list[alt.Chart]:
    """A bar at the foot for each curve, from what held to what broke."""
    rows = [
        {
            "c": curve.bracket[0],
            "c2": curve.bracket[1],
            "s": position,
            "foot": HEIGHT - strip + (position + 0.75) * strip / len(curves),
        }
        for position, curve in enumerate(curves)
        if curve.bracket is not None
    ]
    if not rows:
        return []
    colour = alt.Color("s:N", scale=_colours(curves), legend=None)
    foot = alt.Y("foot:Q", scale=None, axis=None)
    return [_chart(rows).mark_rule(strokeWidth=4).encode(x=x, x2="c2:Q", y=foot, color=colour)]


def _limit_layer(limit: float, y: alt.Y) -> alt.Chart:
    rule: alt.Chart = _chart([{"y": limit}]).mark_rule(color=_SLO, strokeWidth=1.5, strokeDash=[5, 3]).encode(y=y)
    return rule


def _chart(rows: Sequence[dict[str, Any]]) -> alt.Chart:
    return alt.Chart(alt.InlineData(values=list(rows)))


# --- memory -----------------------------------------------------------------------------------------------------


def memory_chart(
    servers: Sequence[Sequence[tuple[float, float]]], levels: Sequence[tuple[float, float, int]], *, described: str
) -> Markup:
    """Memory over time; the levels are bands with their number of users. `servers`: (seconds, bytes) line by line."""
    highest = max((value for line in servers for _, value in line), default=1.0)
    unit, name = (1 << 30, "GiB") if highest >= 1 << 30 else (1 << 20, "MiB")
    end_s = max([1.0, *(line[-1][0] for line in servers if line), *(end for _, end, _ in levels)])
    per, word = (60.0, "minutes") if end_s >= 180 else (1.0, "seconds")
    x_scale = alt.Scale(domain=[0, end_s / per], nice=False)
    x = alt.X(
        "t:Q", title=f"{word} since the start of the server", scale=x_scale, axis=alt.Axis(grid=False, tickCount=6)
    )
    y = alt.Y(
        "y:Q", title=name, scale=alt.Scale(domain=[0, highest / unit * 1.12], nice=False), axis=alt.Axis(tickCount=5)
    )
    bands = [{"t": start / per, "t2": end / per, "c": users} for start, end, users in levels]
    layers = (
        [_chart(bands).mark_rect(color=_GRID, opacity=0.55, stroke=_PAPER, strokeWidth=1).encode(x=x, x2="t2:Q")]
        if bands
        else []
    )
    labels = [
        {"t": (band["t"] + band["t2"]) / 2, "text": str(band["c"])}
        for band in bands
        if band["c"] and (band["t2"] - band["t"]) / (end_s / per) * WIDTH >= 8 * len(str(band["c"]))
    ]
    if labels:
        text = _chart(labels).mark_text(color=_MUTED, fontSize=11, baseline="top")
        layers.append(text.encode(x=x, y=alt.value(3), text="text:N"))
    for line in servers:
        rows = [{"t": at_s / per, "y": value / unit} for at_s, value in line]
        layers.append(
            _chart(rows).mark_line(color="#5e0000", strokeWidth=1.75, interpolate="step-after").encode(x=x, y=y)
        )
    return _svg(layers, "Memory over time", described)


_FADED = 0.55


def bill_chart(
    bars: Sequence[tuple[str, Sequence[float]]], items: Sequence[str], *, described: str, faded: Sequence[int] = ()
) -> Markup:
    """The memory of each deployment, item by item. `bars`: (name, bytes of each item); at most four items. `faded`:
    numbers of the bars that were not measured."""
    highest = max((sum(values) for _, values in bars), default=1.0)
    unit, name = (1 << 30, "GiB") if highest >= 1 << 30 else (1 << 20, "MiB")
    rows = [
        {"bar": f"{i:03}", "item": items[j], "order": j, "y": value / unit, "shade": _FADED if i in faded else 1}
        for i, (_, values) in enumerate(bars)
        for j, value in enumerate(values)
    ]
    colour = alt.Color("item:N", scale=alt.Scale(domain=list(items), range=_ITEM_COLOURS[: len(items)]), legend=None)
    chart = (
        _chart(rows)
        .mark_bar(height=20, stroke=_PAPER, strokeWidth=1)
        .encode(
            x=alt.X("y:Q", title=name, stack="zero", axis=alt.Axis(tickCount=6, grid=True)),
            y=alt.Y("bar:N", title=None, axis=None, scale=alt.Scale(paddingInner=0.5, paddingOuter=0.4)),
            color=colour,
            opacity=alt.Opacity("shade:Q", scale=None),
            order=alt.Order("order:Q"),
        )
    )
    names = [{"bar": f"{i:03}", "text": clean(bar, 48)} for i, (bar, _) in enumerate(bars)]
    label = _chart(names).mark_text(align="left", dy=-17, color=_INK, fontSize=12, limit=WIDTH)
    label = label.encode(y=alt.Y("bar:N"), x=alt.value(0), text="text:N")
    return _svg([chart, label], "Memory by item", described, height=46 * max(1, len(bars)))


# --- lengths ----------------------------------------------------------------------------------------------------


class LengthCurve(NamedTuple):
    """A distribution of token counts."""

    name: str
    """asked (filled), served, or preset."""
    counts: tuple[int, ...]
    """In half octaves from 1 token (`reports.traffic.EDGES`)."""


_LENGTH_SLOTS = {"served": 1, "preset": 6}


def length_chart(curves: Sequence[LengthCurve], *, title: str, described: str) -> Markup:
    """Share of the requests by length, on a logarithmic axis."""
    used = [i for curve in curves for i, number in enumerate(curve.counts) if number]
    first, last = max(0, min(used) - 1), max(used) + 1
    x = alt.X(
        "t:Q",
        title="tokens, log scale",
        scale=alt.Scale(type="log", base=2, domain=[EDGES[first], EDGES[min(last + 1, len(EDGES) - 1)]], nice=False),
        axis=alt.Axis(grid=False, values=[2.0**i for i in range(len(EDGES) // 2 + 1)], format=",d", labelOverlap=True),
    )
    y = alt.Y("y:Q", title="share of requests", axis=alt.Axis(format="%", tickCount=4), scale=alt.Scale(nice=False))
    layers = []
    for curve in curves:
        total = sum(curve.counts)
        shown = [*curve.counts[first : last + 1], 0]
        rows = [
            {"t": EDGES[first + i], "y": number / total} for i, number in enumerate(shown) if first + i < len(EDGES)
        ]
        if curve.name == "asked":
            mark = _chart(rows).mark_area(interpolate="step-after", color=_ITEM_COLOURS[0], opacity=0.3)
        else:
            slot = _LENGTH_SLOTS[curve.name]
            mark = _chart(rows).mark_line(
                interpolate="step-after", color=f"#5e000{slot}", strokeWidth=1.75, strokeDash=list(dash(slot))
            )
        layers.append(mark.encode(x=x, y=y))
    return _svg(layers, title, described, height=150)


# --- axes -------------------------------------------------------------------------------------------------------


def _concurrency_axis(levels: Sequence[int]) -> alt.X:
    low, high = min(levels, default=1), max(levels, default=1)
    log = high >= 8 * low
    ticks: list[float] = [2.0**i for i in range(math.floor(math.log2(low)), math.ceil(math.log2(high)) + 1)]
    domain = (
        [low / 1.15, high * 1.15]
        if log
        else [low - max(0.5, (high - low) * 0.06), high + max(0.5, (high - low) * 0.06)]
    )
    return alt.X(
        "c:Q",
        title="concurrent users" + (", log scale" if log else ""),
        scale=alt.Scale(type="log", base=2, domain=domain, nice=False)
        if log
        else alt.Scale(domain=domain, nice=False, zero=False),
        axis=alt.Axis(
            values=[tick for tick in ticks if domain[0] <= tick <= domain[1]] if log else alt.Undefined,
            tickMinStep=1,
            tickCount=8,
            format="d",
            grid=False,
        ),
    )


def _rate_axis(rates: Sequence[float]) -> alt.X:
    highest = max(rates, default=1.0) or 1.0
    return alt.X(
        "c:Q",
        title="requests per second",
        scale=alt.Scale(domain=[0, highest * 1.06], nice=False),
        axis=alt.Axis(tickCount=8, format="~r", grid=False),
    )


def _spread(values: Sequence[float]) -> float:
    positive = [value for value in values if value > 0]
    return max(positive) / min(positive) if positive else 1.0


def _domain(values: Sequence[float], *, log: bool) -> tuple[float, float]:
    highest = max(values, default=1.0) or 1.0
    if not log:
        return 0.0, highest * 1.08
    return min(value for value in values if value > 0) / 1.3, highest * 1.3


def _decade_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 times powers of ten within the domain; powers of ten alone where that gives more than eight."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1,)):
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        ticks = [round(tick, 9) for tick in ticks if low <= tick <= high]
        if len(ticks) <= 8:
            break
    return ticks


# --- from specification to page ---------------------------------------------------------------------------------


def _svg(layers: Sequence[alt.Chart], title: str, described: str, height: int = HEIGHT) -> Markup:
    """The drawing as an element of the page: colours by variable, scaled to its place, told to screen readers."""
    chart = alt.LayerChart(layer=list(layers), width=WIDTH, height=height, padding=4, config=_CONFIG)
    drawn = vl_convert.vegalite_to_svg(chart.to_dict(validate=schemapi.DEBUG_MODE))
    body = re.sub(r"#5e[0-9a-f]{4}", lambda found: f"var({_VARIABLES[found[0]]})", drawn)
    body = re.sub(r' (?:role|aria-roledescription|aria-hidden|xmlns:xlink|version|pointer-events)="[^"]*"', "", body)
    body = re.sub(r'<path class="(?:foreground|background)"[^>]*/>', "", body)
    label = escape(clean(f"{title}. {described}", 600))
    return Markup(body.replace('class="marks"', f'class="chart" role="img" aria-label="{label}"', 1))
