"""How far a prediction may be off: stated 90 % intervals, by what is known of the start.

The classes and their widest bounds come from measured starts; the bounds below are the narrower ones that hold nine of
ten rows of each class. Pool bounds are bytes on one card, weights are shares.
"""

from __future__ import annotations

from typing import NamedTuple

from stacks.memory.cards import GIB
from stacks.memory.setup import Setup
from stacks.memory.versions import Version


class Spread(NamedTuple):
    """A predicted value and the bounds of its stated interval."""

    value: float
    low: float
    high: float

    def plus(self, below: float, above: float) -> Spread:
        return Spread(self.value, self.low - below, self.high + above)


class PoolClass(NamedTuple):
    """A class of starts, and how far its measured pools lie below and above the predicted ones, GiB."""

    name: str
    below_gib: float
    above_gib: float
    why: str


SETTLED = PoolClass("A", 0.30, 0.30, "vLLM 0.15 or later on Hopper or Blackwell, a dense model of one kind")
RECENT = PoolClass("A", 0.55, 0.55, "vLLM 0.15 or later; experts, latent attention or another card")
OLDER = PoolClass("B", 1.0, 1.0, "vLLM before 0.15 on one card")
OLDER_GROUP = PoolClass("C", 8.0, 2.0, "vLLM before 0.15 on several cards, whose buffers vary by gigabytes")
UNCLEAR = PoolClass("D", 2.5, 2.0, "an unnamed version, a size class instead of a card, or an encoder's budget")
UNCLEAR_GROUP = PoolClass("D", 8.0, 2.0, UNCLEAR.why + "; on several cards")
UNVERIFIED = PoolClass("D", 8.0, 2.0, "an engine whose pool rule rests on its source and no measured start")
SGLANG_LOGGED = PoolClass("S", 0.1, 0.1, "SGLang with its own free memory at hand")
SGLANG_PREDICTED = PoolClass("S", 1.0, 0.8, "SGLang with its free memory predicted")
EXACT = PoolClass("=", 0.0, 0.0, "the pool is set, not left over")


def _unclear(setup: Setup) -> bool:
    """Whether a start lies outside what the classes A to C were measured on."""
    model = setup.model
    encoder = model.encoder in {"dynamic", "audio"} or (model.encoder is not None and setup.engine == "V0")
    approximate = "approximate" in model.params.status
    # An engine's second generation before 0.8 was an experiment: its profile ran other rows.
    experiment = setup.engine == "V1" and setup.known_version < Version(0, 8)
    return (
        setup.version is None
        or encoder
        or approximate
        or experiment
        or bool(setup.extra_features)
        or setup.card_low_gib is not None
    )


def _settled(setup: Setup) -> bool:
    plain = setup.model.moe is None and setup.model.mla is None and setup.weights.name != "fp32"
    return plain and setup.hardware in {"hopper", "blackwell"}


def _sglang_class(setup: Setup) -> PoolClass:
    if setup.free_before_load_bytes is not None and setup.free_after_load_bytes is not None:
        return SGLANG_LOGGED
    if setup.card_low_gib is not None:
        return UNCLEAR_GROUP if setup.tensor > 1 else UNCLEAR
    return SGLANG_PREDICTED


def pool_class(setup: Setup) -> PoolClass:
    if setup.kv_cache_bytes is not None or setup.stack == "llamacpp":
        return EXACT
    if setup.stack == "sglang":
        return _sglang_class(setup)
    if setup.stack != "vllm":
        return UNVERIFIED
    group = setup.tensor > 1 or setup.pipeline > 1
    if _unclear(setup):
        return UNCLEAR_GROUP if group and setup.known_version < Version(0, 15) else UNCLEAR
    if setup.known_version >= Version(0, 15):
        return SETTLED if _settled(setup) else RECENT
    return OLDER_GROUP if group else OLDER


def pool_spread(setup: Setup, pool: float) -> Spread:
    entry = pool_class(setup)
    return Spread(pool, pool - entry.below_gib * GIB, pool + entry.above_gib * GIB)


_LOOSE_SHARE = 0.05
_DROP_SHARE = 0.02
_HEADER_SHARE = 0.005
_FLOOR_BYTES = 0.02 * GIB


def weight_spread(setup: Setup, weights: float) -> Spread:
    """The format's own share, at least 0.02 GiB; wider where weights are quantised while loading, parts of the model
    are counted only roughly (both 5 %), or the engine prints a drop in free memory (SGLang, 2 %)."""
    share = setup.weights.interval
    if setup.weight_bytes is not None:
        share = 0.0 if setup.stack == "llamacpp" else _HEADER_SHARE
    elif setup.online or setup.model.approximate:
        share = _LOOSE_SHARE
    elif setup.stack == "sglang":
        share = max(share, _DROP_SHARE)
    half = max(weights * share, _FLOOR_BYTES if share else 0.0)
    return Spread(weights, weights - half, weights + half)
