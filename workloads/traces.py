"""A user's own trace, read into a workload. The form is recognised by its header or keys, never by the file's name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import numpy as np

from workloads.csv_rows import csv_rows
from workloads.json_rows import CountTokens, estimate_tokens, json_line_rows, sharegpt_rows
from workloads.rows import Row, Rows, TraceError, collect
from workloads.servegen import is_servegen, servegen_rows
from workloads.strata import snake_order
from workloads.workload import Arrivals, Workload

LONGEST_LINE = 16 * 2**20
LARGEST_JSON_BYTES = 2 * 2**30
BIN_S = 60.0

_NOTES = {
    "Mooncake": "The source's clock ticks every 3 s, and its requests share prefixes; prompts here share none (cold).",
    "Qwen-Bailian": "The source's requests share prefixes; prompts here share none (cold).",
    "RAGPulse": "The source holds two weeks whose clocks both start at 0; the second stands after the first here.",
    "ServeGen": "The source publishes marginal laws; prompt and output are independent inside a client's window.",
}
_ESTIMATED = "Lengths are estimated from text at 4 ASCII characters a token: the source gives no token counts."


def read_trace(
    path: Path, *, count_tokens: CountTokens | None = None, default_output_tokens: int | None = None
) -> Workload:
    """A workload of all usable rows. Raises TraceError with what was found and what would do.

    `count_tokens` counts the tokens of a text for the forms that hold text (ShareGPT, vLLM custom); without it they
    are estimated, and the workload says so. `default_output_tokens` is for vLLM custom lines without a length.
    """
    layout, rows = read_rows(path, count_tokens=count_tokens, default_output_tokens=default_output_tokens)
    notes = [_NOTES[layout]] if layout in _NOTES else []
    if layout in ("ShareGPT", "vLLM custom prompts") and count_tokens is None:
        notes.append(_ESTIMATED)
    if rows.excluded:
        told = ", ".join(f"{count:,} with {reason}" for reason, count in rows.excluded.items())
        notes.append(f"Rows excluded: {told}.")
    return Workload(
        name=path.stem or path.name,
        title=f"{layout}, {path.name}, {len(rows.pairs):,} requests",
        pairs=snake_order(rows.pairs),
        source=f"{path.name}, SHA-256 of its pairs {hashlib.sha256(rows.pairs.astype('<i8').tobytes()).hexdigest()}",
        notes=tuple(notes),
        arrivals=arrivals_of(rows),
        source_max=(int(rows.pairs[:, 0].max()), int(rows.pairs[:, 1].max())),
        excluded=rows.excluded,
    )


def read_rows(
    path: Path, *, count_tokens: CountTokens | None = None, default_output_tokens: int | None = None
) -> tuple[str, Rows]:
    """Name of the form, and the rows in time order with their times, sessions and prefix blocks."""
    count = count_tokens or estimate_tokens
    try:
        if path.is_dir():
            return _read_folder(path)
        with path.open(encoding="utf-8-sig", newline="") as file:
            layout, rows = _recognise(file, path, count, default_output_tokens)
            return layout, collect(rows, path.name)
    except FileNotFoundError as error:
        raise TraceError(
            f"The trace {path} does not exist.", "Give the path of a file, relative to the plan."
        ) from error
    except OSError as error:
        raise TraceError(f"The trace {path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise TraceError(
            f"{path.name} is not UTF-8 text.", "Give a CSV or JSON file; unpack it if it is packed."
        ) from error


def _read_folder(path: Path) -> tuple[str, Rows]:
    if not is_servegen(path):
        raise TraceError(
            f"The folder {path.name} is no trace: it holds no chunk-*-dataset.json (ServeGen).", "Give a file."
        )
    return "ServeGen", collect(servegen_rows(path), path.name)


def _recognise(
    file: TextIO, path: Path, count_tokens: CountTokens, default_output_tokens: int | None
) -> tuple[str, Iterator[Row]]:
    start = file.read(4096).lstrip()[:1]
    file.seek(0)
    if start == "[":
        if path.stat().st_size > LARGEST_JSON_BYTES:
            raise TraceError(f"{path.name} is over 2 GiB, too large for one JSON list.", "Give JSON Lines instead.")
        data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
        return "ShareGPT", sharegpt_rows(data, path.name, count_tokens)
    if start == "{":
        return json_line_rows(_lines(file, path.name), path.name, count_tokens, default_output_tokens)
    return csv_rows(_lines(file, path.name), path.name)


def _lines(file: TextIO, name: str) -> Iterator[str]:
    """Lines of bounded length: a file without line ends must not fill the memory."""
    while line := file.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE:
            raise TraceError(f"{name} has a line of over 16 MiB: it is no CSV and no JSON Lines.")
        yield line


def arrivals_of(rows: Rows) -> Arrivals | None:
    """Requests and tokens per 60 s bin; None if the rows have no times, or all the same one."""
    if rows.times_s is None or rows.times_s[-1] <= 0:
        return None
    span = float(rows.times_s[-1])
    bins = (rows.times_s // BIN_S).astype(np.int64)
    whole = max(1, int(span // BIN_S))  # the last bin is a part of one: leave it out unless it is the only one
    return Arrivals(
        span_s=span,
        rate_per_s=len(bins) / span,
        bin_s=BIN_S,
        requests_per_bin=tuple(np.bincount(bins).astype(float)[:whole].tolist()),
        prompt_tokens_per_bin=tuple(np.bincount(bins, rows.pairs[:, 0])[:whole].tolist()),
        output_tokens_per_bin=tuple(np.bincount(bins, rows.pairs[:, 1])[:whole].tolist()),
    )
