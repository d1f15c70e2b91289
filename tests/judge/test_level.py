from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec
import pytest
from fakes.levels import answered, closed_loop, engine_samples, failed, health_of, ns, run_of
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.judge.bounds import attainment_bounds, error_bounds, preemption_bounds
from orchestrator.judge.level import LevelRules, decided_early, judge_level
from orchestrator.judge.silence import longest_silence_s
from orchestrator.metrics import level_stats
from orchestrator.records import Criterion, LevelRun, LevelVerdict, RequestRecord, Sample, Slo

SLO = Slo(ttft_ms=1000, tpot_ms=50)


def judge(
    records: Sequence[RequestRecord],
    run: LevelRun,
    samples: Sequence[Sample] = (),
    slo: Slo = SLO,
    hard_break: str | None = None,
    rules: LevelRules | None = None,
) -> LevelVerdict:
    stats = level_stats(run, records, samples, slo)
    return judge_level(run, stats, records, samples, slo, hard_break=hard_break, rules=rules)


def criterion(verdict: LevelVerdict, name: str) -> Criterion:
    found = [c for c in verdict.criteria if c.id == name]
    assert len(found) == 1
    return found[0]


def slow_ones(every: int, **slow: float) -> Callable[[int, float], RequestRecord]:
    """Every `every`-th request is slow."""
    return lambda seq, sent_s: answered(seq, sent_s=sent_s, **(slow if seq % every == 0 else {}))  # type: ignore[arg-type]


# --- the verdict ---


def test_a_level_that_holds() -> None:
    records = closed_loop(4, 100)
    verdict = judge(records, run_of(records, 4))
    assert (verdict.valid, verdict.verdict, verdict.invalid, verdict.flags) == (True, "PASS", (), ())
    s1 = criterion(verdict, "S1")
    bounds = attainment_bounds([10] * 10, 10, 0.05)
    assert (s1.verdict, s1.value, s1.limit, s1.lower, s1.upper) == ("PASS", 1.0, 0.95, bounds.lower, 1.0)
    assert s1.note == "0 of 100 missed it"
    assert [c.id for c in verdict.criteria] == ["S1", "S1-ttft", "S1-tpot", "S2", "S3", "S4", "S5"]
    assert [criterion(verdict, i).verdict for i in ("S3", "S4", "S5")] == ["not reported"] * 3
    assert criterion(verdict, "S2").verdict == "UNDECIDED"


def test_a_level_that_misses_the_slo_names_the_limit() -> None:
    records = closed_loop(4, 100, slow_ones(10, ttft_s=1.2))
    verdict = judge(records, run_of(records, 4))
    assert (verdict.valid, verdict.verdict) == (True, "FAIL")
    s1 = criterion(verdict, "S1")
    assert (s1.value, s1.note) == (0.9, "10 of 100 missed it (TTFT 10)")
    assert s1.lower is not None
    assert s1.upper is not None
    assert s1.lower < 0.9 < s1.upper
    ttft, tpot = criterion(verdict, "S1-ttft"), criterion(verdict, "S1-tpot")
    assert (ttft.name, ttft.value, ttft.verdict, ttft.binding) == ("TTFT within 1000 ms", 0.9, "FAIL", False)
    assert (tpot.value, tpot.verdict) == (1.0, "PASS")


@pytest.mark.parametrize(("bad", "word"), [(5, "PASS"), (6, "FAIL")])
def test_the_target_itself_is_enough(bad: int, word: str) -> None:
    records = closed_loop(4, 100, lambda seq, s: answered(seq, sent_s=s, ttft_s=1.2 if seq < 4 + bad else 0.1))
    assert judge(records, run_of(records, 4)).verdict == word


def test_too_few_requests_decide_nothing() -> None:
    records = closed_loop(2, 19)
    verdict = judge(records, run_of(records, 2))
    assert (verdict.valid, verdict.verdict) == (True, "UNDECIDED")
    assert criterion(verdict, "S1").note.startswith("19 measured requests, and 20 are the least for a verdict")


