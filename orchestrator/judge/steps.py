"""The nouns of a search: its rules, its next step, what a level said, and how it ended."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Literal, NamedTuple

from orchestrator.judge.swings import Swings
from orchestrator.records import LevelRun, LevelStats, LevelVerdict, Purpose, Record


class OpenRules(Record, frozen=True, kw_only=True):
    """The open-loop check after a search (`judge.rate`)."""

    requests: int = 1600
    """Measured requests of a level, at least; and at least ten times c_ok."""
    min_seconds: float = 300.0
    """A level lasts at least this long; and at least 20 times the mean end-to-end time at c_ok."""
    prefill_seconds: float = 60.0
    """Of the probe with one output token a request."""
    traffic: str = ""
    """What is replayed, in words; empty: nothing is known of the traffic expected."""
    swings: Swings | None = None
    """How the work of the expected traffic swings from minute to minute; None = not known, or it does not."""


class SearchRules(Record, frozen=True, kw_only=True):
    """What to search. All of it stands in the plan before the run."""

    method: Literal["quick", "full"] = "quick"
    """``quick`` decides levels by their observed shares; ``full`` by bounds, with sentinels and pooled fresh runs."""
    start: int = 1
    maximum: int = 256
    """The cap: highest concurrency that is tried."""
    factor: float = 2.0
    precision: float = 0.10
    """Bisect until c_bad - c_ok <= max(1, precision * c_bad)."""
    confirm: int = 1
    """Fresh runs that must hold at c_ok; 0 = neither end is confirmed."""
    levels: tuple[int, ...] = ()
    """A fixed ladder instead of a search."""

    # The rest is the full method's.
    target: float = 0.95
    """Share of the offered requests that must meet the SLO."""
    error_budget: float = 0.001
    first_look: int = 280
    """A searched level is looked at from this many requests: just enough for a level without a miss to pass ..."""
    first_look_per_user: int = 5
    """... and at least this many times c ..."""
    last_look: int = 1000
    last_look_per_user: int = 10
    """... up to the larger of these."""
    look_growth: float = 2.5
    """From one look to the next."""
    search_alpha: float = 0.10
    """Of the looks at a searched level: they only choose where to confirm."""
    aim: float = 0.97
    """A searched level that its last look leaves undecided holds if the observed share is at least this."""
    confirm_requests: int = 1600
    """Measured requests of a fresh run: with 1,000, runs that saw no congestion confirmed levels that have it ..."""
    confirm_per_user: int = 10
    """... and at least this many times c."""
    most_confirm: int = 5
    """Fresh runs at one level before it is given up; they share `alpha` from the `confirm`-th on."""
    alpha: float = 0.02
    """Error probability of the bound of the pooled fresh runs. Stricter than what is claimed (0.05), because the bound
    errs more often than its alpha where neighbours share their fate, and because up to six levels may be tried."""
    step_down: float = 0.97
    """An unconfirmed level is replaced by this much of it."""
    futile: int = 2
    """Fresh runs after which a level may be given up as out of reach."""
    sentinel_requests: int = 30
    """Of a sentinel: one user, always the same list."""
    open_loop: OpenRules | None = None
    """The open-loop check that follows; None = none does."""
    recovery: bool = False
    """After a break a small level is measured again (`judge.recovery`)."""
    soak_seconds: float | None = None
    """Length of the soak at the end (`judge.soak`); None = there is none."""

    @classmethod
    def full(cls, *, precision: float, start: int, maximum: int, target: float, error_budget: float) -> SearchRules:
        """The full method at a precision. A wider one looks less long at its steps and goes further down."""
        wide = precision >= 0.10
        return cls(
            method="full",
            start=start,
            maximum=maximum,
            precision=precision,
            confirm=3,
            target=target,
            error_budget=error_budget,
            first_look=240 if wide else 280,
            last_look=600 if wide else 1000,
            step_down=0.95 if wide else 0.97,
        )


class Outcome(Record, frozen=True, kw_only=True):
    """What a measured level said."""

    concurrency: int
    purpose: Purpose
    valid: bool
    verdict: Literal["PASS", "FAIL", "UNDECIDED"]
    hard_break: str | None = None
    good: tuple[int, ...] = ()
    """Good requests per batch."""
    batch: int = 0
    offered: int = 0
    failed: int = 0
    use: float | None = None
    """How much of the limits was used, 1 = all: of the SLO at its target, or of the preemptions that are allowed."""
    tpot_ms: float | None = None
    """Median."""
    tokens_per_s: float | None = None
    rate_per_s: float | None = None
    """Of an open level, whose concurrency is 0."""
    requests_per_s: float | None = None
    prompt_tokens_per_s: float | None = None
    in_tokens: float | None = None
    """Mean prompt and ..."""
    out_tokens: float | None = None
    """... mean output of the measured requests."""
    e2e_s: float | None = None
    """Mean."""
    drain_s: float | None = None
    memory_bytes: int | None = None
    """Peak."""
    in_flight_p95: float | None = None
    kv_use_p99: float | None = None

    @classmethod
    def of(cls, run: LevelRun, stats: LevelStats, verdict: LevelVerdict) -> Outcome:
        return cls(
            concurrency=run.spec.concurrency,
            purpose=run.spec.purpose,
            valid=verdict.valid,
            verdict=verdict.verdict,
            hard_break=verdict.hard_break,
            good=verdict.good_per_batch,
            batch=verdict.batch,
            offered=stats.offered,
            failed=stats.failed,
            use=_use(stats, verdict),
            tpot_ms=stats.tpot_ms.p50,
            tokens_per_s=stats.output_tokens_per_s,
            rate_per_s=run.spec.rate_per_s,
            requests_per_s=stats.requests_per_s,
            prompt_tokens_per_s=stats.prompt_tokens_per_s,
            in_tokens=stats.mean_in_tokens,
            out_tokens=stats.mean_out_tokens,
            e2e_s=None if stats.e2e_ms.mean is None else stats.e2e_ms.mean / 1000,
            drain_s=stats.drain_s,
            memory_bytes=stats.memory_peak_bytes,
            in_flight_p95=stats.in_flight_p95,
            kv_use_p99=stats.kv_use_p99,
        )

    @property
    def holds(self) -> bool:
        return self.valid and self.verdict == "PASS"

    @property
    def fails(self) -> bool:
        return self.valid and self.verdict == "FAIL"

    @property
    def share(self) -> float:
        """Observed share of good requests, of those that were judged."""
        requests = len(self.good) * self.batch
        return sum(self.good) / requests if requests else 0.0


def _use(stats: LevelStats, verdict: LevelVerdict) -> float | None:
    if stats.slo_use is None:
        return None
    preempted = next((c for c in verdict.criteria if c.id == "S3"), None)
    if preempted is None or preempted.value is None or not preempted.limit:
        return stats.slo_use
    return max(stats.slo_use, preempted.value / preempted.limit)


class Measure(Record, frozen=True, kw_only=True):
    """The next level to be measured."""

    concurrency: int
    purpose: Purpose
    replicate: int
    """How many levels of this concurrency were measured before: no (concurrency, replicate) comes twice."""
    looks: tuple[int, ...] = ()
    """Sizes at which it is judged by bounds; empty = by the observed share, at the plan's own size."""
    alpha: float = 0.05
    """Error probability that the looks share."""
    rate_per_s: float | None = None
    """Of an open level: `concurrency` is 0 then, and `replicate` counts the open levels of the cell."""
    min_seconds: float | None = None
    """Least length of the measured part; None = by the plan."""
    lengths_of: int | None = None
    """Replicate of this concurrency whose lengths are asked again; None = it has lengths of its own."""

    def asks_for(self, outcome: Outcome) -> bool:
        """Whether a measured level is this one."""
        return (self.concurrency, self.purpose, self.rate_per_s) == (
            outcome.concurrency,
            outcome.purpose,
            outcome.rate_per_s,
        )

    def __str__(self) -> str:
        at = self.concurrency if self.rate_per_s is None else f"{self.rate_per_s:.3g} requests/s"
        return f"{self.purpose} at {at}"


