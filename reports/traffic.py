"""What the traffic was: lengths asked and served over all measured requests of a cell, beside those of its preset."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from orchestrator.metrics import measured_records
from orchestrator.records import AskedCell, RequestRecord
from workloads.presets import names, preset
from workloads.workload import clamp_pairs

QUANTILES = (5, 25, 50, 75, 95)
OCTAVES = 18
"""Lengths are counted in half octaves, from 1 token to 2^18."""
EDGES = tuple(2 ** (half / 2) for half in range(2 * OCTAVES + 1))


class Lengths(msgspec.Struct, frozen=True, kw_only=True):
    """A distribution of token counts."""

    n: int
    mean: float
    quantiles: tuple[float, ...]
    """p5, p25, p50, p75, p95: values that occurred."""
    longest: int
    counts: tuple[int, ...]
    """Requests in each half octave: [1, sqrt(2)), [sqrt(2), 2), ... tokens."""


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """Lengths of a cell's measured requests. None = not reported."""

    requests: int
    clamped: int
    """Cut to the context."""
    prompt_asked: Lengths | None
    prompt_served: Lengths | None
    output_asked: Lengths | None
    output_served: Lengths | None
    preset: str | None = None
    """The built-in workload of that title, if there is one."""
    preset_prompt: Lengths | None = None
    """As the preset asks under this context."""
    preset_output: Lengths | None = None


class Counted(msgspec.Struct):
    """Token counts of measured requests, collected level by level."""

    prompt_asked: list[int] = []
    prompt_served: list[int] = []
    output_asked: list[int] = []
    output_served: list[int] = []
    clamped: int = 0

    def add(self, records: Sequence[RequestRecord]) -> None:
        """Take in a level's records of all phases; only measured ones count, and served lengths of successes."""
        for r in measured_records(records):
            self.prompt_asked.append(r.asked_in)
            self.output_asked.append(r.asked_out)
            self.clamped += r.clamped
            if r.failure is None and r.in_tokens is not None:
                self.prompt_served.append(r.in_tokens)
            if r.failure is None and r.out_tokens is not None:
                self.output_served.append(r.out_tokens)


def traffic(counted: Counted, asked: AskedCell) -> Traffic:
    """The distributions of a cell, beside those of the preset that it names by its title."""
    known = next((name for name in names() if preset(name).title == asked.workload_title), None)
    pairs = None if known is None else clamp_pairs(preset(known).pairs, asked.context_tokens)[0]
    return Traffic(
        requests=len(counted.prompt_asked),
        clamped=counted.clamped,
        prompt_asked=lengths(counted.prompt_asked),
        prompt_served=lengths(counted.prompt_served),
        output_asked=lengths(counted.output_asked),
        output_served=lengths(counted.output_served),
        preset=known,
        preset_prompt=None if pairs is None else lengths(pairs[:, 0].tolist()),
        preset_output=None if pairs is None else lengths(pairs[:, 1].tolist()),
    )


def lengths(tokens: Iterable[int]) -> Lengths | None:
    """The distribution of token counts; None of none."""
    values = np.array(list(tokens), np.float64)
    if not len(values):
        return None
    counts, _ = np.histogram(np.clip(values, 1, EDGES[-1]), bins=EDGES)
    return Lengths(
        n=len(values),
        mean=round(float(values.mean()), 2),
        quantiles=tuple(np.percentile(values, QUANTILES, method="inverted_cdf").tolist()),
        longest=int(values.max()),
        counts=tuple(counts.tolist()),
    )