def test_failures_count_against_the_slo_and_the_error_budget() -> None:
    def make(seq: int, sent_s: float) -> RequestRecord:
        refused = seq % 20 == 0
        return failed(seq, sent_s=sent_s, end_s=sent_s + 0.28) if refused else answered(seq, sent_s=sent_s)

    records = closed_loop(4, 100, make)
    verdict = judge(records, run_of(records, 4))
    assert verdict.verdict == "FAIL"
    assert criterion(verdict, "S1").verdict == "PASS"  # 0.95 is the target
    s2 = criterion(verdict, "S2")
    assert (s2.verdict, s2.value, s2.limit, s2.note) == ("FAIL", 0.05, 0.001, "5 of 100 failed (status 5)")
    assert (s2.lower, s2.upper) == error_bounds(5, 100, 0.05)


def test_one_failure_of_a_hundred_does_not_prove_too_many() -> None:
    make: Callable[[int, float], RequestRecord] = lambda seq, s: (  # noqa: E731
        failed(seq, sent_s=s, end_s=s + 0.28) if seq == 50 else answered(seq, sent_s=s)
    )
    records = closed_loop(4, 100, make)
    verdict = judge(records, run_of(records, 4))
    assert (verdict.verdict, criterion(verdict, "S2").verdict) == ("PASS", "UNDECIDED")


def test_a_hard_break_needs_no_statistics_and_no_valid_measurement() -> None:
    records = [*closed_loop(4, 3), *(failed(100 + i, "cancelled", end_s=9.0) for i in range(4))]
    run = run_of(records, 4, requests=100, cut="the server died", health=health_of(loop_ms=99))
    assert not judge(records, run).valid
    verdict = judge(records, run, hard_break="out of memory")
    assert (verdict.valid, verdict.verdict, verdict.hard_break) == (True, "FAIL", "out of memory")
    first = verdict.criteria[0]
    assert (first.id, first.verdict, first.note) == ("hard", "FAIL", "out of memory")


def test_the_bound_rule_decides_by_the_interval() -> None:
    rules = LevelRules(by="bound")
    few = closed_loop(4, 100)
    undecided = judge(few, run_of(few, 4), rules=rules)
    assert (undecided.verdict, criterion(undecided, "S1").verdict) == ("UNDECIDED", "UNDECIDED")
    assert criterion(undecided, "S1").note == "0 of 100 missed it; about 400 would decide it"
    many = closed_loop(4, 400)
    assert judge(many, run_of(many, 4), rules=rules).verdict == "PASS"
    bad = closed_loop(4, 400, slow_ones(4, ttft_s=1.2))
    assert judge(bad, run_of(bad, 4), rules=rules).verdict == "FAIL"


# --- ending early ---


@given(st.integers(1, 400), st.integers(0, 400), st.sampled_from([0.5, 0.9, 0.95, 0.99, 0.999, 1.0]))
def test_a_decision_is_early_only_if_it_cannot_change(n: int, bad: int, target: float) -> None:
    best = max(0, n - bad) / n
    assert (decided_early(bad, n, Slo(attainment=target)) is not None) is (best < target)


def test_nothing_is_decided_of_nothing() -> None:
    assert decided_early(0, 0, SLO) is None


def test_a_level_that_ended_early_is_a_valid_fail() -> None:
    records = closed_loop(4, 30, slow_ones(4, ttft_s=1.2))
    reason = decided_early(6, 100, SLO)
    assert reason == "decided: 6 of 100 requests missed the SLO, and 95.00% cannot be reached any more"
    run = run_of(records, 4, requests=100, cut=reason)
    verdict = judge(records, run)
    assert (verdict.valid, verdict.verdict) == (True, "FAIL")
    s1 = criterion(verdict, "S1")
    assert (s1.lower, s1.upper) == (None, None)
    assert s1.note.startswith("ended early, as the target was out of reach; ")


