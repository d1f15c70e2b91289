"""Random numbers that are the same everywhere: raw 64-bit words of PCG64, whose stream numpy guarantees for ever.

numpy may change how its *distributions* and `shuffle` use the words; a request list that two machines must share (and
whose hash is compared) therefore uses the words themselves.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]


def random_words(seed: int, n: int, purpose: str = "") -> Words:
    """`n` 64-bit words; any integer seeds, and each purpose has a stream of its own."""
    digest = hashlib.sha256(f"{purpose}/{seed}".encode()).digest()
    generator = np.random.PCG64(int.from_bytes(digest[:16]))
    return np.asarray(generator.random_raw(n), dtype=np.uint64)


def uniforms(seed: int, n: int, purpose: str = "") -> NDArray[np.float64]:
    """`n` floats in [0, 1): the upper 53 bits of each word."""
    return (random_words(seed, n, purpose) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(seed: int, n: int, purpose: str = "") -> NDArray[np.int64]:
    """A seeded random order of 0 .. n-1 (ties of the sort keys, of chance 2**-64, keep their order)."""
    return np.argsort(random_words(seed, n, purpose), kind="stable").astype(np.int64)


def distinct_words(seed: int, n: int) -> Words:
    """`n` words that are all different (splitmix64: a bijection of a counter with a seeded start)."""
    start = int.from_bytes(hashlib.sha256(f"distinct/{seed}".encode()).digest()[:8])
    with np.errstate(over="ignore"):
        x = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(start)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)), dtype=np.uint64)
