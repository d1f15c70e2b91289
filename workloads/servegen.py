"""Loader of ServeGen folders: laws per client and window, not requests. Pairs are drawn from them here.

A client `chunk-N` has `chunk-N-trace.csv` (no header; start_s, rate, CV, family, shape, scale per 600 s) and
`chunk-N-dataset.json` (key = start of a 6 h window; values are Python dict texts: {tokens: probability}). The files
hold marginals only: prompt and output are drawn independently inside a client's window, which is an assumption.
"""

from __future__ import annotations

import ast
import csv
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from workloads.rows import Row, TraceError, time_value
from workloads.streams import uniforms

RATE_BIN_S = 600.0
SAMPLES = 100_000


class _Law(NamedTuple):
    """Discrete law of a length: values and cumulated probabilities."""

    tokens: NDArray[np.int64]
    cumulated: NDArray[np.float64]

    def sample(self, u: NDArray[np.float64]) -> NDArray[np.int64]:
        return self.tokens[np.minimum(np.searchsorted(self.cumulated, u, side="right"), len(self.tokens) - 1)]


class _Window(NamedTuple):
    requests: float
    """Expected requests in the window: sum of rate * 600 s."""
    prompt: _Law
    output: _Law


def is_servegen(folder: Path) -> bool:
    return any(folder.glob("chunk-*-dataset.json"))


def servegen_rows(folder: Path) -> Iterator[Row]:
    """About `SAMPLES` rows, each window of each client in proportion to its requests. They have no times."""
    windows = [window for dataset in sorted(folder.glob("chunk-*-dataset.json")) for window in _windows(dataset)]
    total = sum(window.requests for window in windows)
    if not total > 0:
        raise TraceError(f"{folder.name} holds no client window with requests.")
    for number, window in enumerate(windows):
        count = round(SAMPLES * window.requests / total)
        prompt = window.prompt.sample(uniforms(number, count, "servegen prompt"))
        output = window.output.sample(uniforms(number, count, "servegen output"))
        yield from map(Row, prompt.tolist(), output.tolist())


def _windows(dataset: Path) -> Iterator[_Window]:
    trace = dataset.with_name(dataset.name.replace("-dataset.json", "-trace.csv"))
    rates = _rates(trace)
    try:
        content = msgspec.json.decode(dataset.read_bytes(), type=dict[str, dict[str, Any]])
    except (OSError, msgspec.DecodeError) as error:
        raise TraceError(f"{dataset.name} cannot be read: {error}.") from error
    starts = sorted((time_value(key, dataset.name), key) for key in content)
    ends = [start for start, _ in starts[1:]] + [math.inf]
    for (start, key), end in zip(starts, ends, strict=True):
        requests = sum(rate * RATE_BIN_S for at, rate in rates if start <= at < end)
        laws = content[key]
        prompt = laws.get("input_tokens") or laws.get("text_tokens")
        output = laws.get("output_tokens")
        if requests > 0 and prompt and output:
            yield _Window(requests, _law(prompt, dataset.name), _law(output, dataset.name))


def _rates(trace: Path) -> list[tuple[float, float]]:
    try:
        with trace.open(encoding="utf-8", newline="") as lines:
            cells = [row for row in csv.reader(lines) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{trace.name} cannot be read: {error}.") from error
    if any(len(row) < 2 for row in cells):
        raise TraceError(f"{trace.name} has a line with fewer than 2 cells.")
    return [(time_value(row[0], trace.name), max(0.0, time_value(row[1] or "0", trace.name))) for row in cells]


def _law(value: object, name: str) -> _Law:
    """A law out of its text. `literal_eval` makes values only; nothing is executed."""
    try:
        table = ast.literal_eval(value) if isinstance(value, str) else value
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise TraceError(f"{name}: a length law is not a table of tokens and probabilities.") from error
    if not isinstance(table, Mapping) or not table:
        raise TraceError(f"{name}: a length law is not a table of tokens and probabilities.")
    tokens = np.array([round(time_value(key, name)) for key in table], dtype=np.int64)
    weights = np.array([max(0.0, time_value(weight, name)) for weight in table.values()])
    if weights.sum() <= 0:
        raise TraceError(f"{name}: a length law has no probability.")
    return _Law(tokens, np.cumsum(weights) / weights.sum())
