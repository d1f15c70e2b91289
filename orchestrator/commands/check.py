"""`loadproof check`: the gate. Its exit code is its answer."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from reports.comparison import MAY_DIFFER
from reports.figures import clean
from reports.gate import Gate, gate
from reports.result import result
from reports.run import read_run
from stacks.simulated.accuracy import SENTENCE

EXIT_CODES = {"SIGNED": 0, "REFUSED": 1, "PROVISIONAL": 6, "UNDECIDED": 6}
EXIT_SIMULATED = 6
"""What a model of a card says lets nothing pass by itself."""


@click.command("check")
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "--baseline", type=click.Path(path_type=Path), metavar="RUN", help="Also refuse what got worse than this."
)
@click.option("--allow-provisional", is_flag=True, help="Let PROVISIONAL pass.")
@click.option("--allow-simulated", is_flag=True, help="Let a run pass whose cards were simulated.")
@click.option(
    "--under-test", multiple=True, type=click.Choice(MAY_DIFFER), help="What may differ from the baseline; repeatable."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def check(
    ctx: click.Context,
    run: Path,
    baseline: Path | None,
    allow_provisional: bool,
    allow_simulated: bool,
    under_test: tuple[str, ...],
    as_json: bool,
) -> None:
    """Gate on the run directory RUN, and on a baseline.

    Exits 0 when every cell is SIGNED, 1 when one is REFUSED or got worse (judged by intervals, never by points), 6 when
    one is PROVISIONAL or UNDECIDED, or when all are well but simulated; 5 when the baseline is not comparable.
    """
    measured, before = read_run(run), None if baseline is None else read_run(baseline)
    found = gate(result(measured), None if before is None else result(before), under_test)
    click.echo(msgspec.json.encode(found).decode() if as_json else told(found, allow_simulated=allow_simulated))
    code = 0 if allow_provisional and found.word == "PROVISIONAL" else EXIT_CODES[found.word]
    ctx.exit(EXIT_SIMULATED if code == 0 and found.simulated and not allow_simulated else code)


def told(found: Gate, *, allow_simulated: bool = False) -> str:
    """The gate's answer for people."""
    lines = [f"{cell.word:<12} {clean(cell.cell, 200)}: {clean(cell.why, 400)}" for cell in found.cells]
    lines += [f"{'WORSE':<12} {clean(text, 400)}" for text in found.regressions]
    lines += [
        f"{'UNDECIDED':<12} {clean(name, 200)}: in the baseline, and not measured here." for name in found.unmatched
    ]
    if found.simulated:
        lines = [SENTENCE, "", *lines]
    of_what = " of a simulation" if found.simulated else ""
    if found.simulated and not allow_simulated and EXIT_CODES[found.word] != EXIT_CODES["REFUSED"]:
        of_what += ", which lets nothing pass without --allow-simulated"
    return "\n".join([*lines, "", f"The gate says {found.word}{of_what}."])
