import re
import xml.etree.ElementTree as ET

from reports.charts import Curve, Mark, bill_chart, concurrency_chart, memory_chart

MARKS = (
    Mark(1, 40.0, "PASS", True),
    Mark(2, 60.0, "PASS", True),
    Mark(4, 900.0, "FAIL", True),
    Mark(8, None, "FAIL", True),
    Mark(3, 500.0, "INVALID", False),
)


def paths(svg: str) -> int:
    return len(re.findall(r'<path [^>]*aria-|<path transform="translate', svg))


def chart(**more: object) -> str:
    values: dict[str, object] = {"title": "TTFT", "unit": "ms", "described": "words", "limit": 400.0, **more}
    return concurrency_chart([Curve(MARKS, (2, 4), 0)], **values)  # type: ignore[arg-type]


def test_the_same_picture_twice() -> None:
    assert chart() == chart()


def test_a_picture_is_well_formed_and_tells_what_it_shows() -> None:
    root = ET.fromstring(chart())
    assert root.get("role") == "img"
    assert root.get("aria-label") == "TTFT. words"
    words = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
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
    points = re.findall(r'<path transform="translate\(([\d.]+),([\d.]+)\)" d="([^"]+)"', with_all)
    assert len(points) == 5
    assert len({shape.split(",")[0] for *_, shape in points}) == 3
    assert len(re.findall(r'<path transform="translate', without)) == 3


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
    drawn = memory_chart([[(0.0, 1e8), (10.0, 2e8)], [(20.0, 1e8)]], [(1.0, 5.0, 4), (5.0, 9.0, 8)], described="")
    assert ">MiB<" in drawn
    assert ">4<" in drawn
    assert ">8<" in drawn
    assert drawn.count('fill="var(--grid)"') == 2


def test_nothing_to_draw_is_no_error() -> None:
    assert "<svg" in memory_chart([], [], described="")
    assert "<svg" in concurrency_chart([Curve((), None, 0)], title="T", unit="ms", described="")
    assert "<svg" in concurrency_chart(
        [Curve((Mark(4, 0.0, "PASS", True),), None, 0)], title="T", unit="ms", described=""
    )
