"""`loadproof compare`: two runs side by side, two deployments of one, or what one run measured in pairs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import msgspec

from orchestrator.errors import JournalError
from orchestrator.host import require_folder
from orchestrator.judge.claims import Claim
from reports.comparison import MAY_DIFFER, CellComparison, Comparison, compare
from reports.figures import clean, significant
from reports.html import write_comparison
from reports.pairs import PairsResult
from reports.result import Result, result
from reports.run import read_run
from reports.sections.versus import pairs_sentence
from stacks.simulated.accuracy import SENTENCE


@click.command("compare")
@click.argument("run_a", metavar="RUN_A", type=click.Path(path_type=Path))
@click.argument("run_b", metavar="[RUN_B]", required=False, type=click.Path(path_type=Path))
@click.option("--a", "name_a", metavar="NAME", help="Deployment of RUN_A (default: those of the same name).")
@click.option("--b", "name_b", metavar="NAME", help="Deployment of RUN_B.")
@click.option(
    "--under-test", multiple=True, type=click.Choice(MAY_DIFFER), help="The difference under test; repeatable."
)
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write the comparison as a page.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def compare_runs(
    run_a: Path,
    run_b: Path | None,
    name_a: str | None,
    name_b: str | None,
    under_test: tuple[str, ...],
    html: Path | None,
    as_json: bool,
) -> None:
    """Compare RUN_B against RUN_A: ratios with their intervals, never points against points.

    With RUN_A alone: what that run measured in pairs ([[compare]] in its plan). Two deployments of one run by the
    levels of their searches: name the run twice and choose with --a and --b. Refuses (exit 5) what was not measured on
    the same terms and names what differs.
    """
    if run_b is None:
        if name_a or name_b or under_test or html:
            raise click.UsageError("--a, --b, --under-test and --html belong to two runs; name RUN_B too.")
        alone = result(read_run(run_a))
        click.echo(msgspec.json.encode(_own(alone)).decode() if as_json else "\n".join(_in_pairs(alone)))
        return
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


def _own(run: Result) -> tuple[PairsResult, ...]:
    """What a run measured in pairs."""
    if not run.comparisons:
        raise JournalError(
            f"{run.run_id} measured nothing in pairs: its plan has no [[compare]].",
            "Name a second run, or the same one again with --a and --b.",
        )
    return run.comparisons


def _in_pairs(run: Result) -> Iterator[str]:
    own = _own(run)
    if run.simulated:
        yield SENTENCE
    for number, found in enumerate(own):
        if number or run.simulated:
            yield ""
        yield clean(f"{found.workload}: B = {found.b} against A = {found.a}", 300)
        yield clean(f"  {pairs_sentence(found)}", 600)
        yield from (clean(f"  pair {pair.pair} is void: {pair.void}", 400) for pair in found.pairs if pair.void)
        if found.withheld:
            yield clean(f"  {' '.join(found.withheld)} Nothing is claimed of throughput and latency.", 800)
        yield from map(_claim, found.claims)


def _claim(claim: Claim) -> str:
    return f"  {claim.metric:<18} {ratio_text(claim):<30} {claim.word:<13} {clean(claim.why, 400)}"


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
    yield from map(_claim, cell.claims)


def ratio_text(claim: Claim) -> str:
    """``ratio 1.04 (1.01 to 1.07)``, or the two values where there is no ratio."""
    if claim.ratio is None:
        return f"{significant(claim.a.value)} against {significant(claim.b.value)}"
    if claim.lower is None:
        return f"ratio {significant(claim.ratio)}, no interval"
    return f"ratio {significant(claim.ratio)} ({significant(claim.lower)} to {significant(claim.upper)})"
