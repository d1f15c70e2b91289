from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from fakes.levels import answered, closed_loop, engine_samples, failed, health_of, ns, run_of, spec_of
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.metrics import (
    Series,
    broken_limits,
    counter_difference,
    e2e_due_ns,
    e2e_ns,
    in_flight_at,
    is_good,
    itl_ns,
    largest_gap_ns,
    level_stats,
    mean_in_flight_audit,
    memory_peak,
    output_tokens_in,
    percentile,
    percentiles,
    prompt_tokens_in,
    tpot_ns,
    ttft_due_ns,
    ttft_ns,
)
from orchestrator.records import LevelRun, RequestRecord, Sample, Slo

VECTOR = answered(ttft_s=0.2, gaps_s=(0.05, 0.1, 0.05), counts=(1, 1, 2, 1), late_s=0.03)


# --- one request ---


def test_the_worked_example() -> None:
    assert ttft_ns(VECTOR) == ns(0.2)
    assert e2e_ns(VECTOR) == ns(0.4)
    assert VECTOR.out_tokens == 5
    assert tpot_ns(VECTOR) == ns(0.05)
    assert largest_gap_ns(VECTOR) == ns(0.1)
    assert itl_ns(VECTOR) == [ns(0.05)] * 4
    assert ttft_due_ns(VECTOR) == ns(0.23)
    assert e2e_due_ns(VECTOR) == ns(0.43)


@pytest.mark.parametrize("metric", [ttft_ns, e2e_ns, tpot_ns, largest_gap_ns, ttft_due_ns, e2e_due_ns])
def test_a_failed_request_has_no_value_even_with_tokens(metric) -> None:  # type: ignore[no-untyped-def]
    broken = RequestRecord(**{f: getattr(VECTOR, f) for f in VECTOR.__struct_fields__} | {"failure": failed().failure})
    assert metric(VECTOR) is not None
    assert metric(broken) is None
    assert itl_ns(broken) == []


def test_one_output_token_has_no_tpot_and_keeps_its_limit() -> None:
    single = answered(gaps_s=())
    assert tpot_ns(single) is None
    assert largest_gap_ns(single) == 0
    assert itl_ns(single) == []
    assert is_good(single, Slo(ttft_ms=1000, tpot_ms=0.001, gap_ms=0.001))


def test_an_unknown_token_count_breaks_the_tpot_limit_alone() -> None:
    uncounted = answered(out_tokens=None)
    assert broken_limits(uncounted, Slo()) == ("tpot",)
    assert is_good(uncounted, Slo(tpot_ms=None))


@pytest.mark.parametrize(
    ("slo", "broken"),
    [
        (Slo(ttft_ms=200, tpot_ms=50), ()),
        (Slo(ttft_ms=199.999999, tpot_ms=50), ("ttft",)),
        (Slo(ttft_ms=200, tpot_ms=49.999999), ("tpot",)),
        (Slo(ttft_ms=None, tpot_ms=None, gap_ms=100), ()),
        (Slo(ttft_ms=None, tpot_ms=None, gap_ms=99.999999), ("gap",)),
        (Slo(ttft_ms=None, tpot_ms=None, e2e_ms=400), ()),
        (Slo(ttft_ms=1, tpot_ms=1, gap_ms=1, e2e_ms=1), ("ttft", "tpot", "gap", "e2e")),
    ],
)
def test_limits_are_kept_up_to_and_including_their_value(slo: Slo, broken: tuple[str, ...]) -> None:
    assert broken_limits(VECTOR, slo) == broken
    assert is_good(VECTOR, slo) is not bool(broken)


def test_an_open_loop_is_judged_from_due() -> None:
    slo = Slo(ttft_ms=210, tpot_ms=50, e2e_ms=410)
    assert is_good(VECTOR, slo)
    assert broken_limits(VECTOR, slo, from_due=True) == ("ttft", "e2e")


def test_a_failure_breaks_everything_at_once() -> None:
    assert broken_limits(failed(), Slo(ttft_ms=None, tpot_ms=None)) == ("failure",)


