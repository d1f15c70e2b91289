"""`loadproof report`: build the HTML report of a run again."""

from __future__ import annotations

from pathlib import Path

import click

from reports.html import write_report
from reports.result import write_result


@click.command("report")
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="File to write (default: RUN/report.html).")
@click.option("--open", "open_report", is_flag=True, help="Open it in the browser.")
def report(run: Path, out: Path | None, open_report: bool) -> None:
    """Build the report and result.json of the run directory RUN again, also of an interrupted run.

    Reads nothing but the run directory; the same directory gives the same bytes.
    """
    path = write_report(run, out, found=write_result(run))
    click.echo(str(path))
    if open_report:
        click.launch(path.resolve().as_uri())
