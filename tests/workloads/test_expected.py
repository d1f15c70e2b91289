from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.clock import NS_PER_S
from workloads.arrivals import poisson
from workloads.expected import Expected, Replay, expected_bins, expected_rows
from workloads.presets import preset
from workloads.rows import Row, collect

ROWS = collect((Row(10 + n % 7, 5 + n % 3, 0.5 * n + 20.0 * (n > 300)) for n in range(600)), "rows")
TRACE = expected_rows("rows", ROWS)
CONV = expected_bins("conv", preset("azure-conv-2023").arrivals)


def rate_of(replay: Replay, seconds: float) -> float:
    return len(replay.due_ns) / seconds


def trace() -> Expected:
    assert TRACE is not None
    return TRACE


def conv() -> Expected:
    assert CONV is not None
    return CONV


def own_rate() -> float:
    assert ROWS.times_s is not None
    return 599 / float(ROWS.times_s[-1])


def test_a_trace_that_is_slower_than_asked_is_scaled_in_time() -> None:
    """Every request comes, in its order, with its own lengths; all gaps shrink alike."""
    rate = 4 * own_rate()
    replay = trace().replay(rate, 1, trace().length_s(rate))
    assert replay.pairs is not None
    assert len(replay.due_ns) in (599, 600)
    n = len(replay.due_ns)
    assert (replay.pairs == ROWS.pairs[:n]).all()
    assert ROWS.times_s is not None
    assert np.array(replay.due_ns) / NS_PER_S == pytest.approx(ROWS.times_s[:n] / 4, abs=1e-6)


def test_a_trace_that_is_faster_than_asked_is_thinned_and_keeps_its_swings() -> None:
    rate = own_rate() / 3
    replay = trace().replay(rate, 1, trace().length_s(rate))
    assert ROWS.times_s is not None
    own = set(np.rint(ROWS.times_s * NS_PER_S).astype(int).tolist())
    offsets = {due + round(float(ROWS.times_s[0]) * NS_PER_S) for due in replay.due_ns}
    assert len(replay.due_ns) == pytest.approx(200, abs=40)
    assert offsets <= own
    assert replay.pairs is not None
    assert len(replay.pairs) == len(replay.due_ns)


def test_a_short_trace_comes_again_and_a_long_one_is_cut_to_its_busiest_stretch() -> None:
    rate = own_rate()
    again = trace().replay(rate, 1, 3 * trace().length_s(rate))
    assert len(again.due_ns) == pytest.approx(1800, abs=5)
    assert list(again.due_ns) == sorted(again.due_ns)
    busiest = expected_rows("r", collect([Row(1, 1, t) for t in (0, 100, 200, 201, 202, 203, 300, 400)], "r"))
    assert busiest is not None
    stretch = busiest.replay(7 / 400, 1, 10.0)
    assert [due / NS_PER_S for due in stretch.due_ns] == [0, 1, 2, 3]


