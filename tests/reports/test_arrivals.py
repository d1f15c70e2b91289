"""The open-loop check in result.json, in the report, in the terminal and at the gate."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fakes.run_directory import FakeCell, asked_cell, build_run

from orchestrator.commands.check import told
from orchestrator.commands.show import summary
from orchestrator.judge.search import SearchRules
from orchestrator.judge.steps import OpenRules
from orchestrator.judge.swings import Swings
from reports.gate import gate
from reports.html import render
from reports.result import Result, result
from reports.run import read_run
from reports.sections.arrivals import arrivals
from reports.sections.decision import cards

CHECK = OpenRules(
    requests=400,
    min_seconds=1.0,
    prefill_seconds=1.0,
    traffic="the trace",
    swings=Swings(prompt=(900, 1500, 600, 1000), output=(200, 260, 150, 190)),
)


def rules(check: OpenRules | None = CHECK) -> SearchRules:
    return SearchRules(start=8, maximum=8, confirm=1, open_loop=check)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cells = [
        FakeCell(asked_cell("gpu-a", "chat"), rules=rules()),
        FakeCell(asked_cell("gpu-b", "chat"), rules=rules(None)),
        FakeCell(asked_cell("gpu-c", "chat"), rules=rules(), levels=5, note="the time budget has no room"),
    ]
    return build_run(tmp_path_factory.mktemp("runs") / "open", cells)


@pytest.fixture(scope="module")
def found(run: Path) -> Result:
    return result(read_run(run))


def test_the_check_stands_beside_the_ladder(found: Result) -> None:
    cell, plain, cut = found.cells
    assert [level.concurrency for level in cell.levels] == [8, 8]
    purposes = [level.purpose for level in cell.checks]
    assert purposes[0] == "prefill"
    assert purposes.count("rate") >= 2
    assert purposes.count("confirm-rate") >= 1
    assert purposes[-1] == "replay"
    assert [level.rate_per_s is None for level in cell.checks] == [purpose == "prefill" for purpose in purposes]
    assert all(level.judged_again == "same" for level in cell.checks)
    check = cell.verdict.open_loop
    assert check is not None
    assert check.rate_ok is not None
    assert check.rate_sign is not None
    assert check.rate_sign <= check.rate_ok / (check.factor or 0)
    assert cell.verdict.c_sign is not None
    assert cell.verdict.c_sign <= 6
    assert (plain.checks, plain.verdict.open_loop) == ((), None)
    assert len(cut.checks) == 3
    assert "The open-loop check was cut before its step" in " ".join(cut.verdict.missing)


def test_the_decision_tells_what_may_be_signed(found: Result) -> None:
    card, plain, cut = cards(found)
    assert card.headline.startswith("Holds 8 concurrent users")
    assert [number.name for number in card.numbers] == ["May be signed", "Independent arrivals"]
    assert re.fullmatch(r"[\d.]+ requests/s on average, \d users?", card.numbers[0].value)
    assert card.signed == card.numbers[0].value.replace(" on average", "")
    assert card.numbers[1].value.endswith("requests/s")
    assert plain.numbers == cut.numbers == ()
    assert plain.signed == cut.signed == ""


def test_the_picture_and_the_lines_of_each_cell_with_open_levels(found: Result) -> None:
    shown = arrivals(found)
    assert [(cell.deployment, len(cell.ways)) for cell in shown] == [("gpu-a", 2), ("gpu-c", 1)]
    first = shown[0]
    assert len(first.lines) == len(found.cells[0].checks) - 1
    assert {line.way for line in first.lines} == {"poisson", "the trace"}
    assert "requests per second" in first.picture
    assert len(first.steps) == 4
    assert shown[1].steps == ()


def test_the_page_tells_it_and_gives_the_same_bytes(found: Result) -> None:
    page = render(found, "")
    assert page.count("Independent arrivals</h3>") == 1
    assert "expected traffic, replayed" in page
    assert "May be signed" in page
    assert render(found, "") == page


def test_a_run_without_open_levels_says_nothing_of_them(tmp_path: Path) -> None:
    run = build_run(tmp_path / "plain", [FakeCell(asked_cell("gpu-a", "chat"), rules=rules(None))])
    assert 'id="arrivals"' not in render(result(read_run(run)), "")


def test_the_terminal_and_the_gate_tell_the_numbers(run: Path, found: Result) -> None:
    check = found.cells[0].verdict.open_loop
    assert check is not None
    text = " ".join(summary(run, found).split())
    assert text.count("Independent arrivals: ") == 1
    said = told(gate(found))
    assert said.count("May be signed: ") == 1
    assert said.splitlines()[0].startswith("PROVISIONAL")
