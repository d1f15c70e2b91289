from __future__ import annotations

import msgspec
import pytest
from fakes.levels import answered, closed_loop, run_of

from orchestrator.judge.cause import JudgedLevel, cause_of_break
from orchestrator.judge.gaps import NO_OPEN_LOOP, NO_REPLAY, NO_SENTINEL
from orchestrator.judge.level import judge_level
from orchestrator.judge.margin import CellVerdict, cell_verdict, reading
from orchestrator.judge.search import Measure, Outcome, SearchRules, Stop, next_step
from orchestrator.metrics import level_stats
from orchestrator.records import (
    Criterion,
    LevelRun,
    LevelStats,
    LevelVerdict,
    Percentiles,
    Purpose,
    RequestRecord,
    ServerFailure,
    Slo,
)

SLO = Slo()
NOT_DONE = (NO_SENTINEL, NO_OPEN_LOOP, NO_REPLAY)
OOM = ServerFailure(failure_class="oom-kv", message="vLLM ran out of GPU memory.", evidence=("a", "b", "c", "d"))


def stats_of(good: int = 100, offered: int = 100, **other: object) -> LevelStats:
    plain = LevelStats(
        offered=offered,
        good=good,
        failed=0,
        attainment=good / offered,
        ttft_ms=Percentiles(),
        tpot_ms=Percentiles(),
        itl_ms=Percentiles(),
        e2e_ms=Percentiles(),
        window_s=60.0,
        output_tokens_per_s=1000.0,
        prompt_tokens_per_s=None,
        requests_per_s=None,
        goodput_per_s=None,
        mean_in_flight=None,
        mean_in_flight_audit=None,
        mean_in_tokens=None,
        mean_out_tokens=87.0,
    )
    return msgspec.structs.replace(plain, **other)


def share(name: str, value: float, limit: float = 0.95, *, binding: bool = False) -> Criterion:
    return Criterion(
        id=name,
        name="SLO attainment" if name == "S1" else f"{name} within",
        verdict="PASS" if value >= limit else "FAIL",
        value=value,
        limit=limit,
        binding=binding,
    )


def level(
    concurrency: int,
    verdict: str = "PASS",
    purpose: Purpose = "bracket",
    *criteria: Criterion,
    stats: LevelStats | None = None,
    hard_break: str | None = None,
    flags: tuple[str, ...] = (),
) -> JudgedLevel:
    valid = verdict != "INVALID"
    good = 100 if verdict == "PASS" else 80
    hard = (
        [Criterion(id="hard", name="the server keeps running", verdict="FAIL", note=hard_break)] if hard_break else []
    )
    return (
        run_of([answered()], concurrency, purpose=purpose),
        stats or stats_of(good),
        LevelVerdict(
            valid=valid,
            invalid=() if valid else ("I1: too slow.",),
            verdict=verdict if valid else "UNDECIDED",  # type: ignore[arg-type]
            criteria=(*hard, share("S1", good / 100, binding=True), *criteria),
            hard_break=hard_break,
            flags=flags,
        ),
    )


def stop_of(**other: object) -> Stop:
    plain = Stop(c_ok=22, c_bad=24, confirmed_ok=True, confirmed_bad=True, monotone=True, why="22 holds, 24 does not.")
    return msgspec.structs.replace(plain, **other)


def verdict_of(
    levels: list[JudgedLevel], stop: Stop | None, *, forced: bool = True, failure: ServerFailure | None = None
) -> CellVerdict:
    return cell_verdict(levels, stop, SLO, lengths_forced=forced, failure=failure)


WHOLE = [level(16), level(32, "FAIL"), level(24, "FAIL"), level(22), level(22, "PASS", "confirm"), level(24, "FAIL")]


def test_a_whole_search_is_provisional_and_names_what_is_missing() -> None:
    found = verdict_of(WHOLE, stop_of())
    assert (found.verdict, found.c_ok, found.c_bad, found.c_sign, found.break_level) == ("PROVISIONAL", 22, 24, 17, 2)
    assert found.first_failing is not None
    assert found.first_failing.id == "S1"
    assert found.sentence == (
        "22 users at once held in 2 runs: 100.0% of 200 requests met the SLO (95.0% are asked); 24 users at once did "
        "not: SLO attainment 80.0%, 15.0 points under the target of 95.0%."
    )
    assert found.missing == (
        "Levels were decided on observed shares; signing takes three fresh runs and their confidence bounds.",
        "0 of 200 requests at 22 users failed, which does not prove at most 0.10%: that takes 2,995 without a failure.",
        *NOT_DONE,
    )


