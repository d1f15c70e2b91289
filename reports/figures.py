"""Numbers as people read them: with units, three digits that mean something, and words for what is not there."""

from __future__ import annotations

import math
import re

NONE = "\u2013"
"""Not reported. Never printed as 0."""

_CLIP = 4000
"""Most characters of one value in a report."""

_UNSAFE = {code: "\ufffd" for code in (*range(32), *range(127, 160), *range(0xD800, 0xE000)) if code not in (9, 10)}
_UNSAFE |= dict.fromkeys((0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xFEFF), "\ufffd")


def clean(text: str, limit: int = _CLIP) -> str:
    """Untrusted text for a page: control characters, lone surrogates and marks that turn the direction of writing are
    shown as �; what is over the limit is left out and counted."""
    shown = text[:limit].translate(_UNSAFE)
    return shown if len(text) <= limit else f"{shown} … ({len(text) - limit:,} characters left out)"


_UNIT = re.compile(r"(?<=\d)(?: ?(?=%)| (?=(?:us|ms|s|min|h|[KMGT]iB|MB|GB|W|kWh|tok/s|tokens?|users?|runs?)\b))")


def with_units(text: str) -> str:
    """The same words; no line ends between a number and its unit."""
    return _UNIT.sub("\u00a0", text)


def significant(value: float | None, digits: int = 3) -> str:
    """Three significant digits, never an exponent, thousands set apart."""
    if value is None or not math.isfinite(value):
        return NONE
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{rounded if decimals else value:,.{min(decimals, 6)}f}"


def limit(ms: float | None) -> str:
    """A limit as it was asked for: ``40 ms``, not ``40.0 ms``."""
    if ms is None:
        return NONE
    return f"{ms / 1000:,.6g} s" if ms >= 10_000 else f"{ms:,.6g} ms"


def target(share: float) -> str:
    """A share as it was asked for: ``95 %``."""
    return f"{share * 100:.6g} %"


def count(value: float | None) -> str:
    """A whole number."""
    return NONE if value is None else f"{round(value):,}"


def money(amount: float | None, currency: str) -> str:
    """``0.42 USD``."""
    return NONE if amount is None else f"{significant(amount)} {currency}"


def latency(ms: float | None) -> str:
    """Milliseconds in the unit that reads best."""
    if ms is None:
        return NONE
    return f"{significant(ms / 1000)} s" if ms >= 10_000 else f"{significant(ms)} ms"


def size(value: float | None) -> str:
    """Bytes in GiB, MiB, or KiB where a tenth of a MiB is too coarse."""
    if value is None:
        return NONE
    if 0 < abs(value) < (1 << 20) / 10:
        return f"{significant(value / 1024)} KiB"
    unit, name = (1 << 30, "GiB") if abs(value) >= 1 << 30 else (1 << 20, "MiB")
    return f"{significant(value / unit)} {name}"


def percent(share: float | None) -> str:
    """A share of 1 with one decimal; 100 % and 0 % only where they are exact."""
    if share is None:
        return NONE
    shown = f"{share * 100:.1f}"
    if share < 1 and shown == "100.0":
        return "> 99.9 %"
    if share > 0 and shown == "0.0":
        return "< 0.1 %"
    return f"{shown.removesuffix('.0') if share in (0, 1) else shown} %"


def points(share: float) -> str:
    """A difference of two shares, in percentage points."""
    return f"{abs(share) * 100:.1f} points"


def change(new: float, old: float) -> str:
    """A change relative to `old`, signed: ``-64 %``."""
    shown = f"{(new / old - 1) * 100:+.0f}"
    return "0 %" if shown in ("+0", "-0") else f"{shown} %".replace("-", "\u2212")


def duration(s: float | None) -> str:
    """Seconds as ``9.00 ms``, ``9.40 s``, ``3 min 7 s``, ``1 h 2 min``."""
    if s is None:
        return NONE
    if 0 < s < 0.1:
        return f"{significant(1000 * s)} ms"
    if s < 60:
        return f"{significant(s)} s"
    minutes, rest = divmod(round(s), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
