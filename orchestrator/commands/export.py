"""`loadproof export`: a run for notebooks, and as the files that other tools write."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from orchestrator.errors import HostError
from reports.exports.benchmark_report import benchmark_report
from reports.exports.tables import level_rows, request_rows, write_csv, write_parquet
from reports.exports.vllm_bench import vllm_bench
from reports.result import Result, encode, result, write_derived
from reports.run import Run, read_run

FORMATS = ("json", "csv", "parquet", "benchmark-report", "vllm-bench")


@click.command("export")
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--format", "form", required=True, type=click.Choice(FORMATS), help="What to write.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write into (default: RUN/exports/FORMAT).")
def export(run: Path, form: str, out: Path | None) -> None:
    """Write the run directory RUN in another format and say how many files lie where.

    json: result.json. csv, parquet: levels and requests as tables. benchmark-report (llm-d, v0.2) and vllm-bench (what
    `vllm bench serve --save-result --save-detailed` writes): a file for each level.
    """
    read = read_run(run)
    folder = out or run / "exports" / form
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = list(_written(form, read, result(read), folder))
    except OSError as error:
        raise HostError(f"{folder} cannot be written: {error.strerror}.", "Check the folder and the disk.") from error
    click.echo(f"Wrote {len(written):,} file{'' if len(written) == 1 else 's'} to {folder}.")


def _written(form: str, run: Run, found: Result, folder: Path) -> Iterator[Path]:
    """Write a format and tell each file when it stands."""
    match form:
        case "json":
            write_derived(folder / "result.json", encode(found))
            yield folder / "result.json"
        case "csv":
            write_csv(folder / "levels.csv", level_rows(found))
            yield folder / "levels.csv"
            write_csv(folder / "requests.csv", request_rows(run))
            yield folder / "requests.csv"
        case "parquet":
            write_parquet(folder / "levels.parquet", level_rows(found), truths=("valid", "simulated"))
            yield folder / "levels.parquet"
            write_parquet(folder / "requests.parquet", request_rows(run), truths=("good", "clamped"))
            yield folder / "requests.parquet"
        case _:
            yield from _by_level(form, run, found, folder)


def _by_level(form: str, run: Run, found: Result, folder: Path) -> Iterator[Path]:
    """A file for each level: ``CELL-LEVEL-cUSERS.json``."""
    for raw_cell, cell in zip(run.cells, found.cells, strict=True):
        for raw, level in zip(raw_cell.levels, cell.levels, strict=True):
            if form == "vllm-bench":
                value = vllm_bench(found, cell, level, raw.records())
            else:
                value = benchmark_report(found, cell, level)
            path = folder / f"{cell.asked.cell}-{level.level}-c{level.concurrency}.json"
            write_derived(path, encode(value))
            yield path
