"""A request's record without its single token stamps: what is kept of one where hours of them are held in memory.

A stamp takes some 40 bytes, so an hour of 10,000 tokens/s is 1.4 GB of them. Folded, an answer takes a stamp a second.
"""

from __future__ import annotations

import itertools

import msgspec

from orchestrator.clock import NS_PER_S
from orchestrator.records import RequestRecord

PIECE_NS = NS_PER_S
FEW_EVENTS = 16
"""So many are not worth folding."""


def folded(record: RequestRecord) -> RequestRecord:
    """The record with events that lie a second apart or more (but the last), each with the tokens since the one before.

    First and last token, token counts and the largest gap are as they were, so whether the request was good is too. A
    token's own stamp is known to a second then.
    """
    at = record.token_ns
    if len(at) <= FEW_EVENTS:
        return record
    counts = record.token_counts or (1,) * len(at)
    stamps, tokens, since = [at[0]], [counts[0]], 0
    for stamp, count in zip(at[1:-1], counts[1:-1], strict=True):
        since += count
        if stamp - stamps[-1] >= PIECE_NS:
            stamps.append(stamp)
            tokens.append(since)
            since = 0
    return msgspec.structs.replace(
        record,
        token_ns=(*stamps, at[-1]),
        token_counts=(*tokens, since + counts[-1]),
        largest_gap_ns=max(after - before for before, after in itertools.pairwise(at)),
    )
