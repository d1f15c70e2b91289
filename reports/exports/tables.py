"""A run as two tables, one row for each level and one for each request, as CSV or Parquet.

Both are written row by row: memory is bounded by the largest level. An absent value is an empty field (CSV) or null.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from orchestrator.clock import NS_PER_MS
from orchestrator.errors import HostError
from orchestrator.metrics import e2e_ns, is_good, tpot_ns, ttft_ns
from orchestrator.records import Percentiles, RequestRecord, Slo
from reports.levels import LevelResult
from reports.result import CellResult, Result
from reports.run import Run

Row = dict[str, Any]

_PERCENTILES = ("p50", "p90", "p95", "p99", "mean")
_COUNTS = (
    *("offered", "good", "failed", "attainment", "window_s", "output_tokens_per_s", "prompt_tokens_per_s"),
    *("requests_per_s", "goodput_per_s", "mean_in_flight", "mean_in_tokens", "mean_out_tokens", "clamped"),
    *("preemptions", "kv_use_mean", "kv_use_max", "running_mean", "waiting_mean", "memory_peak_bytes"),
)


def level_rows(result: Result) -> Iterator[Row]:
    """One row for each level, in the order of the report; those of the open-loop check after the others of a cell, and
    those of comparisons in pairs at the end, under the name of the comparison."""
    cells = {cell.asked.cell: cell for cell in result.cells}
    for cell in result.cells:
        for level in (*cell.levels, *cell.checks):
            yield _level_row(cell, level)
    for found in result.comparisons:
        for pair in found.pairs:
            for name, measured in ((found.asked.a, pair.a), (found.asked.b, pair.b)):
                if measured is not None and name in cells:
                    yield _level_row(cells[name], measured) | {"cell": found.asked.id}


def _level_row(cell: CellResult, level: LevelResult) -> Row:
    asked, stats, sure = cell.asked, level.stats, level.certainty
    row: Row = {
        "cell": asked.cell,
        "deployment": asked.deployment,
        "workload": asked.workload,
        "stack": asked.stack,
        "model": asked.model,
        "quantization": asked.quantization,
        "simulated": cell.hardware == "simulated",
        "level": level.level,
        "attempt": level.attempt,
        "purpose": level.purpose,
        "concurrency": level.concurrency,
        "rate_per_s": level.rate_per_s,
        "seed": level.seed,
        "workload_sha256": level.workload_sha256,
        "valid": level.verdict.valid,
        "verdict": level.verdict.verdict,
        "hard_break": level.verdict.hard_break,
        "started_s": level.started_s,
        "ended_s": level.ended_s,
    }
    row |= {name: getattr(stats, name) for name in _COUNTS}
    for name in ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms"):
        found: Percentiles = getattr(stats, name)
        row |= {f"{name.removesuffix('_ms')}_{rank}_ms": getattr(found, rank) for rank in _PERCENTILES}
    for name, estimate in (
        ("attainment", sure.attainment),
        ("ttft_p95_ms", sure.ttft_p95_ms),
        ("tpot_p95_ms", sure.tpot_p95_ms),
        ("output_tokens_per_s", sure.output_tokens_per_s),
    ):
        row |= {f"{name}_lower": estimate.lower, f"{name}_upper": estimate.upper}
    return row | {"power_w": level.power_w, "energy_j_per_output_token": level.energy_j_per_output_token}


def request_rows(run: Run) -> Iterator[Row]:
    """One row for each request of every committed level, all phases, in issue order."""
    groups = [(cell.asked.cell, (*cell.levels, *cell.checks)) for cell in run.cells]
    groups += [(pairing.asked.id, pairing.levels) for pairing in run.comparisons]
    for name, levels in groups:
        for level in levels:
            spec = level.commit.run.spec
            place: Row = {"cell": name, "level": level.commit.level, "concurrency": spec.concurrency}
            place["rate_per_s"] = spec.rate_per_s
            for record in sorted(level.records(), key=lambda r: r.seq):
                yield place | _request_row(record, run.asked.slo, from_due=spec.is_open)


def _ms(ns: float | None) -> float | None:
    return None if ns is None else ns / NS_PER_MS


def _request_row(r: RequestRecord, slo: Slo, *, from_due: bool) -> Row:
    return {
        "seq": r.seq,
        "request_id": r.request_id,
        "phase": r.phase,
        "due_ns": r.due_ns,
        "sent_ns": r.sent_ns,
        "first_ns": r.first_ns,
        "last_ns": r.last_ns,
        "end_ns": r.end_ns,
        "ttft_ms": _ms(ttft_ns(r)),
        "tpot_ms": _ms(tpot_ns(r)),
        "e2e_ms": _ms(e2e_ns(r)),
        "good": is_good(r, slo, from_due=from_due),
        "asked_in": r.asked_in,
        "asked_out": r.asked_out,
        "in_tokens": r.in_tokens,
        "out_tokens": r.out_tokens,
        "cached_tokens": r.cached_tokens,
        "tokens_from": r.tokens_from,
        "finish": r.finish,
        "failure": None if r.failure is None else r.failure.kind,
        "failure_status": None if r.failure is None else r.failure.status,
        "failure_detail": None if r.failure is None else r.failure.detail,
        "stamp": r.stamp,
        "clamped": r.clamped,
        "user": r.user,
    }


# --- CSV --------------------------------------------------------------------------------------------------------


def _field(value: Any) -> Any:
    """Text that a spreadsheet would run as a formula gets an apostrophe before it; NUL has no place in a CSV."""
    if not isinstance(value, str):
        return value
    text = value.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def write_csv(path: Path, rows: Iterator[Row]) -> None:
    """Write rows that all have the same columns; no rows give an empty file."""
    with path.open("w", encoding="utf-8", newline="") as file:
        _write_csv(file, rows)


def _write_csv(file: io.TextIOBase, rows: Iterator[Row]) -> None:
    writer = None
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(file, fieldnames=list(row), lineterminator="\n")
            writer.writeheader()
        writer.writerow({name: _field(value) for name, value in row.items()})


# --- Parquet ----------------------------------------------------------------------------------------------------

_BATCH = 20_000
_WHOLE = (
    *("level", "attempt", "concurrency", "seed", "offered", "good", "failed", "clamped", "seq", "user"),
    *("asked_in", "asked_out", "in_tokens", "out_tokens", "cached_tokens", "failure_status", "memory_peak_bytes"),
)


def write_parquet(path: Path, rows: Iterator[Row], truths: Sequence[str]) -> None:
    """Write rows with a type for each column, `truths` being true or false. Raises HostError without pyarrow."""
    try:
        import pyarrow as pa  # type: ignore[import-untyped]
        import pyarrow.parquet as pq  # type: ignore[import-untyped]
    except ImportError as error:
        raise HostError(
            "Parquet needs pyarrow, which is not installed.", "pip install 'loadproof[parquet]', or export csv."
        ) from error
    writer = None
    try:
        for batch in _batches(rows):
            if writer is None:
                fields = [(name, _arrow_type(pa, name, truths)) for name in batch[0]]
                writer = pq.ParquetWriter(path, pa.schema(fields))
            writer.write_table(pa.Table.from_pylist([_unicode(row) for row in batch], schema=writer.schema))
    finally:
        if writer is not None:
            writer.close()


def _batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _unicode(row: Row) -> Row:
    """Lone surrogates have no place in Parquet's UTF-8."""
    return {k: v.encode("utf-8", "replace").decode() if isinstance(v, str) else v for k, v in row.items()}


def _arrow_type(pa: Any, name: str, truths: Sequence[str]) -> Any:
    if name in truths:
        return pa.bool_()
    if name in _WHOLE or name.endswith("_ns"):
        return pa.int64()
    if name in _COUNTS or name.endswith(("_ms", "_s", "_lower", "_upper", "_w", "_token")):
        return pa.float64()
    return pa.string()
