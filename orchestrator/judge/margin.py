"""What may be said of a cell: SIGNED, PROVISIONAL or REFUSED, how many users, where it breaks, what is missing.

This version runs no open loop and replays no traffic, so it signs nothing: a cell is PROVISIONAL at best, and each step
that is missing is named.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from orchestrator.judge.bounds import error_bounds
from orchestrator.judge.cause import Cause, JudgedLevel, cause_of_break, cause_of_failure
from orchestrator.judge.rules import LevelRules
from orchestrator.judge.search import Bracket, Outcome, Stop, bracket, searched
from orchestrator.records import Criterion, Record, ServerFailure, Slo

SIGNABLE_SHARE = 0.8
"""Of c_ok: stands for the variation between machines and days."""

NOT_DONE = (
    "No sentinel level was run, so a drift of the machine during the run is not ruled out.",
    "No open-loop check was made: which rate of independent arrivals holds is not known.",
    "The expected traffic was not replayed, so its bursts are not covered.",
)
"""Steps that signing needs and this version does not take."""


class Shrunk(NamedTuple):
    """A start with less context than was asked, tokens."""

    asked: int | None
    """None: the model's own."""
    served: int

    @property
    def asked_words(self) -> str:
        return "model's own context" if self.asked is None else f"{self.asked:,} that were asked"


class CellVerdict(Record, frozen=True, kw_only=True):
    """The verdict of a cell."""

    verdict: Literal["SIGNED", "PROVISIONAL", "REFUSED"]
    c_ok: int | None = None
    """Most users at once that held."""
    c_bad: int | None = None
    """Fewest users above c_ok that did not hold; None = no break was found."""
    c_sign: int | None = None
    """Most users that may be signed, as far as the steps taken tell; None = none."""
    first_failing: Criterion | None = None
    """The first binding criterion that failed at c_bad."""
    break_level: int | None = None
    """Position in the given levels of the run at c_bad that failed."""
    limiter: str = "none found"
    """What the break points to; "unknown" when the evidence does not decide."""
    evidence: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    """Steps not done, or flagged: a sentence each."""
    sentence: str
    """What may be said, in plain English."""


def cell_verdict(
    levels: Sequence[JudgedLevel],
    stop: Stop | None,
    slo: Slo,
    *,
    lengths_forced: bool,
    failure: ServerFailure | None,
    shrunk: Shrunk | None = None,
) -> CellVerdict:
    """The verdict of a cell from its levels in the order of measuring.

    `stop` is None where the search did not come to its end; `failure` is why the server did not come up (again);
    `shrunk` where it came up with less context than was asked.
    """
    outcomes = [_outcome(level) for level in levels]
    found = bracket(outcomes) if stop is None else Bracket(stop.c_ok, stop.c_bad, stop.monotone)
    at = _break_position(levels, found.c_bad)
    cause = _cause(levels, at, failure)
    unstable = _unstable(outcomes)
    first_failing = None if at is None else _first_failing(levels[at])
    verdict: Literal["PROVISIONAL", "REFUSED"] = "REFUSED"
    if found.c_ok is None:
        sentence = _nothing_held(found, stop, failure, outcomes)
    elif unstable is not None and unstable // 2 < min(o.concurrency for o in outcomes):
        sentence = f"The server broke in one run at {unstable} users and not in another: it cannot be relied on."
    else:
        verdict, sentence = "PROVISIONAL", _sentence(levels, found.c_ok, found.c_bad, slo, first_failing)
    if shrunk is not None and outcomes:
        sentence = f"{sentence} This is at a context of {shrunk.served:,} tokens, not the {shrunk.asked_words}."
    missing = [
        *([] if shrunk is None else [_shrunk(shrunk, levels)]),
        *_search_gaps(found, stop, failure, unstable),
        *_level_gaps(levels, found, slo),
        *([] if lengths_forced or found.c_ok is None else [_lengths(levels, found.c_ok)]),
        *(_not_done(stop) if verdict == "PROVISIONAL" else ()),
    ]
    return CellVerdict(
        verdict=verdict,
        c_ok=found.c_ok,
        c_bad=found.c_bad,
        c_sign=_c_sign(found.c_ok, unstable) if verdict == "PROVISIONAL" else None,
        first_failing=first_failing,
        break_level=at,
        limiter=cause.limiter,
        evidence=cause.evidence,
        missing=tuple(dict.fromkeys(missing)),
        sentence=sentence,
    )


def _not_done(stop: Stop | None) -> tuple[str, ...]:
    """What signing takes beside the search; the full search has its sentinels."""
    return NOT_DONE if stop is None or stop.drifted is None else NOT_DONE[1:]


def _outcome(level: JudgedLevel) -> Outcome:
    return Outcome.of(*level)


