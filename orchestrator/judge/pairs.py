"""Two deployments in pairs of levels: in what order they are measured, which turn is next, which pairs count.

Pair j asks both sides the same list at the same concurrency. Pairs come in blocks of two, ABBA or BAAB, so that a drift
that goes on evenly falls on both sides alike; every turn has a server of its own. All of it is a pure function of what
was measured, so that a resumed comparison goes on as if never interrupted.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from orchestrator.judge.search import Outcome, SearchRules, bracket, progress
from orchestrator.judge.steps import moved
from orchestrator.records import Side, Turn

SIDES: tuple[Side, Side] = ("a", "b")
BLOCK = 2
"""Pairs of a block."""
SENTINEL_REQUESTS = SearchRules().sentinel_requests


class Taken(NamedTuple):
    """A turn that was taken."""

    turn: Turn
    outcome: Outcome | None
    """Of its level; None: the server did not come up, or died before it."""

    @property
    def broke(self) -> bool:
        return self.outcome is None or self.outcome.hard_break is not None

    @property
    def counts(self) -> bool:
        """Whether its pair may be used, as far as this side goes."""
        return self.outcome is not None and self.outcome.valid and not self.broke


def order(seed: int, pairs: int) -> tuple[Turn, ...]:
    """All turns of so many pairs (an even number). Blocks begin with A and with B equally often, in a seeded order."""
    draw = random.Random(seed)
    blocks = pairs // BLOCK
    firsts = [SIDES[number % 2] for number in range(blocks)]
    if blocks % 2:
        firsts[-1] = draw.choice(SIDES)
    draw.shuffle(firsts)
    turns: list[Turn] = []
    for number, first in enumerate(firsts):
        second: Side = "b" if first == "a" else "a"
        pair = BLOCK * number + 1
        sides = ((pair, first), (pair, second), (pair + 1, second), (pair + 1, first))
        turns += [Turn(pair=pair, side=side) for pair, side in sides]
    return tuple(turns)


def blocks_in_words(turns: Sequence[Turn]) -> str:
    """``ABBA BAAB``."""
    letters = "".join(turn.side.upper() for turn in turns)
    return " ".join(letters[at : at + 2 * BLOCK] for at in range(0, len(letters), 2 * BLOCK))


def next_turn(turns: Sequence[Turn], taken: Sequence[Taken]) -> Turn | None:
    """The first turn that was not taken and whose pair is not void; None: there is none, or the comparison was given
    up."""
    if gave_up(taken):
        return None
    done = {one.turn for one in taken}
    void = {one.turn.pair for one in taken if not one.counts}
    return next((turn for turn in turns if turn not in done and turn.pair not in void), None)


def gave_up(taken: Sequence[Taken]) -> bool:
    """A side whose server did not come up, or broke, twice in a row ends the comparison."""
    by_side = [[one for one in taken if one.turn.side == side] for side in SIDES]
    return any(len(own) > 1 and own[-1].broke and own[-2].broke for own in by_side)


def is_last_of_its_side(turns: Sequence[Turn], turn: Turn) -> bool:
    """Whether a sentinel follows its level: one stands before the level of every turn."""
    return turn == [one for one in turns if one.side == turn.side][-1]


def held(history: Sequence[Outcome], rules: SearchRules) -> int | None:
    """c_ok of a cell whose search has ended, or was cut."""
    stop = progress(history, rules).so_far
    return bracket(history).c_ok if stop is None else stop.c_ok


def reference(held_a: int | None, held_b: int | None) -> int | None:
    """c_ref: the highest concurrency that both hold; None: one of them holds nothing."""
    return None if held_a is None or held_b is None else min(held_a, held_b)


def drifted(sentinels: Sequence[Outcome]) -> bool | None:
    """Whether the sentinels of one side, in the order of measuring, moved by more than 3 % from the first; None: fewer
    than two are valid."""
    known = [one for one in sentinels if one.valid]
    return any(moved(known[0], other) for other in known[1:]) if len(known) > 1 else None
