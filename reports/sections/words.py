"""What short names mean, for a reader who is new to serving: classes of failures, and what limits a cell."""

from __future__ import annotations

from orchestrator.judge.cause import DECODE

_FAILURES = {
    "ctx-too-long": "no room for the context",
    "no-kv": "no room for a KV cache",
    "kv-full": "KV cache full",
    "oom-weights": "no room for the weights",
    "oom-kv": "no room for the KV cache",
    "oom-warmup": "out of memory while warming up",
    "oom-compute": "no room for the compute buffers",
    "oom": "out of memory",
    "prefill-oom": "out of memory in a prefill",
    "host-oom": "out of the machine's memory",
    "quant-unknown": "format of the weights not known",
    "quant-mismatch": "format of the weights is another",
    "quant-card": "format does not run on this card",
}
_LIMITS = {
    "prefill": "prefill: reading prompts takes the card's time from the answers under way",
    DECODE: "decode: writing the answers, token by token, at the card's speed (compute or memory bandwidth)",
    "KV memory": "KV memory: the room for the tokens of requests under way is used up",
    "memory": "memory: the server ran out of it",
    "errors": "errors: too many requests failed",
    "unknown": "not known",
}


def failure_words(failure_class: str) -> str:
    """``no room for the weights`` for ``oom-weights``; a class without an entry reads as it is, without its hyphens."""
    return _FAILURES.get(failure_class) or failure_class.replace("-", " ")


def limiter_words(limiter: str) -> str:
    """The limit and what it means."""
    return _LIMITS.get(limiter, limiter)
