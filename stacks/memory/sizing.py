"""A bill together with a workload: how many requests of these lengths it holds, what limits them, how fast it steps.

Everything `loadproof size` says is decided here and in `bill`; the command only reads options and prints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from stacks.memory.bill import Bill, bill
from stacks.memory.cards import Card, builtin_cards
from stacks.memory.concurrency import (
    Held,
    Limit,
    Moments,
    Pairs,
    binding_limit,
    held_blocks,
    mean_concurrency,
    moments,
    safe_concurrency,
)
from stacks.memory.formats import WeightFormat
from stacks.memory.kv import Layout
from stacks.memory.models import NonsenseError
from stacks.memory.setup import Setup
from stacks.memory.steptime import (
    Steady,
    card_tflops,
    context_bytes_read,
    decode_seconds,
    prefill_seconds,
    read_bytes,
    steady_state,
)


class Requests(NamedTuple):
    """Running requests of the workload's lengths."""

    mean: float
    """N*: the pool is full on average; preemption (or queueing) begins."""
    low: float
    high: float
    """N* at the ends of the pool's interval."""
    safe: float
    """Running requests that fit with 99 % probability, at the predicted pool."""
    longest: float
    """Requests of the longest length: the worst case that engines print."""
    limit: Limit
    """What binds first."""


class Sizing(NamedTuple):
    bill: Bill
    lengths: Moments
    held: Held
    requests: Requests | None
    concurrency: float
    """Running requests that the times are for."""
    steady: Steady | None
    """None: the card's speeds are not known."""


def _request_blocks(setup: Setup, layout: Layout, pairs: Pairs, lengths: Moments) -> Held:
    """Blocks that count against the pool for a running request: TGI reserves a request's whole length up front."""
    held = held_blocks(pairs, layout)
    if setup.stack != "tgi":
        return held
    return Held((lengths.prompt + lengths.output) / layout.block_tokens, 0.0)


def _requests(result: Bill, held: Held) -> Requests | None:
    pool = result.pool
    if pool is None:
        return None
    seqs = result.limits.seqs
    low, middle, high = (
        mean_concurrency(result.layout.blocks(max(0.0, bound)), held)
        for bound in (pool.bytes.low, pool.bytes.value, pool.bytes.high)
    )
    safe = safe_concurrency(pool.held.blocks, held)
    return Requests(middle, low, high, safe, pool.held.max_concurrency, binding_limit(result.setup.stack, middle, seqs))


def _steady(result: Bill, lengths: Moments, running: float) -> Steady | None:
    setup = result.setup
    card = setup.card
    rate = card_tflops(card, setup.weights) if card is not None else None
    if card is None or card.bandwidth_gb_s is None or rate is None or running <= 0:
        return None
    context = lengths.held
    kv_read = context_bytes_read(setup.model, context, setup.kv.bytes, setup.tensor, 1)
    # Pipeline ranks work one after the other: a token passes all layers.
    weights_read = read_bytes(setup.model, result.parts, running) * setup.pipeline
    decode = decode_seconds(weights_read, running * kv_read, card.bandwidth_gb_s)
    prefill = prefill_seconds(setup.model, lengths.prompt, rate, tensor=setup.tensor, context_tokens=lengths.prompt / 2)
    return steady_state(running, lengths.output, decode, prefill)


def size(setup: Setup, pairs: Pairs, concurrency: float | None = None) -> Sizing:
    """The bill of a setup, and what it holds of a workload. Times are for `concurrency`, else for what holds."""
    if concurrency is not None and concurrency <= 0:
        raise NonsenseError(f"The concurrency is {concurrency:g}, which must be positive.")
    result = bill(setup)
    lengths = moments(pairs)
    held = _request_blocks(setup, result.layout, pairs, lengths)
    requests = _requests(result, held)
    running = concurrency if concurrency is not None else (requests.limit.requests if requests else 1.0)
    return Sizing(result, lengths, held, requests, running, _steady(result, lengths, running))


