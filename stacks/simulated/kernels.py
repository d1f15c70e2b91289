"""Which arithmetic the kernels of a format use on a card, by stack: a card or a kernel that lacks 8 bit stores it and
multiplies in 16."""

from __future__ import annotations

from stacks.memory.cards import Card
from stacks.memory.setup import Setup

_TGI_FP8_FROM = 9.0
"""TGI uses Marlin for fp8 up to and including compute capability 8.9: weights in 8 bit, arithmetic in 16."""
_LEAST_CAPABILITY = 75
_NEW_FORMATS = frozenset({"fp8", "awq-int4", "nvfp4", "mxfp4"})
"""Formats that vLLM has kernels for from compute capability 7.5 on (`get_min_capability` of its quantizations)."""


def _capability(card: Card) -> float | None:
    """NVIDIA's compute capability; None for a card that has none."""
    return float(card.compute_capability) if card.compute_capability[:1].isdigit() else None


def weight_only(setup: Setup) -> bool:
    """Weights are unpacked to 16 bit for the arithmetic, though their format has arithmetic of its own."""
    card, weights = setup.card, setup.weights
    if card is None or weights.compute == "fp16":
        return False
    if getattr(card.dense_tflops, weights.compute) is None:
        return True
    capability = _capability(card)
    return setup.stack == "tgi" and weights.name == "fp8" and capability is not None and capability < _TGI_FP8_FROM


def arithmetic_tflops(setup: Setup) -> float | None:
    """Dense rate of a deployment's matrices on its card, 10^12 FLOP/s; None = not known."""
    if setup.card is None:
        return None
    rates = setup.card.dense_tflops
    return rates.fp16 if weight_only(setup) else getattr(rates, setup.weights.compute) or rates.fp16


def card_too_old(setup: Setup) -> str | None:
    """vLLM's sentence for a card that has no kernel for the format at all; None where it has one."""
    capability = _capability(setup.card) if setup.card is not None else None
    if setup.stack != "vllm" or setup.weights.name not in _NEW_FORMATS or capability is None:
        return None
    number = round(10 * capability)
    if number >= _LEAST_CAPABILITY:
        return None
    return (
        f"ValueError: The quantization method {setup.weights.name} is not supported for the current GPU. "
        f"Minimum capability: {_LEAST_CAPABILITY}. Current capability: {number}."
    )


def fallback_line(setup: Setup) -> str | None:
    """What the stack logs of weights that it unpacks; None where it does not."""
    if not weight_only(setup) or setup.weights.name != "fp8":
        return None
    if setup.stack == "tgi":
        return "WARN text_generation_launcher: GPU does not support FP8, using Marlin FP8 kernel"
    return (
        "WARNING [fp8.py:91] Your GPU does not have native support for FP8 computation but FP8 quantization is being "
        "used. Weight-only FP8 compression will be used leveraging the Marlin kernel. This may degrade performance "
        "for compute-heavy workloads."
    )