def test_a_level_that_was_cut_while_it_could_still_pass_is_invalid() -> None:
    records = closed_loop(4, 60, slow_ones(20, ttft_s=1.2))
    verdict = judge(records, run_of(records, 4, requests=100, cut="longest time of a level"))
    assert (verdict.valid, verdict.verdict) == (False, "UNDECIDED")
    assert verdict.invalid == (
        "I6: the level was cut short after 60 of 100 measured requests (longest time of a level). Allow the level more "
        "time (ramp.max_seconds, budget.minutes) or ask for fewer requests (ramp.requests).",
    )


def test_requests_that_we_gave_up_decide_nothing() -> None:
    good = closed_loop(4, 20)
    given_up = [failed(1000 + i, "cancelled", sent_s=1.0, end_s=1.2) for i in range(10)]
    verdict = judge([*good, *given_up], run_of([*good, *given_up], 4, requests=100, cut="longest time of a level"))
    assert any(reason.startswith("I6") for reason in verdict.invalid)
    s2 = criterion(verdict, "S2")
    assert (s2.value, s2.note[:15]) == (0.0, "0 of 20 failed ")


# --- INVALID ---


def only_reason(verdict: LevelVerdict) -> str:
    assert not verdict.valid
    assert verdict.verdict == "UNDECIDED"
    assert len(verdict.invalid) == 1
    return verdict.invalid[0]


@pytest.mark.parametrize(
    ("loop_ms", "send_ms", "told"),
    [(2.6, 0.1, "its loop lagged by 2.6 ms (p99)"), (0.1, 2.6, "it sent late by 2.6 ms (p99)")],
)
def test_i1_a_slow_client(loop_ms: float, send_ms: float, told: str) -> None:
    records = closed_loop(4, 100)
    reason = only_reason(judge(records, run_of(records, 4, health=health_of(loop_ms, send_ms))))
    assert reason.startswith(f"I1: loadproof was too slow itself: {told}")


@pytest.mark.parametrize(
    ("loop_ms", "send_ms", "told"), [(2.4, 9.9, ""), (2.6, 0.1, "its loop lagged"), (0.1, 10.1, "it sent late")]
)
def test_i1_of_an_open_level_is_one_percent_of_the_ttft_limit_for_what_is_sent_late(
    loop_ms: float, send_ms: float, told: str
) -> None:
    records = [answered(i, sent_s=0.1 * i) for i in range(200)]
    run = run_of(records, 0, health=health_of(loop_ms, send_ms))
    run = msgspec.structs.replace(run, spec=msgspec.structs.replace(run.spec, rate_per_s=10.0))
    verdict = judge(records, run)
    assert (told in verdict.invalid[0]) if told else verdict.valid
    assert [c.id for c in verdict.criteria][-1] == "S7"


def test_an_open_level_is_judged_from_due() -> None:
    records = [answered(i, sent_s=0.1 * i, late_s=2.0 if i % 5 == 0 else 0.0) for i in range(200)]
    closed = run_of(records, 0)
    run = msgspec.structs.replace(closed, spec=msgspec.structs.replace(closed.spec, rate_per_s=10.0))
    assert criterion(judge(records, run), "S1").value == 0.8
    assert judge(records, run).good_per_batch == (16,) * 10


def test_i1_is_measured_by_the_tightest_limit() -> None:
    records = closed_loop(4, 100)
    run = run_of(records, 4, health=health_of(2.5, 2.5))
    assert judge(records, run).valid
    assert not judge(records, run, slo=Slo(ttft_ms=1000, tpot_ms=49)).valid
    assert judge(records, run, slo=Slo(ttft_ms=None, tpot_ms=None)).valid


