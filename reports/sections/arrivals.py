"""Independent arrivals: what held under an open loop, rate by rate, and the expected traffic, replayed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from orchestrator.judge.steps import OpenLoop
from orchestrator.records import Slo
from reports.charts import Curve, Mark, rate_chart
from reports.figures import percent, significant, target
from reports.levels import LevelResult
from reports.result import CellResult, Result
from reports.sections.breaks import slots, with_interval, word

_REPLAY_SLOT = 3
"""Colour of the replays beside that of the deployment."""


POISSON, REPLAYED = "independent (Poisson)", "expected traffic, replayed"


class Line(NamedTuple):
    """One open level."""

    level: LevelResult
    word: str
    way: str


class Arrivals(NamedTuple):
    """The open-loop check of one cell."""

    deployment: str
    workload: str
    ways: tuple[tuple[str, int], ...]
    """(name, colour slot) of the ways of arriving: independent, and the expected traffic if it was replayed."""
    picture: Markup
    caption: str
    lines: tuple[Line, ...]
    steps: tuple[str, ...]
    """How the numbers follow from each other, a sentence each."""


def arrivals(result: Result) -> tuple[Arrivals, ...]:
    colours = slots(result)
    return tuple(
        _cell(cell, colours[cell.asked.deployment], result.slo)
        for cell in result.cells
        if any(level.rate_per_s is not None for level in cell.checks)
    )


def _cell(cell: CellResult, slot: int, slo: Slo) -> Arrivals:
    levels = [level for level in cell.checks if level.rate_per_s is not None]
    poisson = [level for level in levels if level.purpose != "replay"]
    replays = [level for level in levels if level.purpose == "replay"]
    check = cell.verdict.open_loop
    replay_slot = slot + _REPLAY_SLOT
    curves = [_curve(poisson, slot, POISSON, _bracket(check))]
    curves += [_curve(replays, replay_slot, REPLAYED)] if replays else []
    return Arrivals(
        deployment=cell.asked.deployment,
        workload=cell.asked.workload,
        ways=tuple((curve.name, curve.slot) for curve in curves),
        picture=rate_chart(
            curves,
            title="Good requests against the rate of arrivals",
            described=_told(cell.asked.deployment, levels),
            limit=slo.attainment,
        ),
        caption=f"limit {target(slo.attainment)}",
        lines=tuple(Line(level, word(level), level.arrivals) for level in levels),
        steps=() if check is None else tuple(_steps(check)),
    )


def _bracket(check: OpenLoop | None) -> tuple[float, float] | None:
    if check is None or check.rate_ok is None or check.rate_bad is None:
        return None
    return check.rate_ok, check.rate_bad


def _curve(levels: Sequence[LevelResult], slot: int, name: str, bracket: tuple[float, float] | None = None) -> Curve:
    latest = {level.rate_per_s: level.level for level in levels if level.verdict.valid}
    marks = (
        Mark(
            level.rate_per_s or 0.0,
            level.stats.attainment,
            word(level),
            latest.get(level.rate_per_s) == level.level,
            with_interval(level.stats.attainment, level.certainty.attainment, percent),
        )
        for level in levels
    )
    return Curve(tuple(marks), bracket, slot, name)


def _told(deployment: str, levels: Sequence[LevelResult]) -> str:
    said = (f"{significant(v.rate_per_s)}: {percent(v.stats.attainment)}" for v in levels)
    return f"{deployment}, good requests by requests a second: {', '.join(said)}"


def _steps(check: OpenLoop) -> list[str]:
    """From the closed loop to what may be signed."""
    told = [f"The closed loop made {significant(check.throughput)} requests/s at what holds."]
    if check.rate_ok is None:
        return [*told, "No rate of independent arrivals was shown to hold."]
    told.append(
        f"Independent arrivals hold up to {significant(check.rate_ok)} requests/s, "
        f"{percent(check.rate_ok / check.throughput)} of that."
    )
    if check.factor is not None:
        told.append(_margin(check))
    if check.rate_sign is not None:
        told.append(
            f"The expected traffic held when it was replayed at a mean of {significant(check.rate_sign)} requests/s"
            + (f" (attempt {check.replays}, each 5 % lower)." if check.replays > 1 else ".")
        )
    return told


def _margin(check: OpenLoop) -> str:
    cost = (
        "" if check.beta is None else f" (an output token costs {significant(check.beta)} prompt tokens at this load)"
    )
    swings = (
        f"its work swings by {percent(check.sigma)} and peaks at {significant(check.peak)} times the mean{cost}"
        if check.sigma
        else "the least margin"
    )
    return f"The expected traffic leaves a factor of {significant(check.factor)} to its mean rate: {swings}."
