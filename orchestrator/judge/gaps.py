"""What stands between a cell and SIGNED: steps that were not done, were cut, or are flagged. A sentence each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from orchestrator.judge.bounds import error_bounds
from orchestrator.judge.cause import JudgedLevel
from orchestrator.judge.rules import LevelRules
from orchestrator.judge.steps import CHECKING, SEARCHING, Bracket, Measure, OpenLoop, OpenRules, SearchRules, Stop
from orchestrator.records import ServerFailure, Slo

SWING_S = 60.0
"""The factor F is of the offered work per so many seconds."""
LEAST_OPEN_S = OpenRules().min_seconds
"""Shortest open level by which a rate may be signed."""
KV_HEADROOM = 0.90
"""p99 of the KV use in the replay must be below this."""

NO_SENTINEL = "No sentinel level was run, so a drift of the machine during the run is not ruled out."
NO_OPEN_LOOP = "No open-loop check was made: which rate of independent arrivals holds is not known."
NO_REPLAY = "The expected traffic was not replayed, so its bursts are not covered."
CONSTANT = "Constant lengths are for comparison with published results: no service asks like that."
NO_USERS = "Only 1 user held, and 80 % of that is none: there is no number of users that may be signed."
NO_SWINGS = (
    "How the expected traffic swings from minute to minute was not measured (a law has a constant rate; a trace needs "
    "two minutes at least), so F covers none: name a trace of your own ([open_loop] trace), or a preset (arrivals)."
)
NO_TRAFFIC = (
    "Nothing is known of the traffic that is expected, so its bursts are not covered: name it in the plan "
    "([open_loop] trace or arrivals)."
)


class Shrunk(NamedTuple):
    """A start with less context than was asked, tokens."""

    asked: int | None
    """None: the model's own."""
    served: int

    @property
    def asked_words(self) -> str:
        return "model's own context" if self.asked is None else f"{self.asked:,} that were asked"


def search_gaps(
    found: Bracket, stop: Stop | None, failure: ServerFailure | None, unstable: int | None
) -> Iterator[str]:
    if failure is not None:
        yield f"The search was not finished, because the server did not stay up: {failure.message}"
    elif stop is None:
        yield "The search was not finished."
    yield from _ok_gaps(found.c_ok, stop)
    if stop is not None and stop.drifted:
        yield "The sentinels moved by more than 3 %, twice: the machine drifted while it was measured."
    if found.c_bad is not None and (stop is None or not stop.confirmed_bad):
        yield f"That the level at {found.c_bad} does not hold was not confirmed by a fresh run."
    if not found.monotone:
        yield "A level held above one that did not: the system is not stable."
    if unstable is not None:
        yield f"The server broke in one run at {unstable} users and not in another; nothing above half of it is safe."


def _ok_gaps(c_ok: int | None, stop: Stop | None) -> Iterator[str]:
    if c_ok is None:
        return
    if stop is None or not stop.confirmed_ok:
        yield f"That the level at {c_ok} holds was not confirmed by a fresh run."
    if stop is None or stop.drifted is None:
        yield "Levels were decided on observed shares; signing takes three fresh runs and their confidence bounds."


def level_gaps(levels: Sequence[JudgedLevel], found: Bracket, slo: Slo) -> Iterator[str]:
    for run, _, verdict in levels:  # whatever it was asked for: a sentinel and a prefill probe are users too
        if verdict.hard_break and not run.spec.is_open and run.spec.concurrency <= (found.c_ok or 0):
            yield f"The server broke at {run.spec.concurrency} users: {verdict.hard_break}."
    levels = [level for level in levels if level[0].spec.purpose in SEARCHING]
    judged = [(run.spec.concurrency, run.spec.purpose) for run, _, verdict in levels if verdict.valid]
    measured = {c for c, _ in judged}
    told: set[int] = set()
    for run, _, verdict in levels:
        c, fresh = run.spec.concurrency, run.spec.purpose == "confirm"
        if c in told or verdict.valid:
            continue
        if c not in measured or (fresh and c == found.c_ok and (c, "confirm") not in judged):
            told.add(c)
            yield f"{'A fresh run' if c in measured else 'The level'} at {c} is INVALID. {' '.join(verdict.invalid)}"
    used = [level for level in levels if level[2].valid and level[0].spec.concurrency in (found.c_ok, found.c_bad)]
    for run, _, verdict in used:
        yield from (f"At {run.spec.concurrency} users: {flag}" for flag in verdict.flags)
    if found.c_ok is not None and (unproven := _unproven_errors(levels, found.c_ok, slo)):
        yield unproven


