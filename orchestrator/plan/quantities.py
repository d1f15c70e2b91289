"""Durations and sizes as people write them: a number in the key's own unit, or a text with a unit."""

from __future__ import annotations

import math
import re

_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([A-Za-z]*)\s*")
_SECONDS = {"ms": 0.001, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_BYTES: dict[str, int] = {
    "b": 1,
    **{f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", start=1)},
    **{f"{prefix}b": 1000**power for power, prefix in enumerate("kmgt", start=1)},
    # As Docker reads them: a bare letter is a power of 1024.
    **{prefix: 1024**power for power, prefix in enumerate("kmgt", start=1)},
}


def seconds_of(text: str) -> float:
    """`"90s"`, `"2m"`, `"500ms"`, `"1.5h"` in seconds. ValueError otherwise; a bare number has no unit here."""
    number, unit = _split(text)
    if unit not in _SECONDS:
        raise ValueError('a duration is a number or a text such as "30s", "2m" or "500ms"')
    return number * _SECONDS[unit]


def bytes_of(text: str) -> int:
    """`"8GiB"`, `"8g"` (both 2**33), `"8GB"` (8e9) in bytes. ValueError otherwise."""
    number, unit = _split(text)
    if unit not in _BYTES:
        raise ValueError('a size is a number of bytes or a text such as "8GiB", "512MiB" or "4g"')
    return round(number * _BYTES[unit])


def _split(text: str) -> tuple[float, str]:
    match = _QUANTITY.fullmatch(text)
    if match is None or not math.isfinite(float(match[1])):
        return 0.0, "no unit"
    return float(match[1]), match[2].lower()


def in_unit_of(key: str, value: object) -> object:
    """A text under a key that ends in a unit, as a number in that unit; everything else as it is.

    Units: `_s` and `_seconds`, `_ms`, `_bytes`, and `minutes`. ValueError if the text is no quantity.
    """
    if not isinstance(value, str):
        return value
    if key.endswith("_bytes"):
        return bytes_of(value)
    if key.endswith("_ms"):
        return seconds_of(value) * 1000
    if key.endswith(("_s", "_seconds")):
        return seconds_of(value)
    return seconds_of(value) / 60 if key == "minutes" else value
