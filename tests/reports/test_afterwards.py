"""What was seen after the break and in the soak: in the verdict, on the page, in the terminal."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from orchestrator.commands.show import summary
from reports.html import write_report
from reports.result import CellResult, Result, result
from reports.run import read_run
from reports.sections.times import lines


@pytest.fixture(scope="module")
def found(followed: Path) -> Result:
    return result(read_run(followed))


def cell(found: Result, name: str) -> CellResult:
    return next(c for c in found.cells if c.asked.deployment == name)


def test_a_server_that_serves_as_before_and_stays_steady(found: Result) -> None:
    steady = cell(found, "steady")
    assert [level.purpose for level in steady.levels].count("soak") == 1
    after, soak = steady.verdict.afterwards
    assert after.startswith("After the break at 9 users it drained in ")
    assert "gave back 100 % of the 160 MiB by which it had grown and served as before (1 user: " in after
    assert soak.startswith("Soak of 19 min at 6 users: p95 TTFT +0.1 % (\u2212")
    assert soak.endswith("; steady.")
    assert not [gap for gap in steady.verdict.missing if "break" in gap or "soak" in gap]


def test_one_that_stays_slower_and_leaks_has_both_named_as_missing(found: Result) -> None:
    worn = cell(found, "worn")
    gaps = [gap for gap in worn.verdict.missing if "After the break" in gap or "soak" in gap]
    assert worn.verdict.verdict == "PROVISIONAL"
    assert "% slower than before (1 user: throughput \u2212" in gaps[0]
    assert gaps[-1].startswith("During the soak the memory grew by at least 90.")
    assert "and 4.3 is allowed (1 % of it, or 1 MiB over the soak)." in gaps[-1]


def test_a_break_that_ended_the_server_says_so(found: Result) -> None:
    dies = cell(found, "dies")
    assert len(dies.servers) > 1
    assert dies.verdict.afterwards[0].startswith(
        "The break ended the server (out of memory); started again, it served as before (1 user: "
    )


def test_runs_of_before_tell_nothing(found: Result) -> None:
    before = cell(found, "before")
    assert before.verdict.recovery is None
    assert before.verdict.afterwards == ()
    assert not [gap for gap in before.verdict.missing if "soak" in gap]


def test_levels_after_the_search_do_not_change_what_it_found(found: Result) -> None:
    steady, before = cell(found, "steady").verdict, cell(found, "before").verdict
    assert (steady.c_ok, steady.c_bad, steady.c_sign, steady.limiter) == (8, 9, 6, before.limiter)
    assert (before.c_ok, before.c_bad, before.c_sign) == (8, 9, 6)


def test_the_soak_is_drawn_by_the_minute(found: Result) -> None:
    drawn = {line.deployment: line.soak for line in lines(found)}
    assert drawn["before"] is None
    soak = drawn["worn"]
    assert soak is not None
    assert (soak.concurrency, round(soak.minutes)) == (4, 24)
    root = ET.fromstring(soak.svg)
    titles = [title.text or "" for title in root.iter("title")]
    assert [text.partition(":")[0] for text in titles[1:]] == ["TTFT p95", "TPOT p95", "memory"]
    level = next(v for v in cell(found, "worn").levels if v.soak is not None)
    assert level.soak is not None
    assert [len(points) for points in (level.soak.ttft_p95_ms, level.soak.memory_bytes)] == [24, 24]


def test_the_page_and_the_terminal_tell_it(followed: Path, found: Result, tmp_path: Path) -> None:
    page = write_report(followed, tmp_path / "r.html", found=found).read_text()
    terminal = " ".join(summary(followed, found).split())
    told = [sentence for c in found.cells for sentence in c.verdict.afterwards]
    assert len(told) == 6
    for sentence in told:
        assert sentence in page
        assert sentence in terminal
    assert page.count("<figcaption>Soak <span>") == 3