SIGNABLE_SHARE = 0.8
"""Of c_ok: stands for the variation between machines and days."""


class OpenLoop(Record, frozen=True, kw_only=True):
    """What the open-loop check found (METHOD.md, the margin). Rates in requests per second."""

    throughput: float
    """X: request throughput of the closed loop at c_ok."""
    rate_ok: float | None = None
    """lambda_P: highest rate of independent arrivals that fresh runs confirmed."""
    rate_bad: float | None = None
    """The lowest rate above it that did not hold."""
    unknown: bool = False
    """No rate is known to hold because measurements were INVALID, not because of the server."""
    beta: float | None = None
    """Cost of an output token in prompt tokens, at load."""
    sigma: float | None = None
    """Coefficient of variation of the offered work per minute, at that cost."""
    peak: float | None = None
    """Its largest over its mean."""
    factor: float | None = None
    """F: what lambda_P is divided by for the swings of the expected traffic."""
    rate_sign: float | None = None
    """lambda_sign: highest mean rate at which the expected traffic was replayed and held."""
    replays: int = 0
    """How often it was replayed, 5 % lower each time."""
    in_flight_p95: float | None = None
    """Of that replay."""
    kv_use_p99: float | None = None
    """Of that replay."""
    drifted: bool | None = None
    """The sentinel after the check had moved by more than 3 % from one of the search's; None = not looked at."""

    @property
    def users_replayed(self) -> int | None:
        """Users at the p95 of in-flight in the replay that held; None = none held."""
        if self.rate_sign is None or self.in_flight_p95 is None:
            return None
        return max(1, math.floor(self.in_flight_p95))


