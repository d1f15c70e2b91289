"""How far the simulated card is from real ones, as every report of it must say. `make bench-simulated` measures it."""

from __future__ import annotations

from typing import NamedTuple


class Accuracy(NamedTuple):
    """Absolute errors against public measurements on one card, as shares."""

    rows: int
    models: int
    tpot_median: float
    tpot_worst: float
    throughput_median: float
    throughput_worst: float


ACCURACY = Accuracy(19, 5, 0.34, 0.57, 0.20, 2.31)

SENTENCE = (
    "SIMULATED: no card and no model were there. Every time and every byte comes from a model of them. Against "
    f"{ACCURACY.rows} public measurements of real cards its TPOT is off by {ACCURACY.tpot_median:.0%} in the median "
    f"and {ACCURACY.tpot_worst:.0%} at worst, its throughput by {ACCURACY.throughput_median:.0%} and "
    f"{ACCURACY.throughput_worst:.0%}. These are planning figures: measure before you launch."
)
NOTES = (
    "Between stacks only scheduling, memory rules and kernels differ in the simulation, and none has an overhead of "
    "its own: a few per cent between them say nothing.",
    "Gaps between single tokens are not simulated: ITL is a mean over an eighth of an answer.",
)
"""What a simulated cell cannot show."""
MARK = "SIMULATED: no card was there, and nothing on this page was measured"
"""On every page."""
