"""What `make test-stacks` was asked for, and the table that it ends with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

import pytest

CHOSEN = os.environ.get("LOADPROOF_REAL_STACKS", "").split()
HEAD = (
    "deployment            version        ready    tok/s  holds  breaks   KV told  predicted"
    "      peak  predicted  unexplained"
)


class Row(NamedTuple):
    """One measured cell."""

    deployment: str
    version: str
    ready_s: float
    tokens_per_s: float
    holds: int | None
    breaks: int | None
    kv_told_bytes: int | None
    kv_predicted_bytes: int | None
    """None: this pool is not modelled."""
    peak_bytes: int | None
    peak_predicted_bytes: int | None
    unexplained_bytes: int | None


ROWS: list[Row] = []


def need(stack: str) -> None:
    """Skip unless this stack was asked for."""
    if stack not in CHOSEN:
        pytest.skip(f"opt-in, for it takes gigabytes and minutes: make test-stacks STACKS={stack}")


def lines() -> Iterator[str]:
    yield HEAD
    for row in ROWS:
        told, predicted, peak, foreseen, unexplained = (
            "-" if size is None else f"{size / 2**20:,.0f} MiB" for size in row[6:]
        )
        yield (
            f"{row.deployment:<20}  {row.version:<13}{row.ready_s:>6.0f} s  {row.tokens_per_s:>7.1f}"
            f"  {row.holds or '-':>5}  {row.breaks or '-':>6}  {told:>8}  {predicted:>9}"
            f"  {peak:>8}  {foreseen:>9}  {unexplained:>11}"
        )