@pytest.mark.parametrize(
    ("busy_s", "workers", "cores", "remedy"),
    [
        (9.0, 1, 8.0, "Load with two more workers (--workers 3, or workers = 3 under [client] in the plan)."),
        (18.0, 2, 4.0, "Load with one more worker (--workers 3, "),
        (9.0, 1, 2.0, None),  # the other core is the server's
        (9.0, 1, None, None),  # an old record
        (4.0, 1, 8.0, None),  # it was not busy: more of it are no help
        (9.0, 2, 8.0, None),
    ],
)
def test_i1_names_more_workers_where_they_help(
    busy_s: float, workers: int, cores: float | None, remedy: str | None
) -> None:
    records = closed_loop(4, 100)
    health = msgspec.structs.replace(health_of(9.0), cpu_s=busy_s, workers=workers, cores=cores)
    reason = only_reason(judge(records, run_of(records, 4, health=health)))
    assert "Give it cores of its own" in reason
    assert remedy in reason if remedy else "more worker" not in reason


def test_i6_a_lost_load_process_voids_a_level_however_sure_it_is() -> None:
    lost = "load worker 2 of 3 died of SIGKILL"
    records = closed_loop(4, 100)
    run = run_of(records, 4, cut=lost, health=msgspec.structs.replace(health_of(), workers=3, lost=lost))
    reason = only_reason(judge(records, run))
    assert reason.startswith(f"I6: the level was cut short: {lost}, and what it had in flight is not known.")


def test_i2_a_load_that_was_not_held() -> None:
    records = closed_loop(4, 100)
    assert judge(records, run_of(records, 4)).valid
    reason = only_reason(judge(records, run_of(records, 5)))
    assert reason.startswith("I2: the load was not held: 4.00 requests in flight on average where 5 were asked for")


def test_i3_two_counts_that_disagree() -> None:
    records = closed_loop(4, 100)
    assert judge(records, run_of(records, 4, held=1.015)).valid
    reason = only_reason(judge(records, run_of(records, 4, held=1.05)))
    assert reason.startswith(
        "I3: two counts of the load disagree: the loop counted 4.20 in flight, the records show 4.00"
    )


def long_level() -> list[RequestRecord]:
    """4 users for 70 s, 280 ms and ten tokens a request: 142.86 tokens/s."""
    return closed_loop(4, 1000)


@pytest.mark.parametrize(("factor", "valid"), [(1.0, True), (1.019, True), (1.05, False), (0.95, False)])
def test_i4_the_engines_token_count(factor: float, valid: bool) -> None:
    records = long_level()
    samples = engine_samples(1.0, 75.0, output_tokens_total=lambda t: factor * 40 / 0.28 * t)
    verdict = judge(records, run_of(records, 4), samples)
    assert verdict.valid is valid
    if not valid:
        assert only_reason(verdict).startswith("I4: the engine counted ")


def test_i4_an_engine_that_counts_when_a_request_ends_agrees() -> None:
    """100 s answers of 1,000 tokens: counted at their end, far from what came in between."""
    records = [answered(i, sent_s=i * 50.0, ttft_s=1.0, gaps_s=(0.1,) * 999) for i in range(10)]

    def ended(t: float) -> float:
        return float(sum(r.out_tokens or 0 for r in records if r.end_ns <= ns(t)))

    run = run_of(records, 2, held=1.0)
    samples = engine_samples(1.0, 460.0, output_tokens_total=ended)
    assert not [r for r in judge(records, run, samples).invalid if r.startswith("I4")]
    halved = [Sample(at_ns=s.at_ns, source="engine", values={k: v / 2 for k, v in s.values.items()}) for s in samples]
    assert [r for r in judge(records, run, halved).invalid if r.startswith("I4")]


def test_i4_is_not_applied_to_failures_and_short_windows() -> None:
    wrong = engine_samples(1.0, 75.0, output_tokens_total=lambda t: 999 * t)
    short = closed_loop(4, 100)
    assert judge(short, run_of(short, 4), wrong).valid
    broken = [*long_level(), failed(9999, "timeout", sent_s=10.0, end_s=20.0, phase="filler")]
    assert judge(broken, run_of(broken, 4), wrong).valid


