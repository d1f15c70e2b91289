"""The numbers that a level is judged by. Those of the SLO itself stand in the plan."""

from __future__ import annotations

from typing import Literal

from orchestrator.records import Record


class LevelRules(Record, frozen=True, kw_only=True):
    """Defaults of METHOD.md. All of them are fixed before a run."""

    by: Literal["point", "bound"] = "point"
    """S1 by the observed attainment, or by its confidence bounds."""
    alpha: float = 0.05
    """Error probability of one side of every bound."""
    minimum: int = 20
    """Fewest measured requests for a verdict by the observed attainment."""
    preemptions_per_request: float = 0.05
    kv_full: float = 0.95
    """KV use from which the pool counts as full ..."""
    kv_full_share: float = 0.10
    """... and the share of the time in which it may be."""
    waiting_share: float = 0.05
    """Waiting requests over c from which the engine admits too few ..."""
    running_share: float = 0.95
    """... if its running requests over c are also below this."""
    silence_s: float = 30.0
    """No token on any stream for this long, or three TTFT limits if that is longer, is a hang."""
    lag_share: float = 0.05
    """I1: loop or send lag (p99) over the tightest limit of the SLO."""
    send_lag_share: float = 0.01
    """I1 of an open level: send lag (p99) over the TTFT limit, or the tightest one."""
    in_flight_share: float = 0.98
    """I2: mean in-flight over c."""
    audit_share: float = 0.02
    """I3: difference of the two counts of in-flight."""
    tokens_share: float = 0.02
    """I4: difference between the engine's count of output tokens and ours ..."""
    tokens_window_s: float = 60.0
    """... where the window is longer than this."""
    others_bytes: int = 256 << 20
    """I5: GPU memory of other processes that counts as another user of the card."""
    throttled_share: float = 0.02
    drained_share: float = 0.01
    engine_share: float = 0.05
    """Flag: difference between the engine's running + waiting and our in-flight."""
