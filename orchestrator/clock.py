"""The one clock: CLOCK_MONOTONIC in integer nanoseconds. Wall time is for people and stands in opening lines only."""

from __future__ import annotations

import datetime
import time

NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000

now_ns = time.monotonic_ns
"""Monotonic now, in ns. All durations and stamps of a run are differences of this."""


def wall_now() -> datetime.datetime:
    """Wall-clock now with the UTC offset, for opening lines and file names; never for a measurement."""
    return datetime.datetime.now().astimezone()


def seconds(ns: int) -> float:
    """Nanoseconds as seconds."""
    return ns / NS_PER_S


def milliseconds(ns: int) -> float:
    """Nanoseconds as milliseconds."""
    return ns / NS_PER_MS