events = st.lists(st.tuples(st.integers(1, 10**9), st.integers(1, 9)), min_size=1, max_size=30)


@given(events)
def test_mean_itl_equals_tpot_if_the_first_event_holds_one_token(gaps: list[tuple[int, int]]) -> None:
    record = answered(gaps_s=[gap / 1e9 for gap, _ in gaps], counts=(1, *(count for _, count in gaps)))
    values = itl_ns(record)
    assert len(values) == (record.out_tokens or 0) - 1
    assert np.mean(values) == pytest.approx(tpot_ns(record), rel=1e-9)


# --- percentiles ---


def test_nearest_rank_with_failures() -> None:
    found = percentiles([*map(float, range(1, 19)), math.inf, math.inf])
    assert (found.p50, found.p90, found.p95, found.p99) == (10, 18, None, None)
    assert (found.n, found.n_finite, found.mean) == (20, 18, 9.5)


@pytest.mark.parametrize(("basis_points", "n", "rank"), [(700, 100, 7), (9500, 20, 19), (9990, 1000, 999)])
def test_ranks_in_integer_arithmetic(basis_points: int, n: int, rank: int) -> None:
    assert percentile(list(map(float, range(1, n + 1))), basis_points) == rank


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=60), st.integers(1, 10_000))
def test_a_percentile_is_a_value_that_enough_values_do_not_exceed(values: list[float], basis_points: int) -> None:
    ordered = sorted(values)
    found = percentile(ordered, basis_points)
    assert found in ordered
    assert sum(v <= found for v in ordered) * 10_000 >= basis_points * len(ordered)
    assert sum(v < found for v in ordered) * 10_000 < basis_points * len(ordered)


def test_no_percentile_of_nothing() -> None:
    with pytest.raises(ValueError, match="no percentile"):
        percentile([], 5000)
    with pytest.raises(ValueError, match="no percentile"):
        percentile([1.0], 0)
    assert percentiles([]).n == 0


# --- the window ---


def span(seq: int, sent_s: float, end_s: float) -> RequestRecord:
    return answered(seq, sent_s=sent_s, ttft_s=end_s - sent_s, gaps_s=())


def test_audit_of_the_worked_example() -> None:
    spans = [(8, 12), (9, 15), (12, 21), (15, 25), (19, 20.5)]
    records = [span(i, sent, end) for i, (sent, end) in enumerate(spans)]
    assert mean_in_flight_audit(records, (ns(10), ns(20))) == pytest.approx(2.1)


def test_tokens_count_where_their_stamps_lie() -> None:
    record = answered(sent_s=0.9, ttft_s=0.1, gaps_s=(1.0, 1.0, 1.0))  # stamps at 1, 2, 3, 4 s
    assert output_tokens_in([record], (ns(1), ns(3))) == 2  # (1, 3]
    assert output_tokens_in([record], (ns(0), ns(9))) == 4
    assert prompt_tokens_in([record], (ns(1), ns(3))) == 0
    assert prompt_tokens_in([record], (ns(0.5), ns(1))) == 100


def test_events_that_hide_tokens_share_the_servers_count() -> None:
    record = answered(sent_s=0.0, ttft_s=1.0, gaps_s=(1.0, 1.0, 1.0), out_tokens=12)
    assert output_tokens_in([record], (ns(1), ns(3))) == 6


def test_failed_requests_give_no_throughput_and_unknown_counts_give_none() -> None:
    good, uncounted = answered(0, ttft_s=1.0), answered(1, ttft_s=1.0, out_tokens=None)
    assert output_tokens_in([good, failed(2, end_s=1.0)], (0, ns(9))) == 10
    assert output_tokens_in([good, uncounted], (0, ns(9))) is None
    assert output_tokens_in([good, uncounted], (ns(5), ns(9))) == 0


# --- samples ---


