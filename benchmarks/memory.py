"""How true the memory bill is: predictions against measured starts, as a table with its targets and the worst rows.

    python benchmarks/memory.py [ROWS.jsonl] [--worst N] [--check]

Rows are read as `loadproof size --batch` reads them: configuration only. The measured fields are used here, to score.
`--check` exits 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from rich.console import Console
from rich.table import Table

from orchestrator.errors import LoadproofError
from stacks.memory.bill import Bill, bill, inflight_tokens
from stacks.memory.cards import GIB
from stacks.memory.kv import pool_tokens
from stacks.memory.rows import Prediction, Row, predict_row, setup_of_row
from stacks.memory.versions import constant

CORPUS = Path(__file__).resolve().parent.parent / "tests" / "data" / "memory-corpus.jsonl"
SWEEP = "llm-d-planner:v0.19.0-sweep"
"""The one-laboratory sweep, a third of the rows."""


class Scored(NamedTuple):
    """A row beside its prediction. Errors are shares; None = not measured or not predicted."""

    measured: dict[str, Any]
    prediction: Prediction | None
    refusal: str | None
    weights_error: float | None = None
    layout_error: float | None = None
    tokens_error: float | None = None

    @property
    def group(self) -> str:
        return str(self.measured["source_group"])

    @property
    def card_known(self) -> bool:
        return self.measured["card_id"] is not None or self.measured["total_gpu_memory_gib"] is not None


def _share(predicted: float | None, measured: float | None) -> float | None:
    return predicted / measured - 1 if predicted is not None and measured else None


def _layout_tokens(result: Bill, pool_gib: float) -> int:
    setup = result.setup
    from_concurrency = setup.stack == "vllm" and bool(
        constant("vllm", "hybrid_tokens_from_concurrency", setup.known_version, setup.hardware).value
    )
    length, inflight = result.limits.max_model_len, inflight_tokens(setup, result.limits)
    return pool_tokens(result.layout, pool_gib * GIB, length, inflight, from_concurrency=from_concurrency).tokens


def score(line: bytes) -> Scored:
    measured = msgspec.json.decode(line)
    row = msgspec.json.decode(line, type=Row)
    try:
        prediction, result = predict_row(row), bill(setup_of_row(row))
    except LoadproofError as error:
        return Scored(measured, None, str(error))
    layout_error = None
    # With several pipeline ranks the logged pool and the logged tokens are of different ranks.
    if measured["available_kv_gib"] and measured["kv_tokens"] and (measured["pp"] or 1) == 1:
        layout_error = _share(_layout_tokens(result, measured["available_kv_gib"]), measured["kv_tokens"])
    return Scored(
        measured,
        prediction,
        None,
        weights_error=_share(prediction.weights_gib, measured["weights_gib"]),
        layout_error=layout_error,
        tokens_error=_share(prediction.kv_tokens, measured["kv_tokens"]),
    )


def quantile(values: Iterable[float], share: float) -> float:
    """Nearest rank: the smallest value that `share` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1))]


class Line(NamedTuple):
    """One line of the table: what was reached, over how many rows, and the target's bounds."""

    name: str
    text: str
    rows: int
    target: str
    met: bool


def _error_line(name: str, errors: list[float], median_limit: float, p90_limit: float, *, digits: int = 2) -> Line:
    size = [abs(error) for error in errors]
    if not size:
        return Line(name, "no rows", 0, "", False)
    median, p90 = statistics.median(size), quantile(size, 0.9)
    return Line(
        name,
        f"{median:.{digits + 1}%} / {p90:.{digits}%}",
        len(size),
        f"{median_limit:.2%} / {p90_limit:.2%}",
        median <= median_limit and p90 <= p90_limit,
    )


def _errors(rows: Iterable[Scored], pick: Callable[[Scored], float | None]) -> list[float]:
    return [error for error in map(pick, rows) if error is not None]


def coverage(rows: Iterable[Scored]) -> tuple[int, int]:
    """Stated intervals that hold their measured value, and all of them: weights and KV tokens together."""
    held = total = 0
    for row in rows:
        if row.prediction is None:
            continue
        for name in ("weights_gib", "kv_tokens"):
            bounds, value = row.prediction.interval.get(name), row.measured[name]
            if bounds is not None and value is not None:
                total += 1
                held += bounds[0] <= value <= bounds[1]
    return held, total


