import itertools
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.axes import Scale, decade_ticks, even_ticks, octave_ticks, stepped
from reports.charts import (
    Curve,
    LengthCurve,
    Mark,
    bill_chart,
    concurrency_chart,
    length_chart,
    memory_chart,
    rate_chart,
)

MARKS = (
    Mark(1, 40.0, "PASS", True),
    Mark(2, 60.0, "PASS", True),
    Mark(4, 900.0, "FAIL", True),
    Mark(8, None, "FAIL", True),
    Mark(3, 500.0, "INVALID", False),
)


def chart(**more: object) -> str:
    values: dict[str, object] = {"title": "TTFT", "unit": "ms", "described": "words", "limit": 400.0, **more}
    return concurrency_chart([Curve(MARKS, (2, 4), 0)], **values)  # type: ignore[arg-type]


def test_the_same_picture_twice() -> None:
    assert chart() == chart()


def test_a_picture_is_well_formed_and_tells_what_it_shows() -> None:
    root = ET.fromstring(chart())
    assert root.get("role") == "img"
    assert root.get("aria-label") == "TTFT. words"
    words = [text.text for text in root.iter("text")]
    assert "ms, log scale" in words
    assert "concurrent users, log scale" in words


def test_colours_are_variables_of_the_page() -> None:
    drawn = chart()
    assert "#5e" not in drawn
    assert "var(--series-1)" in drawn
    assert "var(--slo)" in drawn
    assert "style=" not in drawn


def test_verdicts_differ_in_shape_and_a_level_without_value_is_still_drawn() -> None:
    with_all = chart()
    without = concurrency_chart([Curve(MARKS[:3], None, 0)], title="T", unit="ms", described="", limit=400.0)
    marks = [mark.attrib for mark in ET.fromstring(with_all).iter("path") if mark.get("class") == "mark"]
    assert [mark["data-level"] for mark in marks] == ["1 user", "2 users", "4 users", "8 users", "3 users"]
    assert len({mark["d"] for mark in marks}) == 3
    assert len({mark["transform"] for mark in marks}) == 5
    assert without.count('class="mark"') == 3


def test_a_mark_says_its_value_and_a_curve_its_name() -> None:
    said = "900 ms (<850> to 950 ms)"
    drawn = concurrency_chart(
        [Curve((Mark(4, 900.0, "FAIL", True, said),), None, 2, 'a "b" <c>')], title="T", unit="ms", described=""
    )
    (curve,) = [g for g in ET.fromstring(drawn).iter("g") if g.get("class") == "curve"]
    assert (curve.get("data-name"), curve.get("data-slot")) == ('a "b" <c>', "2")
    (mark,) = [path for path in curve.iter("path") if path.get("class") == "mark"]
    assert (mark.get("data-word"), mark.findtext("title")) == ("FAIL", said)


def test_rates_are_drawn_from_0_on_and_say_their_unit() -> None:
    marks = (Mark(0.5, 1.0, "PASS", True, "100 %"), Mark(1.25, 0.5, "FAIL", True, "50.0 %"))
    drawn = rate_chart([Curve(marks, (0.5, 1.25), 0, "poisson")], title="Good", described="", limit=0.95)
    root = ET.fromstring(drawn)
    assert {"requests per second", "0", "1.2", "100%"} <= {text.text for text in root.iter("text")}
    levels = [path.get("data-level") for path in root.iter("path") if path.get("class") == "mark"]
    assert levels == ["0.500 requests/s", "1.25 requests/s"]
    (bar,) = [path.get("d") or "" for path in root.iter("path") if path.get("stroke-width") == "4"]
    assert "H" in bar


def test_a_share_is_drawn_from_0_to_100_percent() -> None:
    drawn = concurrency_chart(
        [Curve((Mark(1, 1.0, "PASS", True), Mark(2, 0.5, "FAIL", True)), None, 3)],
        title="Good",
        unit="good",
        described="",
        limit=0.95,
        share=True,
    )
    assert ">100%<" in drawn
    assert ">0%<" in drawn
    assert "var(--series-4)" in drawn