def test_a_counter_is_read_as_of_the_windows_ends() -> None:
    samples = engine_samples(1.0, 10.0, preemptions_total=lambda t: t * t)
    assert counter_difference(samples, "preemptions_total", (ns(2.5), ns(7.9))) == 49 - 4
    assert counter_difference(samples, "nothing_total", (ns(2), ns(7))) is None
    assert counter_difference(samples[:1], "preemptions_total", (ns(2), ns(7))) is None


def test_a_counter_that_went_back_has_no_difference() -> None:
    samples = engine_samples(1.0, 10.0, preemptions_total=lambda t: 100 - t)
    assert counter_difference(samples, "preemptions_total", (ns(2), ns(7))) is None


def test_series_are_ordered_and_cut_half_open() -> None:
    samples = list(reversed(engine_samples(1.0, 4.0, kv_use=lambda t: t / 10)))
    assert Series.of(samples, "engine", "kv_use").within((ns(1), ns(3))).values.tolist() == [0.2, 0.3]


def gpu(uuid: str, **values: float) -> Sample:
    return Sample(at_ns=0, source=f"gpu:{uuid}", values=values)


@pytest.mark.parametrize(
    ("samples", "peak"),
    [
        ([], None),
        ([Sample(at_ns=0, source="tree", values={"pss_bytes": 5.0, "rss_bytes": 9.0})], (5, "PSS of the process tree")),
        ([Sample(at_ns=0, source="tree", values={"rss_bytes": 9.0})], (9, "RSS of the process tree")),
        (
            [
                Sample(at_ns=0, source=s, values={"memory_used_bytes": 7.0, "pss_bytes": 9.0})
                for s in ("container", "tree")
            ],
            (7, "memory of the container"),
        ),
        (
            [gpu("a", memory_used_bytes=10), gpu("a", memory_used_bytes=30), gpu("b", memory_used_bytes=5)],
            (35, "GPU memory in use on the card"),
        ),
        (
            [
                gpu("a", memory_used_bytes=10, memory_ours_bytes=8),
                Sample(at_ns=0, source="tree", values={"pss_bytes": 99}),
            ],
            (8, "GPU memory of the server's processes"),
        ),
        ([gpu("a", memory_used_bytes=10, memory_ours_bytes=0)], (10, "GPU memory in use on the card")),
    ],
)
def test_memory_is_read_at_the_best_place(samples: list[Sample], peak: tuple[int, str] | None) -> None:
    assert memory_peak(samples) == peak


# --- a level ---


def test_every_number_of_a_steady_level() -> None:
    """4 users, 280 ms each: 100 ms to the first of ten tokens, 20 ms between them."""
    records = closed_loop(4, 40)
    assert [r.phase for r in records].count("measured") == 40
    run = run_of(records, 4)
    stats = level_stats(run, records, [], Slo())
    assert (stats.offered, stats.good, stats.failed, stats.attainment) == (40, 40, 0, 1.0)
    assert stats.window_s == pytest.approx(9 * 0.28)
    assert stats.ttft_ms.p50 == stats.ttft_ms.p99 == 100
    assert stats.tpot_ms.p95 == 20
    assert (stats.itl_ms.n, stats.itl_ms.p99) == (360, 20)
    assert stats.e2e_ms.mean == pytest.approx(280)
    assert stats.requests_per_s == pytest.approx(4 / 0.28)
    assert stats.goodput_per_s == pytest.approx(4 / 0.28)
    assert stats.output_tokens_per_s == pytest.approx(40 / 0.28)
    assert stats.prompt_tokens_per_s == pytest.approx(400 / 0.28)
    assert stats.mean_in_flight == pytest.approx(4)
    assert stats.mean_in_flight_audit == pytest.approx(4)
    assert (stats.mean_in_tokens, stats.mean_out_tokens) == (100, 10)
    assert stats.drained_late == 0
    assert stats.kv_use_mean is None
    assert stats.preemptions is None


