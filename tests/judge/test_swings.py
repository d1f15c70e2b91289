from __future__ import annotations

import pytest

from orchestrator.judge.swings import LEAST_FACTOR, Swings, output_cost
from workloads.presets import preset


def six(value: float) -> object:
    return pytest.approx(value, abs=5e-7)


def test_the_cost_of_an_output_token() -> None:
    beta = output_cost(28_000, 16.03, 1154.70, 211.126)
    assert beta == six(2.804131)
    assert 28_000 / beta == pytest.approx(9985.269355, abs=5e-4)


def test_where_prompts_take_all_the_time_output_costs_nothing() -> None:
    assert output_cost(10_000, 10.0, 1000.0, 50.0) == 0.0


@pytest.mark.parametrize(
    ("prompt", "output", "beta", "sigma", "peak", "factor"),
    [
        ((900, 1500, 600, 1000), (200, 260, 150, 190), 2.8, 0.320215, 1.428205, 1.746102),
        ((10, 12, 9, 11), (5, 4, 6, 5), 2.0, 0.028163, 1.024390, 1.100000),
    ],
)
def test_the_factor_of_four_bins(
    prompt: tuple[float, ...], output: tuple[float, ...], beta: float, sigma: float, peak: float, factor: float
) -> None:
    swings = Swings.of(prompt, output)
    assert swings is not None
    assert tuple(swings.factor(beta)) == (six(sigma), six(peak), six(factor))


def swings_of(name: str) -> Swings:
    arrivals = preset(name).arrivals
    assert arrivals is not None
    found = Swings.of(arrivals.prompt_tokens_per_bin, arrivals.output_tokens_per_bin)
    assert found is not None
    return found


def test_the_factor_of_azure_conversation() -> None:
    swings = swings_of("azure-conv-2023")
    found = swings.factor(2.8)
    assert (found.sigma, found.factor) == (six(0.229459), six(1.587789))
    rounded = [round(swings.factor(beta).factor, 2) for beta in (0.0, 1.0, 2.0, 4.0, 6.0, 10.0, 1e12)]
    assert rounded == [1.90, 1.76, 1.65, 1.51, 1.42, 1.31, 1.27]
    assert swings.factor(None).factor == swings.factor(0.0).factor


def test_on_off_traffic_has_a_factor_of_four() -> None:
    factors = [swings_of("azure-code-2023").factor(beta).factor for beta in (0.0, 3.0, 1e12)]
    assert all(3.95 < factor < 4.35 for factor in factors)


def test_steady_work_has_the_least_factor_and_too_little_has_none() -> None:
    swings = Swings.of((5.0,) * 9, (2.0,) * 9)
    assert swings is not None
    assert swings.factor(1.0).factor == LEAST_FACTOR
    assert Swings.of((5.0,), (2.0,)) is None
    assert Swings.of((0.0, 0.0), (2.0, 1.0)) is None