def test_the_verdict_of_a_search_on_real_records() -> None:
    """A card whose TTFT grows with the users: the whole way from records to the sentence."""
    slo = Slo(ttft_ms=500, tpot_ms=50)

    def measure(c: int, purpose: Purpose) -> JudgedLevel:
        def make(seq: int, sent_s: float) -> RequestRecord:
            return answered(seq, sent_s=sent_s, ttft_s=0.05 * c)

        records = closed_loop(c, max(100, 10 * c), make)
        run: LevelRun = run_of(records, c, purpose=purpose)
        stats = level_stats(run, records, [], slo)
        return run, stats, judge_level(run, stats, records, [], slo)

    levels: list[JudgedLevel] = []
    history: list[Outcome] = []
    while isinstance(step := next_step(history, SearchRules()), Measure):
        run, stats, verdict = measure(step.concurrency, step.purpose)
        levels.append((run, stats, verdict))
        history.append(
            Outcome(concurrency=step.concurrency, purpose=step.purpose, valid=verdict.valid, verdict=verdict.verdict)
        )
    found = cell_verdict(levels, step, slo, lengths_forced=True, failure=None)
    assert len(levels) == 10
    assert (found.verdict, found.c_ok, found.c_bad, found.c_sign) == ("PROVISIONAL", 10, 11, 8)
    assert found.limiter == "unknown"
    assert found.evidence[0] == "TTFT within 500 ms: kept by 0.0% of the requests."
    assert found.sentence.endswith("did not: SLO attainment 0.0%, 95.0 points under the target of 95.0%.")


def test_no_break_up_to_the_cap() -> None:
    found = verdict_of([level(32)], stop_of(c_ok=32, c_bad=None, confirmed_bad=False))
    assert (found.verdict, found.c_bad, found.break_level, found.limiter) == ("PROVISIONAL", None, None, "none found")
    assert found.sentence.endswith("; no break was found above.")
    assert not [m for m in found.missing if "does not hold" in m]


def test_nothing_held() -> None:
    stop = stop_of(c_ok=None, c_bad=1, confirmed_ok=False, why="The lowest level that was tried, 1, does not hold.")
    found = verdict_of([level(1, "FAIL"), level(1, "FAIL", "confirm-break")], stop)
    assert (found.verdict, found.c_ok, found.c_sign, found.sentence) == ("REFUSED", None, None, stop.why)
    assert found.first_failing is not None
    assert not set(NOT_DONE) & set(found.missing)


def test_a_server_that_did_not_come_up_is_refused_with_its_own_words() -> None:
    found = verdict_of([], None, failure=OOM)
    assert (found.verdict, found.limiter) == ("REFUSED", "memory")
    assert found.sentence == "Nothing was measured: vLLM ran out of GPU memory."
    assert found.evidence == ("vLLM ran out of GPU memory.", "b", "c", "d")


def test_nothing_measured_yet() -> None:
    found = verdict_of([], None)
    assert (found.verdict, found.sentence) == ("REFUSED", "Nothing was measured yet.")
    assert found.missing == ("The search was not finished.",)


def test_a_search_that_was_cut_says_so_and_keeps_what_it_found() -> None:
    found = verdict_of(WHOLE[:2], None)
    assert (found.verdict, found.c_ok, found.c_bad) == ("PROVISIONAL", 16, 32)
    assert found.missing[:2] == (
        "The search was not finished.",
        "That the level at 16 holds was not confirmed by a fresh run.",
    )
    assert "That the level at 32 does not hold was not confirmed by a fresh run." in found.missing


def test_a_search_cut_before_anything_held() -> None:
    found = verdict_of([level(2, "FAIL")], None)
    assert (found.verdict, found.sentence) == ("REFUSED", "No level held: the lowest that did not is 2 users at once.")
    found = verdict_of([level(2, "INVALID")], None)
    assert (found.verdict, found.sentence) == ("REFUSED", "No level has been measured validly yet.")