def test_hostile_names_stay_text() -> None:
    name = '<script>alert(1)</script>"\x00\x1b[31m'
    drawn = bill_chart([(name, [1e8, 2e8, 0.0, 1e7])], ["a", "b", "c", "d"], described=name)
    root = ET.fromstring(drawn)
    assert not [element for element in root.iter() if element.tag.endswith("script")]
    assert "\x1b" not in drawn
    assert "alert(1)" in (root.get("aria-label") or "")


def test_memory_over_time_has_a_band_for_each_level() -> None:
    levels = [(1.0, 5.0, 4), (5.0, 9.0, 8), (9.0, 20.0, 0)]
    drawn = memory_chart([[(0.0, 1e8), (10.0, 2e8)], [(20.0, 1e8)]], levels, described="")
    assert ">MiB<" in drawn
    assert ">4<" in drawn
    assert ">8<" in drawn
    assert drawn.count('fill="var(--grid)"') == 3
    assert drawn.count('font-size="11"') == 2, "an open level has no users"


def test_nothing_to_draw_is_no_error() -> None:
    assert "<svg" in memory_chart([], [], described="")
    assert "<svg" in concurrency_chart([Curve((), None, 0)], title="T", unit="ms", described="")
    assert "<svg" in concurrency_chart(
        [Curve((Mark(4, 0.0, "PASS", True),), None, 0)], title="T", unit="ms", described=""
    )


def test_lengths_are_drawn_from_their_first_to_their_last() -> None:
    counts = [0] * 36
    counts[10], counts[12] = 3, 1
    curves = [LengthCurve("asked", tuple(counts)), LengthCurve("served", tuple(counts))]
    drawn = length_chart(curves, title="Prompt lengths", described="p50 32")
    words = [text.text for text in ET.fromstring(drawn).iter("text")]
    assert "tokens, log scale" in words
    assert {"32", "64", "60%"} <= set(words)
    assert "1,024" not in words
    assert drawn.count('opacity=".3"') == 1


# --- axes -------------------------------------------------------------------------------------------------------


@given(st.floats(0, 1e9), st.floats(1e-3, 1e9))
def test_even_ticks_are_few_round_and_within(low: float, width: float) -> None:
    ticks = even_ticks(low, low + width)
    assert 1 <= len(ticks) <= 7
    assert all(low - width * 1e-6 <= tick <= low + width * (1 + 1e-6) for tick in ticks)
    steps = {f"{after - before:.3g}" for before, after in itertools.pairwise(ticks)}
    assert len(steps) <= 1 or low > 1e3 * width


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(3, 70, [5, 10, 20, 50]), (0.4, 3, [0.5, 1, 2]), (1, 1e9, [1, 10, 100, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9])],
)
def test_decade_ticks(low: float, high: float, ticks: list[float]) -> None:
    assert decade_ticks(low, high) == ticks


def test_octave_ticks_thin_out() -> None:
    assert octave_ticks(1.7, 19) == [2, 4, 8, 16]
    assert octave_ticks(1, 2**18) == [2.0**i for i in range(0, 19, 3)]


@pytest.mark.parametrize("log", [False, True])
def test_a_scale_keeps_within_its_ends(log: bool) -> None:
    scale = Scale(1, 100, 200, 20, log)
    assert [scale.at(v) for v in (1, 100, 1000, 0.001)] == [200, 20, 20, 200]
    assert scale.at(10) == pytest.approx(110 if log else 183.6, abs=0.1)


def test_a_stepped_line_keeps_each_value_until_the_next() -> None:
    assert stepped([(0, 1), (2, 5), (3, 4)]) == [(0, 1), (2, 1), (2, 5), (3, 5), (3, 4)]
    assert stepped([]) == []
