"""Time: the memory of each cell's servers from start to stop, and the course of every level."""

from __future__ import annotations

from typing import NamedTuple

from markupsafe import Markup

from orchestrator.judge.soak import soak_sentence
from orchestrator.records import Slo
from reports.charts import memory_chart
from reports.figures import count, latency, significant, size
from reports.levels import LevelResult
from reports.result import CellResult, Result
from reports.sections.breaks import word
from reports.strips import Strip, course_picture, strips


class Picture(NamedTuple):
    """The course of one level."""

    concurrency: int
    purpose: str
    word: str
    svg: Markup


class Soaked(NamedTuple):
    """The soak of one cell."""

    concurrency: int
    minutes: float
    svg: Markup


class Line(NamedTuple):
    """One cell."""

    deployment: str
    workload: str
    source: str
    ready: str
    peak: str
    memory: Markup | None
    """None where the memory was not watched."""
    soak: Soaked | None
    deciding: tuple[Picture, ...]
    """The latest level that held and the one that broke."""
    others: tuple[Picture, ...]


def lines(result: Result) -> tuple[Line, ...]:
    """Cells that have a level, or whose memory was watched."""
    return tuple(_line(cell, result.slo) for cell in result.cells if cell.levels or any(cell.timeline.servers))


def _line(cell: CellResult, slo: Slo) -> Line:
    timeline = cell.timeline
    deciding = _deciding(cell)
    return Line(
        deployment=cell.asked.deployment,
        workload=cell.asked.workload,
        source=timeline.source,
        ready=size(timeline.ready_bytes),
        peak=size(timeline.peak_bytes),
        memory=_memory(cell) if any(timeline.servers) else None,
        soak=_soak(cell, slo),
        deciding=tuple(_picture(level, slo) for level in cell.levels if level.level in deciding),
        others=tuple(_picture(level, slo) for level in cell.levels if level.level not in deciding),
    )


def _deciding(cell: CellResult) -> set[int | None]:
    """The latest valid level at what holds, and the one that the verdict names as the break."""
    held = [v.level for v in cell.levels if v.concurrency == cell.verdict.c_ok and v.verdict.valid]
    return {*held[-1:], cell.verdict.break_level}


def _memory(cell: CellResult) -> Markup:
    timeline = cell.timeline
    bands = [(span.start_s, span.end_s, span.concurrency) for span in timeline.levels]
    told = f"{size(timeline.ready_bytes)} when ready, {size(timeline.peak_bytes)} at most, over {len(bands)} levels"
    return memory_chart(timeline.servers, bands, described=f"{cell.asked.deployment}, {timeline.source}: {told}")


def _soak(cell: CellResult, slo: Slo) -> Soaked | None:
    """p95 by the minute, and the memory, of the last soak."""
    soaks = [(level, level.soak) for level in cell.levels if level.soak is not None]
    if not soaks:
        return None
    level, found = max(soaks, key=lambda pair: pair[0].level)
    drawn = [
        Strip("TTFT p95", found.ttft_p95_ms, latency, limit=slo.ttft_ms),
        Strip("TPOT p95", found.tpot_p95_ms, latency, limit=slo.tpot_ms),
        Strip("memory", found.memory_bytes, size),
    ]
    known = [strip for strip in drawn if strip.points]
    return Soaked(
        concurrency=found.concurrency,
        minutes=found.window_s / 60,
        svg=course_picture(level.course, known, f"{cell.asked.deployment}: {soak_sentence(found)}"),
    )


def _picture(level: LevelResult, slo: Slo) -> Picture:
    found = strips(level.course, ttft_limit_ms=slo.ttft_ms, concurrency=level.concurrency)
    stats = level.stats
    told = (
        f"Course of the level at {level.concurrency} users, {word(level)}: {count(stats.mean_in_flight)} in flight on "
        f"average, TTFT p95 {latency(stats.ttft_ms.p95)}, {significant(stats.output_tokens_per_s)} tokens/s, "
        f"{stats.failed} failed; strips: {', '.join(strip.name for strip in found)}"
    )
    return Picture(level.concurrency, level.purpose, word(level), course_picture(level.course, found, told))