def test_a_server_that_did_not_come_back_leaves_what_was_found() -> None:
    found = verdict_of([level(16), level(32, "FAIL", hard_break="oom-kv")], None, failure=OOM)
    assert (found.verdict, found.c_ok, found.c_bad, found.limiter) == ("PROVISIONAL", 16, 32, "memory")
    assert found.first_failing is not None
    assert found.first_failing.id == "hard"
    assert found.sentence.endswith("32 users at once did not: oom-kv.")
    assert found.missing[0] == (
        "The search was not finished, because the server did not stay up: vLLM ran out of GPU memory."
    )


def test_an_unstable_break_halves_what_may_be_signed() -> None:
    levels = [level(16), level(20), level(20, "PASS", "confirm"), level(22, "FAIL", hard_break="hang"), level(22)]
    found = verdict_of([level(1), *levels], stop_of(c_ok=20, c_bad=22, confirmed_bad=False))
    assert (found.verdict, found.c_sign) == ("PROVISIONAL", 11)
    assert [m for m in found.missing if m.startswith("The server broke in one run at 22 users")]


def test_an_unstable_break_near_the_start_is_refused() -> None:
    levels = [level(8), level(8, "PASS", "confirm"), level(9, "FAIL", hard_break="hang"), level(9)]
    found = verdict_of(levels, stop_of(c_ok=8, c_bad=9, confirmed_bad=False))
    assert (found.verdict, found.c_ok, found.c_sign) == ("REFUSED", 8, None)
    assert found.sentence == "The server broke in one run at 9 users and not in another: it cannot be relied on."


def test_lengths_that_cannot_be_forced_are_told() -> None:
    found = verdict_of(WHOLE, stop_of(), forced=False)
    told = [m for m in found.missing if m.startswith("The stack cannot be held to the demanded output lengths")]
    assert told == [
        f"{told[0].partition(' (')[0]} (87 tokens came on average), so the load is not exactly the one planned."
    ]


def test_flags_and_invalid_levels_are_told_once() -> None:
    levels = [
        level(22, flags=("The card A was hot.",)),
        level(22, "PASS", "confirm", flags=("The card A was hot.",)),
        level(16, flags=("A level that is not used.",)),
        level(24, "INVALID"),
        level(24, "INVALID"),
    ]
    found = verdict_of(levels, stop_of(c_bad=None, confirmed_bad=False, monotone=False))
    assert found.missing.count("At 22 users: The card A was hot.") == 1
    assert found.missing.count("The level at 24 is INVALID. I1: too slow.") == 1
    assert not [m for m in found.missing if "not used" in m]
    assert "A level held above one that did not: the system is not stable." in found.missing


def test_errors_proven_few_are_not_missing() -> None:
    many = [level(22, stats=stats_of(4800, 4800)), level(24, "FAIL")]
    assert not [m for m in verdict_of(many, stop_of()).missing if "failed" in m]
    some = [level(22, stats=stats_of(4790, 4800, failed=2))]
    assert (
        "2 of 4800 requests at 22 users failed, which does not prove at most 0.10%."
        in verdict_of(some, stop_of(c_bad=None)).missing
    )


def test_one_user_is_singular_and_leaves_no_margin() -> None:
    found = verdict_of([level(1)], stop_of(c_ok=1, c_bad=None))
    assert found.sentence.startswith("1 user held in one run")
    assert found.c_sign is None


def test_a_verdict_is_a_function_of_its_records_and_lands_on_disk() -> None:
    found = verdict_of(WHOLE, stop_of())
    assert found == verdict_of(list(WHOLE), stop_of())
    assert msgspec.json.decode(msgspec.json.encode(found), type=CellVerdict) == found


@pytest.mark.parametrize(
    ("criterion", "words"),
    [
        (
            Criterion(id="S2", name="failed requests", verdict="FAIL", value=0.05, limit=0.001),
            "failed requests 5.00%, more than 0.10%",
        ),
        (
            Criterion(id="S3", name="preemptions per request", verdict="FAIL", value=0.3123, limit=0.05),
            "preemptions per request 0.312, more than 0.05",
        ),
        (Criterion(id="hard", name="the server keeps running", verdict="FAIL", note="hang"), "hang"),
        (Criterion(id="hard", name="the server keeps running", verdict="FAIL"), "the server keeps running"),
    ],
)
def test_readings(criterion: Criterion, words: str) -> None:
    assert reading(criterion) == words


# --- why it broke ---

