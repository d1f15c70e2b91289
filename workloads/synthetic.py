"""Workloads made of two chosen laws. For what-if questions: no real service has lengths like these."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from workloads.rows import LARGEST_TOKENS
from workloads.strata import snake_order
from workloads.streams import permutation, uniforms
from workloads.workload import Workload

PAIRS = 2000

FORMS = "512, uniform:LOW:HIGH, normal:MEAN:STD, lognormal:MEAN:STD or exponential:MEAN"


@dataclass(frozen=True)
class Distribution:
    """A law of a length in tokens. `quantile` maps a share in (0, 1) to a length, not yet rounded."""

    text: str
    quantile: Callable[[float], float]

    def sample(self, seed: int, n: int, purpose: str = "") -> NDArray[np.int64]:
        """`n` lengths, one from each of n slices of equal probability, in a seeded order; whole, at least 1."""
        slices = (np.arange(n) + uniforms(seed, n, f"slice/{purpose}")) / n
        shares = np.clip(slices, 0.5 / n / PAIRS, 1 - 0.5 / n / PAIRS)
        values = np.array([self.quantile(share) for share in shares.tolist()])
        lengths: NDArray[np.int64] = np.clip(np.rint(values), 1, LARGEST_TOKENS).astype(np.int64)
        return lengths[permutation(seed, n, f"order/{purpose}")]


def distribution(text: str | int) -> Distribution:
    """The law that a text names. Means and standard deviations are those of the length itself, also for lognormal.

    Raises ValueError with the forms that are allowed.
    """
    kind, _, rest = str(text).strip().partition(":")
    try:
        numbers = [float(part) for part in (rest.split(":") if rest else [])]
        if not rest and kind.replace("_", "").isdigit():
            kind, numbers = "constant", [float(kind)]
        law = _law(kind.lower(), numbers)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{str(text)[:60]!r} is no length; write {FORMS}") from error
    return Distribution(str(text).strip(), law)


def _law(kind: str, numbers: list[float]) -> Callable[[float], float]:
    """ValueError where the name, the count of numbers or a number is wrong."""
    if not all(math.isfinite(number) and 0 <= number <= LARGEST_TOKENS for number in numbers):
        raise ValueError("out of range")
    match kind, numbers:
        case "constant", [tokens] if tokens >= 1:
            return lambda _: tokens
        case "uniform", [low, high] if 1 <= low <= high:
            return lambda share: math.floor(low + share * (high - low + 1))
        case "normal", [mean, std] if mean >= 1:
            return lambda share: mean + std * NormalDist().inv_cdf(share)
        case "lognormal", [mean, std] if mean >= 1:
            sigma = math.sqrt(math.log1p((std / mean) ** 2))
            mu = math.log(mean) - sigma**2 / 2
            return lambda share: math.exp(mu + sigma * NormalDist().inv_cdf(share))
        case "exponential", [mean] if mean >= 1:
            return lambda share: -mean * math.log1p(-share)
    raise ValueError("no such law")


def synthetic(*, prompt: str | int, output: str | int, seed: int = 0, name: str | None = None) -> Workload:
    """2,000 pairs, prompt and output drawn independently."""
    prompts, outputs = distribution(prompt), distribution(output)
    pairs = np.column_stack((prompts.sample(seed, PAIRS, "prompt"), outputs.sample(seed, PAIRS, "output")))
    spoken = f"prompt {prompts.text}, output {outputs.text}"
    return Workload(
        name=name or f"p{prompts.text}-o{outputs.text}".replace(":", "_"),
        title=f"Synthetic: {spoken} tokens",
        pairs=snake_order(pairs, strata=50),
        source=f"{PAIRS:,} pairs drawn from {spoken}, seed {seed}",
        notes=("Synthetic lengths, prompt and output independent: what-if, not any service.",),
    )
