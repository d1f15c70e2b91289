from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.judge.bounds import student_quantile
from orchestrator.judge.compare import equivalence, holm, log_ratio, log_ratios, pairs_needed

BASE = [2510, 2478, 2533]


def six(value: float) -> object:
    return pytest.approx(value, abs=5.1e-7)


def test_a_clear_ratio() -> None:
    a, b = [1840, 1862, 1851, 1835, 1848], [1902, 1931, 1910, 1899, 1916]
    assert log_ratios(a, b) == [six(r) for r in (0.033140, 0.036387, 0.031377, 0.034283, 0.036136)]
    found = log_ratio(a, b)
    assert (found.mean, found.deviation) == (six(0.034265), six(0.002098))
    assert (found.ratio, found.lower, found.upper) == (six(1.034858), six(1.032166), six(1.037558))
    assert found.t == six(36.519891)
    assert found.p == pytest.approx(3.356337e-06, rel=5e-7)


def test_a_ratio_that_is_not_shown() -> None:
    found = log_ratio([100, 104, 98, 101], [103, 103, 102, 100])
    assert (found.mean, found.deviation, found.ratio) == (six(0.012488), six(0.026094), six(1.012566))
    assert (found.lower, found.upper, found.t, found.p) == (six(0.971384), six(1.055495), six(0.957148), six(0.409104))


@pytest.mark.parametrize(
    ("x", "mean", "deviation", "upper", "limit", "shown"),
    [
        ([2402, 2360, 2415], -0.046825, 0.002522, -0.042573, -0.03, True),
        ([2391, 2402, 2380], -0.047342, 0.015613, -0.021020, -0.03, False),
        ([2561, 2550, 2570], 0.021086, 0.007120, 0.033089, math.log(1.05), True),
    ],
)
def test_regression_and_plateau(
    x: list[float], mean: float, deviation: float, upper: float, limit: float, shown: bool
) -> None:
    found = log_ratio(BASE, x)
    assert (found.mean, found.deviation, found.one_sided()[1]) == (six(mean), six(deviation), six(upper))
    assert (found.one_sided()[1] < limit) is shown
    assert found.one_sided()[0] < found.mean < found.one_sided()[1]


def test_equal_runs_and_equal_ratios() -> None:
    same = log_ratio([5.0, 7.0], [5.0, 7.0])
    assert (same.ratio, same.t, same.p) == (1.0, 0.0, 1.0)
    assert log_ratio([1.0, 1.0], [2.0, 2.0]).p == 0.0
    with pytest.raises(ValueError, match="zip"):
        log_ratio([1.0, 2.0], [1.0])


def test_equivalence() -> None:
    r = [0.004, -0.006, 0.009, 0.001, -0.003]
    found = equivalence(r, 0.03)
    assert (found.delta, found.t_not_lower, found.t_not_higher) == (six(0.029559), six(11.633537), six(-10.872150))
    assert found.p_not_lower == pytest.approx(1.560194e-04, rel=5e-7)
    assert found.p_not_higher == found.p == pytest.approx(2.031206e-04, rel=5e-7)
    narrow = equivalence(r, 0.005)
    assert (narrow.t_not_lower, narrow.t_not_higher, narrow.p) == (six(2.279418), six(-1.518031), six(0.101808))
    faster = equivalence([0.021, 0.034, 0.012, 0.040, 0.018], 0.05)
    assert (faster.t_not_lower, faster.t_not_higher) == (six(14.200924), six(-4.578419))
    assert faster.p == pytest.approx(5.097816e-03, rel=5e-7)


@pytest.mark.parametrize(
    ("p", "adjusted"),
    [
        ([0.012, 0.03, 0.041], [0.036, 0.06, 0.06]),
        ([0.004, 0.2, 0.011], [0.012, 0.2, 0.022]),
        ([0.0001, 0.02, 0.024, 0.5], [0.0004, 0.06, 0.06, 0.5]),
        ([], []),
    ],
)
def test_holm(p: list[float], adjusted: list[float]) -> None:
    assert holm(p) == pytest.approx(adjusted)


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_keeps_the_order_and_only_raises(p: list[float]) -> None:
    adjusted = holm(p)
    assert all(p[i] <= adjusted[i] <= 1 for i in range(len(p)))
    order = sorted(range(len(p)), key=lambda i: p[i])
    assert [adjusted[i] for i in order] == sorted(adjusted)


@pytest.mark.parametrize(
    ("percent", "half_width", "pairs"),
    [(0.5, 0.5, 7), (0.5, 1, 4), (1, 0.5, 18), (1, 1, 7), (2, 1, 18), (2, 2.5, 5), (3, 1, 38), (3, 2.5, 9)],
)
def test_pairs(percent: float, half_width: float, pairs: int) -> None:
    assert pairs_needed(percent / 100, half_width / 100) == pairs
    shorter = student_quantile(0.975, pairs - 2) * percent / math.sqrt(pairs - 1)
    assert shorter > half_width


def test_no_pairs_for_no_width() -> None:
    with pytest.raises(ValueError, match="half-width"):
        pairs_needed(0.01, 0)
