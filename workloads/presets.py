"""Built-in workloads: derived tables of public traces (`data/*.json`), and constants for comparison.

A table holds facts and figures about its source and no row of it; each names source, licence and attribution
(`data/LICENSES.md`). A preset's name carries the year, because services change.
"""

from __future__ import annotations

import functools
import importlib.resources
from typing import Any

import msgspec
import numpy as np

from workloads.workload import Arrivals, Workload

TABLES = ("azure-conv-2023", "azure-code-2023", "mooncake-conv-2025", "rag-2025", "reasoning-2025")
CONSTANTS = {"fixed-1k1k": (1024, 1024), "fixed-8k1k": (8192, 1024), "fixed-1k8k": (1024, 8192)}


def names() -> tuple[str, ...]:
    """Every preset, tables first."""
    return (*TABLES, *CONSTANTS)


@functools.cache
def preset(name: str) -> Workload:
    """The preset of that name; ValueError with the list of names if there is none."""
    if name in CONSTANTS:
        return _constant(name, *CONSTANTS[name])
    if name not in TABLES:
        raise ValueError(f"there is no preset {name!r}; the presets are {', '.join(names())}")
    data = importlib.resources.files("workloads").joinpath("data", f"{name}.json").read_bytes()
    return _table(msgspec.json.decode(data, type=_Table))


class _Moments(msgspec.Struct):
    mean: float
    max: int


class _Sides(msgspec.Struct):
    prompt: _Moments
    output: _Moments


class _ArrivalTable(msgspec.Struct):
    span_s: float
    rate_per_s: float
    bin_s: float
    requests_per_bin: tuple[float, ...] = ()
    prompt_tokens_per_bin: tuple[float, ...] = ()
    output_tokens_per_bin: tuple[float, ...] = ()
    rate_per_bin: tuple[float, ...] = ()
    clock: str = ""


class _Table(msgspec.Struct):
    """A preset file, as far as it is used here."""

    name: str
    title: str
    source: dict[str, Any]
    licence: str
    attribution: str
    n: int
    tokens: str
    moments: _Sides
    arrivals: _ArrivalTable
    notes: tuple[str, ...]
    prompt_tokens: list[int]
    output_tokens: list[int]


def _table(table: _Table) -> Workload:
    pairs = np.column_stack((table.prompt_tokens, table.output_tokens)).astype(np.int64)
    for side, moments in enumerate((table.moments.prompt, table.moments.output)):
        if abs(pairs[:, side].mean() / moments.mean - 1) > 0.001:
            raise ValueError(f"preset {table.name}: its pairs do not have the mean that it states")
    return Workload(
        name=table.name,
        title=table.title,
        pairs=pairs,
        source=_cite(table.source, table.n),
        licence=table.licence,
        attribution=table.attribution,
        notes=(*table.notes, f"Token counts: {table.tokens}."),
        arrivals=_arrivals(table.arrivals),
        source_max=(table.moments.prompt.max, table.moments.output.max),
    )


def _arrivals(table: _ArrivalTable) -> Arrivals:
    """Bins as counts; a table of rates becomes counts of its bin length."""
    return Arrivals(
        span_s=table.span_s,
        rate_per_s=table.rate_per_s,
        bin_s=table.bin_s,
        requests_per_bin=table.requests_per_bin or tuple(rate * table.bin_s for rate in table.rate_per_bin),
        prompt_tokens_per_bin=table.prompt_tokens_per_bin,
        output_tokens_per_bin=table.output_tokens_per_bin,
        note=table.clock,
    )


def _cite(source: dict[str, Any], rows: int) -> str:
    place = f"{source['repository']} {source['path']} at {source['commit'][:8]}"
    return f"{source['dataset']} ({place}; {rows:,} requests; {source['collected']}); {source['paper']}"


def _constant(name: str, prompt: int, output: int) -> Workload:
    return Workload(
        name=name,
        title=f"Every request asks {prompt:,} prompt and {output:,} output tokens",
        pairs=np.array([[prompt, output]], dtype=np.int64),
        source="constants, as published fixed-length results use them",
        notes=(
            "For comparison with published fixed-length results; no service looks like that, so it cannot be SIGNED.",
        ),
        signable=False,
    )
