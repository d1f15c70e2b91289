from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacks.memory.concurrency import (
    Held,
    Moments,
    binding_limit,
    held_blocks,
    mean_concurrency,
    moments,
    safe_concurrency,
)
from stacks.memory.kv import Layout
from stacks.memory.models import NonsenseError

FLAT = Layout(page_bytes=16.0, block_tokens=16, full_groups=1)
SHAREGPT = Moments(857.463, 652.510, 567_638.48, 435_427.377, 681_622_670.82, 383_900_060.91, 296_937_740.95)
"""300 requests as served on an RTX 4090 with 41,408 KV tokens; 34.42 ran on average at 98.1 % KV use."""

pairs = st.lists(st.tuples(st.integers(0, 300), st.integers(1, 200)), min_size=1, max_size=8)


def test_moments_of_the_measured_trace_give_its_concurrency() -> None:
    assert SHAREGPT.held == pytest.approx(1203.586, abs=0.001)
    assert math.sqrt(SHAREGPT.held_variance) == pytest.approx(579.68, abs=0.01)
    assert 41_408 / SHAREGPT.held == pytest.approx(34.40, abs=0.005)
    rounded = Held(1211.587, SHAREGPT.held_variance)
    assert mean_concurrency(41_408, rounded) == pytest.approx(34.18, abs=0.005)
    assert safe_concurrency(41_408, rounded) == pytest.approx(28.26, abs=0.005)


@given(pairs)
def test_held_blocks_is_the_average_over_every_token(table: list[tuple[int, int]]) -> None:
    total = sum(output for _, output in table)
    blocks = sum(math.ceil((prompt + t) / 16) for prompt, output in table for t in range(1, output + 1))
    assert held_blocks(table, FLAT).blocks == pytest.approx(blocks / total)


@given(pairs)
def test_windowed_groups_hold_no_more_than_their_window(table: list[tuple[int, int]]) -> None:
    layout = Layout(page_bytes=16.0, block_tokens=16, full_groups=1, windowed_groups=2, window=64)
    cap = math.ceil(63 / 16) + 1
    total = sum(output for _, output in table)
    blocks = 0
    for prompt, output in table:
        for t in range(1, output + 1):
            whole = math.ceil((prompt + t) / 16)
            blocks += whole + 2 * min(whole, cap)
    assert held_blocks(table, layout).blocks == pytest.approx(blocks / total)


@given(pairs)
def test_moments_are_those_of_the_tokens_held(table: list[tuple[int, int]]) -> None:
    """The formula integrates over t; the sum over tokens differs by half a token."""
    total = sum(output for _, output in table)
    mean = sum(prompt + t - 0.5 for prompt, output in table for t in range(1, output + 1)) / total
    assert moments(table).held == pytest.approx(mean)


@given(st.floats(1, 1e6), st.floats(0.5, 1e4), st.floats(0, 1e6))
def test_safe_concurrency_solves_its_equation(blocks: float, mean: float, variance: float) -> None:
    requests = safe_concurrency(blocks, Held(mean, variance))
    assert requests * mean + 2.326 * math.sqrt(requests * variance) == pytest.approx(blocks, rel=1e-6)
    assert requests <= mean_concurrency(blocks, Held(mean, variance)) * (1 + 1e-9)


def test_a_shared_prefix_is_stored_once() -> None:
    assert mean_concurrency(1000, Held(10, 0), shared_prefix_blocks=4) == pytest.approx(996 / 6)
    with pytest.raises(NonsenseError, match="prefix"):
        mean_concurrency(1000, Held(10, 0), shared_prefix_blocks=10)


def test_the_lower_bound_is_named() -> None:
    assert binding_limit("vllm", 300.0, 256) == (256.0, "max_num_seqs")
    assert binding_limit("tgi", 300.0, 128).name == "max_concurrent_requests"
    assert binding_limit("vllm", 30.0, 256) == (30.0, "KV cache")


@pytest.mark.parametrize("table", [[], [(5, 0)], [(-1, 3)]])
def test_pairs_that_cannot_be_are_refused(table: list[tuple[int, int]]) -> None:
    with pytest.raises(NonsenseError):
        moments(table)


def test_nothing_fits_in_no_pool() -> None:
    assert safe_concurrency(0, Held(10, 5)) == 0.0
