"""What the levels of a cell so far tell of its next one: how long a request will take, and what there is to load."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Self

from orchestrator.judge.search import Outcome
from orchestrator.load.capacity import USUAL_TOKENS_PER_S, Expected, expected
from orchestrator.records import AnyEvent, LevelCommitted, LevelSpec


def commits(events: Iterable[AnyEvent], cell: str) -> list[LevelCommitted]:
    """The levels of a cell so far, in the order of their commits."""
    return [event for event in events if isinstance(event, LevelCommitted) and event.cell == cell]


def outcomes(events: Iterable[AnyEvent], cell: str) -> list[Outcome]:
    """What the search has learnt of a cell so far, in the order of its commits."""
    return [Outcome.of(event.run, event.stats, event.verdict) for event in commits(events, cell)]


class Known(NamedTuple):
    """Of one cell."""

    levels: tuple[LevelCommitted, ...]

    @classmethod
    def of(cls, events: Iterable[AnyEvent], cell: str) -> Self:
        """Of the levels that say how long a request takes at a concurrency."""
        own = commits(events, cell)
        return cls(tuple(e for e in own if not e.run.spec.is_open and e.run.spec.purpose != "prefill"))

    def e2e_s(self, concurrency: int) -> float:
        """Ê: mean end-to-end time expected at a level: the nearest measured level's times c/c_prev; 0 = unknown."""
        known = [c for c in self.levels if c.stats.e2e_ms.mean is not None]
        if not known:
            return 0.0
        nearest = min(known, key=lambda c: abs(c.run.spec.concurrency - concurrency))
        mean_ms = nearest.stats.e2e_ms.mean or 0.0
        return mean_ms / 1000 * max(1.0, concurrency / nearest.run.spec.concurrency)

    def closed(self, concurrency: int) -> Expected:
        """As many streams as users, each as fast as at the nearest level."""
        known = [c for c in self.levels if c.stats.output_tokens_per_s is not None and c.stats.mean_in_flight]
        if not known:
            return expected(concurrency)
        nearest = min(known, key=lambda c: abs(c.run.spec.concurrency - concurrency))
        return expected(concurrency, (nearest.stats.output_tokens_per_s or 0.0) / (nearest.stats.mean_in_flight or 1.0))

    def open(self, rate_per_s: float, output_tokens: float) -> Expected:
        """Of answers of so many tokens on average: Little's law, with the longest mean time of a request that a level
        has shown."""
        events_per_s = rate_per_s * output_tokens
        known = [c.stats.e2e_ms.mean for c in self.levels if c.stats.e2e_ms.mean is not None]
        if not known:
            return Expected(events_per_s / USUAL_TOKENS_PER_S, events_per_s)
        return Expected(rate_per_s * max(known) / 1000, events_per_s)

    def seconds(self, spec: LevelSpec) -> float:
        """How long a level will take."""
        return spec.min_seconds if spec.is_open else min(spec.max_seconds, self.whole_seconds(spec))

    def whole_seconds(self, spec: LevelSpec) -> float:
        """The same of a closed level that is not cut."""
        generations = spec.warmup_generations + spec.requests / spec.concurrency + 1
        measured = max(spec.min_seconds, self.e2e_s(spec.concurrency) * generations)
        return spec.ramp_seconds + measured