def test_bins_keep_their_pace_and_scale_their_rates() -> None:
    assert conv().length_s(3.0) == 58 * 60
    replay = conv().replay(3.0, 1, conv().length_s(3.0))
    assert replay.pairs is None
    assert rate_of(replay, 58 * 60) == pytest.approx(3.0, rel=0.03)
    assert conv().arrivals is not None
    bins = np.array(conv().arrivals.requests_per_bin)  # type: ignore[union-attr]
    counts = np.bincount((np.array(replay.due_ns) // (60 * NS_PER_S)).astype(int), minlength=58)
    assert np.corrcoef(counts, bins)[0, 1] > 0.6


def test_the_busiest_stretch_of_bins_is_busier_than_the_mean() -> None:
    replay = conv().replay(3.0, 1, 600.0)
    assert conv().arrivals is not None
    bins = np.array(conv().arrivals.requests_per_bin)  # type: ignore[union-attr]
    most = np.convolve(bins, np.ones(10), "valid").max() / 10 / bins.mean()
    assert rate_of(replay, 600) == pytest.approx(3.0 * most, rel=0.06)


def test_a_tiny_fast_trace_gives_enough_when_it_is_asked_long_enough() -> None:
    tiny = expected_rows("r", collect([Row(1, 1, t) for t in (0.0, 1.0, 2.0)], "r"))
    assert tiny is not None
    replay = tiny.replay(0.25, 5, 1600.0)
    assert len(replay.due_ns) == pytest.approx(400, abs=80)
    assert expected_rows("r", collect([Row(1, 1, t) for t in (0.0, 1e-9)], "r")) is None


def test_a_dense_second_that_stands_for_many_minutes_takes_no_memory_for_what_is_not_sent() -> None:
    dense = expected_rows("r", collect((Row(7, 7, n / 20_000) for n in range(20_001)), "r"))
    assert dense is not None
    tracemalloc.start()
    try:
        replay = dense.replay(5.0, 3, 600.0)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(replay.due_ns) == pytest.approx(3000, rel=0.1)
    assert peak_bytes < 12_000_000 * 8, "less than the time stamps of all repetitions"


def test_repetitions_in_blocks_are_those_of_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trace().replay(own_rate() / 3, 1, 9 * trace().length_s(1e-9))
    monkeypatch.setattr("workloads.expected._MOST_ROWS", 1300)
    blocks = trace().replay(own_rate() / 3, 1, 9 * trace().length_s(1e-9))
    assert len(whole.due_ns) == pytest.approx(1800, rel=0.1)
    assert blocks.due_ns == whole.due_ns
    assert blocks.pairs is not None
    assert whole.pairs is not None
    assert np.array_equal(blocks.pairs, whole.pairs)


def test_the_hash_tells_traffics_apart() -> None:
    other = expected_rows("rows", collect((Row(10, 5, 0.5 * n) for n in range(600)), "rows"))
    same = expected_rows("rows", ROWS)
    assert other is not None
    assert same is not None
    assert trace().sha256() == same.sha256()
    assert len({trace().sha256(), other.sha256(), conv().sha256(), Expected(name="poisson", law=poisson).sha256()}) == 4


def test_a_law_has_no_length() -> None:
    law = Expected(name="poisson", law=poisson)
    assert law.length_s(5.0) == 0.0
    assert rate_of(law.replay(5.0, 1, 400.0), 400.0) == pytest.approx(5.0, rel=0.1)


def test_requests_of_a_trace_are_cut_to_the_context() -> None:
    replay = trace().replay(own_rate(), 1, 60.0)
    asked = list(replay.requests(9, 16))
    assert len(asked) == len(replay.due_ns)
    assert all(r.prompt_tokens + r.output_tokens <= 16 for r in asked)
    assert any(r.clamped for r in asked)
    assert len({r.prompt_seed for r in asked}) == len(asked)


def test_rows_without_times_and_tables_without_bins_say_nothing() -> None:
    assert expected_rows("r", collect([Row(1, 1), Row(2, 2)], "r")) is None
    assert expected_bins("b", None) is None


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0.0, 500.0), min_size=2, max_size=60),
    st.floats(0.01, 50.0),
    st.floats(1.0, 300.0),
    st.integers(0, 9),
)
def test_any_trace_at_any_rate(times: list[float], rate: float, seconds: float, seed: int) -> None:
    found = expected_rows("r", collect([Row(3, 4, t) for t in times], "r"))
    if found is None:
        return
    replay = found.replay(rate, seed, seconds)
    assert list(replay.due_ns) == sorted(replay.due_ns)
    assert replay.pairs is not None
    assert len(replay.pairs) == len(replay.due_ns)
    assert all(0 <= due <= seconds * NS_PER_S + 1 for due in replay.due_ns)
    assert found.replay(rate, seed, seconds).due_ns == replay.due_ns
