"""How long a step of the simulated card takes: a roofline over what the batch reads and what it computes.

    t = t0 + s*seqs + max(W_read/(bandwidth*eff), 2*P*tokens/(flops*mfu)) + KV_read/(bandwidth*eff)
          + 4*layers*hidden*ctx*prefill/(flops*mfu)

The terms are those of `stacks.memory.steptime` (memory bandwidth, arithmetic of the weights, attention of a prompt).
The weights are read once a step, however many tokens pass them, so the larger of reading and arithmetic counts: below
the card's ridge a larger batch costs nothing, above it the format's bytes no longer matter. Attention has no such
reuse, and is added.
"""

from __future__ import annotations

import functools

import msgspec

from stacks.memory.bill import Bill
from stacks.memory.models import Model, UnknownFactError
from stacks.memory.steptime import (
    BANDWIDTH_SHARE,
    COMPUTE_SHARE,
    STEP_SECONDS,
    context_bytes_read,
    prefill_seconds,
    read_bytes,
)
from stacks.memory.weights import WeightPart
from stacks.simulated.kernels import arithmetic_tflops

SEQUENCE_SECONDS = 10e-6
"""s: scheduling, sampling and detokenising one more sequence in a step."""
FOUR_BIT_SHARE = 0.85
"""Share of the 16-bit rate that weight-only 4-bit kernels keep in large batches (8066 of 10338 tokens/s on an A100
with Marlin, 13605 of 13305 on an H100: gpustack study)."""
SLOW_KERNELS = {"bnb-nf4": 0.5, "bnb-nf4-double": 0.5, "bnb-int8": 0.5}
"""Formats whose kernels unpack before they multiply (5916 of 10338 tokens/s, same study)."""


class StepTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of the parts of a step; tokens and sequences are counts."""

    step_s: float
    """t0: what every step costs."""
    sequence_s: float
    kv_token_s: float
    """Reading the KV of one token of context."""
    attention_s: float
    """A prompt's token against one token of context before it."""
    token_s: float
    """Arithmetic of the weights for one token."""
    weights_s: tuple[float, ...]
    """Reading the weights for a step of this many tokens; the last holds for all above (experts are hit one by one)."""

    def linear_s(self, tokens: int) -> float:
        """The weights' part of a step that passes `tokens` through them."""
        read = self.weights_s[min(tokens, len(self.weights_s) - 1)]
        return max(read, tokens * self.token_s)

    def decode_s(self, sequences: int, context_tokens: int) -> float:
        """A step that decodes one token of each of `sequences`, which hold `context_tokens` together."""
        fixed = self.step_s + self.sequence_s * sequences
        return fixed + self.linear_s(sequences) + self.kv_token_s * context_tokens


_MOST_BATCH = 512


def _weights_read_s(model: Model, parts: tuple[WeightPart, ...], bandwidth_gb_s: float) -> tuple[float, ...]:
    rate = bandwidth_gb_s * 1e9 * BANDWIDTH_SHARE
    if model.moe is None:
        return (read_bytes(model, parts, 1) / rate,)
    return tuple(read_bytes(model, parts, batch) / rate for batch in range(_MOST_BATCH + 1))


@functools.cache
def _kernel_share(weights: str, bits: int, compute: str) -> float:
    if weights in SLOW_KERNELS:
        return SLOW_KERNELS[weights]
    return FOUR_BIT_SHARE if bits <= 4 and compute == "fp16" else 1.0


def step_times(result: Bill) -> StepTimes:
    """The step times of a deployment, from the same facts as its bill. One rank; pipeline ranks follow each other.

    Raises `UnknownFactError` where the card's speeds are not known.
    """
    setup = result.setup
    card = setup.card
    tflops = arithmetic_tflops(setup)
    if card is None or card.bandwidth_gb_s is None or tflops is None:
        raise UnknownFactError("The card's bandwidth and arithmetic rate are not known, so no time can be simulated.")
    weights, model, tensor = setup.weights, setup.model, setup.tensor
    share = COMPUTE_SHARE * _kernel_share(weights.name, weights.bits, weights.compute)
    kv_rate = card.bandwidth_gb_s * 1e9 * BANDWIDTH_SHARE
    # One token of attention against one token of context, the part of `prefill_seconds` that grows with context.
    attention = 4 * model.layers * model.hidden / (tensor * tflops * 1e12 * COMPUTE_SHARE)
    return StepTimes(
        step_s=STEP_SECONDS,
        sequence_s=SEQUENCE_SECONDS,
        kv_token_s=context_bytes_read(model, 1, setup.kv.bytes, tensor, 1) / kv_rate,
        attention_s=attention,
        token_s=prefill_seconds(model, 1, tflops, tensor=tensor, share=share),
        weights_s=tuple(s * setup.pipeline for s in _weights_read_s(model, result.parts, card.bandwidth_gb_s)),
    )
