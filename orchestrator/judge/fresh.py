"""Proof by fresh runs: pooled, until the lower bound of all of them together is over the target, or cannot be any more.

The same for a number of users and for a rate.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

from orchestrator.judge.bounds import Attainment, attainment_bounds, lower_share_bound
from orchestrator.judge.steps import Measure, Outcome, SearchRules

Fresh = Callable[[], Generator[Measure, Outcome, Outcome | None]]
"""One more fresh run; None if it was INVALID, twice."""


def pooled_bounds(runs: Sequence[Outcome], alpha: float) -> Attainment | None:
    """Bounds of several runs of one level together: five batches of each, so that no batch spans two runs.

    None if a run was judged by another number of requests than the first, or by too few.
    """
    if not runs or any(len(run.good) != 10 or run.batch != runs[0].batch for run in runs):
        return None
    halves = [a + b for run in runs for a, b in zip(run.good[::2], run.good[1::2], strict=True)]
    return attainment_bounds(halves, 2 * runs[0].batch, alpha)


def _could_reach(found: Attainment, times: float, target: float, alpha: float) -> bool:
    """Whether `times` as many requests that are like those so far would put the lower bound over the target."""
    n_eff = found.n_eff * times
    return lower_share_bound(found.observed * n_eff, n_eff, alpha) > target


def confirmed(rules: SearchRules, fresh: Fresh) -> Generator[Measure, Outcome, bool]:
    """Whether fresh runs confirm it: from the `rules.confirm`-th on by their pooled lower bound.

    Given up once the pooled share is under the target, one of them fails, more requests failed than the budget allows,
    or even all the runs that may come would not prove it if they were like those so far.
    """
    most = max(rules.confirm, rules.most_confirm)
    alpha = rules.alpha / (most - rules.confirm + 1)
    runs: list[Outcome] = []
    while len(runs) < most:
        run = yield from fresh()
        if run is None:
            return False
        runs.append(run)
        bounds = pooled_bounds(runs, alpha)
        if run.fails or bounds is None or _errs(runs, rules) or bounds.observed < rules.target:
            return False
        if len(runs) >= rules.confirm and bounds.lower > rules.target:
            return True
        if len(runs) >= rules.futile and not _could_reach(bounds, most / len(runs), rules.target, alpha):
            return False
    return False


def _errs(runs: Sequence[Outcome], rules: SearchRules) -> bool:
    """S2 on all fresh runs together, by what was observed: to prove the budget takes more requests than these."""
    failed, offered = sum(o.failed for o in runs), sum(o.offered for o in runs)
    return failed > rules.error_budget * offered
