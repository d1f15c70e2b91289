"""Cards: how much memory the runtime reports, how fast it is, how fast the card computes."""

from __future__ import annotations

import functools
import re
import statistics
from collections.abc import Mapping
from importlib import resources
from typing import Literal, NamedTuple

import msgspec

from stacks.memory.models import Facts, NonsenseError, UnknownFactError, nearest

GIB = 2**30

HardwareClass = Literal["hopper", "blackwell", "ada", "ampere", "turing", "older", "amd", "x86"]


class DenseTflops(Facts, frozen=True, kw_only=True):
    """Peak dense tensor rates, 10^12 FLOP/s; None = not supported or unknown."""

    fp16: float | None = None
    bf16: float | None = None
    fp8: float | None = None
    int8: float | None = None
    fp4: float | None = None


class Card(Facts, frozen=True, kw_only=True):
    id: str = ""
    name: str
    vendor: str = "NVIDIA"
    compute_capability: str = ""
    vram_gb: float | None = None
    """Marketing size; never computed with."""
    usable_gib: float
    """Total memory the CUDA or HIP runtime reports: the base of every fraction."""
    usable_basis: str = ""
    bandwidth_gb_s: float | None = None
    dense_tflops: DenseTflops = DenseTflops()
    tdp_w: float | None = None
    price_usd_per_hour: float | None = None

    @property
    def usable_bytes(self) -> int:
        return round(self.usable_gib * GIB)

    @property
    def hardware_class(self) -> HardwareClass:
        if not self.compute_capability[:1].isdigit():
            return "amd" if self.compute_capability else "older"
        capability = float(self.compute_capability)
        for least, name in _CLASSES:
            if capability >= least:
                return name
        return "older"


_CLASSES: tuple[tuple[float, HardwareClass], ...] = (
    (10.0, "blackwell"),
    (9.0, "hopper"),
    (8.9, "ada"),
    (8.0, "ampere"),
    (7.5, "turing"),
)


@functools.cache
def builtin_cards() -> Mapping[str, Card]:
    """Card id -> card, in the table's order."""
    text = resources.files("stacks.memory").joinpath("data", "card-facts.json").read_bytes()
    table = msgspec.json.decode(text)["cards"]
    return {name: msgspec.convert({**facts, "id": name}, Card) for name, facts in table.items()}


def _key(name: str) -> str:
    """A card's name reduced to what tells cards apart: no vendor, no form factor words, no punctuation."""
    words = re.split(r"[\s_/-]+|(?<=rtx)|(?<=rx)(?=\d)", name.lower())
    kept = [word for word in words if word not in {"nvidia", "amd", "geforce", "tesla", "instinct", "gpu", "rtx", "rx"}]
    return re.sub(r"(\d+)gb$", r"\1", "".join(kept))


_DRIVER_NAMES = (
    # What a driver calls a card -> id. The driver does not always say the size, so the measured total decides (below).
    (re.compile(r"h100.*nvl", re.IGNORECASE), "H100-NVL-94GB"),
    (re.compile(r"h100.*pcie", re.IGNORECASE), "H100-PCIE-80GB"),
    (re.compile(r"h100|h800", re.IGNORECASE), "H100-SXM-80GB"),
    (re.compile(r"a100.*40|a100-40", re.IGNORECASE), "A100-40GB"),
    (re.compile(r"a100|a800", re.IGNORECASE), "A100-80GB"),
    (re.compile(r"rtx pro 6000", re.IGNORECASE), "RTX-PRO-6000-96GB"),
    (re.compile(r"rtx 6000 ada", re.IGNORECASE), "RTX-6000-Ada-48GB"),
)


def find_card(name: str) -> Card:
    """A card of the table by id, by name or as the driver calls it.

    Raises `UnknownFactError` naming the nearest cards.
    """
    table = builtin_cards()
    if name in table:
        return table[name]
    wanted = _key(name)
    for card in table.values():
        if wanted in {_key(card.id), _key(card.name)}:
            return card
    for pattern, card_id in _DRIVER_NAMES:
        if pattern.search(name):
            return table[card_id]
    close = [card for card in table.values() if wanted and _key(card.name) == re.sub(r"\d+$", "", wanted)]
    if len(close) == 1:
        return close[0]
    raise UnknownFactError(f"Nothing is known of the card {name!r}.", f"Nearest: {nearest(name, table)}.")


def card_with_memory(name: str, total_bytes: int) -> Card:
    """A card that reports `total_bytes` itself (pynvml, or the user): the table's speeds if the name is known."""
    if total_bytes <= 0:
        raise NonsenseError(f"{name}: total memory is {total_bytes} bytes, which must be positive.")
    try:
        known = find_card(name)
    except UnknownFactError:
        return Card(id=name, name=name, usable_gib=total_bytes / GIB, usable_basis="as reported by the machine")
    return msgspec.structs.replace(known, usable_gib=total_bytes / GIB, usable_basis="as reported by the machine")


_SIZE_CLASS = re.compile(r"^(\d+) ?GB(?: (?:class|laptop))?$", re.IGNORECASE)
_USABLE_SHARE = 0.9875
"""Median of usable GiB over marketing GB in the table, for sizes that the table has no card of."""


class SizeClass(NamedTuple):
    """A stand-in where only the marketing size is known: memory with its spread, no speeds."""

    card: Card
    low_gib: float
    high_gib: float


def card_of_size(text: str) -> SizeClass | None:
    """``24 GB class`` -> the median card of that size and the smallest and largest of it; None for any other text."""
    found = _SIZE_CLASS.match(text)
    if found is None:
        return None
    size = float(found[1])
    usable = sorted(card.usable_gib for card in builtin_cards().values() if card.vram_gb == size)
    usable = usable or [size * _USABLE_SHARE]
    card = Card(id="", name=text, usable_gib=statistics.median(usable), usable_basis="size class, not a card")
    return SizeClass(card, usable[0], usable[-1])
