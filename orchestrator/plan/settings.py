"""The tables of a plan as immutable values with their defaults, and the bounds of their numbers.

Keys of a plan are the field names here, and those of `stacks.base.Deployment` and `orchestrator.records.Slo`.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import msgspec


class ModelSettings(msgspec.Struct, frozen=True, kw_only=True):
    """[model]: what every deployment serves unless it says otherwise."""

    id: str | None = None
    """Hub id, directory or GGUF file."""
    revision: str | None = None
    served_name: str | None = None
    context_tokens: int | None = None
    vocab_size: int | None = None
    """Size of the vocabulary, for prompts of random token ids; None = only ids that every usual vocabulary has."""


class WorkloadSettings(msgspec.Struct, frozen=True, kw_only=True):
    """[[workload]]: exactly one of `preset`, `trace`, and `prompt_tokens` with `output_tokens`."""

    name: str
    preset: str | None = None
    trace: str | None = None
    """Absolute path of the file."""
    prompt_tokens: int | str | None = None
    output_tokens: int | str | None = None
    prompt_scale: float = 1.0
    output_scale: float = 1.0
    seed: int | None = None
    """Seed of synthetic pairs; None = the plan's."""
    context_tokens: int | None = None
    """Pairs are cut to this context. None in the plan: the smallest context of all deployments, so that every one is
    asked the same; in a `Cell` it is that number."""
    levels: tuple[int, ...] = ()
    """Concurrencies to measure instead of a search."""


class Frontier(msgspec.Struct, frozen=True, kw_only=True):
    """[frontier]: the break along the prompt length. Each length becomes a workload of its own, of constant lengths."""

    prompt_tokens: tuple[int, ...]
    output_tokens: int = 128
    name: str = "prompt"
    """The workloads are called `NAME-LENGTH`."""
    precision: float = 0.10
    """Of the searches along the frontier, in place of the one in [ramp]: a curve needs no finer points."""

    def workload_name(self, prompt_tokens: int) -> str:
        return f"{self.name}-{prompt_tokens}"


_LONGEST_S, _LONGEST_FULL_S = 600.0, 7200.0


class Ramp(msgspec.Struct, frozen=True, kw_only=True):
    """[ramp]: how the concurrency is raised and how long a level is held (METHOD.md, closed-loop level)."""

    method: Literal["quick", "full"] = "quick"
    """`quick` decides levels by their observed shares, in minutes; `full` by bounds, with fresh runs and sentinels. It
    takes its own numbers of requests; of this table it uses start, max, precision and the times."""
    start: int = 1
    max: int = 256
    factor: float = 2.0
    precision: float = 0.10
    """The search ends when the bracket is at most this share of its upper end."""
    confirm: int = 1
    """Times that the last pass and the first failure are measured again."""
    requests: int = 100
    """Measured requests of a level: at least this many ..."""
    requests_per_user: int = 10
    """... and at least this many times the concurrency ..."""
    min_seconds: float = 30.0
    """... and for at least this long."""
    max_seconds: float | None = None
    """Then a level is cut, and INVALID. None = 600, and 7,200 for the full method, whose fresh runs of 1,600 requests
    take that long at one request every four seconds."""
    ramp_seconds: float | None = None
    """Time over which the users of a level start; None = max(2 * expected request time, 10 s)."""
    warmup_generations: float = 3.0
    filler_seconds: float = 30.0
    deadline_seconds: float = 600.0
    recovery: bool = True
    """After a break the lowest level that held is measured once more: does the server serve as before?"""

    @property
    def longest_s(self) -> float:
        """Seconds after which a level is cut."""
        if self.max_seconds is not None:
            return self.max_seconds
        return _LONGEST_FULL_S if self.method == "full" else _LONGEST_S


class OpenLoop(msgspec.Struct, frozen=True, kw_only=True):
    """[open_loop]: what follows a search: independent arrivals at rising rates, and the expected traffic, replayed."""

    check: bool | None = None
    """None: where `ramp.method` is full."""
    trace: str | None = None
    """The traffic expected at launch: a file of requests with time stamps. Without it and `arrivals`: the workload's
    own trace, or the bins of its preset."""
    arrivals: str | None = None
    """Instead: a preset whose swings are expected, or a law: `poisson`, `gamma:CV`."""
    requests: int = 1600
    """Measured requests of an open level, at least; and at least ten times what holds ..."""
    min_seconds: float = 300.0
    """... for at least this long, and at least 20 times the time of a request."""
    replay_seconds: float = 1800.0
    """Of a traffic that is longer, this much is replayed: its busiest stretch."""
    prefill_seconds: float = 60.0
    """Of the probe that tells what an output token costs."""
    max_in_flight: int = 16384
    """Safety cap: a request that is due beyond it is not sent, and counts as failed."""


