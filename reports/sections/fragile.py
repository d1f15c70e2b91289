"""A setup that barely fits is a finding: its KV pool is what is left over, and everything else takes a part of it."""

from __future__ import annotations

from reports.figures import percent, size
from reports.result import CellResult

LEFT_OVER = ("vllm", "sglang", "tgi")
"""Stacks whose pool is what the weights and everything else leave of the card."""
GIB = 2**30
SHARE = 0.10
"""A pool of which 1 GiB is more than this share is fragile: graphs, a longer batch, a new release or a neighbour on the
card move what is left by that much (the interval of the pool in `loadproof size` says by how much)."""


def fragile(cell: CellResult) -> str:
    """One sentence; "" where nothing was measured, where the pool is set by hand or large enough, or not known."""
    pool, weights = cell.reconciliation.line("KV cache"), cell.reconciliation.line("weights")
    if pool is None or not cell.levels or cell.asked.stack not in LEFT_OVER:
        return ""
    held = pool.measured if pool.measured is not None else pool.predicted
    if held is None or held <= 0 or SHARE * held >= GIB or pool.low == pool.high:
        return ""
    beside = weights.measured or weights.predicted if weights is not None else None
    share = f", {percent(held / beside)} of the weights" if beside else ""
    return (
        f"It barely fits: its KV pool is the {size(held)} that are left over{share}. 1 GiB more of anything else "
        f"(graphs, a longer batch, another release) takes {percent(GIB / held)} of the room that users have."
    )