def with_weights(setup: Setup, weights: WeightFormat) -> Setup:
    """The same deployment with other weights. A checkpoint's own bytes do not carry over."""
    return msgspec.structs.replace(setup, weights=weights, weight_bytes=None, online=False, checkpoint="")


def compare_sizes(setups: Sequence[Setup], pairs: Pairs, concurrency: float | None = None) -> list[Sizing]:
    """Sizings side by side, their times at one concurrency: the one given, else the least that any of them holds."""
    sizings = [size(setup, pairs, concurrency) for setup in setups]
    if concurrency is not None:
        return sizings
    held = [sizing.requests.limit.requests for sizing in sizings if sizing.requests is not None]
    shared = max(1.0, min(held, default=1.0))
    return [size(setup, pairs, shared) for setup in setups]


# --- what fits --------------------------------------------------------------------------------------------------


class Fit(NamedTuple):
    """The smallest number of cards of a kind that holds the deployment, or None where up to eight do not."""

    card: Card
    sizing: Sizing | None

    @property
    def price_usd_per_hour(self) -> float | None:
        if self.sizing is None or self.card.price_usd_per_hour is None:
            return None
        return self.card.price_usd_per_hour * self.sizing.bill.setup.tensor


_GROUPS = (1, 2, 4, 8)


def _enough(sizing: Sizing, concurrency: float | None) -> bool:
    """Surely starts, and surely holds what is asked: judged at the low end of the interval."""
    if sizing.bill.starts != "yes" or sizing.requests is None:
        return False
    return concurrency is None or min(sizing.requests.low, sizing.bill.limits.seqs) >= concurrency


def fitting_cards(setup: Setup, pairs: Pairs, concurrency: float | None = None) -> tuple[Fit, ...]:
    """Every card of the table with the fewest ranks that do, cheapest first where prices are known."""
    fits = []
    for card in builtin_cards().values():
        found = None
        for ranks in _GROUPS:
            if setup.model.heads % ranks:
                continue
            changed = msgspec.structs.replace(
                setup, card=card, tensor=ranks, pipeline=1, card_low_gib=None, card_high_gib=None
            )
            sizing = size(changed, pairs, concurrency)
            if _enough(sizing, concurrency):
                found = sizing
                break
        fits.append(Fit(card, found))
    far = float("inf")
    return tuple(
        sorted(
            fits,
            key=lambda fit: (
                fit.sizing is None,
                fit.price_usd_per_hour if fit.price_usd_per_hour is not None else far,
                fit.sizing.bill.setup.tensor if fit.sizing else 0,
            ),
        )
    )


class LengthFit(NamedTuple):
    """The largest settings that surely start on the card as it is."""

    max_model_len: int
    """0: not even the shortest request surely fits."""
    max_num_seqs: int
    """Cap on running requests that the pool holds with 99 % probability, at that cap's own activation peak."""


_STEP_TOKENS = 256


def _largest_len(setup: Setup) -> int:
    low, high = 0, (setup.model.max_position or 2**20) // _STEP_TOKENS
    while low < high:
        middle = (low + high + 1) // 2
        changed = msgspec.structs.replace(setup, max_model_len=middle * _STEP_TOKENS)
        if bill(changed).starts == "yes":
            low = middle
        else:
            high = middle - 1
    return low * _STEP_TOKENS


def _largest_seqs(setup: Setup, pairs: Pairs) -> int:
    """Fewer sequences free activation memory, so the cap is searched and not computed."""
    low, high = 0, 4096
    while low < high:
        middle = (low + high + 1) // 2
        requests = size(msgspec.structs.replace(setup, max_num_seqs=middle), pairs).requests
        if requests is not None and requests.safe >= middle:
            low = middle
        else:
            high = middle - 1
    return low


def fitting_lengths(setup: Setup, pairs: Pairs) -> LengthFit:
    return LengthFit(_largest_len(setup), _largest_seqs(setup, pairs))
