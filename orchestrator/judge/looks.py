"""Several looks at a growing level: S1 by its bounds after so many requests, the error probability shared by all looks.

A look is taken when the first n measured requests in issue order have all ended; the first look that decides counts.
Online (`RunningLooks`) and from the records afterwards (`deciding_look`) it is the same look.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from orchestrator.judge.bounds import Attainment, attainment_bounds, per_batch

Word = Literal["PASS", "FAIL", "UNDECIDED"]


def look_sizes(least: int, most: int, growth: float = 2.0) -> tuple[int, ...]:
    """From `least`, each `growth` times the one before, the last one `most`; whole tens, to be cut into ten batches."""
    sizes, largest = [_tens(least)], _tens(most)
    while sizes[-1] < largest:
        sizes.append(min(_tens(round(growth * sizes[-1])), largest))
    return tuple(sizes)


def _tens(n: int) -> int:
    return -(-n // 10) * 10


class Look(NamedTuple):
    """What one look saw."""

    good: tuple[int, ...]
    """Per batch."""
    batch: int
    bounds: Attainment
    verdict: Word

    @property
    def size(self) -> int:
        return len(self.good) * self.batch


def look_at(flags: Sequence[bool], target: float, alpha: float) -> Look:
    """S1 of these requests in issue order (a multiple of ten), at one look's own share of alpha."""
    good, m = per_batch(flags)
    bounds = attainment_bounds(good, m, alpha)
    verdict: Word = "PASS" if bounds.lower > target else "FAIL" if bounds.upper < target else "UNDECIDED"
    return Look(tuple(good), m, bounds, verdict)


def deciding_look(flags: Sequence[bool], looks: Sequence[int], target: float, alpha: float) -> Look | None:
    """The first look that decides, else the last that there were requests for; None if there were too few for any.

    `alpha` is shared equally by all looks that were planned, taken or not.
    """
    seen = None
    for size in looks:
        if size > len(flags):
            break
        seen = look_at(flags[:size], target, alpha / len(looks))
        if seen.verdict != "UNDECIDED":
            break
    return seen


class RunningLooks:
    """The looks at a level while it runs. Requests end in any order; a look waits for all of its own."""

    def __init__(self, looks: Sequence[int], target: float, alpha: float) -> None:
        self._looks = list(looks)
        self._share = alpha / max(1, len(looks))
        self._target = target
        self._flags: dict[int, bool] = {}
        self._whole = 0

    def add(self, position: int, *, good: bool) -> str | None:
        """A measured request has ended, the `position`-th that was issued (from 0). Why the level is decided, if so."""
        self._flags[position] = good
        while self._whole in self._flags:
            self._whole += 1
        while self._looks and self._whole >= self._looks[0]:
            size = self._looks.pop(0)
            look = look_at([self._flags[i] for i in range(size)], self._target, self._share)
            if look.verdict != "UNDECIDED":
                return f"decided: {look.verdict} by the bounds after {size} requests"
        return None
