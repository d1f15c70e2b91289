"""What a million tokens cost, in money and in energy, at the point that may be signed and not at the peak."""

from __future__ import annotations

from typing import Literal

import msgspec

from orchestrator.records import AskedCell, Cost, LevelStats

S_PER_HOUR = 3600
J_PER_KWH = 3.6e6
MILLION = 1e6
NO_CARD = "no card was there"
"""Why a simulated run has no energy: nobody will ask for it."""


class Economy(msgspec.Struct, frozen=True, kw_only=True):
    """Cost and energy of a cell. None = not known, with the reason beside it."""

    point: Literal["signed", "held"] | None = None
    """What `concurrency` is: the users that may be signed, or the most that held, where no level was measured at those.
    None: nothing held, so there is no point to speak of."""
    concurrency: int | None = None
    cards: int | None = None
    price_per_hour: float | None = None
    """Of the whole deployment."""
    currency: str = ""
    cost_per_million_output_tokens: float | None = None
    cost_per_million_tokens: float | None = None
    """Of prompt and output tokens together."""
    unpriced: str = ""
    """Why there is no cost; "" if there is one."""
    energy_j_per_output_token: float | None = None
    kwh_per_million_output_tokens: float | None = None
    unmetered: str = ""
    """Why there is no energy; "" if there is some."""


def cards_of(asked: AskedCell, watched: int) -> int | None:
    """Cards of a deployment: those that it names; all that were `watched` where it says so; None if it names none.
    Of simulated ones as many as share the model."""
    if asked.simulated:
        return asked.tensor_parallel
    return watched or None if asked.gpus == ("all",) else len(asked.gpus) or None


def price_per_hour(asked: AskedCell, cost: Cost, cards: int | None) -> tuple[float | None, str]:
    """(price, "") or (None, why there is none)."""
    if asked.deployment in cost.hour:
        return cost.hour[asked.deployment], ""
    if cost.gpu_hour is None:
        return None, "the plan gives no price ([cost] gpu_hour)"
    if cards is None:
        return None, "the deployment names no cards; [cost.hour] can give the price of the whole of it"
    return cost.gpu_hour * cards, ""


def economy(
    stats: LevelStats | None,
    concurrency: int | None,
    power_w: float | None,
    *,
    signed: bool,
    asked: AskedCell,
    cost: Cost,
    cards: int | None,
) -> Economy:
    """At one level that held (None: nothing did), from its rates and the mean power of its cards."""
    if stats is None:
        return Economy(unpriced="nothing held", unmetered="nothing held")
    price, unpriced = price_per_hour(asked, cost, cards)
    output, prompt = stats.output_tokens_per_s, stats.prompt_tokens_per_s
    unmetered = "" if power_w is not None else NO_CARD if asked.simulated else "no card told its power"
    if not output:
        price, power_w = None, None
        unpriced = unmetered = "the server does not tell its output tokens"
    joules = None if power_w is None or not output else power_w / output
    return Economy(
        point="signed" if signed else "held",
        concurrency=concurrency,
        cards=cards,
        price_per_hour=price,
        currency="" if price is None else cost.currency,
        cost_per_million_output_tokens=_per_million(price, output),
        cost_per_million_tokens=None if prompt is None else _per_million(price, (output or 0) + prompt),
        unpriced=unpriced,
        energy_j_per_output_token=joules,
        kwh_per_million_output_tokens=None if joules is None else joules * MILLION / J_PER_KWH,
        unmetered=unmetered,
    )


def _per_million(price: float | None, tokens_per_s: float | None) -> float | None:
    return price / (tokens_per_s * S_PER_HOUR) * MILLION if price is not None and tokens_per_s else None
