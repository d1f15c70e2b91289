"""Where it breaks: every quantity against concurrency, a line for each deployment, workload by workload."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from orchestrator.judge.bounds import Estimate
from orchestrator.records import Slo
from reports.charts import Curve, Mark, concurrency_chart
from reports.figures import NONE, latency, limit, percent, significant, target
from reports.levels import LevelResult
from reports.result import CellResult, Result, broke_at
from reports.sections.belief import interval
from reports.sections.decision import NO_VALUE

_ENGINE_FIGURES = ("waiting_mean", "kv_use_max", "preemptions")


class Picture(NamedTuple):
    title: str
    term: str
    caption: str
    svg: Markup


class Line(NamedTuple):
    """One level in the table."""

    deployment: str
    slot: int
    level: LevelResult
    word: str


class Ladder(NamedTuple):
    """One workload."""

    workload: str
    title: str
    source: str
    mean_prompt: float | None
    mean_output: float | None
    deployments: tuple[tuple[str, int], ...]
    """(name, colour slot) of the deployments that have levels."""
    pictures: tuple[Picture, ...]
    lines: tuple[Line, ...]
    reported: frozenset[str]
    """Which of the engine's own figures any of its levels has: names of `LevelStats`."""


class _Quantity(NamedTuple):
    title: str
    term: str
    unit: str
    read: Callable[[LevelResult], float | None]
    limit: float | None = None
    share: bool = False
    failures_have_none: bool = False
    """No value means that too many requests failed (a percentile), not that it was not reported."""
    sure: Callable[[LevelResult], Estimate] = lambda _: Estimate()
    """The interval of the value."""
    text: Callable[[float | None], str] = significant


def slots(result: Result) -> dict[str, int]:
    """Colour slot of each deployment: the same in the whole report."""
    names = dict.fromkeys(cell.asked.deployment for cell in result.cells)
    return {name: slot for slot, name in enumerate(names)}


def word(level: LevelResult) -> str:
    """PASS, FAIL, UNDECIDED, or INVALID where the measurement is void."""
    return level.verdict.verdict if level.verdict.valid else "INVALID"


def ladders(result: Result) -> tuple[Ladder, ...]:
    colours = slots(result)
    workloads = dict.fromkeys(cell.asked.workload for cell in result.cells)
    found = []
    for workload in workloads:
        cells = [cell for cell in result.cells if cell.asked.workload == workload and cell.levels]
        if cells:
            found.append(_ladder(workload, cells, colours, result.slo))
    return tuple(found)


def _ladder(workload: str, cells: Sequence[CellResult], colours: Mapping[str, int], slo: Slo) -> Ladder:
    asked = cells[0].asked
    lines = [
        Line(cell.asked.deployment, colours[cell.asked.deployment], level, word(level))
        for cell in cells
        for level in cell.levels
    ]
    several = len({line.level.concurrency for line in lines}) > 1
    return Ladder(
        workload=workload,
        title=asked.workload_title,
        source=asked.workload_source,
        mean_prompt=asked.mean_prompt_tokens,
        mean_output=asked.mean_output_tokens,
        deployments=tuple((cell.asked.deployment, colours[cell.asked.deployment]) for cell in cells),
        pictures=pictures(cells, colours, slo) if several else (),
        lines=tuple(lines),
        reported=frozenset(
            name for name in _ENGINE_FIGURES if any(getattr(line.level.stats, name) is not None for line in lines)
        ),
    )


def pictures(cells: Sequence[CellResult], colours: Mapping[str, int], slo: Slo) -> tuple[Picture, ...]:
    """Every quantity against concurrency, a line for each cell; `colours` by deployment."""
    return tuple(_picture(quantity, cells, colours) for quantity in _quantities(slo))


def _quantities(slo: Slo) -> tuple[_Quantity, ...]:
    return (
        _Quantity(
            "Good requests",
            "attainment",
            "share",
            lambda v: v.stats.attainment,
            slo.attainment,
            share=True,
            sure=lambda v: v.certainty.attainment,
            text=percent,
        ),
        _Quantity(
            "TTFT p95",
            "ttft",
            "ms",
            lambda v: v.stats.ttft_ms.p95,
            slo.ttft_ms,
            failures_have_none=True,
            sure=lambda v: v.certainty.ttft_p95_ms,
            text=latency,
        ),
        _Quantity(
            "TPOT p95",
            "tpot",
            "ms",
            lambda v: v.stats.tpot_ms.p95,
            slo.tpot_ms,
            failures_have_none=True,
            sure=lambda v: v.certainty.tpot_p95_ms,
            text=latency,
        ),
        _Quantity(
            "Output throughput",
            "throughput",
            "tokens/s",
            lambda v: v.stats.output_tokens_per_s,
            sure=lambda v: v.certainty.output_tokens_per_s,
            text=lambda rate: f"{significant(rate)} tok/s",
        ),
    )


def _picture(quantity: _Quantity, cells: Sequence[CellResult], colours: Mapping[str, int]) -> Picture:
    curves = [_curve(cell, colours[cell.asked.deployment], quantity) for cell in cells]
    scale, unit = (100, "%") if quantity.share else (1, quantity.unit)
    shown = "" if quantity.limit is None else (target if quantity.share else limit)(quantity.limit)
    return Picture(
        title=quantity.title,
        term=quantity.term,
        caption=f"limit {shown}" if shown else "no limit",
        svg=concurrency_chart(
            curves,
            title=f"{quantity.title} against concurrency",
            unit="good requests" if quantity.share else quantity.unit,
            described="; ".join(_told(cell, quantity, scale, unit) for cell in cells),
            limit=quantity.limit,
            share=quantity.share,
        ),
    )


def _told(cell: CellResult, quantity: _Quantity, scale: int, unit: str) -> str:
    """A line in words, for those who hear the chart."""
    said = []
    for level in cell.levels:
        value = quantity.read(level)
        said.append(f"{level.concurrency}: {'no value' if value is None else significant(value * scale)}")
    return f"{cell.asked.deployment}, {unit} by users: {', '.join(said)}"


def _curve(cell: CellResult, slot: int, quantity: _Quantity) -> Curve:
    latest = {level.concurrency: level.level for level in sorted(cell.levels, key=_age) if level.verdict.valid}
    marks = []
    for level in cell.levels:
        value = quantity.read(level)
        if value is None and not (quantity.failures_have_none and level.stats.failed):
            continue
        on_line = latest.get(level.concurrency) == level.level
        marks.append(Mark(level.concurrency, value, word(level), on_line, _said(level, quantity)))
    ok, bad = cell.verdict.c_ok, broke_at(cell)
    bracket = (ok, bad) if ok is not None and bad is not None else None
    return Curve(tuple(marks), bracket, slot, cell.asked.deployment)


def _said(level: LevelResult, quantity: _Quantity) -> str:
    return with_interval(quantity.read(level), quantity.sure(level), quantity.text)


def with_interval(value: float | None, sure: Estimate, words: Callable[[float | None], str]) -> str:
    """``312 ms (300 to 330 ms)``: the value with its interval, where it has one."""
    within = interval(sure, words)
    shown = NO_VALUE if value is None else words(value)
    return shown if within == NONE else f"{shown} ({within})"


def _age(level: LevelResult) -> int:
    return level.level
