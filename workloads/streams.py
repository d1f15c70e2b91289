"""Random numbers that are the same everywhere: raw 64-bit words of PCG64, whose stream numpy guarantees for ever.

numpy may change how its *distributions* and `shuffle` use the words; a request list that two machines must share (and
whose hash is compared) therefore uses the words themselves.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]


class Stream:
    """Words one block after another: they are those that one block of all of them would have."""

    def __init__(self, seed: int, purpose: str = "") -> None:
        """Any integer seeds, and each purpose has a stream of its own."""
        digest = hashlib.sha256(f"{purpose}/{seed}".encode()).digest()
        self._generator = np.random.PCG64(int.from_bytes(digest[:16]))

    def words(self, n: int) -> Words:
        """The next `n` words of 64 bits."""
        return np.asarray(self._generator.random_raw(n), dtype=np.uint64)

    def uniforms(self, n: int) -> NDArray[np.float64]:
        """The next `n` floats in [0, 1): the upper 53 bits of each word."""
        return (self.words(n) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def random_words(seed: int, n: int, purpose: str = "") -> Words:
    """The first `n` words of a stream."""
    return Stream(seed, purpose).words(n)


def uniforms(seed: int, n: int, purpose: str = "") -> NDArray[np.float64]:
    """The first `n` floats of a stream."""
    return Stream(seed, purpose).uniforms(n)


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
