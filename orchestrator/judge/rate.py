"""The open-loop check: which rate of independent arrivals holds, and which mean rate of the expected traffic.

    prefill probe · rates on a grid · confirm · replay, 5 % lower until it holds · sentinel

It follows a search that confirmed a level, at rates that are shares of the throughput X there (METHOD.md, the margin).
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from functools import partial
from typing import Literal

import msgspec

from orchestrator.judge.fresh import confirmed
from orchestrator.judge.steps import (
    Measure,
    OpenLoop,
    OpenRules,
    Outcome,
    Script,
    SearchRules,
    Stop,
    last_pass,
    moved,
)
from orchestrator.judge.swings import LEAST_FACTOR, Factor, output_cost
from orchestrator.records import Purpose

STEPS_OF_X = 20
"""Rates are tried at twentieths of X ..."""
FIRST, LOWEST, HIGHEST = 16, 6, 20
"""... beginning at 0.80, from 0.30 to 1.00."""
REPLAY_STEP, MOST_REPLAYS = 0.95, 11
"""A replay that does not hold is repeated 5 % lower, down to 60 % of the first."""
LENGTH_IN_E2E = 20
"""A level lasts so many mean end-to-end times."""

Held = Literal["held", "not held", "unknown"]


def open_loop(rules: SearchRules, stop: Stop, history: Sequence[Outcome]) -> Script:
    """The phase. It begins only where a level is confirmed on a machine that did not drift."""
    if rules.open_loop is None or stop.c_ok is None or not stop.confirmed_ok or stop.drifted:
        return stop
    fresh = (o for o in history if o.purpose == "confirm" and o.concurrency == stop.c_ok)
    at_c_ok = [o for o in fresh if o.valid and not o.fails]  # together they hold, though none may be decided alone
    throughput = _mean([o.requests_per_s for o in at_c_ok])
    if not throughput:
        return stop
    check = _Check(rules, rules.open_loop, stop.c_ok, throughput, at_c_ok, history)
    return msgspec.structs.replace(stop, open_loop=(yield from check.script()))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


class _Check:
    """One check while it is replayed."""

    def __init__(
        self,
        rules: SearchRules,
        own: OpenRules,
        c_ok: int,
        throughput: float,
        at_c_ok: Sequence[Outcome],
        before: Sequence[Outcome],
    ) -> None:
        self._rules, self._own = rules, own
        self._c_ok, self._throughput, self._at_c_ok = c_ok, throughput, at_c_ok
        self._before = before
        self._measured = 0
        self._invalid: set[float] = set()
        """Rates at which a level was INVALID, twice."""
        self._failed: list[int] = []
        """Twentieths of X that did not hold."""

    def script(self) -> Generator[Measure, Outcome, OpenLoop]:
        beta = yield from self._beta()
        best = yield from self._search()
        rate = None if best is None else (yield from self._confirm(best))
        found = OpenLoop(
            throughput=self._throughput,
            rate_ok=rate,
            rate_bad=self._lowest_bad(rate),
            unknown=rate is None and LOWEST not in self._failed,
            beta=beta,
        )
        if rate is not None:
            found = yield from self._replay(found, rate, self._factor(beta))
        return msgspec.structs.replace(found, drifted=(yield from self._sentinel()))

    # --- asking -------------------------------------------------------------------------------------------------

    def _ask(self, purpose: Purpose, rate: float) -> Generator[Measure, Outcome, Outcome | None]:
        """An open level; once more if it was INVALID, None if it is INVALID again."""
        for _ in range(2):
            outcome = yield Measure(
                concurrency=0,
                purpose=purpose,
                replicate=self._measured,
                looks=(self._size(rate),),
                alpha=self._rules.alpha,
                rate_per_s=rate,
                min_seconds=self._least_seconds(),
            )
            self._measured += 1
            if outcome.valid:
                return outcome
        self._invalid.add(rate)
        return None

    def _least_seconds(self) -> float:
        return max(self._own.min_seconds, LENGTH_IN_E2E * (_mean([o.e2e_s for o in self._at_c_ok]) or 0.0))

    def _size(self, rate: float) -> int:
        """Measured requests, in tens: they are 80 % of what is due, no batch is smaller than c_ok, and without one miss
        they prove the target (they count for a quarter then)."""
        provable = 4 * math.log(self._rules.alpha) / math.log(self._rules.target) if self._rules.target < 1 else 0.0
        seconds = self._least_seconds()
        least = max(self._own.requests, 10 * self._c_ok, math.ceil(0.8 * seconds * rate), math.ceil(provable))
        return -(-least // 10) * 10

    # --- what an output token costs -----------------------------------------------------------------------------

    def _beta(self) -> Generator[Measure, Outcome, float | None]:
        c = self._c_ok
        outcome = yield Measure(
            concurrency=c,
            purpose="prefill",
            replicate=sum(o.concurrency == c for o in self._before),
            looks=(10 * c,),
            min_seconds=self._own.prefill_seconds,
        )
        prompt, output = (_mean([getattr(o, name) for o in self._at_c_ok]) for name in ("in_tokens", "out_tokens"))
        if not outcome.valid or not outcome.prompt_tokens_per_s or prompt is None or output is None:
            return None
        return output_cost(outcome.prompt_tokens_per_s, self._throughput, prompt, output)

    def _factor(self, beta: float | None) -> Factor:
        swings = self._own.swings
        return Factor(0.0, 1.0, LEAST_FACTOR) if swings is None else swings.factor(beta)

    # --- lambda_P -----------------------------------------------------------------------------------------------

    def _rate(self, step: int) -> float:
        return self._throughput * step / STEPS_OF_X

    def _holds(self, step: int) -> Generator[Measure, Outcome, Held]:
        outcome = yield from self._ask("rate", self._rate(step))
        if outcome is None:
            return "unknown"
        undecided = outcome.verdict == "UNDECIDED" and outcome.share >= self._rules.aim
        if outcome.holds or undecided:
            return "held"
        self._failed.append(step)
        return "not held"

    def _search(self) -> Generator[Measure, Outcome, int | None]:
        """The last rate on the grid that holds, from the first upwards or downwards; None = none does.

        Given up once two rates could not be measured validly: what is slow then is not the server.
        """
        step, unknown = FIRST, 0
        while (held := (yield from self._holds(step))) != "held":
            unknown += held == "unknown"
            step -= 1
            if step < LOWEST or unknown == 2:
                return None
        if step == FIRST:
            while step < HIGHEST and (yield from self._holds(step + 1)) == "held":
                step += 1
        return step

    def _confirm(self, best: int) -> Generator[Measure, Outcome, float | None]:
        """The highest rate that fresh runs confirm, from `best` downwards."""
        for step in range(best, LOWEST - 1, -1):
            rate = self._rate(step)
            fresh = partial(self._ask, "confirm-rate", rate)
            if (yield from confirmed(self._rules, fresh)):
                return rate
            if rate not in self._invalid:
                self._failed.append(step)
        return None

    def _lowest_bad(self, rate: float | None) -> float | None:
        return min((self._rate(step) for step in self._failed if self._rate(step) > (rate or 0.0)), default=None)

    # --- lambda_sign --------------------------------------------------------------------------------------------

    def _replay(self, found: OpenLoop, rate: float, factor: Factor) -> Generator[Measure, Outcome, OpenLoop]:
        """The expected traffic at lambda_P / F, 5 % lower until it holds."""
        found = msgspec.structs.replace(found, sigma=factor.sigma, peak=factor.peak, factor=factor.factor)
        if not self._own.traffic:
            return found
        for number in range(MOST_REPLAYS):
            mean = rate / factor.factor * REPLAY_STEP**number
            outcome = yield from self._ask("replay", mean)
            if outcome is None:
                return msgspec.structs.replace(found, replays=number + 1, unknown=True)
            if outcome.holds:
                return msgspec.structs.replace(
                    found,
                    rate_sign=mean,
                    replays=number + 1,
                    in_flight_p95=outcome.in_flight_p95,
                    kv_use_p99=outcome.kv_use_p99,
                )
        return msgspec.structs.replace(found, replays=MOST_REPLAYS)

    # --- drift --------------------------------------------------------------------------------------------------

    def _sentinel(self) -> Generator[Measure, Outcome, bool | None]:
        """The sentinel once more, against each of the search's last pass: of small steps none may be a drift, though
        all of them are."""
        known = last_pass(self._before)
        if not known:
            return None
        outcome = yield Measure(
            concurrency=1,
            purpose="sentinel",
            replicate=sum(o.concurrency == 1 for o in self._before) + (self._c_ok == 1),
            looks=(self._rules.sentinel_requests,),
            alpha=self._rules.alpha,
        )
        return any(moved(earlier, outcome) for earlier in known) if outcome.valid else None
