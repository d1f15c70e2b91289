"""A simulated deployment: what its bill lets it start with, or the sentence with which its stack refuses to start."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from stacks.memory.bill import Bill, bill, require_pool
from stacks.memory.setup import Setup
from stacks.simulated.engine import NOISE, POLICIES, Engine, EngineLimits, Policy
from stacks.simulated.timing import StepTimes, step_times

BLOCK_TOKENS = 16
TGI_ADMITTED = 128
"""TGI's own default of max_concurrent_requests."""


class SimulatedCard(msgspec.Struct, frozen=True, kw_only=True):
    """A deployment that started: its engines can be made as often as one likes, each with a seed of its own."""

    bill: Bill
    limits: EngineLimits
    times: StepTimes
    policy: Policy

    def engine(
        self, seed: int = 0, *, noise: float = NOISE, slowdown: Callable[[float], float] | None = None
    ) -> Engine:
        """A server process of this deployment. The seed is that of its steps' noise."""
        return Engine(self.limits, self.times, self.policy, seed=seed, noise=noise, slowdown=slowdown)


def simulated_card(setup: Setup, *, admitted: int | None = None) -> SimulatedCard:
    """The card under a deployment, sized by its bill. `admitted`: most requests in the engine, else the stack's own.

    Raises `UnknownFactError` where nothing is known of the card's memory or speed. Whether it would start at all is
    asked apart (`bill.starts`).
    """
    result = bill(setup)
    tokens = require_pool(result).held.tokens
    own = TGI_ADMITTED if setup.stack == "tgi" else None
    limits = EngineLimits(
        blocks=max(1, tokens // BLOCK_TOKENS),
        block_tokens=BLOCK_TOKENS,
        sequences=result.limits.seqs,
        step_tokens=result.limits.batched_tokens,
        request_tokens=_longest_request(result),
        admitted=own if admitted is None else admitted,
    )
    return SimulatedCard(bill=result, limits=limits, times=step_times(result), policy=POLICIES[setup.stack])


def _longest_request(result: Bill) -> int:
    """The longest prompt plus output; llama.cpp divides its context among the slots unless they share one cache."""
    setup, longest = result.setup, result.limits.max_model_len
    if setup.stack == "llamacpp" and not setup.unified_kv:
        return longest // result.limits.seqs
    return longest
