"""`loadproof report`: build the HTML report of a run again, and print it as PDF."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.host import require_folder
from reports.html import write_report
from reports.pdf import find_chromium, write_pdf
from reports.result import write_result


@click.command("report")
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="File to write (default: RUN/report.html).")
@click.option("--pdf", is_flag=True, help="Also print it as PDF, beside it, through an installed Chromium.")
@click.option("--open", "open_report", is_flag=True, help="Open it in the browser.")
def report(run: Path, out: Path | None, pdf: bool, open_report: bool) -> None:
    """Build the report and result.json of the run directory RUN again, also of an interrupted run.

    Reads nothing but the run directory; the same directory gives the same bytes.
    """
    if pdf:
        find_chromium()  # told before the work, not after it
    if out is not None:
        require_folder(out)
    path = write_report(run, out, found=write_result(run))
    click.echo(str(path))
    if pdf:
        printed = path.with_suffix(".pdf")
        write_pdf(path, printed)
        click.echo(str(printed))
    if open_report:
        click.launch(path.resolve().as_uri())