class Soak(msgspec.Struct, frozen=True, kw_only=True):
    """[soak]: one long level at the recommended number of users, after everything else. None = no soak."""

    minutes: float | None = None


class Compare(msgspec.Struct, frozen=True, kw_only=True):
    """[[compare]]: two deployments under one workload, measured in pairs after the searches of both have ended."""

    a: str
    b: str
    """Deployments, by name; what is told is how `b` does against `a`."""
    workload: str
    concurrency: int | None = None
    """Users of every level. None: the most that both deployments hold."""
    pairs: int = 6
    """An even number: the order is balanced in blocks of two pairs, ABBA or BAAB."""
    requests: int | None = None
    """Measured requests of a level. None: 400, and at least ten times the users."""
    throughput_margin: float = 0.03
    """Within this share two throughputs are no different, ..."""
    ttft_margin: float = 0.05
    """... and two p95 of TTFT."""

    @property
    def id(self) -> str:
        """Unique in a plan, no cell's, and safe as a file name."""
        at = "" if self.concurrency is None else f"--{self.concurrency}"
        return f"{self.a}--{self.b}--{self.workload}{at}"

    def requests_at(self, concurrency: int) -> int:
        """Measured requests of a level, in whole tens."""
        return -(-(max(400, 10 * concurrency) if self.requests is None else self.requests) // 10) * 10


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """[budget]: time for the whole run; the search is cut when it ends. None = no limit."""

    minutes: float | None = None


class Client(msgspec.Struct, frozen=True, kw_only=True):
    """[client]: loadproof itself, as it loads. Not part of what is measured, so not of a cell's fingerprint."""

    workers: int | None = None
    """Load processes; None = as many as the expected token rate and number of streams ask for."""


class Bound(NamedTuple):
    """Allowed numbers: low <= x <= high, or low < x where `above`."""

    low: float
    high: float = math.inf
    above: bool = False

    def holds(self, number: float) -> bool:
        return (number > self.low if self.above else number >= self.low) and number <= self.high

    def __str__(self) -> str:
        least = f"above {self.low:,.15g}" if self.above else f"at least {self.low:,.15g}"
        return least if self.high == math.inf else f"{least} and at most {self.high:,.15g}"


_POSITIVE = Bound(0, above=True)
_COUNT = Bound(1, 1_000_000)

BOUNDS = {
    "ttft_ms": _POSITIVE,
    "tpot_ms": _POSITIVE,
    "gap_ms": _POSITIVE,
    "e2e_ms": _POSITIVE,
    "attainment": Bound(0, 1, above=True),
    "error_budget": Bound(0, 1),
    "context_tokens": Bound(16, 100_000_000),
    "vocab_size": Bound(16, 100_000_000),
    "tensor_parallel": Bound(1, 1024),
    "max_concurrency": _COUNT,
    "max_batched_tokens": Bound(1, 100_000_000),
    "memory_fraction": Bound(0, 1, above=True),
    "kv_cache_bytes": Bound(1),
    "kv_cache_tokens": Bound(1),
    "memory_limit_bytes": Bound(1),
    "cpus": _POSITIVE,
    "shm_bytes": Bound(1),
    "start_timeout_s": _POSITIVE,
    "workers": Bound(1, 256),
    "prompt_scale": Bound(0, 1000, above=True),
    "output_scale": Bound(0, 1000, above=True),
    "seed": Bound(0, 2**63 - 1),
    "levels": _COUNT,
    "start": _COUNT,
    "max": _COUNT,
    "factor": Bound(1, 100, above=True),
    "precision": Bound(0, 1, above=True),
    "confirm": Bound(0, 100),
    "requests": Bound(20, 10_000_000),
    "requests_per_user": Bound(1, 10_000),
    "min_seconds": Bound(0, 86_400),
    "max_seconds": Bound(1, 86_400),
    "ramp_seconds": Bound(0, 86_400),
    "warmup_generations": Bound(0, 1000),
    "filler_seconds": Bound(0, 86_400),
    "deadline_seconds": Bound(0, 86_400, above=True),
    "replay_seconds": Bound(1, 604_800),
    "prefill_seconds": Bound(0, 86_400, above=True),
    "max_in_flight": _COUNT,
    "users": _COUNT,
    "rate_per_s": _POSITIVE,
    "concurrency": _COUNT,
    "pairs": Bound(4, 100),
    "throughput_margin": Bound(0, 1, above=True),
    "ttft_margin": Bound(0, 1, above=True),
    "minutes": Bound(0, 100_000, above=True),
    "gpu_hour": Bound(0, 1_000_000, above=True),
}
"""By key; a key means the same in every table. Each element of a list is held to its key's bound."""
