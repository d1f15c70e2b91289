"""The open-loop check on cards whose rate is known: every step found anew from the history, as after a resume."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.judge.looks import deciding_look
from orchestrator.judge.rate import open_loop
from orchestrator.judge.search import Measure, Outcome, SearchRules, Stop, next_step, progress
from orchestrator.judge.steps import OpenLoop, OpenRules
from orchestrator.judge.swings import Swings

C_OK, X = 20, 16.03
"""The card holds 20 users, at this many requests a second."""
SWINGS = Swings.of((900, 1500, 600, 1000), (200, 260, 150, 190))


def rules(**changes: Any) -> SearchRules:
    own = OpenRules(**{"traffic": "the trace", "swings": SWINGS, **changes})
    return SearchRules(method="full", levels=(), start=C_OK, maximum=C_OK, confirm=3, target=0.95, open_loop=own)


class Said(NamedTuple):
    share: float = 1.0
    valid: bool = True
    hard_break: str | None = None
    tpot_ms: float = 20.0


Answer = Callable[[Measure], Said]


def up_to(rate: float, replayed: float = 1e9) -> Answer:
    """Holds rates up to one, and the replay up to another."""

    def answer(step: Measure) -> Said:
        if step.rate_per_s is None:
            return Said()
        return Said(1.0 if step.rate_per_s <= (replayed if step.purpose == "replay" else rate) else 0.7)

    return answer


def measured(step: Measure, said: Said, draw: random.Random) -> Outcome:
    flags = [draw.random() < said.share for _ in range(step.looks[-1])]
    look = deciding_look(flags, step.looks, 0.95, step.alpha)
    assert look is not None
    word = "FAIL" if said.hard_break else look.verdict if said.valid else "UNDECIDED"
    return Outcome(
        concurrency=step.concurrency,
        purpose=step.purpose,
        valid=said.valid,
        verdict=word,
        hard_break=said.hard_break,
        good=look.good,
        batch=look.batch,
        offered=look.size,
        use=0.5,
        tpot_ms=said.tpot_ms,
        tokens_per_s=100.0,
        rate_per_s=step.rate_per_s,
        requests_per_s=X if step.rate_per_s is None else step.rate_per_s,
        prompt_tokens_per_s=28_000.0,
        in_tokens=1154.70,
        out_tokens=211.126,
        e2e_s=1.25,
        in_flight_p95=None if step.rate_per_s is None else 11.0,
        kv_use_p99=None if step.rate_per_s is None else 0.55,
    )


def walk(answer: Answer, given: SearchRules) -> tuple[list[Measure], list[Outcome], Stop]:
    draw = random.Random(1)
    steps: list[Measure] = []
    history: list[Outcome] = []
    while isinstance(step := next_step(history, given), Measure):
        steps.append(step)
        history.append(measured(step, answer(step), draw))
        assert len(steps) < 300, "the check does not end"
    return steps, history, step


def found(answer: Answer, given: SearchRules | None = None) -> tuple[list[Measure], OpenLoop]:
    steps, _, stop = walk(answer, given or rules())
    assert (stop.c_ok, stop.confirmed_ok) == (C_OK, True)
    assert stop.open_loop is not None
    return steps, stop.open_loop


def tried(steps: list[Measure], purpose: str) -> list[float]:
    """As shares of X."""
    return [round(s.rate_per_s / X, 2) for s in steps if s.purpose == purpose and s.rate_per_s is not None]


def test_the_rate_is_searched_upwards_and_confirmed_by_three_seeds() -> None:
    steps, check = found(up_to(0.91 * X))
    assert tried(steps, "rate") == [0.80, 0.85, 0.90, 0.95]
    assert tried(steps, "confirm-rate") == [0.90, 0.90, 0.90]
    assert check.rate_ok == pytest.approx(0.90 * X)
    assert check.rate_bad == pytest.approx(0.95 * X)
    assert check.unknown is False


def test_the_rate_is_searched_downwards() -> None:
    steps, check = found(up_to(0.62 * X))
    assert tried(steps, "rate") == [0.80, 0.75, 0.70, 0.65, 0.60]
    assert check.rate_ok == pytest.approx(0.60 * X)
    assert check.rate_bad == pytest.approx(0.65 * X)


def test_never_above_the_throughput_of_the_closed_loop() -> None:
    steps, check = found(up_to(9 * X))
    assert tried(steps, "rate")[-1] == 1.0
    assert check.rate_ok == pytest.approx(X)
    assert check.rate_bad is None


def test_where_no_rate_holds_nothing_is_replayed() -> None:
    steps, check = found(up_to(0.2 * X))
    assert tried(steps, "rate")[-1] == 0.30
    assert not tried(steps, "confirm-rate")
    assert not tried(steps, "replay")
    assert (check.rate_ok, check.unknown) == (None, False)
    assert check.rate_bad == pytest.approx(0.30 * X)


def test_the_numbers_of_the_margin() -> None:
    """The vectors of beta and F: lambda_sign = lambda_P / F."""
    _, check = found(up_to(0.80 * X))
    assert check.throughput == pytest.approx(X)
    assert check.beta == pytest.approx(2.804131, abs=5e-7)
    expected = SWINGS and SWINGS.factor(check.beta)
    assert (check.sigma, check.peak, check.factor) == expected
    assert check.factor == pytest.approx(1.7460, abs=1e-4)
    assert check.rate_sign == pytest.approx(0.80 * X / (check.factor or 0))
    assert (check.replays, check.in_flight_p95, check.kv_use_p99) == (1, 11.0, 0.55)


def test_a_replay_that_does_not_hold_is_repeated_five_percent_lower() -> None:
    first = 0.80 * X / 1.7461
    steps, check = found(up_to(0.80 * X, replayed=0.88 * first))
    replays = [step.rate_per_s or 0 for step in steps if step.purpose == "replay"]
    assert [round(rate / replays[0], 4) for rate in replays] == [1.0, 0.95, 0.9025, 0.8574]
    assert (check.rate_sign, check.replays) == (replays[-1], 4)


def test_a_replay_that_never_holds_ends_all_the_same() -> None:
    steps, check = found(up_to(0.80 * X, replayed=0.0))
    assert (check.rate_sign, check.replays) == (None, 11)
    assert len(tried(steps, "replay")) == 11


def test_without_expected_traffic_the_least_factor_stands_and_nothing_is_replayed() -> None:
    steps, check = found(up_to(0.80 * X), rules(traffic="", swings=None))
    assert (check.factor, check.rate_sign, check.replays) == (1.10, None, 0)
    assert not tried(steps, "replay")


def test_levels_are_long_enough() -> None:
    steps, _ = found(up_to(0.80 * X))
    for step in steps:
        if step.rate_per_s is not None:
            assert step.looks[-1] >= max(1600, 10 * C_OK, 0.8 * 300 * step.rate_per_s)
            assert step.looks[-1] % 10 == 0
            assert step.min_seconds == 300
    prefill = next(step for step in steps if step.purpose == "prefill")
    assert (prefill.concurrency, prefill.min_seconds, prefill.rate_per_s) == (C_OK, 60, None)


def test_levels_are_large_enough_to_prove_a_high_target() -> None:
    given = msgspec.structs.replace(rules(), target=0.995)
    _, history, _ = walk(lambda step: Said(), given)
    open_levels = [o for o in history if o.rate_per_s is not None]
    assert open_levels
    assert all(len(o.good) * o.batch >= 4 * 780 for o in open_levels), "0.02 ** (1 / 780) > 0.995"


def test_a_client_that_is_too_slow_is_not_the_servers_fault() -> None:
    steps, check = found(lambda step: Said(valid=step.rate_per_s is None))
    assert tried(steps, "rate") == [0.80, 0.80, 0.75, 0.75]
    assert (check.rate_ok, check.unknown) == (None, True)


@pytest.mark.parametrize(("void", "unknown"), [(0.80, False), (0.50, False), (0.30, True)])
def test_only_the_lowest_rate_says_that_none_holds(void: float, unknown: bool) -> None:
    """A rate above it that could not be measured is beside the point; where itself could not be, nothing is known."""

    def answer(step: Measure) -> Said:
        rate = (step.rate_per_s or 0) / X
        return up_to(0.2 * X)(step)._replace(valid=abs(rate - void) > 1e-9)

    steps, check = found(answer)
    assert len(tried(steps, "rate")) == 12, "one of eleven rates twice"
    assert (check.rate_ok, check.unknown) == (None, unknown)


def test_where_the_lowest_rate_cannot_be_confirmed_validly_nothing_is_known() -> None:
    def answer(step: Measure) -> Said:
        return up_to(0.31 * X)(step)._replace(valid=step.purpose != "confirm-rate")

    steps, check = found(answer)
    assert tried(steps, "confirm-rate") == [0.30, 0.30]
    assert (check.rate_ok, check.unknown) == (None, True)


def test_a_rate_that_was_measured_invalidly_is_no_rate_that_did_not_hold() -> None:
    def answer(step: Measure) -> Said:
        return Said(valid=step.purpose != "confirm-rate") if (step.rate_per_s or 0) > 0.75 * X else Said()

    _, check = found(answer)
    assert check.rate_ok == pytest.approx(0.75 * X)
    assert (check.rate_bad, check.unknown) == (None, False)


def test_the_sentinel_is_looked_at_once_more() -> None:
    steps, check = found(up_to(0.80 * X))
    assert (steps[-1].purpose, check.drifted) == ("sentinel", False)
    sentinels = [step for step in steps if step.purpose == "sentinel"]
    last = sentinels[-1]
    _, drifting = found(lambda step: up_to(0.80 * X)(step)._replace(tpot_ms=21.0 if step == last else 20.0))
    assert drifting.drifted is True


def test_a_drift_in_small_steps_is_a_drift_from_the_first_sentinel() -> None:
    steps, _ = found(up_to(0.80 * X))
    sentinels = [step for step in steps if step.purpose == "sentinel"]
    last = len(sentinels) - 1
    tpot_ms = {step.replicate: 20.0 + 0.5 * n / (last - 1) for n, step in enumerate(sentinels[:last])}
    tpot_ms[sentinels[last].replicate] = 21.0  # 2.4 % from the one before it, 5 % from the first

    def answer(step: Measure) -> Said:
        said = up_to(0.80 * X)(step)
        return said._replace(tpot_ms=tpot_ms[step.replicate]) if step.purpose == "sentinel" else said

    assert found(answer)[1].drifted is True


def test_nothing_follows_a_search_that_confirmed_nothing_or_rules_without_a_check() -> None:
    steps, _, stop = walk(lambda step: Said(0.5), rules())
    assert stop.open_loop is None
    assert all(step.rate_per_s is None for step in steps)
    plain = SearchRules(method="full", start=C_OK, maximum=C_OK, confirm=3)
    assert walk(up_to(X), plain)[2].open_loop is None


def test_runs_that_hold_together_are_enough_though_none_is_decided_alone() -> None:
    step = Measure(concurrency=C_OK, purpose="confirm", replicate=0, looks=(1600,), alpha=0.02)
    run = msgspec.structs.replace(measured(step, Said(), random.Random(1)), verdict="UNDECIDED")
    stop = Stop(c_ok=C_OK, c_bad=None, confirmed_ok=True, confirmed_bad=False, monotone=True, why="", drifted=False)
    phase = open_loop(rules(), stop, [run] * 3)
    assert next(phase).purpose == "prefill"


def test_the_quick_search_can_be_followed_too() -> None:
    quick = SearchRules(start=C_OK, maximum=C_OK, open_loop=OpenRules(requests=400))
    history: list[Outcome] = []
    draw = random.Random(3)
    while isinstance(step := next_step(history, quick), Measure):
        sized = step if step.looks else msgspec.structs.replace(step, looks=(400,))
        history.append(measured(sized, up_to(0.80 * X)(step), draw))
    assert step.open_loop is not None
    assert step.open_loop.rate_ok == pytest.approx(0.80 * X)
    assert step.open_loop.drifted is None
    assert history[-1].purpose == "confirm-rate"


def test_what_the_search_found_stands_while_the_check_goes_on() -> None:
    steps, history, stop = walk(up_to(0.80 * X), rules())
    first = next(i for i, step in enumerate(steps) if step.purpose == "prefill")
    assert progress(history[: first - 1], rules()).so_far is None
    for cut in range(first, len(history)):
        so_far = progress(history[:cut], rules()).so_far
        assert so_far is not None
        assert (so_far.c_ok, so_far.open_loop) == (C_OK, None)
    assert progress(history, rules()) == (stop, stop)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_card_whatever_it_does(data: st.DataObject) -> None:
    words = st.sampled_from(["good", "good", "good", "bad", "edge", "invalid", "broke"])
    answers = {
        "good": Said(),
        "bad": Said(0.5),
        "edge": Said(0.96),
        "invalid": Said(valid=False),
        "broke": Said(hard_break="server died"),
    }

    def answer(step: Measure) -> Said:
        return Said() if step.rate_per_s is None and step.purpose != "prefill" else answers[data.draw(words)]

    steps, history, stop = walk(answer, rules())
    check = stop.open_loop
    assert check is not None
    assert len({(step.concurrency, step.replicate) for step in steps}) == len(steps)
    rates = [step.rate_per_s for step in steps if step.rate_per_s is not None and step.purpose != "replay"]
    assert all(0.299 * X < rate < 1.001 * X for rate in rates)
    if check.rate_ok is not None:
        good = [o for o in history if o.purpose == "confirm-rate" and o.rate_per_s == check.rate_ok and o.valid]
        assert len(good) >= 3
        assert not any(o.fails for o in good)
        assert check.rate_bad is None or check.rate_bad > check.rate_ok
    if check.rate_sign is not None:
        assert history[-1 if history[-1].purpose == "replay" else -2].holds
    cut = data.draw(st.integers(0, len(history)))
    expected: Measure | Stop = steps[cut] if cut < len(steps) else stop
    assert next_step(history[:cut], rules()) == expected
