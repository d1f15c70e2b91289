"""How many processes a level needs."""

from __future__ import annotations

import math
from typing import NamedTuple

STREAMS = 1024
"""Streams of one process ..."""
EVENTS_PER_S = 25_600
"""... and token events a second. In METHOD.md's run of `make bench-client` ("How true, how light") twice as many, 1,024
streams at 50 tokens/s, filled a core at 20 us an event, and the loop then lagged too much to be believed."""
USUAL_TOKENS_PER_S = 50.0
"""Of a stream, where nothing is known of the server yet: the speed of the benchmark."""


class Expected(NamedTuple):
    """What a level will bring, as far as it can be told before."""

    streams: float
    """Requests in flight at once."""
    events_per_s: float
    """Token events, of all streams together."""


def expected(streams: float, tokens_per_s: float | None = None) -> Expected:
    """`tokens_per_s`: of one stream, as the level before had them; None = not known."""
    return Expected(streams, streams * (USUAL_TOKENS_PER_S if tokens_per_s is None else tokens_per_s))


def workers_needed(load: Expected, cores: float) -> int:
    """As many processes as the load asks for, and no more than leave one core to the rest of the machine."""
    asked = math.ceil(max(load.streams / STREAMS, load.events_per_s / EVENTS_PER_S))
    return max(1, min(asked, math.floor(cores) - 1))
