"""Chosen laws of length."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workloads.sources import workload_from
from workloads.synthetic import distribution, synthetic


@pytest.mark.parametrize(
    ("text", "mean", "std"),
    [
        ("512", 512, 0),
        ("uniform:100:500", 300, 115.8),
        ("normal:512:64", 512, 64),
        ("lognormal:1000:800", 1000, 800),
        ("exponential:300", 300, 300),
    ],
)
def test_a_law_has_the_moments_of_the_length_itself(text: str, mean: float, std: float) -> None:
    lengths = distribution(text).sample(5, 20_000)
    assert len(lengths) == 20_000
    assert lengths.mean() == pytest.approx(mean, rel=0.005)
    assert lengths.std() == pytest.approx(std, rel=0.02)
    assert lengths.min() >= 1


def test_uniform_reaches_both_ends_evenly_and_nothing_beyond() -> None:
    lengths = distribution("uniform:3:6").sample(1, 4000)
    assert np.bincount(lengths).tolist() == [0, 0, 0, 1000, 1000, 1000, 1000]


@pytest.mark.parametrize(
    "text",
    [
        "", "0", "-3", "1.5", "normale:5:2", "normal:5", "normal:0:5", "normal:nan:5", "uniform:9:3", "uniform:1:2:3",
        "lognormal:inf:1", "exponential:-1", "exponential:1e300", "512:3", ":", "constant:", 0, -1, True, "9" * 400,
    ],
)  # fmt: skip
def test_anything_else_is_refused_with_the_forms(text: str | int) -> None:
    with pytest.raises(ValueError, match=r"is no length; write 512, uniform:LOW:HIGH"):
        distribution(text)


@given(st.text(max_size=40))
def test_no_text_does_worse_than_a_value_error(text: str) -> None:
    try:
        lengths = distribution(text).sample(0, 10)
    except ValueError:
        return
    assert len(lengths) == 10
    assert (lengths >= 1).all()


def test_a_synthetic_workload() -> None:
    workload = synthetic(prompt="normal:512:64", output=128, seed=3)
    assert workload.name == "pnormal_512_64-o128"
    assert workload.pairs.shape == (2000, 2)
    assert set(workload.pairs[:, 1].tolist()) == {128}
    assert (synthetic(prompt="normal:512:64", output=128, seed=3).pairs == workload.pairs).all()
    assert (synthetic(prompt="normal:512:64", output=128, seed=4).pairs != workload.pairs).any()


def test_prompt_and_output_are_independent() -> None:
    pairs = synthetic(prompt="exponential:500", output="exponential:500", seed=1).pairs
    assert abs(np.corrcoef(pairs[:, 0], pairs[:, 1])[0, 1]) < 0.08


def test_one_source_and_only_one() -> None:
    assert workload_from(preset="rag-2025", output_scale=0.5).stats().output_mean == pytest.approx(141.6, rel=0.01)
    for wrong in ({}, {"preset": "rag-2025", "prompt": 5}, {"prompt": 5}, {"output": 5}):
        with pytest.raises(ValueError, match=r"one source|both"):
            workload_from(**wrong)