S3 = Criterion(id="S3", name="preemptions per request", verdict="FAIL", value=0.4, limit=0.05)
S4 = Criterion(id="S4", name="KV full", verdict="FAIL", value=0.6, limit=0.1, binding=False)
S4_SHORT = Criterion(id="S4", name="KV full", verdict="UNDECIDED", value=0.6, limit=0.1, binding=False)
S5 = Criterion(
    id="S5",
    name="waiting",
    verdict="FAIL",
    value=0.5,
    limit=0.05,
    binding=False,
    note="running 16.0, waiting 16.0 of 32 on average",
)
S5_NONE = Criterion(
    id="S5",
    name="waiting",
    verdict="PASS",
    value=0.0,
    limit=0.05,
    binding=False,
    note="running 32.0, waiting 0.0 of 32 on average",
)
UNREPORTED = Criterion(id="S5", name="waiting", verdict="not reported", limit=0.05, binding=False)
TTFT_BAD, TTFT_OK = share("S1-ttft", 0.5), share("S1-ttft", 0.99)
TPOT_BAD, TPOT_OK = share("S1-tpot", 0.4), share("S1-tpot", 0.99)
QUEUED = stats_of(80, running_mean=16.0, waiting_mean=16.0)
HALF = level(16, stats=stats_of(output_tokens_per_s=1000.0))


@pytest.mark.parametrize(
    ("criteria", "stats", "limiter"),
    [
        ((TTFT_BAD, TPOT_BAD, S3), None, "KV memory"),
        ((TTFT_BAD, TPOT_OK, S4, S5), QUEUED, "KV memory"),
        ((TTFT_BAD, TPOT_OK, S4_SHORT, S5), QUEUED, "KV memory"),
        ((TTFT_BAD, TPOT_OK, S5), QUEUED, "the engine's limit on running requests"),
        ((TTFT_BAD, TPOT_OK), stats_of(80, failed=15, failures={"status": 15}), "errors"),
        ((TTFT_OK, TPOT_BAD), stats_of(80, output_tokens_per_s=1030.0), "decode (compute or memory bandwidth)"),
        ((TTFT_OK, TPOT_BAD), stats_of(80, output_tokens_per_s=1060.0), "unknown"),
        ((TTFT_BAD, TPOT_OK, S5_NONE), None, "prefill"),
        ((TTFT_BAD, TPOT_OK, UNREPORTED), None, "unknown"),
        ((TTFT_BAD, TPOT_OK), None, "unknown"),
    ],
)
def test_the_pattern_names_the_limit(criteria: tuple[Criterion, ...], stats: LevelStats | None, limiter: str) -> None:
    broke = level(32, "FAIL", "bracket", *criteria, stats=stats)
    cause = cause_of_break(broke, [HALF, broke])
    assert cause.limiter == limiter
    assert cause.evidence


@pytest.mark.parametrize(
    ("hard_break", "limiter"),
    [
        ("out of memory", "memory"),
        ("oom-weights", "memory"),
        ("hang", "the engine hangs"),
        ("exit", "the server dies (exit)"),
    ],
)
def test_a_hard_break_names_itself(hard_break: str, limiter: str) -> None:
    assert cause_of_break(level(32, "FAIL", "bracket", S3, hard_break=hard_break), []).limiter == limiter


def test_evidence_carries_its_numbers() -> None:
    stats = stats_of(80, kv_use_mean=0.91, kv_use_max=0.999, output_tokens_per_s=1030.0)
    kv = cause_of_break(level(32, "FAIL", "bracket", S3, S4, stats=stats), [])
    assert kv.evidence == (
        "0.4 preemptions per request.",
        "The KV pool was full for 60% of the time.",
        "KV use was 91% on average and 100% at most.",
    )
    decode = cause_of_break(level(32, "FAIL", "bracket", TPOT_BAD, stats=stats), [HALF])
    assert decode.evidence[-1] == "Output went from 1000 tokens/s at 16 users to 1030 at 32."


def test_a_plateau_needs_levels_far_enough_apart() -> None:
    near = level(24, stats=stats_of(output_tokens_per_s=1000.0))
    broke = level(32, "FAIL", "bracket", TPOT_BAD, stats=stats_of(80, output_tokens_per_s=1000.0))
    assert cause_of_break(broke, [near, broke]).limiter == "unknown"
    assert cause_of_break(broke, [level(16, "INVALID"), broke]).limiter == "unknown"
    assert cause_of_break(broke, [near, HALF, broke]).limiter == "decode (compute or memory bandwidth)"
