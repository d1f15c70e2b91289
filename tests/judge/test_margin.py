from __future__ import annotations

from typing import Any

import msgspec
import pytest
from fakes.levels import answered, closed_loop, run_of

from orchestrator.judge.cause import JudgedLevel, cause_of_break
from orchestrator.judge.gaps import NO_OPEN_LOOP, NO_REPLAY, NO_SENTINEL, NO_SWINGS, NO_TRAFFIC, NO_USERS, Shrunk
from orchestrator.judge.level import judge_level
from orchestrator.judge.margin import CellVerdict, cell_verdict, reading
from orchestrator.judge.search import Measure, Outcome, SearchRules, Stop, next_step
from orchestrator.judge.steps import OpenLoop, OpenRules
from orchestrator.judge.swings import Swings
from orchestrator.metrics import level_stats
from orchestrator.records import (
    Criterion,
    Demand,
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


def test_a_shrunk_context_is_in_the_sentence_and_what_was_cut_is_counted() -> None:
    stats = msgspec.structs.replace(stats_of(100), clamped=30)
    found = cell_verdict(
        [level(22, stats=stats)], None, SLO, lengths_forced=True, failure=None, shrunk=Shrunk(16384, 9000)
    )
    assert "30 of 100 requests were cut to it" in found.missing[0]
    assert found.sentence.endswith("This is at a context of 9,000 tokens, not the 16,384 that were asked.")
    found = cell_verdict([level(22)], None, SLO, lengths_forced=True, failure=None, shrunk=Shrunk(None, 9000))
    assert "no request was longer" in found.missing[0]
    assert "not the model's own context" in found.sentence


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


# --- the open-loop check and SIGNED ---

SWINGS = Swings.of((900, 1500, 600, 1000), (200, 260, 150, 190))
CHECKED = SearchRules(method="full", open_loop=OpenRules(traffic="the trace", swings=SWINGS))
CHECK = OpenLoop(
    throughput=16.0,
    rate_ok=12.8,
    rate_bad=13.6,
    beta=2.8,
    sigma=0.23,
    peak=1.5,
    factor=1.6,
    rate_sign=8.0,
    replays=1,
    in_flight_p95=11.0,
    kv_use_p99=0.6,
    drifted=False,
)
ENOUGH = stats_of(4790, 4800)
PROVEN = [
    level(16),
    level(24, "FAIL"),
    *[level(22, "PASS", "confirm", stats=ENOUGH)] * 3,
    level(24, "FAIL", "confirm-break"),
    level(0, "PASS", "rate"),
    level(22, "FAIL", "prefill"),
]


def checked(
    check: OpenLoop | None = CHECK,
    levels: list[JudgedLevel] | None = None,
    rules: SearchRules = CHECKED,
    pending: Measure | None = None,
    demand: Demand | None = None,
    signable: bool = True,
    forced: bool = True,
    **stop: object,
) -> CellVerdict:
    return cell_verdict(
        PROVEN if levels is None else levels,
        stop_of(drifted=False, open_loop=check, **stop),
        SLO,
        lengths_forced=forced,
        failure=None,
        rules=rules,
        pending=pending,
        demand=demand,
        signable=signable,
    )


def but(**changes: object) -> OpenLoop:
    return msgspec.structs.replace(CHECK, **changes)


def test_signed_is_every_step_done_and_held() -> None:
    found = checked()
    assert (found.verdict, found.missing) == ("SIGNED", ())
    assert (found.c_ok, found.c_bad, found.break_level) == (22, 24, 1)
    assert found.open_loop == CHECK
    assert (found.c_sign, found.limit_users) == (11, 22)
    assert checked(but(in_flight_p95=40.0)).c_sign == 17


@pytest.mark.parametrize(
    ("check", "said"),
    [
        (None, NO_OPEN_LOOP),
        (None, NO_REPLAY),
        (but(rate_ok=None, rate_sign=None, unknown=True), "those measurements are INVALID"),
        (but(rate_sign=None, unknown=True, replays=1), "The replay of the expected traffic is INVALID"),
        (but(rate_sign=None, replays=11), "did not hold at any mean rate at which it was replayed (11 tried)"),
        (but(kv_use_p99=0.90), "It fits, but barely: 90% of the KV pool"),
        (but(drifted=True), "moved by more than 3 % during the open-loop check"),
        (but(drifted=None), "The sentinel after the open-loop check is INVALID"),
    ],
)
def test_a_missing_or_flagged_step_of_the_check_is_provisional(check: OpenLoop | None, said: str) -> None:
    found = checked(check, rules=CHECKED if check else SearchRules(method="full"))
    assert found.verdict == "PROVISIONAL"
    assert any(said in step for step in found.missing)
    assert found.c_ok == 22


def open_level(rate: float, purpose: Purpose, seconds: float = 300.0, **more: Any) -> JudgedLevel:
    run, stats, verdict = level(0, "FAIL" if "hard_break" in more else "PASS", purpose, **more)
    spec = msgspec.structs.replace(run.spec, rate_per_s=rate, min_seconds=seconds)
    return msgspec.structs.replace(run, spec=spec), stats, verdict


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (open_level(12.8, "confirm-rate", flags=("It was throttled.",)), "At 12.8 requests/s: It was throttled."),
        (open_level(8.0, "replay", flags=("It was throttled.",)), "At 8 requests/s: It was throttled."),
        (open_level(9.6, "rate", hard_break="out of memory"), "The server broke at 9.6 requests/s: out of memory."),
    ],
)
def test_flags_and_hard_breaks_of_the_open_levels_that_count_are_named(found: JudgedLevel, said: str) -> None:
    verdict = checked(levels=[*PROVEN, found])
    assert (verdict.verdict, verdict.missing) == ("PROVISIONAL", (said,))


