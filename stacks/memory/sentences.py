"""What a bill means, in sentences that stand in the terminal and in the report alike."""

from __future__ import annotations

from stacks.memory.cards import GIB
from stacks.memory.rows import no_point
from stacks.memory.sizing import Sizing
from stacks.memory.steptime import card_tflops


def gib(value: float) -> str:
    return f"{value / GIB:,.2f} GiB"


def start_sentence(sizing: Sizing) -> str:
    """Whether it starts at all, and what to change if not."""
    result = sizing.bill
    length = f"{result.limits.max_model_len:,}"
    if result.pool is None:
        return result.no_pool or ""
    if result.starts == "yes":
        return (
            f"It starts: even at the low end the pool holds one request of {length} tokens ({gib(result.need_bytes)})."
        )
    if result.pool.bytes.value <= 0:
        return (
            f"It does not start: weights and overheads leave {gib(result.pool.bytes.value)} for KV. "
            "Take a smaller format, more cards, a larger card, or a larger memory fraction."
        )
    hint = f"about {result.longest_tokens:,} tokens fit: set --max-model-len below that"
    if result.starts == "no":
        return f"It does not start at {length} tokens: one such request needs {gib(result.need_bytes)}; {hint}."
    return (
        f"Undecided at {length} tokens: one such request needs {gib(result.need_bytes)}, and the pool is between "
        f"{gib(result.pool.bytes.low)} and {gib(result.pool.bytes.high)}; {hint}."
    )


def requests_sentence(sizing: Sizing) -> str | None:
    """How many requests of these lengths, and what binds."""
    requests = sizing.requests
    if requests is None or sizing.bill.pool is None:
        return None
    if sizing.bill.pool.bytes.value <= 0:
        return None
    sentence = (
        f"KV runs out at {requests.mean:,.1f} running requests of these lengths "
        f"({requests.low:,.1f} to {requests.high:,.1f}); {requests.safe:,.1f} fit with 99 % probability, "
        f"{requests.longest:,.1f} if every one had the longest length."
    )
    if requests.limit.name != "KV cache":
        sentence += f" But {requests.limit.name} = {requests.limit.requests:,.0f} binds first."
    return sentence


def margin_sentence(sizing: Sizing) -> str | None:
    """A margin that may be used up by what lies outside the engine's budget."""
    for item in sizing.bill.items:
        if item.name == "margin" and item.spread.low < 0:
            return (
                f"The margin is {gib(item.spread.value)} and may be below nothing ({gib(item.spread.low)}): "
                "context and graphs lie outside the engine's budget; lower the memory fraction."
            )
    return None


def point_sentence(sizing: Sizing) -> str | None:
    """Why the figures are bounds and not values, where they are."""
    pool = sizing.bill.pool
    return no_point(sizing.bill.setup, pool.bytes.value) if pool is not None and pool.bytes.value > 0 else None


def _more(value: float, unit: str) -> str:
    return f"{abs(value):,.0f} {'more' if value >= 0 else 'fewer'} {unit}"


def _capacity_words(before: Sizing, after: Sizing) -> str:
    if before.requests is None or after.requests is None or after.bill.pool is None or before.bill.pool is None:
        return "what that adds to KV is not predicted"
    tokens = after.bill.pool.held.tokens - before.bill.pool.held.tokens
    requests = after.requests.mean - before.requests.mean
    words = f"{_more(tokens, 'KV tokens')}, {_more(requests, 'concurrent requests of your lengths')}"
    cap = after.requests.limit
    if cap.name != "KV cache":
        gained = max(0.0, cap.requests - min(before.requests.mean, cap.requests))
        words += f" by memory, of which {cap.name} = {cap.requests:,.0f} lets {gained:,.0f} run"
    return words


def gain_sentence(before: Sizing, after: Sizing) -> str:
    """What a smaller format buys here, in one line; `quantization_sentence` says what it does not."""
    freed = before.bill.weights.value - after.bill.weights.value
    verb = "frees" if freed >= 0 else "takes another"
    return f"{after.bill.setup.weights.title} {verb} {gib(abs(freed))}: {_capacity_words(before, after)}."


def quantization_sentence(before: Sizing, after: Sizing) -> str:
    """What a smaller format buys here and what it does not: the sentence that matters."""
    name = after.bill.setup.weights
    freed = before.bill.weights.value - after.bill.weights.value
    verb = "frees" if freed >= 0 else "takes another"
    per_token = after.bill.layout.page_bytes * after.bill.layout.groups / after.bill.layout.block_tokens
    same = f"It does not change KV bytes per token ({per_token:,.0f})"
    if after.bill.setup.stack == "vllm":
        same += f", the activation peak ({gib(after.bill.terms.activation)}), graphs and runtime context"
    return (
        f"{name.title} {verb} {gib(abs(freed))} of weights: {_capacity_words(before, after)}. "
        f"{same}, nor {_compute_words(before, after)}."
    )


def _compute_words(before: Sizing, after: Sizing) -> str:
    card = after.bill.setup.card
    if card is None:
        return "the arithmetic that a prompt costs"
    old, new = (card_tflops(card, sizing.bill.setup.weights) for sizing in (before, after))
    if old is not None and new is not None and new > old:
        return f"latency by itself: prefill may gain at best {new / old:.1f} x, where the kernels reach the card's rate"
    return "the arithmetic that a prompt costs: prefill, and decoding in large batches, gain nothing"


def step_sentence(sizing: Sizing) -> str | None:
    """Predicted times at a concurrency, with what they leave out."""
    steady = sizing.steady
    if steady is None:
        return None
    tpot = f"{steady.tpot_s * 1000:,.1f} ms" if steady.tpot_s != float("inf") else "unbounded"
    sentence = (
        f"At {sizing.concurrency:,.0f} running requests: decode step {steady.decode_s * 1000:,.1f} ms, "
        f"prefill of a mean prompt {steady.prefill_s * 1000:,.0f} ms, TPOT about {tpot}, "
        f"{steady.requests_per_s:,.2f} requests/s."
    )
    if sizing.bill.setup.tensor > 1:
        sentence += " Communication between cards is not in it."
    return sentence
