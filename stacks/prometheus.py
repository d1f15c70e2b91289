"""Prometheus text -> canonical metric values. A metric that is absent stays absent: unknown is not zero."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

MAX_LINE_CHARACTERS = 16_384
RANK_LABELS = frozenset({"tp_rank", "pp_rank", "moe_ep_rank", "pid"})
"""Ranks of one engine repeat the same value; replicas (``dp_rank``, ``engine``) have values of their own."""


class Point(NamedTuple):
    """One sample of a scrape."""

    name: str
    labels: Mapping[str, str]
    value: float


class Metric(NamedTuple):
    """Where a canonical value comes from."""

    name: str
    labels: Mapping[str, str] = {}
    """Only samples with these labels."""
    over: Literal["sum", "max"] = "sum"
    """Over replicas: counts are summed, of shares the largest counts."""
    label: str | None = None
    """The value stands in this label (of an info metric) and not in the sample."""


def points(text: str, names: Iterable[str]) -> list[Point]:
    """The finite samples of `names` (exact ones, so never a ``_created`` sibling); lines that are garbage are skipped.

    Only lines that can matter are parsed: an engine's page has thousands, and it is read every second.
    """
    wanted = tuple(names)
    lines = [line.rstrip() for line in text.split("\n") if line.startswith(wanted) and len(line) <= MAX_LINE_CHARACTERS]
    try:
        found = list(_parsed("\n".join(lines) + "\n"))
    except (ValueError, IndexError, KeyError):  # one bad line spoils a whole parse: take them one by one
        found = [point for line in lines for point in _parsed_line(line)]
    return [point for point in found if point.name in wanted and math.isfinite(point.value)]


def _parsed(text: str) -> Iterator[Point]:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield Point(sample.name, sample.labels, float(sample.value))


def _parsed_line(line: str) -> list[Point]:
    try:
        return list(_parsed(line + "\n"))
    except (ValueError, IndexError, KeyError):
        return []


def values_of(text: str, table: Mapping[str, tuple[Metric, ...]]) -> dict[str, float]:
    """Canonical name -> value. Of the metrics listed for a name, the first that the page has counts."""
    found = points(text, {metric.name for metrics in table.values() for metric in metrics})
    values: dict[str, float] = {}
    for canonical, metrics in table.items():
        value = next((v for metric in metrics if (v := _value(found, metric)) is not None), None)
        if value is not None:
            values[canonical] = value
    return values


def _value(found: list[Point], metric: Metric) -> float | None:
    by_replica: dict[frozenset[tuple[str, str]], float] = {}
    for point in found:
        if point.name != metric.name or any(point.labels.get(k) != v for k, v in metric.labels.items()):
            continue
        value = point.value if metric.label is None else _label_number(point.labels.get(metric.label))
        if value is None:
            continue
        replica = frozenset((k, v) for k, v in point.labels.items() if k not in RANK_LABELS)
        by_replica[replica] = max(value, by_replica.get(replica, value))
    if not by_replica:
        return None
    return sum(by_replica.values()) if metric.over == "sum" else max(by_replica.values())


def _label_number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None