def _unproven_errors(levels: Sequence[JudgedLevel], c_ok: int, slo: Slo) -> str | None:
    """S2 on the pooled runs at c_ok: a sentence unless they prove the error budget."""
    runs = [stats for run, stats, verdict in levels if verdict.valid and run.spec.concurrency == c_ok]
    failed, offered = sum(s.failed for s in runs), sum(s.offered for s in runs)
    alpha = LevelRules().alpha
    if offered and error_bounds(failed, offered, alpha).upper < slo.error_budget:
        return None
    told = f"{failed} of {offered} requests at {c_ok} users failed, which does not prove at most {slo.error_budget:.2%}"
    if not 0 < slo.error_budget < 1 or failed:
        return f"{told}."
    return f"{told}: that takes {math.ceil(math.log(alpha) / math.log1p(-slo.error_budget)):,} without a failure."


def lengths_gap(levels: Sequence[JudgedLevel], c_ok: int) -> str:
    served = next((s.mean_out_tokens for run, s, _ in levels if run.spec.concurrency == c_ok), None)
    told = "" if served is None else f" ({served:.0f} tokens came on average)"
    return f"The stack cannot be held to the demanded output lengths{told}, so the load is not exactly the one planned."


# --- the open-loop check ----------------------------------------------------------------------------------------


def open_gaps(
    levels: Sequence[JudgedLevel], stop: Stop | None, rules: SearchRules | None, pending: Measure | None
) -> Iterator[str]:
    """Of a cell with a level that holds. `pending`: the step before which the run ended."""
    check = None if stop is None else stop.open_loop
    own = None if rules is None or stop is None else rules.open_loop
    if stop is None or stop.drifted is None:
        yield NO_SENTINEL
    if check is None:
        begun = own is not None and pending is not None and pending.purpose in {*CHECKING, "sentinel"}
        yield f"The open-loop check was cut before its step {pending}." if begun else NO_OPEN_LOOP
        yield NO_REPLAY
        return
    if check.rate_ok is not None:
        yield from _replay_gaps(check, own or OpenRules())
    elif check.unknown:
        yield "Which rate of independent arrivals holds is not known: those measurements are INVALID."
    yield from _open_level_gaps(levels, check)
    if check.drifted:
        yield "The sentinel moved by more than 3 % during the open-loop check: the machine drifted."
    elif check.drifted is None and stop is not None and stop.drifted is not None:
        yield "The sentinel after the open-loop check is INVALID, so a drift during it is not ruled out."


def _open_level_gaps(levels: Sequence[JudgedLevel], check: OpenLoop) -> Iterator[str]:
    """Of the open levels that count: too short a time, flags; and hard breaks at rates that are said to hold."""
    counting = [run.spec for run, _, v in levels if v.valid and run.spec.rate_per_s in (check.rate_ok, check.rate_sign)]
    shortest = min((round(spec.min_seconds) for spec in counting if spec.is_open), default=None)
    if shortest is not None and shortest < LEAST_OPEN_S:
        yield (
            f"An open level lasted {shortest} s by this plan, and {LEAST_OPEN_S:.0f} s are the least that may be "
            "signed, because a queue that grows slowly does not show in less (open_loop.min_seconds)."
        )
    for run, _, verdict in levels:
        rate = run.spec.rate_per_s
        if rate is None or not verdict.valid:
            continue
        if verdict.hard_break and rate <= (check.rate_ok or 0.0):
            yield f"The server broke at {rate:.3g} requests/s: {verdict.hard_break}."
        if rate in (check.rate_ok, check.rate_sign):
            yield from (f"At {rate:.3g} requests/s: {flag}" for flag in verdict.flags)


def traffic_gaps(own: OpenRules) -> Iterator[str]:
    """What is not known of the expected traffic: it stands in the plan."""
    if not own.traffic:
        yield NO_TRAFFIC
    elif own.swings is None:
        yield NO_SWINGS
    elif own.swings.bin_s > SWING_S:
        yield (
            f"The swings of the expected traffic are known in steps of {own.swings.bin_s:,.0f} s only, so those from "
            "minute to minute are not covered: name a trace of your own ([open_loop] trace)."
        )


def _replay_gaps(check: OpenLoop, own: OpenRules) -> Iterator[str]:
    yield from traffic_gaps(own)
    if not own.traffic:
        return
    if check.rate_sign is None and check.unknown:
        yield "The replay of the expected traffic is INVALID, so its bursts are not covered."
    elif check.rate_sign is None:
        yield f"The expected traffic did not hold at any mean rate at which it was replayed ({check.replays} tried)."
    elif check.kv_use_p99 is not None and check.kv_use_p99 >= KV_HEADROOM:
        yield (
            f"It fits, but barely: {check.kv_use_p99:.0%} of the KV pool were in use while the expected traffic was "
            f"replayed (p99), and {KV_HEADROOM:.0%} are the most that may be signed."
        )


def shrunk_gap(shrunk: Shrunk, levels: Sequence[JudgedLevel]) -> str:
    cut, offered = sum(stats.clamped for _, stats, _ in levels), sum(stats.offered for _, stats, _ in levels)
    told = f"There was no room for the {shrunk.asked_words}, so the context served is {shrunk.served:,} tokens"
    if not cut:
        return f"{told}; no request was longer than that."
    return f"{told}, and {cut:,} of {offered:,} requests were cut to it: this cell asks for less than the plan."
