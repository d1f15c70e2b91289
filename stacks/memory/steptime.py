"""Predicted time of a decode step and of a prefill, from bandwidth and compute.

    t_decode  = (W_read + batch*ctx*kv_bytes)/(bandwidth*eff) + t_comm + t0
    t_prefill = 2*P*tokens/(tp*flops*mfu) + 4*layers*hidden*ctx*tokens/(tp*flops*mfu)
    TPOT      = t_decode / (1 - prefill rate * t_prefill)                  one shared GPU, chunked prefill

Planning figures: they show what changes between formats, and are calibrated by the first two measured levels.
Communication between cards has no prior: without NVLink it can be longer than everything else.
"""

from __future__ import annotations

from typing import NamedTuple

from stacks.memory.cards import Card
from stacks.memory.formats import WeightFormat
from stacks.memory.kv import layer_kv
from stacks.memory.models import Model
from stacks.memory.weights import WeightPart

BANDWIDTH_SHARE = 0.80
COMPUTE_SHARE = 0.55
STEP_SECONDS = 0.0005
"""t0: what a step costs an engine at batch 1; 0.4 to 4.5 ms were measured, by engine version."""


def read_bytes(model: Model, parts: tuple[WeightPart, ...], batch: float) -> float:
    """Weight bytes that one decode step reads on a rank: all but the embedding; of the experts those that are hit."""
    skipped = {"embedding", "vision", "positions", "rotary cache", "allocator remainders"}
    touched = 1.0
    if model.moe is not None:
        share = model.moe.experts_per_token / model.moe.experts
        touched = 1 - (1 - share) ** max(batch, 1.0)
    total = sum(part.bytes * (touched if part.name == "experts" else 1.0) for part in parts if part.name not in skipped)
    if model.tied_embeddings:
        # The table serves as the head, so every step reads it after all.
        total += sum(part.bytes for part in parts if part.name == "embedding")
    return total


def context_bytes_read(model: Model, context_tokens: float, value_bytes: float, tensor: int, pipeline: int) -> float:
    """KV bytes that one request's decode step reads on a rank at a context."""
    per_layer = layer_kv(model, value_bytes, tensor)
    windowed = min(context_tokens, model.window) if model.window else context_tokens
    total = model.full_layers * per_layer.full * context_tokens + model.windowed_layers * per_layer.windowed * windowed
    return total / pipeline


def decode_seconds(
    weight_bytes_read: float,
    kv_bytes_read: float,
    bandwidth_gb_s: float,
    *,
    share: float = BANDWIDTH_SHARE,
    step_s: float = STEP_SECONDS,
    communication_s: float = 0.0,
) -> float:
    return (weight_bytes_read + kv_bytes_read) / (bandwidth_gb_s * 1e9 * share) + communication_s + step_s


def active_params(model: Model) -> float:
    """P: text parameters that a token passes, without the embedding."""
    head = model.params.embedding if model.tied_embeddings else model.params.lm_head
    dense = model.params.attention + model.params.mlp + model.params.norms + model.params.other + head
    if model.moe is None:
        return float(dense)
    return dense + model.params.experts * model.moe.experts_per_token / model.moe.experts


def prefill_seconds(
    model: Model,
    tokens: float,
    tflops: float,
    *,
    tensor: int = 1,
    context_tokens: float = 0.0,
    share: float = COMPUTE_SHARE,
) -> float:
    """Seconds to prefill `tokens` that see `context_tokens` on average; TFLOP/s are dense, of one card."""
    rate = tensor * tflops * 1e12 * share
    return (2 * active_params(model) + 4 * model.layers * model.hidden * context_tokens) * tokens / rate


def tpot_seconds(decode_s: float, prefills_per_s: float, prefill_s: float) -> float:
    """Time per output token where prefills share the card; infinite once they fill it."""
    left = 1 - prefills_per_s * prefill_s
    return decode_s / left if left > 0 else float("inf")


class Steady(NamedTuple):
    """A closed loop's steady state at a number of running requests."""

    requests_per_s: float
    decode_s: float
    prefill_s: float
    tpot_s: float


def steady_state(running: float, mean_output: float, decode_s: float, prefill_s: float) -> Steady:
    """The rate at which `running` requests feed themselves: each cycle is one prefill and `mean_output` steps.

    rate = (1 - rate*prefill) * running / (mean_output*decode), solved for the rate.
    """
    cycle = mean_output * decode_s
    rate = running / (cycle + running * prefill_s) if running else 0.0
    return Steady(rate, decode_s, prefill_s, tpot_seconds(decode_s, rate, prefill_s))


def card_tflops(card: Card, weights: WeightFormat) -> float | None:
    """Dense rate for a weight format: its own where the card has it and the kernels compute in it, else 16-bit."""
    rates = card.dense_tflops
    own = getattr(rates, weights.compute)
    return own if own is not None else rates.fp16
