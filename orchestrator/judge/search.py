"""Which level next: a pure function of what was measured, so that a resumed search goes on as if never interrupted.

A search is written down as a script that asks for levels and is told their outcomes; `next_step` replays the history
through it. Two scripts: the quick one here (multiply until a level does not hold, bisect, downwards where the first
does not hold; measure both ends again, all by observed shares), and the full one (`judge.full`) whose answer can be
signed. A fixed ladder (`SearchRules.levels`) measures just what it names.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple

from orchestrator.errors import JournalError
from orchestrator.judge.full import full_search
from orchestrator.judge.rate import open_loop
from orchestrator.judge.recovery import recovery
from orchestrator.judge.soak import soak
from orchestrator.judge.steps import (
    Bracket,
    Measure,
    Outcome,
    Phase,
    Script,
    SearchRules,
    Step,
    Stop,
    bracket,
    ending,
    judged_afresh,
    searched,
)
from orchestrator.records import Purpose

__all__ = [
    "STEPS_DOWN",
    "Bracket",
    "Measure",
    "Outcome",
    "SearchRules",
    "Stop",
    "bracket",
    "next_step",
    "progress",
    "searched",
]

STEPS_DOWN = 4
"""How often an unconfirmed level is replaced by one 5 % lower before the search gives up."""

Asking = Generator[Measure, Outcome, Step]


PHASES: tuple[Phase, ...] = (recovery, open_loop, soak)
"""What follows a search, one after another."""


class Progress(NamedTuple):
    """How far a cell has come."""

    step: Measure | Stop
    """What is measured next, or how it all ended."""
    so_far: Stop | None
    """How the search and the phases since ended; None while the search goes on."""


def progress(history: Sequence[Outcome], rules: SearchRules) -> Progress:
    """Where a history of measured levels, in the order of their commits, leads.

    Raises JournalError if the history cannot come from these rules.
    """
    told = _told(history, rules)
    left = iter(told)
    seen: list[Outcome] = []
    so_far: Stop | None = None
    for number in range(1 + len(PHASES)):
        script = _script(rules) if so_far is None else PHASES[number - 1](rules, so_far, tuple(seen))
        end = _follow(script, left, seen)
        if isinstance(end, Measure):
            return Progress(end, so_far)
        so_far = end
    assert so_far is not None
    return Progress(so_far, so_far)


def next_step(history: Sequence[Outcome], rules: SearchRules) -> Measure | Stop:
    """The step that follows from a history (see `progress`)."""
    return progress(history, rules).step


def _script(rules: SearchRules) -> Script:
    if rules.method == "full" and not rules.levels:
        return full_search(rules)
    return _Search(rules).script()


def _told(history: Sequence[Outcome], rules: SearchRules) -> Sequence[Outcome]:
    """What the scripts asked for: the full method has sentinels of its own, what others ran beside is left out."""
    if rules.method == "full" and not rules.levels:
        return history
    return [outcome for outcome in history if outcome.purpose not in ("baseline", "sentinel")]


def _follow(script: Script, left: Iterator[Outcome], seen: list[Outcome]) -> Measure | Stop:
    """Tell a script the outcomes that it asks for, as long as there are any: what it asks for next, or its end."""
    try:
        step = next(script)
        for outcome in left:
            if not step.asks_for(outcome):
                raise JournalError(
                    f"The journal holds the level {_name(outcome)} where this version's search asks for {step}.",
                    "Resume with the version that began the run, or start a new run.",
                )
            seen.append(outcome)
            step = script.send(outcome)
    except StopIteration as end:
        stop: Stop = end.value
        return stop
    return step


def _name(outcome: Outcome) -> str:
    return str(
        Measure(concurrency=outcome.concurrency, purpose=outcome.purpose, replicate=0, rate_per_s=outcome.rate_per_s)
    )


class _Search:
    """One search while it is replayed; lives for one call of `next_step`."""

    def __init__(self, rules: SearchRules) -> None:
        self._rules = rules
        self._history: list[Outcome] = []

    def script(self) -> Generator[Measure, Outcome, Stop]:
        if self._rules.levels:
            return (yield from self._ladder())
        low, high = yield from self._climb()
        if high is not None and (low is not None or self._history[-1].valid):
            # Where the first level does not hold, what holds lies below it, if anything does.
            low, high = yield from self._bisect(low or 0, high)
        low = low or None
        found, confirmed_ok = low, False
        if low is not None and self._rules.confirm:
            found, confirmed_ok = yield from self._confirm(low)
            found = found if found is not None or judged_afresh(self._history) else low
        if low is not None and found is None:
            return self._stop(None, why=f"No level was confirmed: {low} held at first, but not in fresh runs.")
        confirmed_bad = False
        if self._rules.confirm and (bad := self._lowest_bad(found)) is not None:
            confirmed_bad = (yield from self._ask(bad, "confirm-break")) == "not held" and self._all_failed(bad)
        return self._stop(found, confirmed_ok=confirmed_ok, confirmed_bad=confirmed_bad)

    # --- asking ---

    def _ask(self, concurrency: int, purpose: Purpose) -> Asking:
        """One level; measured once more if it was INVALID, and unknown if it is INVALID again."""
        for _ in range(2):
            replicate = sum(o.concurrency == concurrency for o in self._history)
            outcome = yield Measure(concurrency=concurrency, purpose=purpose, replicate=replicate)
            self._history.append(outcome)
            if outcome.valid:
                return "held" if outcome.holds else "not held"
        return "unknown"

    def _climb(self) -> Generator[Measure, Outcome, tuple[int | None, int | None]]:
        """Multiply until a level does not hold: (last that held, first that did not); None = none."""
        rules = self._rules
        low: int | None = None
        c = min(rules.start, rules.maximum)
        while (yield from self._ask(c, "bracket")) == "held":
            if c >= rules.maximum:
                return c, None
            low, c = c, min(max(c + 1, int(c * rules.factor)), rules.maximum)
        return low, c

    def _bisect(self, low: int, high: int) -> Generator[Measure, Outcome, tuple[int, int]]:
        while high - low > max(1, self._rules.precision * high):
            middle = (low + high) // 2
            held = (yield from self._ask(middle, "bisect")) == "held"
            low, high = (middle, high) if held else (low, middle)
        return low, high

    def _confirm(self, c: int) -> Generator[Measure, Outcome, tuple[int | None, bool]]:
        """Fresh runs at `c`; where one does not hold, 5 % lower and again. (c_ok, True), or (None, False)."""
        for _ in range(1 + STEPS_DOWN):
            if (yield from self._confirmed(c)):
                return c, True
            c = min(c - 1, int(0.95 * c))
            if c < 1:
                break
        return None, False

    def _confirmed(self, c: int) -> Generator[Measure, Outcome, bool]:
        for _ in range(self._rules.confirm):
            if (yield from self._ask(c, "confirm")) != "held":
                return False
        return True

    def _ladder(self) -> Generator[Measure, Outcome, Stop]:
        """Every level named, upwards; nothing above a level at which the server broke."""
        why = ""
        for c in sorted(set(self._rules.levels)):
            yield from self._ask(c, "ladder")
            if broke := self._history[-1].hard_break:
                why = f"The server broke at {c} ({broke}): the levels above were not tried."
                break
        return self._stop(bracket(self._history).c_ok, why=why)

    # --- the end ---

    def _lowest_bad(self, c_ok: int | None) -> int | None:
        """The lowest level above c_ok that was measured and did not hold."""
        bad = (o.concurrency for o in self._history if o.valid and not o.holds and o.concurrency > (c_ok or 0))
        return min(bad, default=None)

    def _all_failed(self, c: int) -> bool:
        return all(o.fails for o in self._history if o.valid and o.concurrency == c)

    def _stop(
        self, c_ok: int | None, *, confirmed_ok: bool = False, confirmed_bad: bool = False, why: str = ""
    ) -> Stop:
        c_bad = self._lowest_bad(c_ok)
        return Stop(
            c_ok=c_ok,
            c_bad=c_bad,
            confirmed_ok=confirmed_ok,
            confirmed_bad=confirmed_bad,
            monotone=bracket(self._history).monotone,
            why=why or ending(self._history, c_ok, c_bad),
        )
