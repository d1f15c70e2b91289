"""`loadproof compare`: two runs, or two deployments of one, side by side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import msgspec

from orchestrator.host import require_folder
from reports.comparison import MAY_DIFFER, CellComparison, Claim, Comparison, compare
from reports.figures import clean, significant
from reports.html import write_comparison
from reports.result import result
from reports.run import read_run
from stacks.simulated.accuracy import SENTENCE


@click.command("compare")
@click.argument("run_a", metavar="RUN_A", type=click.Path(path_type=Path))
@click.argument("run_b", metavar="RUN_B", type=click.Path(path_type=Path))
@click.option("--a", "name_a", metavar="NAME", help="Deployment of RUN_A (default: those of the same name).")
@click.option("--b", "name_b", metavar="NAME", help="Deployment of RUN_B.")
@click.option(
    "--under-test", multiple=True, type=click.Choice(MAY_DIFFER), help="The difference under test; repeatable."
)
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write the comparison as a page.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def compare_runs(
    run_a: Path,
    run_b: Path,
    name_a: str | None,
    name_b: str | None,
    under_test: tuple[str, ...],
    html: Path | None,
    as_json: bool,
) -> None:
    """Compare RUN_B against RUN_A: ratios with their intervals, never points against points.

    Two deployments of one run: name the run twice and choose with --a and --b. Refuses (exit 5) what was not measured
    on the same terms and names what differs.
    """
    first, second = read_run(run_a), read_run(run_b)  # what is no run is told before the work
    if html is not None:
        require_folder(html)
    a = result(first)
    b = a if run_a == run_b else result(second)
    found = compare(a, b, name_a=name_a, name_b=name_b, under_test=under_test)
    click.echo(msgspec.json.encode(found).decode() if as_json else "\n".join(_told(found)))
    if html is not None:
        write_comparison(a, b, found, html)
        click.echo(f"Comparison: {html}", err=as_json)


def _told(found: Comparison) -> Iterator[str]:
    if found.simulated:
        yield SENTENCE
    yield f"A  {clean(found.title_a, 200)} ({clean(found.run_a, 80)})"
    yield f"B  {clean(found.title_b, 200)} ({clean(found.run_b, 80)})"
    for cell in found.cells:
        yield ""
        yield from _cell(cell)


def _cell(cell: CellComparison) -> Iterator[str]:
    at = "no concurrency in common" if cell.reference is None else f"at {cell.reference} users"
    yield clean(f"{cell.workload}: B = {cell.b} against A = {cell.a}, {at}", 300)
    yield from (f"  differs in {clean(text, 200)}" for text in cell.differs)
    for claim in cell.claims:
        yield f"  {claim.metric:<18} {ratio_text(claim):<30} {claim.word:<13} {claim.why}"


def ratio_text(claim: Claim) -> str:
    """``ratio 1.04 (1.01 to 1.07)``, or the two values where there is no ratio."""
    if claim.ratio is None:
        return f"{significant(claim.a.value)} against {significant(claim.b.value)}"
    if claim.lower is None:
        return f"ratio {significant(claim.ratio)}, no interval"
    return f"ratio {significant(claim.ratio)} ({significant(claim.lower)} to {significant(claim.upper)})"
