"""What a folded record still tells, and what it no longer holds."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from fakes.levels import answered
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.folded import FEW_EVENTS, folded
from orchestrator.metrics import TokenEvents, broken_limits, e2e_ns, largest_gap_ns, percentiles, tpot_ns, ttft_ns
from orchestrator.records import RequestRecord, Slo

EVENTS = st.lists(st.tuples(st.floats(1e-4, 3.0), st.integers(1, 9)), min_size=1, max_size=120)


@given(EVENTS, st.booleans())
def test_a_folded_record_is_good_where_the_whole_one_is(gaps: list[tuple[float, int]], counted: bool) -> None:
    counts = (1, *(count for _, count in gaps))
    whole = answered(gaps_s=[gap for gap, _ in gaps], counts=counts if counted else ())
    kept = folded(whole)
    for metric in (ttft_ns, tpot_ns, e2e_ns, largest_gap_ns):
        assert metric(kept) == metric(whole)
    slo = Slo(ttft_ms=50, tpot_ms=100, gap_ms=900, e2e_ms=4000)
    assert broken_limits(kept, slo) == broken_limits(whole, slo)
    before, after = TokenEvents.of([whole]), TokenEvents.of([kept])
    assert after.tokens.sum() == before.tokens.sum()
    assert (after.at_ns[0], after.at_ns[-1]) == (before.at_ns[0], before.at_ns[-1])
    seconds = (before.at_ns[-1] - before.at_ns[0]) / 1e9
    assert len(after.at_ns) <= max(FEW_EVENTS, seconds + 2)
    for at_ns, tokens in zip(before.at_ns, np.cumsum(before.tokens), strict=True):
        assert after.tokens[after.at_ns <= at_ns].sum() <= tokens, "no token is counted before it came"


def test_few_events_are_not_folded_and_nothing_of_it_is_written() -> None:
    few = answered(gaps_s=[0.1] * (FEW_EVENTS - 1))
    assert folded(few) is few
    assert b"largest_gap" not in msgspec.json.encode(few)
    assert msgspec.json.decode(b'{"seq":0,"request_id":"","phase":"measured","due_ns":0,"sent_ns":0,"end_ns":1,'
                               b'"asked_in":1,"asked_out":1}', type=RequestRecord).largest_gap_ns is None  # fmt: skip


@given(st.lists(st.tuples(st.one_of(st.floats(0, 1e6), st.just(float("inf"))), st.integers(0, 40)), max_size=40))
def test_values_that_occur_often_need_no_room_for_it(pairs: list[tuple[float, int]]) -> None:
    values, times = np.array([v for v, _ in pairs]), np.array([n for _, n in pairs], np.int64)
    whole, told = percentiles(np.repeat(values, times)), percentiles(values, times)
    assert (told.p50, told.p90, told.p95, told.p99) == (whole.p50, whole.p90, whole.p95, whole.p99)
    assert (told.n, told.n_finite) == (whole.n, whole.n_finite)
    assert told.mean == (None if whole.mean is None else pytest.approx(whole.mean))