def test_i5_someone_else_on_the_card() -> None:
    records = closed_loop(4, 100)
    run = run_of(records, 4)
    small, large = (Sample(at_ns=ns(1), source="gpu:A", values={"memory_others_bytes": b}) for b in (2e8, 3e9))
    before = Sample(at_ns=run.started_ns - ns(5), source="gpu:A", values={"memory_others_bytes": 3e9})
    assert judge(records, run, [small, before]).valid
    assert only_reason(judge(records, run, [small, large])).startswith(
        "I5: another process held 2861 MiB of the card A."
    )


def test_i5_a_server_that_was_restarted() -> None:
    records = closed_loop(4, 100)
    samples = engine_samples(1.0, 7.0, prompt_tokens_total=lambda t: t if t < 4 else t - 4)
    assert "prompt_tokens_total went backwards" in only_reason(judge(records, run_of(records, 4), samples))


def test_i6_a_level_with_too_few_requests() -> None:
    records = closed_loop(4, 60)
    reason = only_reason(judge(records, run_of(records, 4, requests=100)))
    assert reason.startswith("I6: only 60 of 100 requests were measured.")


# --- flags ---


def test_a_card_that_holds_its_clocks_down() -> None:
    records = closed_loop(4, 100)
    samples = [
        Sample(
            at_ns=ns(i / 10), source="gpu:A", values={"throttle_sw_thermal": float(i < 20), "throttle_hw_slowdown": 0.0}
        )
        for i in range(1, 61)
    ]
    verdict = judge(records, run_of(records, 4), samples)
    assert verdict.valid
    assert verdict.flags == ("The card A held its clocks down (sw_thermal) in 32% of the samples.",)


def test_an_engine_that_sees_another_load() -> None:
    records = closed_loop(4, 100)
    samples = engine_samples(0.5, 8.0, running=lambda _: 3.0, waiting=lambda _: 0.0)
    verdict = judge(records, run_of(records, 4), samples)
    assert verdict.valid
    assert verdict.flags == ("The engine's running and waiting requests differ by 25% from those in flight here.",)


def test_late_ones_are_told() -> None:
    records = [*closed_loop(4, 100), answered(999, sent_s=5.0, ttft_s=60.0), answered(1000, sent_s=5.1, ttft_s=60.0)]
    flags = judge(records, run_of(records, 4)).flags
    assert (
        "2 of 102 measured requests ended while the load was already leaving: their times may read too well." in flags
    )


def test_a_server_without_token_counts_is_told() -> None:
    records = closed_loop(4, 100, lambda seq, s: answered(seq, sent_s=s, out_tokens=None))
    verdict = judge(records, run_of(records, 4))
    assert verdict.verdict == "FAIL"
    assert [flag for flag in verdict.flags if flag.startswith("The server gives no token counts")]


# --- S3, S4, S5 ---


def test_s3_preemptions_by_time_batches() -> None:
    records = closed_loop(4, 1000)  # the window is just short of 70 s
    run = run_of(records, 4)
    assert run.window_start_ns is not None
    assert run.window_end_ns is not None
    start, length = run.window_start_ns, run.window_end_ns - run.window_start_ns
    per_batch = [14, 17, 11, 15, 19, 12, 16, 13, 18, 15]
    samples = [
        Sample(
            at_ns=math.floor(start + i * length / 10),
            source="engine",
            values={"preemptions_total": 7.0 + sum(per_batch[:i])},
        )
        for i in range(11)
    ]
    verdict = judge(records, run, samples)
    s3 = criterion(verdict, "S3")
    expected = preemption_bounds(per_batch, 1000, 0.05)
    assert (s3.value, s3.lower, s3.upper) == (0.15, expected.lower, expected.upper)
    assert (s3.verdict, verdict.verdict, criterion(verdict, "S1").verdict) == ("FAIL", "FAIL", "PASS")


