"""How the work of a traffic swings, and what a rate must be divided by because of it (METHOD.md, the margin)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np

from orchestrator.records import Record

LEAST_FACTOR = 1.10
SIGMAS = 2.33
"""Standard normal quantile of 99 %: a swing that only one minute in a hundred exceeds."""


class Factor(NamedTuple):
    """F with what it rests on."""

    sigma: float
    """Coefficient of variation of the work per bin."""
    peak: float
    """Largest work of a bin over the mean."""
    factor: float


class Swings(Record, frozen=True, kw_only=True):
    """Offered tokens per bin (60 s where the source has them so fine), prompt and output."""

    prompt: tuple[float, ...]
    output: tuple[float, ...]
    bin_s: float = 60.0

    @classmethod
    def of(cls, prompt: Sequence[float], output: Sequence[float], bin_s: float = 60.0) -> Self | None:
        """None where there are too few bins to swing, or no work in them."""
        if len(prompt) != len(output) or len(prompt) < 2 or not min(sum(prompt), sum(output)) > 0:
            return None
        return cls(prompt=tuple(prompt), output=tuple(output), bin_s=bin_s)

    def factor(self, beta: float | None) -> Factor:
        """F for output tokens that cost `beta` prompt tokens each; the larger of both extremes where that is unknown.

        F = max(1.10, 1 + 2.33 sigma, peak); work = prompt tokens + beta output tokens.
        """
        prompt, output = np.array(self.prompt), np.array(self.output)
        if beta is None:
            return max(_factor(prompt), _factor(output), key=lambda found: found.factor)
        return _factor(prompt + beta * output)


def _factor(work: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Factor:
    mean = float(work.mean())
    sigma, peak = float(work.std(ddof=1)) / mean, float(work.max()) / mean
    return Factor(sigma, peak, max(LEAST_FACTOR, 1 + SIGMAS * sigma, peak))


def output_cost(prefill_per_s: float, requests_per_s: float, prompt_tokens: float, output_tokens: float) -> float:
    """beta: what an output token costs in prompt tokens, at load.

    `prefill_per_s`: prompt tokens a second of a saturated server that makes one output token a request; the rest is
    what it does at c_ok, with mean lengths. Time that is not spent on prompts makes output: 0 if none is left.
    """
    left_s = 1 / requests_per_s - prompt_tokens / prefill_per_s
    if left_s <= 0 or not math.isfinite(left_s):
        return 0.0
    return prefill_per_s / (output_tokens / left_s)
