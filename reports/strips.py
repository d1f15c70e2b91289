"""The course of a level as strips one above another: SVG as in `reports.charts`.

A report has hundreds of them, so that the looks stand once in the page's style sheet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

from reports.axes import dots, line, px
from reports.course import Course
from reports.figures import clean, count, duration, latency, percent, significant, size

WIDTH = 370
_LEFT, _RIGHT, _TOP = 66, 6, 6
_STRIP, _GAP, _FOOT = 30, 9, 17
_PLOT = WIDTH - _LEFT - _RIGHT


class Strip(NamedTuple):
    """One quantity over the level."""

    name: str
    points: Sequence[tuple[float, float]]
    """(seconds, value)."""
    text: Callable[[float | None], str]
    dots: bool = False
    limit: float | None = None
    top: float | None = None
    """Upper end of the scale; None = the largest value."""


def strips(course: Course, *, ttft_limit_ms: float | None, concurrency: int) -> tuple[Strip, ...]:
    """What is known of a level, quantity by quantity."""
    gauges = course.gauges
    found = (
        Strip("in flight", _bins(course.in_flight, course.length_s), count, top=float(concurrency)),
        Strip("TTFT", course.ttft_ms, latency, dots=True, limit=ttft_limit_ms),
        Strip("tokens/s", _bins(course.output_tokens_per_s, course.length_s), significant),
        Strip("memory", course.memory_bytes, size),
        Strip("KV use", gauges.get("kv_use", ()), percent, top=1.0),
        Strip("waiting", gauges.get("waiting", ()), count),
        Strip("power", gauges.get("power_w", ()), lambda watts: f"{significant(watts)} W"),
        Strip("throttled", _told(gauges.get("throttled", ())), lambda share: "yes" if share else "no", top=1.0),
    )
    return tuple(strip for strip in found if strip.points and (strip.name != "waiting" or _largest(strip) > 0))


def _told(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """Nothing where the card was never held down."""
    return points if any(value for _, value in points) else ()


def _bins(values: Sequence[float], length_s: float) -> list[tuple[float, float]]:
    """Each bin at its middle."""
    return [((i + 0.5) * length_s / len(values), value) for i, value in enumerate(values)]


def _largest(strip: Strip) -> float:
    return max(value for _, value in strip.points)


def course_picture(course: Course, found: Sequence[Strip], described: str) -> Markup:
    """The strips on one time axis; the steady window is shaded, failures are marked at the foot."""
    height = _TOP + len(found) * (_STRIP + _GAP) + _FOOT
    parts = [
        f'<svg class="chart strips" role="img" aria-label="{escape(clean(described, 600))}" '
        f'viewBox="0 0 {WIDTH} {height}">'
    ]
    parts += _window(course, height)
    for position, strip in enumerate(found):
        parts += _drawn(strip, course.length_s, _TOP + position * (_STRIP + _GAP))
    parts += _axis(course, height - _FOOT)
    return Markup("".join([*parts, "</svg>"]))


def _x(at_s: float, length_s: float) -> float:
    return _LEFT + _PLOT * min(1.0, max(0.0, at_s / length_s)) if length_s else _LEFT


def _window(course: Course, height: int) -> Iterator[str]:
    if course.window_s is not None:
        left, right = (_x(at, course.length_s) for at in course.window_s)
        yield (
            f'<rect class="window" x="{px(left)}" y="{_TOP}" width="{px(max(0.5, right - left))}" '
            f'height="{height - _TOP - _FOOT}"><title>the steady window: every rate is taken from it</title></rect>'
        )


def _drawn(strip: Strip, length_s: float, y: float) -> Iterator[str]:
    largest = _largest(strip)
    top = max(strip.top or 0.0, largest, strip.limit or 0.0 if (strip.limit or 0.0) <= 3 * largest else 0.0) or 1.0
    foot = y + _STRIP

    def at(value: float) -> float:
        return foot - _STRIP * min(1.0, value / top)

    yield f"<g><title>{strip.name}: at most {strip.text(largest)}</title>"
    yield f'<text class="name" x="0" y="{px(y + 12)}">{strip.name}</text>'
    yield f'<text class="most" x="0" y="{px(foot - 1)}">{strip.text(largest)}</text>'
    yield f'<path class="foot" d="M{_LEFT},{px(foot)}h{_PLOT}"/>'
    if strip.limit is not None and strip.limit <= top:
        yield f'<path class="limit" d="M{_LEFT},{px(at(strip.limit))}h{_PLOT}"/>'
    places = [(_x(at_s, length_s), at(value)) for at_s, value in strip.points]
    if strip.dots or len(places) == 1:
        yield f'<path class="dots" d="{dots(places)}"/></g>'
    else:
        yield f'<path class="line" d="{line(places)}"/></g>'


def _axis(course: Course, y: float) -> Iterator[str]:
    if course.failed_s:
        marks = "".join(f"M{px(_x(at, course.length_s))},{px(y - 7)}v7" for at in course.failed_s)
        yield f'<path class="failed" d="{marks}"><title>failed requests</title></path>'
    yield f'<text x="{_LEFT}" y="{px(y + 12)}">0 s</text>'
    yield f'<text class="end" x="{WIDTH - _RIGHT}" y="{px(y + 12)}">{duration(course.length_s)}</text>'
