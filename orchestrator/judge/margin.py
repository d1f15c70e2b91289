"""What may be said of a cell: SIGNED, PROVISIONAL or REFUSED, how many users, where it breaks, what is missing.

SIGNED if and only if nothing is missing (`judge.gaps`); REFUSED where there is nothing to sign; PROVISIONAL between.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

from orchestrator.judge.cause import Cause, JudgedLevel, cause_of_break, cause_of_failure
from orchestrator.judge.gaps import (
    CONSTANT,
    NO_USERS,
    Shrunk,
    lengths_gap,
    level_gaps,
    open_gaps,
    search_gaps,
    shrunk_gap,
)
from orchestrator.judge.recovery import recovery_gaps, recovery_sentence
from orchestrator.judge.soak import Soak, soak_gaps, soak_sentence
from orchestrator.judge.steps import (
    SIGNABLE_SHARE,
    Bracket,
    Measure,
    OpenLoop,
    Outcome,
    Recovery,
    SearchRules,
    Stop,
    bracket,
    searched,
)
from orchestrator.records import Criterion, Demand, Record, ServerFailure, Slo


class CellVerdict(Record, frozen=True, kw_only=True):
    """The verdict of a cell."""

    verdict: Literal["SIGNED", "PROVISIONAL", "REFUSED"]
    c_ok: int | None = None
    """Most users at once that held."""
    c_bad: int | None = None
    """Fewest users above c_ok that did not hold; None = no break was found."""
    confirmed_ok: bool = False
    """c_ok held again in fresh runs."""
    confirmed_bad: bool = False
    """c_bad did not hold again in a fresh run."""
    c_sign: int | None = None
    """Most users that may be signed, as far as the steps taken tell; None = none."""
    open_loop: OpenLoop | None = None
    """lambda_P, lambda_sign and what they rest on; None = the check was not made, or not finished."""
    limit_users: int | None = None
    """Limit on concurrent requests to set in the server or the gateway: beyond it an open loop collapses."""
    first_failing: Criterion | None = None
    """The first binding criterion that failed at c_bad."""
    break_level: int | None = None
    """Position in the given levels of the run at c_bad that failed."""
    limiter: str = "none found"
    """What the break points to; "unknown" when the evidence does not decide."""
    evidence: tuple[str, ...] = ()
    recovery: Recovery | None = None
    """What was seen after the break."""
    afterwards: tuple[str, ...] = ()
    """That, and what the soak showed, in plain English, a sentence each."""
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
    rules: SearchRules | None = None,
    pending: Measure | None = None,
    demand: Demand | None = None,
    signable: bool = True,
    soak: Soak | None = None,
    shrunk: Shrunk | None = None,
) -> CellVerdict:
    """The verdict of a cell from its levels in the order of measuring.

    `stop` is how the search and the phases after it ended, as far as they did; None where the search did not come to
    its end. `pending` is the step before which the run ended. `failure` is why the server did not come up (again).
    `soak` is what the records of the soak show; `shrunk` where it came up with less context than was asked.
    """
    outcomes = [_outcome(level) for level in levels]
    found = bracket(outcomes) if stop is None else Bracket(stop.c_ok, stop.c_bad, stop.monotone)
    at = _break_position(levels, found.c_bad)
    cause = _cause(levels, at, failure)
    unstable = _unstable(outcomes)
    first_failing = None if at is None else _first_failing(levels[at])
    check = None if stop is None else stop.open_loop
    c_sign = _c_sign(found.c_ok, unstable, check)
    refusal = _refusal(found, stop, failure, outcomes, unstable) or _unmet(demand or Demand(), c_sign, check)
    missing = [
        *([] if shrunk is None else [shrunk_gap(shrunk, levels)]),
        *search_gaps(found, stop, failure, unstable),
        *([NO_USERS] if found.c_ok is not None and c_sign is None else []),
        *level_gaps(levels, found, slo),
        *([] if lengths_forced or found.c_ok is None else [lengths_gap(levels, found.c_ok)]),
        *([] if signable else [CONSTANT]),
        *(() if refusal else open_gaps(levels, stop, rules, pending)),
        *recovery_gaps(stop),
        *(() if refusal else soak_gaps(soak, stop, asked=rules is not None and rules.soak_seconds is not None)),
    ]
    sentence = refusal or _sentence(levels, found, slo, first_failing, fixed=bool(rules and rules.levels))
    if shrunk is not None and outcomes:
        sentence = f"{sentence} This is at a context of {shrunk.served:,} tokens, not the {shrunk.asked_words}."
    return CellVerdict(
        verdict="REFUSED" if refusal else "PROVISIONAL" if missing else "SIGNED",
        c_ok=found.c_ok,
        c_bad=found.c_bad,
        confirmed_ok=stop is not None and stop.confirmed_ok,
        confirmed_bad=stop is not None and stop.confirmed_bad,
        c_sign=None if refusal else c_sign,
        open_loop=check,
        limit_users=found.c_ok if check is not None and not refusal else None,
        first_failing=first_failing,
        break_level=at,
        limiter=cause.limiter,
        evidence=cause.evidence,
        recovery=None if stop is None else stop.recovery,
        afterwards=tuple(_afterwards(stop, soak)),
        missing=tuple(dict.fromkeys(missing)),
        sentence=sentence,
    )


def _afterwards(stop: Stop | None, soak: Soak | None) -> Iterator[str]:
    if stop is not None and stop.recovery is not None:
        yield recovery_sentence(stop.recovery)
    if soak is not None:
        yield soak_sentence(soak)


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
        return cause_of_break(levels[at], [level for level in levels if searched(_outcome(level))])
    return Cause("none found") if failure is None else cause_of_failure(failure)


def _unstable(outcomes: Sequence[Outcome]) -> int | None:
    """Lowest level that broke hard in one valid run and not in another."""
    broke: dict[int, set[bool]] = {}
    for o in outcomes:
        if o.valid and searched(o):
            broke.setdefault(o.concurrency, set()).add(o.hard_break is not None)
    return min((c for c, seen in broke.items() if len(seen) == 2), default=None)


def _c_sign(c_ok: int | None, unstable: int | None, check: OpenLoop | None) -> int | None:
    """The least of 80 % of c_ok, half of a level that broke once, and the p95 of in-flight in the replay that held."""
    if c_ok is None:
        return None
    most = [math.floor(SIGNABLE_SHARE * c_ok)]
    if unstable is not None:
        most.append(unstable // 2)
    if check is not None and check.users_replayed is not None:
        most.append(check.users_replayed)
    return min(most) or None


def _refusal(
    found: Bracket,
    stop: Stop | None,
    failure: ServerFailure | None,
    outcomes: Sequence[Outcome],
    unstable: int | None,
) -> str | None:
    """Why there is nothing to sign; None if there is something."""
    if found.c_ok is None:
        return _nothing_held(found, stop, failure, outcomes)
    if unstable is not None and unstable // 2 < min(o.concurrency for o in outcomes if searched(o)):
        return f"The server broke in one run at {unstable} users and not in another: it cannot be relied on."
    check = None if stop is None else stop.open_loop
    if check is not None and check.rate_ok is None and not check.unknown:
        return (
            f"{_users(found.c_ok)} held, but no rate of independent arrivals did, down to 30 % of the "
            f"{check.throughput:.3g} requests/s that they make: it fits, but it is too fragile to be signed."
        )
    return None


def _unmet(demand: Demand, c_sign: int | None, check: OpenLoop | None) -> str | None:
    """What the launch needs and may not be signed."""
    if demand.users is not None and demand.users > (c_sign or 0):
        return f"The launch needs {_users(demand.users)}, and {c_sign or 'none'} may be signed."
    rate = None if check is None else check.rate_sign
    if demand.rate_per_s is not None and rate is not None and demand.rate_per_s > rate:
        return f"The launch needs {demand.rate_per_s:g} requests/s on average, and {rate:.3g} may be signed."
    return None


def _nothing_held(found: Bracket, stop: Stop | None, failure: ServerFailure | None, outcomes: Sequence[Outcome]) -> str:
    """Why no level can be signed."""
    if not outcomes:
        return f"Nothing was measured: {failure.message}" if failure else "Nothing was measured yet."
    if stop is not None:
        return stop.why
    if found.c_bad is not None:
        return f"No level held: the lowest that did not is {_users(found.c_bad)}."
    return f"No level held: {failure.message}" if failure else "No level has been measured validly yet."


def _users(c: int) -> str:
    return "1 user" if c == 1 else f"{c} users at once"


# --- the sentence -----------------------------------------------------------------------------------------------


def _sentence(
    levels: Sequence[JudgedLevel], found: Bracket, slo: Slo, first_failing: Criterion | None, *, fixed: bool
) -> str:
    c_ok, c_bad = found.c_ok or 0, found.c_bad
    held = [
        level[1]
        for level in levels
        if searched(o := _outcome(level)) and o.concurrency == c_ok and o.valid and not o.fails
    ]
    good, offered = sum(s.good for s in held), sum(s.offered for s in held)
    runs = "one run" if len(held) == 1 else f"{len(held)} runs"
    told = f"{_users(c_ok)} held in {runs}: {good / max(offered, 1):.1%} of {offered} requests met the SLO"
    told = f"{told} ({slo.attainment:.1%} are asked)"
    if c_bad is None:
        return f"{told}; none was tried above." if fixed else f"{told}; no break was found above."
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
