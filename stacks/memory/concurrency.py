"""The concurrency at which KV runs out, for a distribution of lengths and not only for the longest request.

A request holds `in + t` tokens while it decodes its t-th token. With service time proportional to output length, the
time-average over running requests is

    h  = E[out*(in + out/2)] / E[out]                                  tokens per running request
    s2 = E[out*(in^2 + in*out + out^2/3)] / E[out] - h^2               variance
    N* = KV tokens / hb                                                preemption begins here on average
    Nq : N*hb + z*sqrt(N*s2) = KV tokens                               no preemption with probability q

with hb = h rounded up to whole blocks, request by request and token by token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stacks.memory.kv import Layout
from stacks.memory.models import NonsenseError

Z99 = 2.326
"""Normal quantile of 99 %."""


class Moments(NamedTuple):
    """Moments of (prompt, output) pairs, tokens."""

    prompt: float
    output: float
    prompt_output: float
    output2: float
    prompt2_output: float
    prompt_output2: float
    output3: float

    @property
    def held(self) -> float:
        """h: tokens that a running request holds on average, without block rounding."""
        return (self.prompt_output + self.output2 / 2) / self.output

    @property
    def held_variance(self) -> float:
        """s2, tokens squared."""
        second = self.prompt2_output + self.prompt_output2 + self.output3 / 3
        return second / self.output - self.held**2


Pairs = Sequence[tuple[int, int]]


def _arrays(pairs: Pairs) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    table = np.asarray(pairs, dtype=np.float64)
    if table.ndim != 2 or table.shape[0] == 0 or table.shape[1] != 2:
        raise NonsenseError("The workload has no (prompt, output) pairs.")
    if table[:, 0].min() < 0 or table[:, 1].min() < 1:
        raise NonsenseError("A request needs at least 0 prompt tokens and 1 output token.")
    return table[:, 0], table[:, 1]


def moments(pairs: Pairs) -> Moments:
    prompt, output = _arrays(pairs)
    return Moments(
        float(prompt.mean()),
        float(output.mean()),
        float((prompt * output).mean()),
        float((output**2).mean()),
        float((prompt**2 * output).mean()),
        float((prompt * output**2).mean()),
        float((output**3).mean()),
    )


def _sum_blocks(tokens: NDArray[np.float64], block: int) -> NDArray[np.float64]:
    """Sum of ceil(k/block) for k = 1 ... tokens."""
    whole = np.floor(tokens / block)
    rest = tokens - whole * block
    total: NDArray[np.float64] = block * whole * (whole + 1) / 2 + rest * (whole + 1)
    return total


def _capped_sum(tokens: NDArray[np.float64], block: int, cap: int) -> NDArray[np.float64]:
    """Sum of min(ceil(k/block), cap) for k = 1 ... tokens."""
    edge = float(cap * block)
    total: NDArray[np.float64] = _sum_blocks(np.minimum(tokens, edge), block) + np.maximum(tokens - edge, 0.0) * cap
    return total


class Held(NamedTuple):
    """Blocks that a running request holds: time-average and variance."""

    blocks: float
    variance: float


def held_blocks(pairs: Pairs, layout: Layout) -> Held:
    """Blocks a running request holds in a layout, exact to the token: every group takes pages of its own.

    Variance is that of the tokens held, carried over to blocks by their ratio.
    """
    prompt, output = _arrays(pairs)
    block, total = layout.block_tokens, float(output.sum())
    full = _sum_blocks(prompt + output, block) - _sum_blocks(prompt, block)
    average = layout.full_groups * float(full.sum()) / total + layout.linear_groups
    if layout.windowed_groups:
        cap = math.ceil((layout.window - 1) / block) + 1
        windowed = _capped_sum(prompt + output, block, cap) - _capped_sum(prompt, block, cap)
        average += layout.windowed_groups * float(windowed.sum()) / total
    tokens = moments(pairs)
    spread = tokens.held_variance * (average / tokens.held) ** 2 if tokens.held else 0.0
    return Held(average, spread)


def mean_concurrency(blocks: float, held: Held, shared_prefix_blocks: float = 0.0) -> float:
    """N*: running requests at which the pool is full on average. A shared prefix is stored once."""
    own = held.blocks - shared_prefix_blocks
    if own <= 0:
        raise NonsenseError("The shared prefix is longer than what a running request holds.")
    return max(0.0, (blocks - shared_prefix_blocks) / own)


def safe_concurrency(blocks: float, held: Held, z: float = Z99) -> float:
    """Nq: running requests that fit with the probability of `z`: solves N*held + z*sqrt(N*variance) = blocks."""
    if blocks <= 0:
        return 0.0
    half = z * math.sqrt(max(held.variance, 0.0))
    root = (-half + math.sqrt(half**2 + 4 * held.blocks * blocks)) / (2 * held.blocks)
    return root**2


class Limit(NamedTuple):
    """A bound on running requests, and what sets it."""

    requests: float
    name: str


def binding_limit(stack: str, kv: float, seqs: int) -> Limit:
    """The lower of what KV holds and the engine's own cap, by the name of its setting."""
    caps = {
        "vllm": "max_num_seqs",
        "sglang": "max_running_requests",
        "tgi": "max_concurrent_requests",
        "llamacpp": "slots (-np)",
    }
    if seqs < kv:
        return Limit(float(seqs), caps.get(stack, "the engine's own cap"))
    return Limit(kv, "KV cache")
