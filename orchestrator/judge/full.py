"""The full search: its answer can be signed. Cheap looks choose a level; only pooled fresh runs say that it holds.

    sentinel · bracket · sentinel · narrow · sentinel · confirm · sentinel · confirm the failure · sentinel

* Bracket: from the start upwards, each step to where the use of the limits would reach 1 if it grew on as it did
  (with c to a power between 1/2 and 1; the sentinel's use is that of one user), at least by 1.5 and at most by 4, until
  a level does not hold.
* Narrow: the break is where the use of the limits reaches 1; between two levels it is interpolated on logarithmic
  scales. The next level lies half the precision under that estimate, or one precision above the last that held. After
  such a level has held, the next one is in the middle: where the use jumps, an estimate creeps.
* Confirm: fresh runs, pooled. From the third on, c_ok is the level once the lower bound of all of them together is over
  the target (alpha shared by the runs that may come). A level is given up for a lower one when its pooled share falls
  under the target, or when even all the runs that may come would not prove it if they were like those so far.
* Sentinels: the same list by one user, at the beginning, after the bracket, around the fresh runs and at the end. If
  the median TPOT or the throughput moved by more than 3 %, the machine drifted: everything is measured once more, and
  if it drifts again then nothing is confirmed, whatever was found. (One user, because the requests of several meet
  differently each time: with short answers that alone moved TPOT by over 3 %.)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Generator
from typing import NamedTuple

from orchestrator.judge.fresh import confirmed
from orchestrator.judge.looks import look_sizes
from orchestrator.judge.steps import (
    Measure,
    Outcome,
    Script,
    SearchRules,
    Step,
    Stop,
    bracket,
    ending,
    judged_afresh,
    moved,
    searched,
)
from orchestrator.records import Purpose

STEPS_DOWN = 5
"""How often an unconfirmed level is replaced by a lower one before the search gives up."""
LEAST_GROWTH, MOST_GROWTH = 1.5, 4.0
_MOST_USE = 2.0
"""Beyond the break the use explodes; more than this says no more about where it lies."""

Asking = Generator[Measure, Outcome, Step]


def full_search(rules: SearchRules) -> Script:
    """The search as a script: yields the levels it wants, is sent their outcomes, returns how it ended."""
    search = _FullSearch(rules)
    stop = yield from search.once(again=False)
    if stop.drifted:
        search.forget()
        stop = yield from search.once(again=True)
    return stop


class _End(NamedTuple):
    """One end of the bracket. use: None where nothing is known of it."""

    c: int
    use: float | None


class _FullSearch:
    """One search while it is replayed."""

    def __init__(self, rules: SearchRules) -> None:
        self._rules = rules
        self._history: list[Outcome] = []
        self._sentinels: list[Outcome] = []
        self._measured: dict[int, int] = {}

    def forget(self) -> None:
        """Begin anew; only the numbers of the replicates go on."""
        self._history, self._sentinels = [], []

    def once(self, *, again: bool) -> Script:
        """The whole search; the first time it ends where a drift is noticed, since everything is measured anew then."""
        yield from self._sentinel()
        low, high = yield from self._bracket()
        if (yield from self._sentinel()) and not again:
            return self._stop(None)
        if high is not None:
            low = yield from self._narrow(low, high)
        found = None
        if low is not None:
            if self._history[-1].purpose != "sentinel" and (yield from self._sentinel()) and not again:
                return self._stop(None)
            found = yield from self._confirm(low.c)
            if (yield from self._sentinel()) and not again:
                return self._stop(None)
        confirmed_ok = found is not None
        found = found if low is None or judged_afresh(self._history) else low.c
        confirmed_bad = yield from self._confirm_bad(found)
        yield from self._sentinel()
        if low is not None and found is None:
            why = f"No level was confirmed: {low.c} held at first, but not in fresh runs."
            return self._stop(None, why=why)
        return self._stop(found, confirmed_ok=confirmed_ok, confirmed_bad=confirmed_bad)

    # --- asking -------------------------------------------------------------------------------------------------

    def _ask(self, c: int, purpose: Purpose, looks: tuple[int, ...], alpha: float) -> Generator[Measure, Outcome, bool]:
        """One level, once more if it was INVALID. True if it is known now; its outcome is then the last of all."""
        for _ in range(2):
            replicate = self._measured.get(c, 0)
            self._measured[c] = replicate + 1
            outcome = yield Measure(concurrency=c, purpose=purpose, replicate=replicate, looks=looks, alpha=alpha)
            self._history.append(outcome)
            if outcome.valid:
                return True
        return False

    def _search(self, c: int, purpose: Purpose) -> Asking:
        """A level on the way, by looks that grow until they decide."""
        rules = self._rules
        sizes = look_sizes(
            max(rules.first_look, rules.first_look_per_user * c),
            max(rules.last_look, rules.last_look_per_user * c),
            rules.look_growth,
        )
        if not (yield from self._ask(c, purpose, sizes, rules.search_alpha)):
            return "unknown"
        return "held" if self._seems_to_hold(self._history[-1]) else "not held"

    def _seems_to_hold(self, outcome: Outcome) -> bool:
        undecided = outcome.valid and outcome.verdict == "UNDECIDED"
        return outcome.holds or (undecided and outcome.share >= self._rules.aim)

    def _sentinel(self) -> Generator[Measure, Outcome, bool]:
        """One more; whether the machine has drifted by then."""
        rules = self._rules
        known = yield from self._ask(1, "sentinel", (rules.sentinel_requests,), rules.alpha)
        if known:
            self._sentinels.append(self._history[-1])
        return self._drifted()

    def _drifted(self) -> bool:
        """Whether the sentinels moved by more than 3 % from the first."""
        if not self._sentinels:
            return False
        first = self._sentinels[0]
        return any(moved(first, other) for other in self._sentinels[1:])

    # --- finding ------------------------------------------------------------------------------------------------

    def _end(self, c: int) -> _End:
        """An end of the bracket with the use that its last valid run showed."""
        uses = [o.use for o in self._searched() if o.valid and o.concurrency == c]
        return _End(c, uses[-1] if uses else None)

    def _bracket(self) -> Generator[Measure, Outcome, tuple[_End | None, _End | None]]:
        """Upwards until a level does not hold: (last that held, first that did not); None = none."""
        rules = self._rules
        one_user = _End(1, self._sentinels[0].use) if self._sentinels and rules.start > 1 else None
        low: _End | None = None
        c = min(rules.start, rules.maximum)
        while (yield from self._search(c, "bracket")) == "held":
            before, low = low or one_user, self._end(c)
            if c >= rules.maximum:
                return low, None
            c = min(max(c + 1, int(c * self._growth(before, low))), rules.maximum)
        return low, self._end(c)

    @staticmethod
    def _growth(before: _End | None, low: _End) -> float:
        """The factor to the next level."""
        if not low.use or low.use >= 1:
            return MOST_GROWTH if not low.use else LEAST_GROWTH
        power = 1.0
        if before is not None and before.use:
            power = min(1.0, max(0.5, math.log(low.use / before.use) / math.log(low.c / before.c)))
        return min(MOST_GROWTH, max(LEAST_GROWTH, math.exp(-math.log(low.use) / power)))

    def _narrow(self, low: _End | None, high: _End) -> Generator[Measure, Outcome, _End | None]:
        """The bracket made narrow: the last level that holds, None if none does down to one user."""
        rules = self._rules
        crept = False
        while high.c - (low.c if low else 0) > max(1, rules.precision * high.c):
            by_estimate = low is not None and not crept
            c = self._estimate(low, high) if low is not None and by_estimate else self._middle(low, high)
            held = (yield from self._search(c, "bisect")) == "held"
            low, high = (self._end(c), high) if held else (low, self._end(c))
            crept = by_estimate and held
        return low

    @staticmethod
    def _middle(low: _End | None, high: _End) -> int:
        return (high.c + (low.c if low else 0)) // 2

    def _estimate(self, low: _End, high: _End) -> int:
        """The next level, strictly between the ends."""
        if not low.use or low.use >= 1:
            guess = low.c * (1 + self._rules.precision)
        else:
            high_use = min(_MOST_USE, high.use or _MOST_USE)
            if high_use <= 1:
                guess = float(high.c)
            else:
                share = math.log(1 / low.use) / math.log(high_use / low.use)
                guess = low.c * (high.c / low.c) ** share
        below = math.floor(guess * (1 - self._rules.precision / 2))
        above = math.ceil(low.c * (1 + self._rules.precision))
        c = below if below > low.c * (1 + self._rules.precision / 4) else above
        return min(max(c, low.c + 1), high.c - 1)

    # --- proving ------------------------------------------------------------------------------------------------

    def _confirm(self, c: int) -> Generator[Measure, Outcome, int | None]:
        """The highest level that fresh runs confirm, from `c` downwards; None = none was.

        Given up once two levels could not be measured validly: a lower one would not change that.
        """
        unknown = 0
        for _ in range(1 + STEPS_DOWN):
            if (yield from self._confirmed(c)):
                return c
            unknown += not self._history[-1].valid
            c = min(c - 1, int(self._rules.step_down * c))
            if c < 1 or unknown == 2:
                break
        return None

    def _confirmed(self, c: int) -> Generator[Measure, Outcome, bool]:
        rules = self._rules
        size = look_sizes(max(rules.confirm_requests, rules.confirm_per_user * c), 0)

        def fresh() -> Generator[Measure, Outcome, Outcome | None]:
            known = yield from self._ask(c, "confirm", size, rules.alpha)
            return self._history[-1] if known else None

        return (yield from confirmed(rules, fresh))

    def _confirm_bad(self, c_ok: int | None) -> Generator[Measure, Outcome, bool]:
        """The failure above c_ok once more. Where the lowest level that surely failed is far above the lowest that did
        not hold, one between is tried first; where none surely failed, from the lowest that did not hold upwards."""
        rules = self._rules
        surely = self._surely_bad(c_ok)[:2]
        lowest = self._lowest_bad(c_ok)
        steps = [] if lowest is None else [math.ceil(lowest * (1 + rules.precision) ** step) for step in range(3)]
        candidates = surely or steps
        if surely and lowest is not None and surely[0] > lowest * (1 + 2 * rules.precision):
            candidates = [steps[1], *surely]
        candidates = sorted({min(c, rules.maximum) for c in candidates})
        for c in candidates if rules.confirm else ():
            if (yield from self._fails_again(c)):
                return True
        return False

    def _fails_again(self, c: int) -> Generator[Measure, Outcome, bool]:
        rules = self._rules
        sizes = look_sizes(
            max(rules.first_look, rules.first_look_per_user * c),
            max(rules.last_look, rules.confirm_per_user * c),
            rules.look_growth,
        )
        known = yield from self._ask(c, "confirm-break", sizes, rules.alpha)
        return known and self._history[-1].fails

    # --- the end ------------------------------------------------------------------------------------------------

    def _searched(self) -> list[Outcome]:
        return list(filter(searched, self._history))

    def _lowest_bad(self, c_ok: int | None) -> int | None:
        """The lowest level above c_ok that did not seem to hold."""
        bad = (
            o.concurrency
            for o in self._searched()
            if o.valid and not self._seems_to_hold(o) and o.concurrency > (c_ok or 0)
        )
        return min(bad, default=None)

    def _surely_bad(self, c_ok: int | None) -> list[int]:
        """The levels above c_ok that failed by their bounds, or hard."""
        return sorted({o.concurrency for o in self._searched() if o.fails and o.concurrency > (c_ok or 0)})

    def _stop(
        self, c_ok: int | None, *, confirmed_ok: bool = False, confirmed_bad: bool = False, why: str = ""
    ) -> Stop:
        history = self._searched()
        proven = [o.concurrency for o in history if o.purpose == "confirm-break" and o.fails]
        surely = proven[-1:] if confirmed_bad else self._surely_bad(c_ok)
        c_bad = surely[0] if surely else self._lowest_bad(c_ok)
        drifted = self._drifted()
        if drifted:
            held = "no level was confirmed" if c_ok is None else f"{c_ok} held all the same"
            why = f"The machine drifted while it was measured (the sentinel moved by over 3 %); {held}."
        return Stop(
            c_ok=c_ok,
            c_bad=c_bad,
            confirmed_ok=confirmed_ok and not drifted,
            confirmed_bad=confirmed_bad and not drifted,
            monotone=bracket(itertools.filterfalse(lambda o: o.verdict == "UNDECIDED", history)).monotone,
            why=why or ending(history, c_ok, c_bad),
            drifted=drifted,
        )
