"""Failure switches of the simulated server: what it does wrong, and when."""

from __future__ import annotations

from typing import Any

import msgspec


class Faults(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be made to go wrong. Tokens are output tokens of all requests since the start."""

    oom_at_start: bool = False
    oom_after_tokens: int | None = None
    """The engine runs out of memory under load, says so in its stack's words, and dies."""
    crash_after_tokens: int | None = None
    """It dies without a word."""
    hang_after_tokens: int | None = None
    """It stops stepping; its health page still answers."""
    error_every: int | None = None
    """Every n-th request gets an error inside its stream."""
    refuse_every: int | None = None
    """Every n-th request is answered with `refuse_status`."""
    refuse_status: int = 429
    throttle: float = 1.0
    """Factor on the time of every step."""
    slow_death_s: float | None = None
    """The time of a step doubles every so many seconds."""
    neighbour_gib: float = 0.0
    """Memory of the card that another process holds."""

    def slowdown(self, now_s: float) -> float:
        """Factor on the time of a step at a time of the engine's clock."""
        dying = 1.0 if self.slow_death_s is None else 2.0 ** min(now_s / self.slow_death_s, 60.0)
        return self.throttle * dying


def parse_fault(text: str) -> dict[str, Any]:
    """``oom-at-start`` or ``NAME=NUMBER`` as fields of `Faults`. Raises ValueError naming the switches."""
    name, _, value = text.partition("=")
    field = name.replace("-", "_")
    try:
        if field == "oom_at_start" and not value:
            return {field: True}
        if field in _WHOLE:
            return {field: int(value)}
        if field in _REAL:
            return {field: float(value)}
    except ValueError as error:
        raise ValueError(f"{text!r}: {value!r} is no number") from error
    known = ", ".join(["oom-at-start", *(f"{f.replace('_', '-')}=N" for f in (*_WHOLE, *_REAL))])
    raise ValueError(f"there is no fault {text!r}; there are {known}")


_WHOLE = (
    "oom_after_tokens",
    "crash_after_tokens",
    "hang_after_tokens",
    "error_every",
    "refuse_every",
    "refuse_status",
)
_REAL = ("throttle", "slow_death_s", "neighbour_gib")
