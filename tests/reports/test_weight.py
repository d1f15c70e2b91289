"""How much a report weighs: every number and every picture of a judged level, and no character too many."""

from __future__ import annotations

import re

import msgspec
import pytest
from fakes.run_directory import FakeCell, asked_cell, build_run
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.judge.search import SearchRules
from orchestrator.records import Slo
from reports.axes import dots, line
from reports.html import render
from reports.result import CellResult, Result, result
from reports.run import read_run

CELLS, MOST_BYTES_A_CELL, MOST_BYTES = 40, 60_000, 3_000_000
Places = list[tuple[float, float]]
PLACES = st.lists(st.tuples(st.floats(-50, 400), st.floats(-50, 400)), min_size=1, max_size=30)


@pytest.fixture(scope="module")
def forty(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """Four deployments on a card with eight or nine levels each, ten times under other names and workloads."""
    cells = [
        FakeCell(
            asked_cell(f"deployment-{i}", "chat", quantization=("awq", "fp8", "bf16", "awq")[i], gpus=["0"]),
            source="gpu:0",
            base_mib=20_000 + 500 * i,
            power_w=300.0,
            rules=SearchRules(start=2, maximum=64, confirm=1, precision=0.2),
            ttft_ms=lambda c, i=i: (40 + 12 * c) * (1 + i / 4),  # type: ignore[misc]
            tpot_ms=lambda c, i=i: (9 + 0.8 * c) * (1 + i / 4),  # type: ignore[misc]
            facts={"weights_bytes": 8e9, "kv_bytes": 1e10},
        )
        for i in range(4)
    ]
    run = build_run(tmp_path_factory.mktemp("forty") / "run", cells, slo=Slo(ttft_ms=800.0, tpot_ms=40.0))
    found = result(read_run(run))
    return msgspec.structs.replace(found, cells=tuple(_renamed(cell, n) for n in range(10) for cell in found.cells))


def _renamed(cell: CellResult, number: int) -> CellResult:
    deployment, workload = f"{cell.asked.deployment}-{number}", f"workload-{number % 4}"
    asked = msgspec.structs.replace(
        cell.asked, cell=f"{deployment}--{workload}", deployment=deployment, workload=workload
    )
    return msgspec.structs.replace(cell, asked=asked)


def test_forty_cells_weigh_less_than_three_megabytes(forty: Result) -> None:
    page = render(forty, "")
    levels = sum(len(cell.levels) for cell in forty.cells)
    assert (len(forty.cells), levels > 300) == (CELLS, True)
    assert page.count('class="chart strips"') == levels, "the course of every level"
    assert page.count('<th scope="row">deployment-') > 2 * levels, (
        "every level in the tables of figures and of validity"
    )
    assert len(page.encode()) < CELLS * MOST_BYTES_A_CELL < MOST_BYTES


def drawn(path: str) -> Places:
    """The points that path data of lines goes through."""
    x = y = 0.0
    found = []
    for command, numbers in re.findall(r"([Mmlhv])([^Mmlhv]*)", path):
        values = [float(number) for number in re.findall(r"-?\d*\.?\d+", numbers)]
        match command:
            case "M":
                x, y = values
            case "m" | "l":
                x, y = x + values[0], y + values[1]
            case "h":
                x += values[0]
            case _:
                y += values[0]
        found.append((round(x, 1) + 0.0, round(y, 1) + 0.0))
    return found


def rounded(points: Places) -> Places:
    return [(round(10 * x) / 10 + 0.0, round(10 * y) / 10 + 0.0) for x, y in points]


@given(PLACES)
def test_a_line_goes_through_every_point(points: Places) -> None:
    """Corners are the points themselves, in their order; what is left out lies between two of them, on level or
    upright ground."""
    places, corners = rounded(points), drawn(line(points))
    assert (corners[0], corners[-1]) == (places[0], places[-1])
    at = 0
    for place in places:
        while not _is_on(place, corners[at], corners[min(at + 1, len(corners) - 1)]):
            at += 1
    assert len(corners) <= len(places)


def _is_on(place: tuple[float, float], a: tuple[float, float], b: tuple[float, float]) -> bool:
    if place in (a, b):
        return True
    level, upright = a[1] == b[1] == place[1], a[0] == b[0] == place[0]
    return (level and min(a[0], b[0]) < place[0] < max(a[0], b[0])) or (
        upright and min(a[1], b[1]) < place[1] < max(a[1], b[1])
    )


@given(PLACES)
def test_every_dot_is_drawn_once(points: Places) -> None:
    told = dots(points)
    assert drawn(told)[::2] == drawn(told)[1::2] == list(dict.fromkeys(rounded(points)))


def test_a_level_line_is_two_points() -> None:
    assert line([(66.0, 123.0), (77.4, 123.0), (88.8, 123.02), (362.5, 123.0)]) == "M66,123h296.5"
    assert line([(0, 5), (1, 5), (0.5, 5)]) == "M0,5h1h-.5", "a way back is drawn"