def starts(rows: Iterable[Scored]) -> tuple[int, int]:
    """Right answers to "does it start?", over rows that logged a pool or a refusal for want of one."""
    right = total = 0
    for row in rows:
        refused = row.measured["kv_needed_gib_for_max_len"] is not None
        if row.prediction is None or row.prediction.fits is None or not (refused or row.measured["kv_tokens"]):
            continue
        total += 1
        right += row.prediction.fits is not refused
    return right, total


def table_lines(rows: list[Scored]) -> list[Line]:
    others = [row for row in rows if row.group != SWEEP]
    held, stated = coverage(rows)
    right, asked = starts(rows)
    refused = sum(row.prediction is None for row in rows)
    return [
        _error_line("weights", _errors(rows, lambda row: row.weights_error), 0.0012, 0.015),
        _error_line("KV tokens given the measured pool", _errors(rows, lambda row: row.layout_error), 0.0001, 0.0005),
        _error_line(
            "KV tokens from configuration, all rows", _errors(rows, lambda row: row.tokens_error), 0.0015, 0.08
        ),
        _error_line("  without the one-laboratory sweep", _errors(others, lambda row: row.tokens_error), 0.01, 0.20),
        _error_line(
            "  all rows whose card is known",
            _errors([row for row in rows if row.card_known], lambda row: row.tokens_error),
            0.0015,
            0.08,
        ),
        _error_line(
            "  without the sweep, card known",
            _errors([row for row in others if row.card_known], lambda row: row.tokens_error),
            0.01,
            0.20,
        ),
        Line("intervals that hold", f"{held / stated:.1%}", stated, "85 to 97 %", 0.85 <= held / stated <= 0.97),
        Line("rows refused", f"{refused / len(rows):.1%}", len(rows), "<= 5 %", refused / len(rows) <= 0.05),
        Line("does it start?", f"{right / asked:.1%}" if asked else "-", asked, ">= 95 %", right >= 0.95 * asked),
    ]


def _print_lines(console: Console, lines: list[Line]) -> None:
    table = Table(title="Memory bill against measured starts (median / p90 of the absolute error)")
    for name, side in (("", "left"), ("reached", "right"), ("rows", "right"), ("target", "right"), ("", "left")):
        table.add_column(name, justify="right" if side == "right" else "left")
    for line in lines:
        table.add_row(line.name, line.text, str(line.rows), line.target, "met" if line.met else "MISSED")
    console.print(table)


def _percent(errors: list[float]) -> str:
    return f"{statistics.median(abs(error) for error in errors):.2%}" if errors else "-"


def _print_groups(console: Console, rows: list[Scored]) -> None:
    groups: dict[str, list[Scored]] = defaultdict(list)
    for row in rows:
        groups[row.group].append(row)
    table = Table(title="By source (median absolute error)")
    for name in ("source", "rows", "refused", "weights", "KV given pool", "KV from configuration"):
        table.add_column(name, justify="left" if name == "source" else "right")
    for name, group in sorted(groups.items(), key=lambda item: -len(item[1])):
        table.add_row(
            name,
            str(len(group)),
            str(sum(row.prediction is None for row in group)),
            _percent(_errors(group, lambda row: row.weights_error)),
            _percent(_errors(group, lambda row: row.layout_error)),
            _percent(_errors(group, lambda row: row.tokens_error)),
        )
    console.print(table)


def _print_worst(console: Console, rows: list[Scored], count: int) -> None:
    for title, field in (("weights", "weights_error"), ("KV tokens from configuration", "tokens_error")):
        console.print(f"Worst rows, {title}:")
        scored = [(error, row) for row in rows if (error := getattr(row, field)) is not None]
        for error, row in sorted(scored, key=lambda item: -abs(item[0]))[:count]:
            measured = row.measured
            console.print(
                f"  {error:+8.1%}  {measured['row_id']}  {measured['stack']} {measured['stack_version'] or '?'}  "
                f"{measured['model']}  {measured['weight_format']}  {measured['card'] or 'card not given'}",
                highlight=False,
            )
    for row in rows:
        reason = row.refusal or (row.prediction.reason if row.prediction else None)
        if reason:
            console.print(
                f"  {row.measured['row_id']}  {'refused' if row.refusal else 'no tokens'}: {reason}", highlight=False
            )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="?", type=Path, default=CORPUS)
    parser.add_argument("--worst", type=int, default=10)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args(arguments)
    rows = [score(line) for line in options.rows.read_bytes().splitlines() if line.strip()]
    console = Console(width=140)
    lines = table_lines(rows)
    _print_lines(console, lines)
    _print_groups(console, rows)
    _print_worst(console, rows, options.worst)
    return 1 if options.check and not all(line.met for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
