"""What the traffic was: lengths asked and served, beside the preset that was named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from reports.charts import LengthCurve, length_chart
from reports.figures import NONE, change, count, percent, significant
from reports.result import CellResult, Result
from reports.traffic import Lengths, Traffic


class Row(NamedTuple):
    """One distribution in the table."""

    deployment: str
    side: str
    """Prompt or output."""
    what: str
    """Asked, served, or the preset's."""
    n: str
    mean: str
    quantiles: tuple[str, ...]
    longest: str


class Workload(NamedTuple):
    """One workload, over all cells that measured it."""

    name: str
    title: str
    source: str
    preset: str | None
    sentences: tuple[str, ...]
    pictures: tuple[tuple[str, Markup], ...]
    rows: tuple[Row, ...]


def workloads(result: Result) -> tuple[Workload, ...]:
    """Workloads that were asked of at least one cell."""
    names = dict.fromkeys(cell.asked.workload for cell in result.cells)
    groups = ([c for c in result.cells if c.asked.workload == name and c.traffic.requests] for name in names)
    return tuple(_workload(cells) for cells in groups if cells)


def _workload(cells: Sequence[CellResult]) -> Workload:
    asked, traffic = cells[0].asked, cells[0].traffic
    return Workload(
        name=asked.workload,
        title=asked.workload_title,
        source=asked.workload_source,
        preset=traffic.preset,
        sentences=tuple(_sentences(cells)),
        pictures=tuple(
            (side, picture)
            for side, lines in (
                ("Prompt", (traffic.prompt_asked, traffic.prompt_served, traffic.preset_prompt)),
                ("Output", (traffic.output_asked, traffic.output_served, traffic.preset_output)),
            )
            if (picture := _picture(side, *lines)) is not None
        ),
        rows=(*_preset_rows(traffic), *(row for cell in cells for row in _rows(cell))),
    )


def _picture(side: str, asked: Lengths | None, served: Lengths | None, preset: Lengths | None) -> Markup | None:
    """The distributions; None where every request asks the same, which a picture does not show better than a word."""
    if asked is None or all(found.quantiles[0] == found.longest for found in (asked, served, preset) if found):
        return None
    lines = (("asked", asked), ("served", served), ("preset", preset))
    return length_chart(
        [LengthCurve(name, found.counts) for name, found in lines if found is not None],
        described=f"{side} tokens: "
        + "; ".join(f"{name} p50 {count(found.quantiles[2])}" for name, found in lines if found is not None),
        title=f"{side} lengths",
    )


def _sentences(cells: Sequence[CellResult]) -> list[str]:
    """In words: how close to the preset, how close to what was asked, what was cut."""
    told = []
    found = [cell.traffic for cell in cells]
    first = found[0]
    if first.preset_prompt and first.preset_output and first.prompt_asked and first.output_asked:
        prompt = change(first.prompt_asked.mean, first.preset_prompt.mean)
        output = change(first.output_asked.mean, first.preset_output.mean)
        told.append(
            f"Mean lengths against the preset {first.preset}: prompts {prompt}, outputs {output} "
            f"({first.requests:,} requests of {cells[0].asked.deployment})."
        )
    if worst := _furthest(found):
        told.append(f"Served outputs against what was asked, where they differ most: {worst} in the mean.")
    clamped, requests = sum(t.clamped for t in found), sum(t.requests for t in found)
    if clamped:
        told.append(f"{percent(clamped / requests)} of the requests were cut to the context.")
    return told


def _furthest(found: Sequence[Traffic]) -> str | None:
    """The largest difference of served from asked output tokens; None under half a per cent."""
    means = [(t.output_served.mean, t.output_asked.mean) for t in found if t.output_served and t.output_asked]
    served, asked = max(means, key=lambda pair: abs(pair[0] / pair[1] - 1), default=(1.0, 1.0))
    return change(served, asked) if abs(served / asked - 1) >= 0.005 else None


def _rows(cell: CellResult) -> list[Row]:
    traffic = cell.traffic
    return [
        _row(cell.asked.deployment, side, what, found)
        for side, what, found in (
            ("Prompt", "asked", traffic.prompt_asked),
            ("Prompt", "served", traffic.prompt_served),
            ("Output", "asked", traffic.output_asked),
            ("Output", "served", traffic.output_served),
        )
    ]


def _preset_rows(traffic: Traffic) -> list[Row]:
    """The preset's own lengths, which are the same for every deployment."""
    if not traffic.preset:
        return []
    sides = (("Prompt", traffic.preset_prompt), ("Output", traffic.preset_output))
    return [_row(traffic.preset, side, "preset", found) for side, found in sides]


def _row(name: str, side: str, what: str, found: Lengths | None) -> Row:
    if found is None:
        return Row(name, side, what, NONE, NONE, (NONE,) * 5, NONE)
    return Row(
        deployment=name,
        side=side,
        what=what,
        n=count(found.n),
        mean=significant(found.mean),
        quantiles=tuple(count(value) for value in found.quantiles),
        longest=count(found.longest),
    )