def test_s4_a_full_pool_warns() -> None:
    records = closed_loop(4, 1000)
    run = run_of(records, 4)
    full = engine_samples(1.0, 80.0, kv_use=lambda _: 0.97)
    verdict = judge(records, run, full)
    s4 = criterion(verdict, "S4")
    assert (s4.verdict, s4.value, s4.lower, s4.upper, s4.binding) == ("FAIL", 1.0, 1.0, 1.0, False)
    assert verdict.verdict == "PASS"
    roomy = criterion(judge(records, run, engine_samples(1.0, 80.0, kv_use=lambda _: 0.94)), "S4")
    assert (roomy.verdict, roomy.value) == ("PASS", 0.0)


def test_s4_needs_a_sample_in_every_batch_to_be_decided() -> None:
    records = closed_loop(4, 100)  # 6.7 s
    s4 = criterion(judge(records, run_of(records, 4), engine_samples(1.0, 8.0, kv_use=lambda _: 1.0)), "S4")
    assert (s4.verdict, s4.value, s4.lower, s4.upper) == ("UNDECIDED", 1.0, None, None)


@pytest.mark.parametrize(("running", "waiting", "word"), [(2.0, 2.0, "FAIL"), (4.0, 0.0, "PASS"), (3.9, 0.1, "PASS")])
def test_s5_an_engine_that_admits_too_few(running: float, waiting: float, word: str) -> None:
    records = closed_loop(4, 1000)
    samples = engine_samples(1.0, 80.0, running=lambda _: running, waiting=lambda _: waiting)
    s5 = criterion(judge(records, run_of(records, 4), samples), "S5")
    assert (s5.verdict, s5.binding) == (word, False)
    assert s5.value == pytest.approx(waiting / 4)
    assert s5.note == f"running {running:.1f}, waiting {waiting:.1f} of 4 on average"


# --- a hang ---


def test_silence_is_the_longest_time_without_a_sign_of_life() -> None:
    talking = answered(0, sent_s=0.0, ttft_s=1.0, gaps_s=(1.0, 5.0))  # 1, 2, 7 s
    assert longest_silence_s([talking]) == 5.0
    other = answered(1, sent_s=1.5, ttft_s=3.0, gaps_s=(10.0,))  # 4.5 and 14.5 s: the stream of `talking` ends at 7
    assert longest_silence_s([talking, other]) == 7.5
    later = answered(2, sent_s=100.0, ttft_s=2.0, gaps_s=())  # nothing in flight before: no silence
    assert longest_silence_s([talking, other, later]) == 7.5
    assert longest_silence_s([]) == 0.0
    stuck = failed(3, "timeout", sent_s=200.0, end_s=260.0)
    dropped = [failed(i, "dropped", sent_s=150.0 + i, end_s=150.0 + i) for i in range(55, 110)]
    assert longest_silence_s([stuck, *dropped]) == 60.0  # what this client did not send is no word of the server


def test_a_hang_is_a_hard_break() -> None:
    records = [*closed_loop(2, 40), *(failed(900 + i, "timeout", sent_s=8.0, end_s=39.0) for i in range(2))]
    verdict = judge(records, run_of(records, 2))
    assert (verdict.verdict, verdict.hard_break, verdict.criteria[0].id) == ("FAIL", "hang", "hard")
    slow = judge(records, run_of(records, 2), slo=Slo(ttft_ms=20_000, tpot_ms=50))
    assert slow.hard_break is None  # three TTFT limits are 60 s


def test_a_server_that_answers_with_errors_does_not_hang() -> None:
    records = [failed(i, sent_s=i * 1.0, end_s=i + 1.0) for i in range(100)]
    verdict = judge(records, run_of(records, 1))
    assert (verdict.verdict, verdict.hard_break) == ("FAIL", None)
