"""The rows of a trace as every loader yields them, and what is excluded from them, counted by reason."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from orchestrator.errors import LoadproofError
from workloads.strata import Pairs

LARGEST_TOKENS = 10_000_000
"""No service has a longer prompt; a larger number is a column read wrongly."""


class TraceError(LoadproofError):
    """A trace file cannot be read as what it is."""

    exit_code = 2


class Row(NamedTuple):
    """One request of a trace, before anything is excluded."""

    prompt_tokens: int
    output_tokens: int
    time_s: float | None = None
    session: str | None = None
    blocks: tuple[int, ...] | None = None
    """Prefix-chained block ids: equal ids at a position mean an equal prompt up to there."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """The usable rows of a trace in time order (in file order where it has no times)."""

    pairs: Pairs
    times_s: NDArray[np.float64] | None
    """From 0, sorted; None if the rows have no times."""
    sessions: tuple[str | None, ...] | None
    blocks: tuple[tuple[int, ...] | None, ...] | None
    excluded: Mapping[str, int]


def token_count(value: object, where: str) -> int:
    """A whole number of tokens out of a JSON number or a CSV cell; TraceError with the place if it is none."""
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not 0 <= number <= LARGEST_TOKENS or number != int(number):
        raise TraceError(f"{where}: {str(value)[:40]!r} is not a number of tokens.")
    return int(number)


def time_value(value: object, where: str) -> float:
    """A finite time out of a JSON number or a CSV cell."""
    try:
        number = float(value) if isinstance(value, (int, float, str)) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise TraceError(f"{where}: {str(value)[:40]!r} is not a time.")
    return number


def collect(rows: Iterable[Row], name: str) -> Rows:
    """Exclude and count what cannot be replayed, shift the times to 0, sort stably. TraceError if nothing is left."""
    excluded: Counter[str] = Counter()
    prompts, outputs, times = array("q"), array("q"), array("d")
    sessions: list[str | None] = []
    blocks: list[tuple[int, ...] | None] = []
    for row in rows:
        reason = _why_excluded(row)
        if reason:
            excluded[reason] += 1
            continue
        prompts.append(row.prompt_tokens)
        outputs.append(row.output_tokens)
        times.append(math.nan if row.time_s is None else row.time_s)
        sessions.append(row.session)
        blocks.append(row.blocks)
    if not prompts:
        told = ", ".join(f"{count} with {reason}" for reason, count in excluded.items()) or "it is empty"
        raise TraceError(f"{name} holds no request that can be replayed: {told}.", "Give another trace.")
    return _ordered(prompts, outputs, times, sessions, blocks, dict(excluded))


def _why_excluded(row: Row) -> str | None:
    if row.prompt_tokens == 0:
        return "zero prompt tokens"
    return "zero output tokens" if row.output_tokens == 0 else None


def _ordered(
    prompts: array[int],
    outputs: array[int],
    times: array[float],
    sessions: list[str | None],
    blocks: list[tuple[int, ...] | None],
    excluded: dict[str, int],
) -> Rows:
    pairs = np.column_stack((np.frombuffer(prompts, dtype=np.int64), np.frombuffer(outputs, dtype=np.int64)))
    stamps = np.frombuffer(times, dtype=np.float64)
    timed = not bool(np.isnan(stamps).any())
    order = np.argsort(stamps, kind="stable") if timed else np.arange(len(stamps))
    shifted = stamps[order] - stamps[order[0]] if timed else None
    return Rows(
        pairs=pairs[order],
        times_s=shifted,
        sessions=tuple(sessions[i] for i in order) if any(s is not None for s in sessions) else None,
        blocks=tuple(blocks[i] for i in order) if any(b is not None for b in blocks) else None,
        excluded=excluded,
    )
