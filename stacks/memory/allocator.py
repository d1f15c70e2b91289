"""What PyTorch's CUDA caching allocator adds to a model's tensors.

An engine's weight line counts allocated *blocks*. A block is cut from a segment only if more than 1 MiB would be left
over; otherwise the tensor keeps the remainder, and the line counts it. A Qwen2.5-7B loses 2 MiB a layer that way, a
tiny model several per cent. Constants and rules: c10/cuda/CUDACachingAllocator.cpp.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable

_MIB = 2**20
_ROUND = 512
_SMALL = 1 * _MIB
"""Up to here a tensor comes from the pool of small blocks, whose remainders are always cut off."""
_LARGE_SEGMENT = 20 * _MIB
_OWN_SEGMENT = 10 * _MIB
"""From here on a tensor gets a segment of its own, rounded up to 2 MiB."""
_SEGMENT_ROUND = 2 * _MIB


def _round_up(size: int, step: int) -> int:
    return -(-size // step) * step


def unsplit_bytes(sizes: Iterable[int]) -> int:
    """Bytes that the tensors of these sizes, allocated in this order and kept, hold beyond what they need.

    Free blocks are taken best fit first, as the allocator does.
    """
    free: list[int] = []
    wasted = 0
    for size in sizes:
        if size <= _SMALL:
            continue
        need = _round_up(size, _ROUND)
        place = bisect.bisect_left(free, need)
        if place < len(free):
            block = free.pop(place)
        else:
            block = _LARGE_SEGMENT if need < _OWN_SEGMENT else _round_up(need, _SEGMENT_ROUND)
        rest = block - need
        if rest > _SMALL:
            bisect.insort(free, rest)
        else:
            wasted += rest
    return wasted
