"""Prompts of a demanded length whose content is random and never repeats, so that no prefix cache can help."""

from __future__ import annotations

import importlib.resources
from typing import Literal

import numpy as np

from orchestrator.records import Prompt, Request
from workloads.streams import Words, random_words

SMALLEST_USUAL_VOCABULARY = 32_000
FIRST_PLAIN_ID = 1_000
"""Below lie special tokens, single bytes and reserved places in every vocabulary that is known to us."""
PLAIN_SHARE = 0.9
"""Above this share of the ids lie special and padding tokens (Llama 3, Qwen, Gemma, DeepSeek, gpt-oss)."""

WORDS = np.array(importlib.resources.files("workloads").joinpath("data", "words.txt").read_text("utf-8").split())
"""Short common English words, all different, each one token in nearly every vocabulary."""


def plain_ids(vocab_size: int | None) -> tuple[int, int]:
    """First and last-plus-one of the token ids that are ordinary text pieces; for an unknown vocabulary a range that
    every usual one has. A tiny vocabulary (test models) gives its middle."""
    size = SMALLEST_USUAL_VOCABULARY if vocab_size is None else vocab_size
    if size < 16:
        raise ValueError(f"a vocabulary of {size} tokens is too small")
    last = int(size * PLAIN_SHARE)
    first = FIRST_PLAIN_ID if size >= 4 * FIRST_PLAIN_ID else size // 4
    return first, last


class PromptMaker:
    """Makes the content of requests, either token ids or text.

    Text of w words counts `overhead_tokens + w * tokens_per_word` prompt tokens at the server (its chat template, and
    its own tokenizer); both are measured on the server or left at their defaults.
    """

    def __init__(
        self,
        form: Literal["token_ids", "text"],
        vocab_size: int | None = None,
        tokens_per_word: float = 1.0,
        overhead_tokens: int = 0,
    ) -> None:
        if not tokens_per_word > 0:
            raise ValueError(f"tokens_per_word must be positive, not {tokens_per_word}")
        self._form = form
        self._first, self._last = plain_ids(vocab_size)
        self._tokens_per_word = tokens_per_word
        self._overhead_tokens = overhead_tokens

    def prompt(self, request: Request) -> Prompt:
        """The prompt of a request; the same request gives the same prompt."""
        if self._form == "token_ids":
            words = _words(request, max(1, request.prompt_tokens - self._overhead_tokens))
            ids = np.uint64(self._first) + words % np.uint64(self._last - self._first)
            return Prompt(token_ids=tuple(ids.tolist()))
        count = max(1, round((request.prompt_tokens - self._overhead_tokens) / self._tokens_per_word))
        chosen = WORDS[_words(request, count) % np.uint64(len(WORDS))]
        return Prompt(text=" ".join(chosen.tolist()))


def _words(request: Request, n: int) -> Words:
    return random_words(request.prompt_seed, n, "prompt")