@pytest.mark.parametrize(("rate", "purpose"), [(12.8, "confirm-rate"), (8.0, "replay")])
def test_open_levels_that_are_too_short_are_not_signed(rate: float, purpose: Purpose) -> None:
    enough = [open_level(12.8, "confirm-rate"), open_level(8.0, "replay"), open_level(13.6, "rate", 120.0)]
    assert checked(levels=[*PROVEN, *enough]).verdict == "SIGNED"
    short = checked(levels=[*PROVEN, *enough, *[open_level(rate, purpose, 120.0)] * 2])
    assert short.verdict == "PROVISIONAL"
    assert [step.partition(",")[0] for step in short.missing] == ["An open level lasted 120 s by this plan"]


def test_what_happened_at_rates_above_is_no_flag() -> None:
    above = [open_level(13.6, "rate", flags=("It was throttled.",)), open_level(14.4, "rate", hard_break="hang")]
    assert checked(levels=[*PROVEN, *above]).verdict == "SIGNED"


def test_kv_use_that_is_not_reported_blocks_nothing() -> None:
    assert checked(but(kv_use_p99=None)).verdict == "SIGNED"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"confirmed_ok": False}, "holds was not confirmed"),
        ({"confirmed_bad": False}, "does not hold was not confirmed"),
        ({"monotone": False}, "not stable"),
        ({"forced": False}, "demanded output lengths"),
        ({"signable": False}, "no service asks like that"),
        ({"levels": [*PROVEN[:2], level(22, "PASS", "confirm"), *PROVEN[5:]]}, "does not prove at most 0.10%"),
        ({"levels": [level(30, "INVALID"), *PROVEN]}, "The level at 30 is INVALID"),
        ({"levels": [level(12, "FAIL", hard_break="out of memory"), *PROVEN]}, "The server broke at 12 users"),
        ({"levels": [*PROVEN, level(22, "FAIL", "prefill", hard_break="hang")]}, "The server broke at 22 users: hang"),
        ({"levels": [level(1, "FAIL", "sentinel", hard_break="killed"), *PROVEN]}, "broke at 1 users: killed"),
        ({"levels": [*PROVEN, level(22, "PASS", "confirm", stats=ENOUGH, flags=("It was throttled.",))]}, "throttled"),
    ],
)
def test_each_other_step_that_is_missing_is_provisional(changes: dict[str, Any], said: str) -> None:
    found = checked(**changes)
    assert found.verdict == "PROVISIONAL"
    assert any(said in step for step in found.missing)


def test_the_cap_that_passed_needs_no_break() -> None:
    levels = [found for found in PROVEN if found[0].spec.concurrency != 24]
    found = checked(levels=levels, c_bad=None, confirmed_bad=False)
    assert (found.verdict, found.c_bad) == ("SIGNED", None)


