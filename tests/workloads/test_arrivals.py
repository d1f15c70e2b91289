"""Arrival laws: exact counts and times, the same for the same seed, the asked mean rate."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator

import pytest

from workloads.arrivals import Law, arrivals_named, constant, gamma, modulated, poisson, schedule, trace

BURSTY = modulated([1, 4, 0, 1], bin_s=10)
LAWS = [constant, poisson, gamma(2), gamma(0.5), BURSTY]


def first(times: Iterator[float], count: int) -> list[float]:
    return list(itertools.islice(times, count))


def test_constant_arrivals_are_where_they_should_be() -> None:
    assert schedule(constant(4, 0), seconds=1) == (0, 250_000_000, 500_000_000, 750_000_000)
    assert len(schedule(constant(7, 0), requests=1000)) == 1000


@pytest.mark.parametrize("law", LAWS)
def test_the_same_seed_gives_the_same_times(law: Law) -> None:
    assert schedule(law(5, 1), seconds=100) == schedule(law(5, 1), seconds=100)
    if law is not constant:
        assert schedule(law(5, 1), seconds=100) != schedule(law(5, 2), seconds=100)


@pytest.mark.parametrize("law", LAWS)
def test_times_are_in_order_and_the_mean_rate_is_the_asked_one(law: Law) -> None:
    times = first(law(5, 3), 20_000)
    assert times == sorted(times)
    assert times[0] >= 0
    assert 20_000 / times[-1] == pytest.approx(5, rel=0.06)


@pytest.mark.parametrize(("law", "cv"), [(poisson, 1.0), (gamma(2), 2.0), (gamma(0.5), 0.5)])
def test_gaps_vary_as_they_should(law: Law, cv: float) -> None:
    times = first(law(5, 3), 20_000)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert statistics.pstdev(gaps) / statistics.fmean(gaps) == pytest.approx(cv, rel=0.06)


def test_the_rate_follows_the_weights() -> None:
    times = first(BURSTY(30, 1), 12_000)
    per_bin = [sum(int(at % 40 // 10) == number for at in times) / len(times) for number in range(4)]
    assert per_bin == [pytest.approx(share, abs=0.02) for share in (1 / 6, 4 / 6, 0, 1 / 6)]
    assert per_bin[2] == 0


def test_a_trace_is_scaled_in_time() -> None:
    law = trace([100, 101, 101, 104])
    assert list(law(3, 0)) == [0, 0.25, 0.25, 1]
    assert schedule(law(3, 0), seconds=1) == (0, 250_000_000, 250_000_000)
    assert len(schedule(law(3, 0), requests=10)) == 4


@pytest.mark.parametrize("text", ["constant", "poisson", "gamma:2", " Gamma:0.5 "])
def test_laws_have_names(text: str) -> None:
    assert len(schedule(arrivals_named(text)(10, 1), requests=5)) == 5


@pytest.mark.parametrize("text", ["", "gamma", "gamma:", "gamma:x", "gamma:-1", "gamma:nan", "poisson:2", "uniform"])
def test_other_names_are_refused_with_those_that_are_known(text: str) -> None:
    with pytest.raises(ValueError, match=r"no law of arrivals"):
        arrivals_named(text)


def test_nonsense_is_refused() -> None:
    for times in ([], [1.0], [2.0, 1.0], [1.0, 1.0]):
        with pytest.raises(ValueError, match="trace"):
            trace(times)
    for weights in ([], [0.0], [1.0, -1.0]):
        with pytest.raises(ValueError, match="weights"):
            modulated(weights, 1.0)
    with pytest.raises(ValueError, match="length"):
        schedule(constant(1, 0))