class Recovery(Record, frozen=True, kw_only=True):
    """What was seen after the break. Ratios are after / before, of a small level of the same requests."""

    broke_at: int
    """Users of the last level that did not hold."""
    died: str | None = None
    """Class of the death where the break ended the server, which was started anew then."""
    drain_s: float | None = None
    """From the last request that was sent at the break until nothing was under way."""
    concurrency: int
    """Users of the small level."""
    known: bool = True
    """Both measurements of the small level are VALID."""
    tokens_ratio: float | None = None
    """Of the output throughput."""
    tpot_ratio: float | None = None
    """Of the median TPOT."""
    memory_before_bytes: int | None = None
    """Peak of the small level before the break, ..."""
    memory_broken_bytes: int | None = None
    """... of the level that broke, ..."""
    memory_after_bytes: int | None = None
    """... and of the small level after it."""

    @property
    def slower(self) -> float | None:
        """By what share it is slower than before, by the worse of its two ratios; negative = faster. None = unknown."""
        times = [1 / self.tokens_ratio] if self.tokens_ratio else []
        times += [self.tpot_ratio] if self.tpot_ratio else []
        return max(times) - 1 if times and self.known else None

    @property
    def as_before(self) -> bool | None:
        """Within 3 %."""
        return None if self.slower is None else abs(math.log1p(self.slower)) <= DRIFT


class Stop(Record, frozen=True, kw_only=True):
    """The search is over."""

    c_ok: int | None
    """Highest level that holds."""
    c_bad: int | None
    """Lowest measured level above c_ok that does not hold; None = none was found."""
    confirmed_ok: bool
    """Held in fresh runs as often as `SearchRules.confirm` asks (and that is at least once)."""
    confirmed_bad: bool
    """Failed again in a fresh run."""
    monotone: bool
    """No level holds above one that does not."""
    why: str
    drifted: bool | None = None
    """The sentinels moved by more than 3 %, twice; None = not looked at."""
    open_loop: OpenLoop | None = None
    """None: there was none, or it did not come to its end."""
    recovery: Recovery | None = None
    """None: there was no break, or nothing was measured after it."""
    soaked: Literal["PASS", "FAIL", "UNDECIDED", "INVALID"] | None = None
    """Verdict of the soak; None = there was none, or it did not come to its end."""


