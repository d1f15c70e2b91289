"""Time: the memory of each cell's servers from start to stop, with the levels as bands."""

from __future__ import annotations

from typing import NamedTuple

from markupsafe import Markup

from reports.charts import memory_chart
from reports.figures import size
from reports.result import CellResult, Result


class Line(NamedTuple):
    deployment: str
    workload: str
    source: str
    ready: str
    peak: str
    svg: Markup


def lines(result: Result) -> tuple[Line, ...]:
    """Cells whose memory was watched."""
    return tuple(_line(cell) for cell in result.cells if any(cell.timeline.servers))


def _line(cell: CellResult) -> Line:
    timeline = cell.timeline
    bands = [(span.start_s, span.end_s, span.concurrency) for span in timeline.levels]
    told = f"{size(timeline.ready_bytes)} when ready, {size(timeline.peak_bytes)} at most, over {len(bands)} levels"
    return Line(
        deployment=cell.asked.deployment,
        workload=cell.asked.workload,
        source=timeline.source,
        ready=size(timeline.ready_bytes),
        peak=size(timeline.peak_bytes),
        svg=memory_chart(timeline.servers, bands, described=f"{cell.asked.deployment}, {timeline.source}: {told}"),
    )