def test_failures_stay_in_every_denominator() -> None:
    records = [answered(i, sent_s=float(i)) for i in range(18)] + [failed(18, sent_s=18, end_s=19, asked_out=10)]
    records += [failed(19, "timeout", sent_s=19, end_s=21, asked_out=1)]
    stats = level_stats(run_of(records, 1), records, [], Slo())
    assert (stats.offered, stats.good, stats.failed, stats.attainment) == (20, 18, 2, 0.9)
    assert stats.failures == {"status": 1, "timeout": 1}
    assert (stats.ttft_ms.p90, stats.ttft_ms.p95) == (100, None)
    assert (stats.tpot_ms.n, stats.tpot_ms.n_finite) == (20, 18)
    assert (stats.itl_ms.n, stats.itl_ms.n_finite) == (18 * 9 + 9 + 1, 18 * 9)


def test_one_token_answers_are_left_out_of_tpot() -> None:
    records = [answered(0), answered(1, sent_s=1.0, gaps_s=())]
    stats = level_stats(run_of(records, 1), records, [], Slo())
    assert (stats.offered, stats.good, stats.tpot_ms.n) == (2, 2, 1)


def test_only_the_measured_requests_are_judged() -> None:
    records = [
        answered(0, ttft_s=9.0, phase="warmup"),
        answered(1, sent_s=10.0),
        answered(2, sent_s=11.0, phase="filler"),
    ]
    stats = level_stats(run_of(records, 1), records, [], Slo())
    assert (stats.offered, stats.good) == (1, 1)
    assert stats.window_s == 0
    assert stats.output_tokens_per_s is None
    assert stats.mean_in_flight is None


def test_nothing_measured_is_told_without_a_number() -> None:
    run = LevelRun(
        spec=spec_of(4, 40),
        started_ns=0,
        window_start_ns=None,
        window_end_ns=None,
        ended_ns=ns(1),
        in_flight_integral_s=0.0,
        health=health_of(),
        cut="the server died",
    )
    stats = level_stats(run, [failed(0, phase="ramp")], [], Slo())
    assert (stats.offered, stats.attainment, stats.ttft_ms.p50, stats.mean_in_tokens) == (0, 0.0, None, None)


def test_the_engines_figures_are_those_of_the_window() -> None:
    records = [answered(i, sent_s=10.0 + i) for i in range(11)]  # window 10 to 20 s
    samples = engine_samples(
        1.0,
        30.0,
        kv_use=lambda t: 0.9 if 10 < t <= 20 else 0.1,
        running=lambda t: 3.0 if 10 < t <= 20 else 0.0,
        waiting=lambda t: t - 10 if 10 < t <= 20 else 50.0,
        preemptions_total=lambda t: t,
    )
    stats = level_stats(run_of(records, 1), records, samples, Slo())
    assert stats.kv_use_mean == pytest.approx(0.9)
    assert stats.kv_use_max == pytest.approx(0.9)
    assert (stats.running_mean, stats.waiting_mean, stats.preemptions) == (3.0, 5.5, 10.0)


def test_requests_that_end_after_the_fillers_are_told() -> None:
    records = [answered(0), answered(1, sent_s=1.0, ttft_s=40.0), answered(2, sent_s=2.0)]
    stats = level_stats(run_of(records, 2), records, [], Slo())
    assert stats.drained_late == 1  # 41 s: after 2 s and 30 s of fillers


def test_an_open_levels_figures_count_from_due() -> None:
    records = [answered(i, sent_s=float(i), late_s=0.5) for i in range(3)]
    run = run_of(records, 0)
    run = msgspec.structs.replace(run, spec=msgspec.structs.replace(run.spec, rate_per_s=1.0))
    stats = level_stats(run, records, [], Slo(ttft_ms=500))
    assert (stats.good, stats.ttft_ms.p50) == (0, 600)


def test_in_flight_at_moments_counts_what_was_sent_and_has_not_ended() -> None:
    records = [span(0, 10, 20), span(1, 15, 31)]
    at = np.array([ns(t) for t in (9, 10, 15, 20, 30, 31)])
    assert in_flight_at(records, at).tolist() == [0, 1, 2, 1, 1, 0]