def _break_position(levels: Sequence[JudgedLevel], c_bad: int | None) -> int | None:
    """The first valid run at c_bad that failed, or else that did not hold."""
    at_bad = [(i, _outcome(level)) for i, level in enumerate(levels) if level[0].spec.concurrency == c_bad]
    failed = [i for i, o in at_bad if o.fails and searched(o)]
    unsure = [i for i, o in at_bad if o.valid and not o.holds and searched(o)]
    return next(iter(failed + unsure), None)


def _first_failing(level: JudgedLevel) -> Criterion | None:
    return next((c for c in level[2].criteria if c.binding and c.verdict == "FAIL"), None)


def _cause(levels: Sequence[JudgedLevel], at: int | None, failure: ServerFailure | None) -> Cause:
    if at is not None:
        return cause_of_break(levels[at], levels)
    return Cause("none found") if failure is None else cause_of_failure(failure)


def _unstable(outcomes: Sequence[Outcome]) -> int | None:
    """Lowest level that broke hard in one valid run and not in another."""
    broke: dict[int, set[bool]] = {}
    for o in outcomes:
        if o.valid and searched(o):
            broke.setdefault(o.concurrency, set()).add(o.hard_break is not None)
    return min((c for c, seen in broke.items() if len(seen) == 2), default=None)


def _c_sign(c_ok: int | None, unstable: int | None) -> int | None:
    if c_ok is None:
        return None
    most = math.floor(SIGNABLE_SHARE * c_ok)
    return (most if unstable is None else min(most, unstable // 2)) or None


def _nothing_held(found: Bracket, stop: Stop | None, failure: ServerFailure | None, outcomes: Sequence[Outcome]) -> str:
    """Why there is nothing to sign."""
    if not outcomes:
        return f"Nothing was measured: {failure.message}" if failure else "Nothing was measured yet."
    if stop is not None:
        return stop.why
    if found.c_bad is not None:
        return f"No level held: the lowest that did not is {_users(found.c_bad)}."
    return f"No level held: {failure.message}" if failure else "No level has been measured validly yet."


def _users(c: int) -> str:
    return "1 user" if c == 1 else f"{c} users at once"


# --- what is missing --------------------------------------------------------------------------------------------


def _search_gaps(
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


def _level_gaps(levels: Sequence[JudgedLevel], found: Bracket, slo: Slo) -> Iterator[str]:
    measured = {run.spec.concurrency for run, _, verdict in levels if verdict.valid}
    for run, _, verdict in levels:
        if run.spec.concurrency not in measured:
            yield f"The level at {run.spec.concurrency} is INVALID. {' '.join(verdict.invalid)}"
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


def _shrunk(shrunk: Shrunk, levels: Sequence[JudgedLevel]) -> str:
    cut, offered = sum(stats.clamped for _, stats, _ in levels), sum(stats.offered for _, stats, _ in levels)
    told = f"There was no room for the {shrunk.asked_words}, so the context served is {shrunk.served:,} tokens"
    if not cut:
        return f"{told}; no request was longer than that."
    return f"{told}, and {cut:,} of {offered:,} requests were cut to it: this cell asks for less than the plan."


def _lengths(levels: Sequence[JudgedLevel], c_ok: int) -> str:
    served = next((s.mean_out_tokens for run, s, _ in levels if run.spec.concurrency == c_ok), None)
    told = "" if served is None else f" ({served:.0f} tokens came on average)"
    return f"The stack cannot be held to the demanded output lengths{told}, so the load is not exactly the one planned."


# --- the sentence -----------------------------------------------------------------------------------------------


def _sentence(
    levels: Sequence[JudgedLevel], c_ok: int, c_bad: int | None, slo: Slo, first_failing: Criterion | None
) -> str:
    held = [s for run, s, v in levels if run.spec.concurrency == c_ok and v.valid and v.verdict == "PASS"]
    good, offered = sum(s.good for s in held), sum(s.offered for s in held)
    runs = "one run" if len(held) == 1 else f"{len(held)} runs"
    told = f"{_users(c_ok)} held in {runs}: {good / max(offered, 1):.1%} of {offered} requests met the SLO"
    told = f"{told} ({slo.attainment:.1%} are asked)"
    if c_bad is None:
        return f"{told}; no break was found above."
    return f"{told}; {_users(c_bad)} did not" + (f": {reading(first_failing)}." if first_failing else ".")


def reading(criterion: Criterion) -> str:
    """A failing criterion's value, limit and distance in words: ``SLO attainment 91.2 %, 3.8 points under 95.0 %``."""
    if criterion.value is None or criterion.limit is None:
        return criterion.note or criterion.name
    value, limit = criterion.value, criterion.limit
    if criterion.id.startswith("S1"):
        return f"{criterion.name} {value:.1%}, {100 * abs(limit - value):.1f} points under the target of {limit:.1%}"
    if criterion.id == "S2":
        return f"{criterion.name} {value:.2%}, more than {limit:.2%}"
    return f"{criterion.name} {value:.3g}, more than {limit:g}"
