from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.judge.looks import RunningLooks, deciding_look, look_sizes


def test_sizes_double_up_to_the_last_in_whole_tens() -> None:
    assert look_sizes(200, 1600) == (200, 400, 800, 1600)
    assert look_sizes(325, 1000) == (330, 660, 1000)
    assert look_sizes(1000, 0) == (1000,)


def test_the_first_look_that_decides_counts_and_alpha_is_shared_by_all_that_were_planned() -> None:
    good = [True] * 1600
    look = deciding_look(good, (200, 400, 800, 1600), 0.95, 0.05)
    assert look is not None
    # Vector A of the method: 400 good of 400 at alpha 0.0125.
    assert (look.size, look.verdict) == (400, "PASS")
    assert look.bounds.lower == pytest.approx(0.957126, abs=1e-6)


def test_a_hopeless_level_is_decided_at_its_first_look() -> None:
    look = deciding_look([False, True] * 800, (200, 400, 800, 1600), 0.95, 0.05)
    assert look is not None
    assert (look.size, look.verdict, look.good) == (200, "FAIL", (10,) * 10)


def test_too_few_requests_for_any_look() -> None:
    assert deciding_look([True] * 199, (200, 400), 0.95, 0.05) is None


def test_a_level_that_no_look_decides_is_told_by_its_last() -> None:
    look = deciding_look(([True] * 19 + [False]) * 20, (200, 400), 0.95, 0.05)
    assert look is not None
    assert (look.size, look.verdict) == (400, "UNDECIDED")


@given(st.integers(0, 2**32), st.floats(0.5, 1.0))
def test_online_it_is_the_same_look_as_from_the_records_afterwards(seed: int, share: float) -> None:
    """Requests end out of order, and some were issued after those of the look that decides."""
    draw = random.Random(seed)
    flags = [draw.random() < share for _ in range(800)]
    sizes = (100, 200, 400, 800)
    order = sorted(range(800), key=lambda i: i + draw.random() * 60)
    running = RunningLooks(sizes, 0.95, 0.05)
    said = next((reason for i in order if (reason := running.add(i, good=flags[i]))), None)
    look = deciding_look(flags, sizes, 0.95, 0.05)
    assert look is not None
    if look.verdict == "UNDECIDED":
        assert said is None
    else:
        assert said == f"decided: {look.verdict} by the bounds after {look.size} requests"
