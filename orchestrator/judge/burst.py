"""From a steady rate that holds to the rate of real, uneven traffic: what an output token costs, and the factor F."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEAST_FACTOR = 1.10
DEVIATIONS = 2.33
"""z: how many standard deviations of the work per minute are allowed for."""


class DecodeCost(NamedTuple):
    """What an output token costs at load, in prompt tokens."""

    decode_tokens_per_s: float | None
    """r_d; None where prefill alone explains the throughput."""
    beta: float


def decode_cost(
    prefill_tokens_per_s: float, requests_per_s: float, mean_prompt_tokens: float, mean_output_tokens: float
) -> DecodeCost:
    """beta = r_p / r_d with r_d = mean output / (1/X - mean prompt / r_p); 0 where that time is not positive.

    `prefill_tokens_per_s` (r_p) is measured with a saturated probe of output length 1, `requests_per_s` (X) at c_ok.
    Time per token at low load is no substitute: it ignores batching.
    """
    decode_s = 1 / requests_per_s - mean_prompt_tokens / prefill_tokens_per_s
    if decode_s <= 0:
        return DecodeCost(None, 0.0)
    rate = mean_output_tokens / decode_s
    return DecodeCost(rate, prefill_tokens_per_s / rate)


class BurstFactor(NamedTuple):
    """How far the traffic's minutes stray from their mean."""

    sigma: float
    """Coefficient of variation of the offered work per bin."""
    peak: float
    """Largest bin over the mean."""
    factor: float
    """F = max(1.10, 1 + 2.33 sigma, peak): lambda_sign = lambda_P / F."""


def burst_factor(
    prompt_tokens_per_bin: Sequence[float], output_tokens_per_bin: Sequence[float], beta: float
) -> BurstFactor:
    """F of traffic given as tokens per bin of 60 s; work = prompt + beta * output. Needs two bins with work."""
    work = np.asarray(prompt_tokens_per_bin, np.float64) + beta * np.asarray(output_tokens_per_bin, np.float64)
    if len(work) < 2 or work.mean() <= 0:
        raise ValueError("a burst factor needs two bins and some work in them")
    sigma, peak = float(work.std(ddof=1) / work.mean()), float(work.max() / work.mean())
    return BurstFactor(sigma, peak, max(LEAST_FACTOR, 1 + DEVIATIONS * sigma, peak))