Step = Literal["held", "not held", "unknown"]
Script = Generator[Measure, Outcome, Stop]
Phase = Callable[[SearchRules, Stop, Sequence[Outcome]], Script]
"""What follows a search: from how it ended and all that was measured to an end with this phase's finding in it.

A phase that has nothing to do returns the end as it was given. It looks at nothing but its arguments and what it is
sent, so a resumed run goes on as if nothing had happened.
"""


class Bracket(NamedTuple):
    """What the outcomes so far say of the break."""

    c_ok: int | None
    c_bad: int | None
    monotone: bool


def bracket(history: Iterable[Outcome]) -> Bracket:
    """c_ok and c_bad by the valid outcomes: a level holds if every run of it did. Also for a search that was cut.

    c_ok lies below every level that does not hold.
    """
    held: dict[int, bool] = {}
    for outcome in history:
        if outcome.valid and searched(outcome):
            held[outcome.concurrency] = held.get(outcome.concurrency, True) and outcome.holds
    bad = min((c for c, ok in held.items() if not ok), default=None)
    good = [c for c, ok in held.items() if ok]
    below = [c for c in good if bad is None or c < bad]
    return Bracket(max(below, default=None), bad, monotone=len(below) == len(good))


def searched(outcome: Outcome) -> bool:
    """Baselines and sentinels look for drift, and the open-loop check for a rate; none of them for the break."""
    return outcome.purpose in SEARCHING


def judged_afresh(history: Iterable[Outcome]) -> bool:
    """Whether any fresh run that was to confirm a level says something of the card: an INVALID one does not."""
    return any(outcome.valid for outcome in history if outcome.purpose == "confirm")


SEARCHING: frozenset[Purpose] = frozenset(("ladder", "bracket", "bisect", "confirm", "confirm-break", "load"))
CHECKING: frozenset[Purpose] = frozenset(("prefill", "rate", "confirm-rate", "replay"))
"""Of the open-loop check."""
DRIFT = math.log(1.03)


def moved(before: Outcome, after: Outcome) -> bool:
    """Whether a sentinel's median TPOT or throughput is over 3 % from that of an earlier one, or one of the two has
    none (most of its requests failed)."""
    pairs = ((before.tpot_ms, after.tpot_ms), (before.tokens_per_s, after.tokens_per_s))
    return any(
        abs(math.log(last / first)) > DRIFT if first and last else bool(first) != bool(last) for first, last in pairs
    )


def last_pass(history: Iterable[Outcome]) -> list[Outcome]:
    """The valid sentinels of the last pass of a full search: a pass ends with the one that moved from its first."""
    found: list[Outcome] = []
    for outcome in history:
        if outcome.purpose == "sentinel" and outcome.valid:
            found = [] if found and moved(found[0], outcome) else [*found, outcome]
    return found


def ending(history: Iterable[Outcome], c_ok: int | None, c_bad: int | None) -> str:
    """Why a search ended, in one sentence."""
    valid: dict[int, bool] = {}
    for o in filter(searched, history):
        valid[o.concurrency] = valid.get(o.concurrency, False) or o.valid
    unknown = min((c for c, known in valid.items() if not known), default=None)
    if c_ok is None and c_bad is None:
        return f"The measurement at {unknown} is INVALID, so nothing is known of the card."
    if c_ok is None:
        return f"The lowest level that was tried, {c_bad}, does not hold."
    if unknown is not None and unknown > c_ok:
        beyond = "" if c_bad is None else f" up to {c_bad}, which does not hold"
        return f"{c_ok} holds; the measurement at {unknown} is INVALID, so nothing is known above{beyond}."
    if c_bad is not None:
        return f"{c_ok} holds and {c_bad} does not."
    return f"No break was found up to {max(valid)}, the highest level that was tried."
