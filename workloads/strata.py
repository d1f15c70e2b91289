"""The order in which length pairs are kept, so that an evenly spaced draw is a stratified draw of their joint law.

Snake order: pairs sorted by prompt and cut into strata of equal mass; output ascending in even strata (from 0),
descending in odd ones. Neighbours in the list are then neighbours in (prompt, output).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workloads.streams import random_words

Pairs = NDArray[np.int64]
"""Shape (n, 2): prompt tokens, output tokens."""

TRACE_STRATA = 20


def snake_order(pairs: Pairs, strata: int = TRACE_STRATA, seed: int = 0) -> Pairs:
    """The same pairs in snake order. Equal prompts (and equal outputs) are ordered at random, seeded."""
    n = len(pairs)
    ties = random_words(seed, n, "strata")
    by_prompt = np.lexsort((ties, pairs[:, 0]))
    ordered: list[NDArray[np.int64]] = []
    for number, stratum in enumerate(np.array_split(by_prompt, min(strata, n))):
        by_output = stratum[np.lexsort((ties[stratum], pairs[stratum, 1]))]
        ordered.append(by_output if number % 2 == 0 else by_output[::-1])
    return pairs[np.concatenate(ordered)]
