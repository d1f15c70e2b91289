"""`loadproof show`: a run's results in the terminal, as a table and a few plain sentences."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from reports.figures import NONE, clean, significant, size
from reports.result import CellResult, Result, result
from reports.run import read_run
from reports.sections.belief import hardware_notes
from reports.sections.bought import Comparison, comparisons
from reports.sections.decision import Card, cards, cost_text, energy_text, level_at, percentile_text
from reports.sections.frontier import Frontier, frontier
from reports.sections.versus import in_pairs

_COLOURS = {"SIGNED": "bold green", "PROVISIONAL": "bold yellow", "REFUSED": "bold red"}
_ECONOMY = (("1M tok", cost_text), ("energy", energy_text))
"""Cost and energy of a million output tokens, where any is known."""
_PIPE_WIDTH = 120


@click.command("show")
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
def show(run: Path) -> None:
    """Print the results of the run directory RUN: for each cell what it holds, where it breaks and why."""
    click.echo(summary(run))


def summary(run: Path, found: Result | None = None) -> str:
    """The results of a run as text, coloured where stdout is a terminal. `found` spares reading the run again."""
    found = found or result(read_run(run))
    width = max(shutil.get_terminal_size((_PIPE_WIDTH, 0)).columns, 60)
    console = Console(file=io.StringIO(), width=width, force_terminal=sys.stdout.isatty(), highlight=False)
    console.print(Group(*_parts(found)))
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def _parts(found: Result) -> Iterator[RenderableType]:
    decided = cards(found)
    yield _line(found.title, "bold")
    if found.outcome != "complete":
        yield _line(f"The run is {found.outcome}: what follows was measured until then.", "yellow")
    for note in hardware_notes(found):
        yield _line(note, "yellow")
    yield _table(found, decided)
    yield from _reasons(decided)
    if (along := frontier(found)) is not None:
        yield from _frontier(along)
    for comparison in comparisons(found.cells):
        yield from _bought(comparison)
    for one in in_pairs(found):
        yield Text("")
        yield _line(f"In pairs, {one.found.workload}: {one.found.b} against {one.found.a}:", "bold")
        for sentence in (one.words, one.sentence, *one.found.withheld):
            yield Padding(_line(sentence), (0, 0, 0, 2))


def _line(text: str, style: str = "") -> Text:
    """Untrusted text as one line: no control characters reach the terminal, no markup is read."""
    return Text(clean(" ".join(text.split()), 600), style=style)


def _table(found: Result, decided: tuple[Card, ...]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    table.add_column("deployment", overflow="fold")
    table.add_column("workload", overflow="fold")
    table.add_column("verdict")
    extra = [(name, text) for name, text in _ECONOMY if any(text(cell.economy) for cell in found.cells)]
    for name in ("holds", "breaks", "TTFT p95", "TPOT p95", "tok/s", "memory", *(name for name, _ in extra)):
        table.add_column(name, justify="right")
    for cell, card in zip(found.cells, decided, strict=True):
        table.add_row(
            _line(card.asked.deployment),
            _line(card.asked.workload),
            Text(card.word + (" (simulated)" if card.hardware == "simulated" else ""), style=_COLOURS[card.word]),
            card.holds,
            card.breaks,
            *_figures(cell),
            *(_line(text(cell.economy) or NONE) for _, text in extra),
        )
    return table


def _figures(cell: CellResult) -> tuple[str, str, str, str]:
    """TTFT, TPOT, throughput and memory at the level that held, else at the one that broke."""
    level = level_at(cell, cell.verdict.c_ok, held=True) or level_at(cell, cell.verdict.c_bad, held=False)
    if level is None:
        return NONE, NONE, NONE, size(cell.bill.peak_bytes)
    stats = level.stats
    return (
        percentile_text(stats.ttft_ms, stats.ttft_ms.p95),
        percentile_text(stats.tpot_ms, stats.tpot_ms.p95),
        significant(stats.output_tokens_per_s),
        size(stats.memory_peak_bytes),
    )


def _reasons(decided: tuple[Card, ...]) -> Iterator[RenderableType]:
    """Where each cell broke and why, and what the open-loop check found; one line each."""
    for card in decided:
        numbers = " ".join(f"{number.name}: {number.value}." for number in card.numbers[1:])
        barely = f" FRAGILE: {card.fragile}" if card.fragile else ""
        yield _line(f"{card.asked.deployment}, {card.asked.workload}: {card.sentence} {numbers} {card.why}{barely}")
        for sentence in card.afterwards:
            yield Padding(_line(sentence), (0, 0, 0, 2))


def _frontier(along: Frontier) -> Iterator[RenderableType]:
    yield Text("")
    yield _line("Along the prompt length:", "bold")
    for sentence in along.sentences or ("Nothing was measured at two lengths.",):
        yield Padding(_line(sentence), (0, 0, 0, 2))


def _bought(comparison: Comparison) -> Iterator[RenderableType]:
    smallest, largest = comparison.columns[-1], comparison.columns[0]
    what = f"{comparison.bits}-bit" if comparison.bits else smallest.format.label
    yield Text("")
    yield _line(f"What {what} bought ({smallest.name} against {largest.name}):", "bold")
    for sentence in comparison.bought or ("Nothing that was measured here.",):
        yield Padding(_line(f"+ {sentence}"), (0, 0, 0, 2))
    yield _line("What it did not:", "bold")
    for sentence in comparison.not_bought or ("Everything that was measured here got better.",):
        yield Padding(_line(f"- {sentence}"), (0, 0, 0, 2))
