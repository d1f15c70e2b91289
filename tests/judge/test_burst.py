from __future__ import annotations

import pytest

from orchestrator.judge.burst import burst_factor, decode_cost
from workloads.presets import preset


def six(value: float) -> object:
    return pytest.approx(value, abs=5.1e-7)


def test_the_cost_of_an_output_token() -> None:
    found = decode_cost(28000, 16.03, 1154.70, 211.126)
    assert (found.decode_tokens_per_s, found.beta) == (six(9985.269355), six(2.804131))


def test_prefill_alone_explains_the_throughput() -> None:
    assert decode_cost(1000, 10, 200, 50) == (None, 0.0)


@pytest.mark.parametrize(
    ("prompt", "output", "beta", "sigma", "peak", "factor"),
    [
        ([900, 1500, 600, 1000], [200, 260, 150, 190], 2.8, 0.320215, 1.428205, 1.746102),
        ([10, 12, 9, 11], [5, 4, 6, 5], 2.0, 0.028163, 1.024390, 1.1),
    ],
)
def test_burst_factor(
    prompt: list[float], output: list[float], beta: float, sigma: float, peak: float, factor: float
) -> None:
    assert burst_factor(prompt, output, beta) == (six(sigma), six(peak), six(factor))


@pytest.mark.parametrize(
    ("beta", "factor"), [(0, 1.90), (1, 1.76), (2, 1.65), (4, 1.51), (6, 1.42), (10, 1.31), (1e9, 1.27)]
)
def test_the_conversation_trace(beta: float, factor: float) -> None:
    arrivals = preset("azure-conv-2023").arrivals
    assert arrivals is not None
    assert arrivals.bin_s == 60
    found = burst_factor(arrivals.prompt_tokens_per_bin, arrivals.output_tokens_per_bin, beta)
    assert round(found.factor, 2) == factor


def test_the_conversation_trace_to_six_digits() -> None:
    arrivals = preset("azure-conv-2023").arrivals
    assert arrivals is not None
    found = burst_factor(arrivals.prompt_tokens_per_bin, arrivals.output_tokens_per_bin, 2.8)
    assert (found.sigma, found.factor) == (six(0.229459), six(1.587789))


def test_idle_traffic_has_no_factor() -> None:
    with pytest.raises(ValueError, match="some work"):
        burst_factor([0, 0], [0, 0], 1)
