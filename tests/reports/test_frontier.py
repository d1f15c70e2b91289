"""The frontier in the report: intervals over the prompt length, in a chart, in a table and in plain sentences."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from fakes.run_directory import FakeCell, asked_cell, build_run
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.commands.show import summary
from orchestrator.judge.search import SearchRules
from reports.axes import PLOT, TOP, WIDTH
from reports.charts import SHAPES
from reports.frontier_chart import Line, Point, frontier_chart
from reports.html import write_report
from reports.result import Result, result
from reports.run import read_run
from reports.sections.frontier import frontier

LENGTHS = (256, 1024, 4096)


@pytest.fixture(scope="module")
def found(along: Path) -> Result:
    return result(read_run(along))


def test_the_table_has_a_row_for_each_deployment_and_its_limits(found: Result) -> None:
    known = frontier(found)
    assert known is not None
    assert known.lengths == LENGTHS
    spans = {row.deployment: [place.card.span if place else None for place in row.places] for row in known.rows}
    assert spans == {
        "4-bit": ["64 \u2192 not found", "18 \u2192 20", "3 \u2192 4"],
        "16-bit": ["26 \u2192 28", "9 \u2192 10", "3 \u2192 4"],
        "32-bit": ["none \u2192 1", "no room for the weights", "no room for the weights"],
    }
    unconfirmed = [place.unconfirmed for row in known.rows for place in row.places if place]
    assert unconfirmed == ["", "", "", "", "", "holds and breaks: not confirmed", "", "", ""]
    assert (known.arrows, known.hollow) == (True, True)


def test_it_says_what_differs_only_where_brackets_do_not_overlap(found: Result) -> None:
    known = frontier(found)
    assert known is not None
    assert known.sentences == (
        "Users that hold, from 256 to 4,096 prompt tokens: 4-bit 64 to 3, 16-bit 26 to 3.",
        "What limits 32-bit: prefill up to 256 prompt tokens, memory from 1,024 on.",
        "At 256 prompt tokens 4-bit holds 64 users and 32-bit breaks at 1.",
        "At 4,096 prompt tokens no deployment holds what another breaks at: no difference was shown.",
    )


def test_a_run_without_a_frontier_shows_none(one: Path) -> None:
    assert frontier(result(read_run(one))) is None
    assert 'id="frontier"' not in write_report(one, one.parent / "one-again.html").read_text()


def test_the_page_and_the_terminal_tell_the_same(along: Path, found: Result, tmp_path: Path) -> None:
    page = write_report(along, tmp_path / "r.html", found=found).read_text().replace("\u00a0", " ")
    terminal = " ".join(summary(along, found).split())
    known = frontier(found)
    assert known is not None
    assert len(known.sentences) >= 4
    for sentence in known.sentences:
        assert sentence in page
        assert sentence in terminal
    assert page.count('<div class="columns frontier">') == 1
    assert "not confirmed by a fresh run" in page
    assert page.count("<td>\u2013</td>") == 2, "deployments that were not asked the second workload"
    assert "<td>None</td>" not in page
    assert "the other end was not found" in page


def test_a_run_that_ended_before_its_frontier_says_so(tmp_path: Path) -> None:
    later = FakeCell(asked_cell("a", "prompt-256", frontier_prompt_tokens=256))
    cells = [FakeCell(asked_cell("a", "chat"), rules=SearchRules(maximum=4), levels=1), later]
    known = frontier(result(read_run(build_run(tmp_path / "cut", cells))))
    assert known is not None
    assert known.picture is None
    assert [place.card.span for row in known.rows for place in row.places if place] == ["not measured"]
    assert known.sentences == ()


# --- the chart ---


def drawn(*lines: Line, lengths: tuple[int, ...] = LENGTHS) -> ET.Element:
    return ET.fromstring(frontier_chart(lines, lengths, "words <&>"))


def held(root: ET.Element) -> list[ET.Element]:
    return [path for path in root.iter("path") if path.get("d") == SHAPES["PASS"]]


def broke(root: ET.Element) -> list[ET.Element]:
    return [path for path in root.iter("path") if (path.get("d") or "").startswith("M-5,")]


def place(curve: ET.Element, end: ET.Element) -> tuple[float, float]:
    """Of an end on the picture: its group may stand beside its lengths."""
    aside = re.findall(r"translate\(([\d.-]+)\)", curve.get("transform") or "translate(0)")
    x, y = re.findall(r"[\d.]+", end.get("transform") or "")
    return float(aside[0]) + float(x), float(y)


def test_an_end_that_was_not_confirmed_is_hollow_and_one_that_was_not_found_an_arrow() -> None:
    sure, unsure = Point(256, 8, 9, True, True), Point(1024, 4, 5, False, False)
    root = drawn(Line((sure, unsure, Point(4096, 2, None, True, False)), 0))
    assert [dot.get("fill") for dot in held(root)] == ["var(--series-1)", "var(--paper)", "var(--series-1)"]
    assert [cap.get("fill") for cap in broke(root)] == ["var(--series-1)", "var(--paper)"]
    arrows = [path.get("d") for path in root.iter("path") if len(re.findall("[Ml]", path.get("d") or "")) == 4]
    assert len(arrows) == 1
    nothing = drawn(Line((Point(256, None, 1, False, True),), 0))
    assert not held(nothing)
    (down,) = re.findall(r"M[\d.]+,([\d.]+)V([\d.]+)M", ET.tostring(nothing, "unicode"))
    assert float(down[0]) < float(down[1])


def test_each_length_is_read_out_once_with_both_ends() -> None:
    points = (Point(256, 8, 9, True, True), Point(1024, None, 1, False, True), Point(4096, 4, None, True, False))
    root = drawn(Line(points, 2, "4-bit"), Line(points[:1], 5, "8-bit"))
    told = [
        (curve.get("data-name"), mark.get("data-level"), mark.findtext("title"))
        for curve in root.iter("g")
        for mark in curve.iter("path")
        if mark.get("class") == "mark"
    ]
    assert told == [
        ("4-bit", "256 prompt tokens", "8 held, 9 did not"),
        ("4-bit", "1,024 prompt tokens", "nothing held, 1 did not"),
        ("4-bit", "4,096 prompt tokens", "4 held, no break found"),
        ("8-bit", "256 prompt tokens", "8 held, 9 did not"),
    ]


def test_the_line_stops_where_nothing_held() -> None:
    points = (Point(256, 8, 9, True, True), Point(1024, None, 1, False, True), Point(4096, 4, 5, True, True))
    assert "stroke-dasharray" not in ET.tostring(drawn(Line(points, 1)), "unicode")
    assert "stroke-dasharray" in ET.tostring(drawn(Line((points[0], points[2]), 1)), "unicode")


numbers = st.integers(1, 100_000)
points = st.builds(
    lambda length, held, more, sure: Point(length, held, None if more is None else (held or 0) + more, sure, not sure),
    st.sampled_from(LENGTHS),
    st.none() | numbers,
    st.none() | numbers,
    st.booleans(),
).filter(lambda p: p.held is not None or p.broke is not None)


@settings(deadline=None)
@given(st.lists(st.lists(points, min_size=1, max_size=3, unique_by=lambda p: p.prompt_tokens), min_size=1, max_size=12))
def test_everything_is_drawn_inside(given: list[list[Point]]) -> None:
    lines = [Line(tuple(sorted(along)), slot) for slot, along in enumerate(given)]
    root = drawn(*lines)
    dots = [place(curve, dot) for curve in root.iter("g") for dot in held(curve)]
    assert len(dots) == sum(p.held is not None for line in lines for p in line.points)
    caps = [place(curve, cap) for curve in root.iter("g") for cap in broke(curve)]
    assert len(caps) == sum(p.broke is not None for line in lines for p in line.points)
    assert all(0 < x < WIDTH and 0 < y < TOP + PLOT for x, y in dots + caps)
    ends = [float(y) for y in re.findall(r"V([\d.-]+)M", ET.tostring(root, "unicode"))]
    assert all(0 < y < TOP + PLOT for y in ends)
    labels = [t.text for t in root.iter("text")]
    assert labels.count("concurrent users, log scale") == 1
    assert [label for label in labels if label in ("256", "1,024", "4,096")][-3:] == ["256", "1,024", "4,096"]
