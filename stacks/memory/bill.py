"""The predicted memory bill of a deployment: every item with its interval, what the pool holds, and whether it starts.

    margin = total*(1-u) - C - Gr            vLLM up to 0.20 (graphs lie outside the budget)
    margin = total*(1-u) - C - (Gr - Ge)     vLLM 0.21 on

All figures are of one card, the tightest rank of the deployment.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from stacks.memory.cards import GIB
from stacks.memory.intervals import PoolClass, Spread, pool_class, pool_spread, weight_spread
from stacks.memory.kv import Layout, PoolTokens, pool_tokens
from stacks.memory.models import UnknownFactError
from stacks.memory.pools import Terms, in_host_memory, layout_of, rank_terms
from stacks.memory.setup import PREDICTED_STACKS, Limits, Setup, check_setup, limits_of
from stacks.memory.versions import Version, constant
from stacks.memory.weights import WeightPart

Answer = Literal["yes", "no", "undecided"]


CPU_SHARE = 0.05
"""Stated interval of what an engine holds on the CPU; METHOD.md has the measurements."""


class Item(NamedTuple):
    """A line of the bill, bytes on one card."""

    name: str
    spread: Spread
    why: str


class Pool(NamedTuple):
    """The KV pool: bytes, and what they hold in the engine's own counting."""

    bytes: Spread
    held: PoolTokens
    tokens_low: int
    tokens_high: int


class Bill(NamedTuple):
    setup: Setup
    limits: Limits
    layout: Layout
    resident: Spread | None
    """What the server holds once it has worked; None where a part of it is not modelled."""
    weights: Spread
    """The heaviest rank, as engines print it."""
    parts: tuple[WeightPart, ...]
    terms: Terms
    """The tightest rank."""
    pool: Pool | None
    """None: see `no_pool`."""
    no_pool: str | None
    pool_class: PoolClass
    items: tuple[Item, ...]
    starts: Answer
    need_bytes: float
    """KV bytes that one request of the longest length needs: without them the engine refuses to start."""
    longest_tokens: int
    """The longest request that the predicted pool holds."""

    @property
    def total_bytes(self) -> int | None:
        return self.setup.total_bytes


def _around(value: float, below: float, above: float) -> Spread:
    return Spread(value, max(0.0, value - below), value + above)


def _overhead_items(setup: Setup, terms: Terms) -> list[Item]:
    group = setup.tensor > 1 or setup.pipeline > 1
    slack = 1.0 if group else 0.2
    items = []
    if in_host_memory(setup):
        buffers, runtime = terms.activation, terms.context
        share = 0.15 if _was_measured(setup) else 0.5
        if terms.copies:
            items.append(Item("copies", _around(terms.copies, terms.copies, terms.copies), "output head, packed"))
        items.append(Item("compute buffers", _around(buffers, 0.05 * buffers, 0.05 * buffers), "one batch"))
        items.append(
            Item("runtime", _around(runtime, share * runtime, share * runtime), "programs and their libraries")
        )
        return items
    if setup.cpu:
        return []
    if setup.stack in {"vllm", "tgi"}:
        peak = terms.activation
        items.append(
            Item(
                "activation peak", _around(peak, 0.1 * peak, 0.35 * peak), "reserved for one profiled batch; transient"
            )
        )
    if setup.stack == "vllm":
        both = terms.context + terms.non_torch
        items.append(
            Item("runtime context", _around(both, slack * GIB / 2, slack * GIB), "CUDA context, NCCL, workspaces")
        )
    elif terms.context:
        items.append(Item("runtime context", _around(terms.context, 0.3 * GIB, slack * GIB), "CUDA context, NCCL"))
    if terms.graphs:
        items.append(Item("CUDA graphs", _around(terms.graphs, 0.3 * GIB, 0.75 * GIB), "captured decode batches"))
    return items


def _budget_outside(setup: Setup, terms: Terms, fraction: float) -> float | None:
    """Margin: what is left outside all items."""
    if setup.total_bytes is None:
        return None
    if setup.stack == "vllm":
        return setup.total_bytes * (1 - fraction) - terms.context - (terms.graphs - terms.graphs_charged)
    if terms.pool is None or setup.stack == "llamacpp":
        return None
    used = terms.weights + max(0.0, terms.pool) + terms.activation + terms.context + terms.graphs
    return setup.total_bytes - used


def _items(setup: Setup, limits: Limits, terms: Terms, weights: Spread, pool: Pool | None) -> tuple[Item, ...]:
    items = [Item("weights", weights, f"{setup.weights.title}; {setup.weights.evidence}")]
    if pool is not None:
        items.append(Item("KV cache", pool.bytes, f"class {pool_class(setup).name}: {pool_class(setup).why}"))
    others = _overhead_items(setup, terms)
    items += others
    margin = _budget_outside(setup, terms, limits.fraction)
    if margin is not None:
        # The activation peak lies inside the budget; context and graphs do not.
        outside = [item for item in others if item.name != "activation peak"]
        above = sum(item.spread.high - item.spread.value for item in outside)
        below = sum(item.spread.value - item.spread.low for item in outside)
        items.append(Item("margin", Spread(margin, margin - above, margin + below), "free outside every item"))
    return tuple(items)


