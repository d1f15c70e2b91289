"""Worked vectors, computed with scipy 1.17, six decimals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.judge.bounds import (
    attainment_bounds,
    batch_mean_bounds,
    error_bounds,
    grows,
    growth,
    least_n_eff,
    looks,
    order_statistics,
    per_batch,
    percentile_interval,
    preemption_bounds,
    requests_needed,
    student_quantile,
)

THETA = 0.95


def six(value: float) -> object:
    return pytest.approx(value, abs=5.1e-7)


# --- attainment ---

VECTORS = {
    "A": (40, 0.0125, [40] * 10, None, 100.0, 0.957126, 1.0, "PASS"),
    "B": (40, 0.0125, [40] * 9 + [39], 3.88, 71.841596, 0.935626, 1.0, "UNDECIDED"),
    "C": (40, 0.0125, [40] * 9 + [30], 10.25641, 27.177676, 0.806180, 0.999950, "UNDECIDED"),
    "D": (40, 0.0125, [37] * 10, 1.0, 278.745391, 0.881861, 0.956252, "UNDECIDED"),
    "E": (
        320,
        0.0125,
        [312, 318, 309, 315, 320, 313, 317, 306, 319, 314],
        3.57439,
        623.872348,
        0.966276,
        0.991942,
        "PASS",
    ),
    "F": (
        160,
        0.0125,
        [150, 139, 155, 128, 147, 151, 133, 144, 149, 138],
        5.036604,
        221.375671,
        0.841179,
        0.937414,
        "FAIL",
    ),
    "G": (
        320,
        0.05,
        [316, 310, 318, 305, 312, 309, 319, 314, 307, 311, 317, 313, 308, 315, 310],
        2.337272,
        1791.079150,
        0.968972,
        0.981494,
        "PASS",
    ),
    "H": (40, 0.05, [0] * 10, None, 100.0, 0.0, 0.029513, "FAIL"),
}


def side(lower: float, upper: float) -> str:
    return "PASS" if lower > THETA else "FAIL" if upper < THETA else "UNDECIDED"


@pytest.mark.parametrize("name", VECTORS)
def test_attainment(name: str) -> None:
    m, alpha, good, design_effect, n_eff, lower, upper, word = VECTORS[name]
    found = attainment_bounds(good, m, alpha)
    assert found.observed == pytest.approx(sum(good) / (m * len(good)))
    assert found.design_effect == (None if design_effect is None else six(design_effect))
    assert found.n_eff == six(n_eff)
    assert (found.lower, found.upper) == (six(lower), six(upper))
    assert side(found.lower, found.upper) == word


@pytest.mark.parametrize(
    ("alpha", "k", "factor"),
    [
        (0.05, 10, 0.805149),
        (0.025, 10, 0.750673),
        (0.05 / 3, 10, 0.719047),
        (0.0125, 10, 0.696863),
        (0.05, 15, 0.872133),
    ],
)
def test_the_price_of_estimating_the_variance(alpha: float, k: int, factor: float) -> None:
    # 30 failures in every batch: no spread between batches and no floor, so D = 1 and n_eff is N times the factor
    found = attainment_bounds([370] * k, 400, alpha)
    assert found.design_effect == 1.0
    assert found.n_eff / (400 * k) == six(factor)


def test_a_failure_never_raises_the_lower_bound() -> None:
    def lower(failures: int) -> float:
        return attainment_bounds([40 - (i < failures) for i in range(10)], 40, 0.0125).lower

    bounds = [lower(failures) for failures in range(11)]
    assert bounds == sorted(bounds, reverse=True)


@given(st.lists(st.integers(0, 50), min_size=2, max_size=20), st.sampled_from([0.05, 0.0125, 0.001]))
def test_bounds_enclose_what_was_observed(good: list[int], alpha: float) -> None:
    found = attainment_bounds(good, 50, alpha)
    assert 0 <= found.lower <= found.observed <= found.upper <= 1
    assert 0 < found.n_eff <= 50 * len(good)


def test_attainment_needs_batches() -> None:
    with pytest.raises(ValueError, match="two batches"):
        attainment_bounds([40], 40, 0.05)


def test_batches_are_in_issue_order_and_leave_the_last_flags_out() -> None:
    assert per_batch([True] * 10 + [False] * 13) == ([2] * 5 + [0] * 5, 2)
    assert per_batch([True] * 9) == ([], 0)


def test_how_many_requests_would_decide() -> None:
    undecided = attainment_bounds([37] * 10, 40, 0.0125)
    needed = requests_needed(undecided, 400, THETA, 0.0125)
    assert needed == 800
    assert attainment_bounds([74] * 10, 80, 0.0125).upper < THETA
    assert requests_needed(attainment_bounds([38] * 10, 40, 0.05), 400, 0.95, 0.05) is None


# --- S2 ---


@pytest.mark.parametrize(
    ("failed", "n", "lower", "upper", "word"),
    [
        (0, 2994, 0.0, 1.000078e-03, "UNDECIDED"),
        (0, 2995, 0.0, 9.997444e-04, "PASS"),
        (1, 4800, 1.068605e-05, 9.879198e-04, "PASS"),
        (2, 4800, 7.403862e-05, 1.311037e-03, "UNDECIDED"),
        (12, 4800, 1.443157e-03, 4.047395e-03, "FAIL"),
        (0, 400, 0.0, 7.461356e-03, "UNDECIDED"),
    ],
)
def test_errors(failed: int, n: int, lower: float, upper: float, word: str) -> None:
    found = error_bounds(failed, n, 0.05)
    assert found.lower == pytest.approx(lower, rel=5e-7)
    assert found.upper == pytest.approx(upper, rel=5e-7)
    assert ("FAIL" if found.lower > 0.001 else "PASS" if found.upper < 0.001 else "UNDECIDED") == word


@pytest.mark.parametrize(("n", "smallest"), [(400, 3), (1600, 5), (3200, 7), (4800, 10)])
def test_smallest_number_of_errors_that_fails(n: int, smallest: int) -> None:
    assert error_bounds(smallest, n, 0.05).lower > 0.001
    assert error_bounds(smallest - 1, n, 0.05).lower <= 0.001


@pytest.mark.parametrize(("late", "total"), [(0, 459), (1, 662), (10, 2010), (50, 6898)])
def test_agrees_with_the_early_stopping_of_loadgen(late: int, total: int) -> None:
    """p99 shown at 99 %: the smallest total of queries that allows this many over the latency."""
    assert error_bounds(late, total, 0.01).upper <= 0.01
    assert error_bounds(late, total - 1, 0.01).upper > 0.01


def test_all_failed() -> None:
    found = error_bounds(10, 10, 0.05)
    assert (found.lower, found.upper) == (six(0.05**0.1), 1.0)


# --- S3 and S4 ---


@pytest.mark.parametrize(
    ("counts", "design_effect", "lower", "upper"),
    [
        ([0] * 10, 1.0, 0.0, 0.001872),
        ([3, 5, 2, 4, 6, 3, 4, 5, 2, 4], 1.0, 0.017787, 0.031130),
        ([0, 0, 42, 3, 0, 0, 51, 9, 0, 0], 35.476190, 0.017674, 0.170646),
        ([14, 17, 11, 15, 19, 12, 16, 13, 18, 15], 1.0, 0.081524, 0.107353),
    ],
)
def test_preemptions(counts: list[int], design_effect: float, lower: float, upper: float) -> None:
    found = preemption_bounds(counts, 1600, 0.05)
    assert found.design_effect == six(design_effect)
    assert (found.lower, found.upper) == (six(lower), six(upper))
    assert found.per_request == sum(counts) / 1600


@pytest.mark.parametrize(
    ("shares", "bounds"),
    [
        ([0.02, 0, 0.05, 0.03, 0.08, 0.04, 0, 0.02, 0.06, 0.05], (0.035, 0.019970, 0.050030)),
        ([0.2, 0.3, 0.15, 0.4, 0.35, 0.25, 0.3, 0.45, 0.2, 0.4], (0.3, 0.242032, 0.357968)),
    ],
)
def test_batch_means(shares: list[float], bounds: tuple[float, float, float]) -> None:
    assert tuple(batch_mean_bounds(shares, 0.05)) == tuple(six(bound) for bound in bounds)


# --- S7 ---


@pytest.mark.parametrize(
    ("means", "completed", "slope", "error", "t", "p", "alarm"),
    [
        (
            [41.2, 39.8, 43.1, 40.5, 44.0, 42.7, 41.9, 43.8, 40.2, 42.5],
            0.996,
            0.126667,
            0.168942,
            0.749764,
            0.2374328,
            False,
        ),
        ([40, 46, 55, 61, 66, 78, 80, 93, 97, 108], 0.952, 7.442424, 0.235975, 31.539062, 5.55742e-10, True),
    ],
)
def test_growth(
    means: list[float], completed: float, slope: float, error: float, t: float, p: float, alarm: bool
) -> None:
    found = growth(means)
    assert (found.slope, found.standard_error, found.t) == (six(slope), six(error), six(t))
    assert found.p == pytest.approx(p, rel=5e-7)
    assert grows(found, completed) is alarm


def test_a_growing_queue_that_is_served_and_a_perfect_line() -> None:
    line = growth([float(i) for i in range(10)])
    assert line.slope == pytest.approx(1.0)
    assert line.p < 1e-12
    assert not grows(line, 0.98)
    assert grows(line, 0.96)
    assert growth([5.0] * 10).t == 0.0


# --- percentiles ---


@pytest.mark.parametrize(
    ("n_eff", "q", "ranks"),
    [
        (72, 0.95, (64, 72)),
        (59, 0.95, (52, None)),
        (100, 0.5, (40, 61)),
        (350, 0.95, (324, 341)),
        (400, 0.95, (371, 389)),
        (368, 0.99, (360, 368)),
        (300, 0.99, (293, None)),
        (1000, 0.99, (983, 997)),
    ],
)
def test_order_statistics(n_eff: int, q: float, ranks: tuple[int, int | None]) -> None:
    assert order_statistics(n_eff, q) == ranks


@pytest.mark.parametrize("row", [(5000, 6, 5), (9000, 36, 29), (9500, 72, 59), (9900, 368, 299), (9990, 3688, 2995)])
def test_what_may_be_printed(row: tuple[int, int, int]) -> None:
    points, two_sided, one_sided = row
    assert least_n_eff(points, two_sided=True) == two_sided
    assert least_n_eff(points, two_sided=False) == one_sided
    assert order_statistics(two_sided, points / 10_000).upper == two_sided
    assert order_statistics(two_sided - 1, points / 10_000).upper is None


def shuffled(n: int) -> list[float]:
    """1 to n in an order without clumps."""
    return [float(1 + (i * 617) % n) for i in range(n)]


def test_a_percentiles_interval() -> None:
    values = shuffled(1000)
    found = percentile_interval(values, 5000)
    assert found.value == 500
    # no clumps: D = 1 and only the t quantile costs, (z/t)^2 at alpha/2 = 0.750673
    assert found.n_eff == math.floor(1000 * 0.750673)
    ranks = order_statistics(found.n_eff, 0.5)
    assert ranks.upper is not None
    assert found.lower == math.floor(ranks.lower * 1000 / found.n_eff)
    assert found.upper == math.ceil(ranks.upper * 1000 / found.n_eff)


def test_clumps_widen_a_percentiles_interval() -> None:
    scattered, clumped = percentile_interval(shuffled(1000), 9500), percentile_interval(sorted(shuffled(1000)), 9500)
    assert scattered.value == clumped.value == 950
    assert clumped.n_eff < scattered.n_eff / 20
    assert clumped.upper is None
    assert scattered.n_eff >= scattered.needed == 72


def test_an_interval_that_ends_in_failures_has_no_upper_end() -> None:
    values = [math.inf if x > 960 else x for x in shuffled(1000)]
    found = percentile_interval(values, 9500)
    assert (found.value, found.upper) == (950, None)
    assert found.lower is not None


def test_an_interval_needs_a_value_a_batch() -> None:
    with pytest.raises(ValueError, match="10 values"):
        percentile_interval([1.0] * 9, 5000)


@given(st.lists(st.floats(0, 1e6), min_size=10, max_size=80), st.sampled_from([5000, 9000, 9500, 9900]))
def test_an_interval_encloses_its_value(values: list[float], points: int) -> None:
    found = percentile_interval(values, points)
    assert found.lower is None or found.lower <= found.value
    assert found.upper is None or found.upper >= found.value


# --- looks ---


@pytest.mark.parametrize(
    ("c", "sizes"),
    [
        (16, (400, 800, 1600, 3200)),
        (40, (400, 800, 1600, 3200)),
        (64, (640, 1280, 2560, 3200)),
        (100, (1000, 2000, 3200)),
        (160, (1600, 3200)),
        (512, (5120, 10240)),
    ],
)
def test_looks(c: int, sizes: Sequence[int]) -> None:
    assert looks(c) == sizes


def test_student() -> None:
    assert student_quantile(1 - 0.0125, 9) == six(2.685011)