def test_a_step_that_was_cut_is_named() -> None:
    step = Measure(concurrency=0, purpose="replay", replicate=7, rate_per_s=8.0)
    found = checked(None, pending=step)
    assert "The open-loop check was cut before its step replay at 8 requests/s." in found.missing


def test_a_check_that_was_not_begun_was_not_cut() -> None:
    soak = Measure(concurrency=17, purpose="soak", replicate=0, min_seconds=3600.0)
    found = checked(None, pending=soak, confirmed_ok=False)
    assert NO_OPEN_LOOP in found.missing
    assert not any("was cut before" in step for step in found.missing)


def test_traffic_of_which_nothing_is_known_is_missing() -> None:
    rules = SearchRules(method="full", open_loop=OpenRules())
    found = checked(but(rate_sign=None, replays=0, factor=1.1, in_flight_p95=None, kv_use_p99=None), rules=rules)
    assert (found.verdict, found.missing, found.c_sign) == ("PROVISIONAL", (NO_TRAFFIC,), 17)


@pytest.mark.parametrize(("bin_s", "verdict"), [(60.0, "SIGNED"), (3600.0, "PROVISIONAL")])
def test_swings_that_are_known_by_the_hour_only_do_not_cover_the_minutes(bin_s: float, verdict: str) -> None:
    assert SWINGS is not None
    swings = msgspec.structs.replace(SWINGS, bin_s=bin_s)
    rules = SearchRules(method="full", open_loop=OpenRules(traffic="the trace", swings=swings))
    found = checked(CHECK, rules=rules)
    assert found.verdict == verdict
    assert [("3,600 s only" in step) for step in found.missing] == [True] * (verdict == "PROVISIONAL")


def test_swings_that_nobody_measured_are_not_signed() -> None:
    rules = SearchRules(method="full", open_loop=OpenRules(traffic="poisson arrivals at a constant rate"))
    found = checked(but(factor=1.1), rules=rules)
    assert (found.verdict, found.missing) == ("PROVISIONAL", (NO_SWINGS,))


def test_without_any_rate_that_holds_nothing_is_signed() -> None:
    found = checked(but(rate_ok=None, rate_bad=4.8, rate_sign=None, replays=0))
    assert (found.verdict, found.c_sign, found.limit_users) == ("REFUSED", None, None)
    assert found.sentence.startswith("22 users at once held, but no rate of independent arrivals did")


@pytest.mark.parametrize(
    ("demand", "word", "said"),
    [
        (Demand(users=11, rate_per_s=8.0), "SIGNED", "22 users at once held"),
        (Demand(users=12), "REFUSED", "The launch needs 12 users at once, and 11 may be signed."),
        (Demand(rate_per_s=8.5), "REFUSED", "The launch needs 8.5 requests/s on average, and 8 may be signed."),
    ],
)
def test_a_launch_that_needs_more_is_refused(demand: Demand, word: str, said: str) -> None:
    found = checked(demand=demand)
    assert found.verdict == word
    assert found.sentence.startswith(said)


def test_one_user_who_holds_is_no_user_who_may_be_signed() -> None:
    alone = [level(1, "PASS", "confirm", stats=ENOUGH)] * 3 + [level(2, "FAIL", "confirm-break")]
    found = checked(but(in_flight_p95=2.0), alone, c_ok=1, c_bad=2)
    assert (found.verdict, found.missing, found.c_ok, found.c_sign) == ("PROVISIONAL", (NO_USERS,), 1, None)
    refused = checked(but(in_flight_p95=2.0), alone, c_ok=1, c_bad=2, demand=Demand(users=50))
    assert refused.verdict == "REFUSED"
    assert refused.sentence == "The launch needs 50 users at once, and none may be signed."


def test_a_fixed_ladder_says_that_nothing_was_tried_above() -> None:
    stop = stop_of(c_ok=16, c_bad=None, confirmed_ok=False, confirmed_bad=False)
    fixed = cell_verdict([level(16)], stop, SLO, lengths_forced=True, failure=None, rules=SearchRules(levels=(16,)))
    assert fixed.sentence.endswith("; none was tried above.")
    searched = cell_verdict([level(16)], stop, SLO, lengths_forced=True, failure=None, rules=SearchRules())
    assert searched.sentence.endswith("; no break was found above.")