def _was_measured(setup: Setup) -> bool:
    """Of llama.cpp's own program the memory was never read, only of the same engine in a Python process."""
    return setup.stack == "vllm" or setup.in_python


def _resident(setup: Setup, terms: Terms, items: tuple[Item, ...]) -> Spread | None:
    """The sum of what stays: every item but the margin. An engine of the vLLM family may keep a part of its activation
    peak as cached blocks, so that is within the interval and not in the value.

    On a CPU it was measured as a whole, so the sum is surer than its parts.
    """
    own = [item for item in items if item.name != "margin"]
    if not any(item.name == "KV cache" for item in own) or not (terms.context or setup.stack == "vllm"):
        return None
    if setup.cpu and not in_host_memory(setup):
        return None
    value = sum(item.spread.value for item in own if item.name != "activation peak")
    if in_host_memory(setup) and _was_measured(setup):
        return Spread(value, value * (1 - CPU_SHARE), value * (1 + CPU_SHARE))
    low = sum(item.spread.low for item in own if item.name != "activation peak")
    return Spread(value, low, sum(item.spread.high for item in own))


def _holds(setup: Setup, layout: Layout, limits: Limits, pool_bytes: float) -> PoolTokens:
    from_concurrency = setup.stack == "vllm" and bool(
        constant("vllm", "hybrid_tokens_from_concurrency", setup.known_version, setup.hardware).value
    )
    inflight = inflight_tokens(setup, limits)
    return pool_tokens(layout, max(0.0, pool_bytes), limits.max_model_len, inflight, from_concurrency=from_concurrency)


def inflight_tokens(setup: Setup, limits: Limits) -> int:
    """Tokens of batches under way, which a sliding window must keep: asynchronous scheduling has two from 0.24 on."""
    batches = 1
    if setup.known_version >= Version(0, 24):
        batches = 2 if setup.pipeline == 1 else setup.pipeline
    return limits.batched_tokens * batches


def _card_spread(setup: Setup, limits: Limits, spread: Spread) -> Spread:
    """A size class adds its own spread of memory to the pool's interval."""
    if setup.card_low_gib is None or setup.card_high_gib is None or setup.card is None:
        return spread
    middle = setup.card.usable_gib
    share = limits.fraction * GIB
    return spread.plus((middle - setup.card_low_gib) * share, (setup.card_high_gib - middle) * share)


def _no_pool(setup: Setup, terms: Terms) -> str | None:
    """Why no pool can be predicted, one sentence; None if it can."""
    if setup.stack not in PREDICTED_STACKS:
        return f"How {setup.stack} sizes its pool is not modelled: weights and KV bytes per token only."
    if terms.pool is None:
        return "Nothing is known of the card's memory, so no pool can be predicted: name the card or its total."
    if setup.stack == "tgi" and setup.hardware == "amd" and setup.kv_cache_bytes is None:
        return "TGI's pool on AMD cards is not modelled: the one measured start lies 60 % below its rule."
    return None


def _longest(layout: Layout, blocks: int, inflight: int) -> int:
    """The longest request that `blocks` hold, whole blocks."""
    low, high = 0, max(blocks, 1)
    while layout.blocks_of(high * layout.block_tokens, inflight) <= blocks:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        if layout.blocks_of(middle * layout.block_tokens, inflight) <= blocks:
            low = middle
        else:
            high = middle
    return low * layout.block_tokens


def _answer(pool: Spread, need: float, set_by_hand: bool) -> Answer:
    if set_by_hand:
        return "yes" if pool.value >= need else "no"
    if pool.low >= need:
        return "yes"
    return "no" if pool.high < need else "undecided"


def bill(setup: Setup) -> Bill:
    """The bill of a setup. Raises `NonsenseError` or `UnknownFactError` for settings that cannot be."""
    check_setup(setup)
    limits, layout = limits_of(setup), layout_of(setup)
    ranks = rank_terms(setup)
    terms = ranks[0]
    weights = weight_spread(setup, max(rank.weights for rank in ranks))
    no_pool = _no_pool(setup, terms)
    inflight = inflight_tokens(setup, limits)
    need = layout.blocks_of(limits.max_model_len, inflight) * layout.page_bytes
    pool, longest = None, 0
    starts: Answer = "undecided"
    if no_pool is None and terms.pool is not None:
        spread = _card_spread(setup, limits, pool_spread(setup, terms.pool))
        held = _holds(setup, layout, limits, spread.value)
        low, high = (_holds(setup, layout, limits, bound).tokens for bound in (spread.low, spread.high))
        pool = Pool(spread, held, low, high)
        starts = _answer(spread, need, setup.kv_cache_bytes is not None or setup.stack == "llamacpp")
        longest = _longest(layout, held.blocks, inflight)
    items = _items(setup, limits, terms, weights, pool)
    return Bill(
        setup=setup,
        limits=limits,
        layout=layout,
        resident=_resident(setup, terms, items),
        weights=weights,
        parts=terms.parts,
        terms=terms,
        pool=pool,
        no_pool=no_pool,
        pool_class=pool_class(setup),
        items=items,
        starts=starts,
        need_bytes=need,
        longest_tokens=longest,
    )


def require_pool(result: Bill) -> Pool:
    """The pool, or `UnknownFactError` with the reason why there is none."""
    if result.pool is None:
        raise UnknownFactError(result.no_pool or "No pool is predicted.")
    return result.pool
