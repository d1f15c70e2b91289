"""Loaders of CSV traces: Azure, BurstGPT, Vidur, and any file whose columns have names that we know."""

from __future__ import annotations

import csv
import datetime
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from workloads.rows import Row, TraceError, time_value, token_count

PROMPT_NAMES = (
    "prompt_tokens",
    "input_tokens",
    "input_length",
    "input_toks",
    "ContextTokens",
    "num_prefill_tokens",
)
OUTPUT_NAMES = ("output_tokens", "output_length", "output_toks", "GeneratedTokens", "num_decode_tokens")
TIME_SCALES = {"timestamp_s": 1.0, "timestamp_ms": 0.001}

Cells = Mapping[str, object]


class Layout(NamedTuple):
    """A recognised form of a trace: what it is called, and how one record becomes a row."""

    name: str
    row: Callable[[Cells, str], Row]


def csv_rows(lines: Iterable[str], name: str) -> tuple[str, Iterator[Row]]:
    """Name of the format, and its rows. TraceError if the header is not one that we know."""
    reader = csv.reader(lines, strict=True)
    header = _next(reader, f"{name}: line 1")
    if header is None:
        raise TraceError(f"{name} is empty.")
    columns = [cell.strip().removeprefix("\ufeff") for cell in header]
    layout = _layout(columns, name)
    return layout.name, _rows(reader, columns, layout, name)


def _next(reader: Iterator[list[str]], where: str) -> list[str] | None:
    try:
        return next(reader, None)
    except csv.Error as error:
        raise TraceError(f"{where}: this is not CSV ({error}).") from error


def _rows(reader: Iterator[list[str]], columns: list[str], layout: Layout, name: str) -> Iterator[Row]:
    number = 1
    while True:
        number += 1
        cells = _next(reader, f"{name}: line {number}")
        if cells is None:
            return
        if not cells:
            continue
        if len(cells) != len(columns):
            raise TraceError(f"{name}: line {number} has {len(cells)} cells, the header has {len(columns)}.")
        yield layout.row(dict(zip(columns, cells, strict=True)), f"{name}: line {number}")


def _layout(columns: Sequence[str], name: str) -> Layout:
    found = set(columns)
    if len(found) != len(columns):
        raise TraceError(f"{name} names a column twice: {', '.join(columns)}.")
    if {"TIMESTAMP", "ContextTokens", "GeneratedTokens"} <= found:
        if "NumImages" in found:
            raise TraceError(
                f"{name} is a trace of requests with images (column NumImages), which loadproof does not send.",
                "Give a trace of text requests.",
            )
        return Layout("Azure LLM inference trace", _azure_row)
    if {"Request tokens", "Response tokens"} <= found:
        return Layout("BurstGPT", _burstgpt_row)
    if {"num_prefill_tokens", "num_decode_tokens"} == found:
        return Layout("Vidur length trace", named_layout(columns, name).row)
    return named_layout(columns, name)


def _azure_row(cells: Cells, where: str) -> Row:
    stamp = str(cells["TIMESTAMP"]).strip()
    try:
        moment = datetime.datetime.fromisoformat(stamp)
    except ValueError as error:
        raise TraceError(f"{where}: {stamp[:40]!r} is not a date and time.") from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return Row(
        token_count(cells["ContextTokens"], where), token_count(cells["GeneratedTokens"], where), moment.timestamp()
    )


def _burstgpt_row(cells: Cells, where: str) -> Row:
    """By name, never by position: the third file has two more columns. Zero response tokens = a failed request."""
    session = cells.get("Session ID")
    return Row(
        token_count(cells["Request tokens"], where),
        token_count(cells["Response tokens"], where),
        time_value(cells["Timestamp"], where) if "Timestamp" in cells else None,
        str(session) if session else None,
    )


def named_layout(columns: Sequence[str], name: str) -> Layout:
    """The generic form: exactly one known column for each side; anything ambiguous is an error with the columns."""
    prompt = _only(columns, PROMPT_NAMES, "prompt", name)
    output = _only(columns, OUTPUT_NAMES, "output", name)
    times = [column for column in columns if column in TIME_SCALES]
    if len(times) > 1:
        raise TraceError(f"{name} has two time columns, {' and '.join(times)}.", "Leave one of them.")

    def row(cells: Cells, where: str) -> Row:
        session = cells.get("session_id")
        return Row(
            token_count(cells.get(prompt), where),
            token_count(cells.get(output), where),
            time_value(cells.get(times[0]), where) * TIME_SCALES[times[0]] if times else None,
            str(session) if session not in (None, "") else None,
        )

    return Layout("length trace", row)


def _only(columns: Sequence[str], known: Sequence[str], side: str, name: str) -> str:
    found = [column for column in columns if column in known]
    if len(found) == 1:
        return found[0]
    said = f"{len(found)} columns for the {side} length ({', '.join(found)})" if found else f"no {side} length"
    raise TraceError(
        f"{name} has {said}; its columns are {', '.join(str(column)[:40] for column in list(columns)[:30])}.",
        f"Name one column {known[0]} (or {', '.join(known[1:])}).",
    )
