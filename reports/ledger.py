"""The ledger: what a server's memory was from before its start until after its end, and how full its KV pool was.

A pure function of the journal's events and the samples. Checkpoints lie where the server's life has its joints; a value
that nobody reported is None, never 0.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from orchestrator.clock import NS_PER_S
from orchestrator.metrics import TokenEvents
from orchestrator.records import Neighbour, RequestRecord, Sample, ServerRecord
from reports.figures import size
from reports.run import Attempt, Level
from reports.timeline import best_source, memory_series, source_words

Stage = Literal[
    "idle",
    "process up",
    "weights loaded",
    "pool reserved",
    "graphs captured",
    "ready",
    "level",
    "drained",
    "stopped",
]
_TOLD: tuple[tuple[Stage, str], ...] = (
    ("weights loaded", "weights_bytes"),
    ("pool reserved", "kv_bytes"),
    ("graphs captured", "graphs_bytes"),
)
"""Checkpoints at the moment when the log first told of them."""
NOISE_BYTES = 64 * 2**20
"""A driver's own memory moves by less than this."""
_NEAR_NS = 2 * NS_PER_S


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Memory at one point of a server's life, in bytes; at a level its largest value."""

    stage: Stage
    attempt: int
    at_s: float
    """From the start of the attempt."""
    users: int | None = None
    """Of a level."""
    server_bytes: int | None = None
    """What the server holds."""
    card_bytes: int | None = None
    """In use on the card, by everybody and the driver."""
    others_bytes: int | None = None
    """On the card, by processes that are not the server's."""
    host_free_bytes: int | None = None
    """Memory that the machine could still give."""
    kv_use: float | None = None
    """Largest share of the KV pool that held tokens."""
    kv_filled_bytes: int | None = None
    kv_filled_tokens: int | None = None
    kv_from: Literal["gauge", "requests", ""] = ""
    """Where the filling was read: the engine's gauge, else the tokens of the requests that were under way."""


class Ledger(msgspec.Struct, frozen=True, kw_only=True):
    """A server's life in memory: the last attempt that measured a level, or the last one."""

    source: str = ""
    """What `server_bytes` was read from, in words."""
    checkpoints: tuple[Checkpoint, ...] = ()
    peak_bytes: int | None = None
    """Largest `server_bytes` of all."""
    neighbours: tuple[Neighbour, ...] = ()
    """Who held memory on the card before the start."""
    findings: tuple[str, ...] = ()
    """What does not add up in this life, one sentence each."""


# --- how full the pool was --------------------------------------------------------------------------------------


def held_tokens(records: Sequence[RequestRecord], events: TokenEvents | None = None) -> int | None:
    """Most tokens that requests under way held at one time: each its prompt from its first token on, and every token
    after that, until its end. None if no request got a first token. `events`: those of the records, if at hand."""
    started = [r.first_ns is not None for r in records]
    own = [r for r in records if r.first_ns is not None]
    events = (TokenEvents.of(records) if events is None else events).of_requests(started)
    if not own:
        return None
    prompts = np.array([r.asked_in if r.in_tokens is None else r.in_tokens for r in own], np.int64)
    output = np.bincount(events.request, weights=events.tokens, minlength=len(own)).astype(np.int64)
    times = ([r.end_ns for r in own], [r.first_ns for r in own], events.at_ns)
    # At one moment ends come first: what is given back can be taken again.
    order = np.argsort(np.concatenate([np.asarray(at, np.int64) for at in times]), kind="stable")
    return int(np.cumsum(np.concatenate([-prompts - output, prompts, events.tokens])[order]).max())


class Filling(NamedTuple):
    """How full the KV pool was at a level, as far as it is known."""

    use: float | None = None
    bytes: int | None = None
    tokens: int | None = None
    source: Literal["gauge", "requests", ""] = ""


def filling(server: ServerRecord | None, gauge: float | None, held: int | None) -> Filling:
    """The engine's gauge times its pool; without a gauge the tokens of the requests against the pool's tokens."""
    facts = server.facts if server is not None else {}
    pool, tokens = facts.get("kv_bytes"), facts.get("kv_tokens")
    room = float(tokens) if isinstance(tokens, int | float) and tokens > 0 else None
    use = gauge if gauge is not None else held / room if held is not None and room else None
    if use is None:
        return Filling(tokens=held, source="requests" if held is not None else "")
    return Filling(
        use=use,
        bytes=round(use * pool) if isinstance(pool, int | float) else None,
        tokens=round(use * room) if room else held,
        source="gauge" if gauge is not None else "requests",
    )


# --- a life -----------------------------------------------------------------------------------------------------


class _Line:
    """One quantity over time."""

    def __init__(self, points: Sequence[tuple[int, float]]) -> None:
        self._times = [at_ns for at_ns, _ in points]
        self._values = [value for _, value in points]

    def last(self, until_ns: int, since_ns: int = 0) -> int | None:
        """The last value up to a time, if there is one since another."""
        place = bisect.bisect_right(self._times, until_ns) - 1
        return round(self._values[place]) if place >= 0 and self._times[place] >= since_ns else None

    def first(self, since_ns: int, within_ns: int | None = None) -> tuple[int, int] | None:
        """(time, value) of the first reading from a time on."""
        place = bisect.bisect_left(self._times, since_ns)
        if place == len(self._times) or (within_ns is not None and self._times[place] > since_ns + within_ns):
            return None
        return self._times[place], round(self._values[place])

    def most(self, since_ns: int, until_ns: int) -> int | None:
        first, end = bisect.bisect_left(self._times, since_ns), bisect.bisect_right(self._times, until_ns)
        return round(max(self._values[first:end])) if first < end else None


def _line(samples: Sequence[Sample], source: str | None, *names: str) -> _Line:
    name = next((n for n in names if any(s.source == source and n in s.values for s in samples)), "")
    return _Line([(s.at_ns, s.values[name]) for s in samples if s.source == source and name in s.values])


class _Life:
    """The lines of one attempt."""

    def __init__(self, attempt: Attempt, samples: Sequence[Sample]) -> None:
        series = memory_series(samples)
        best = best_source({name: max(value for _, value in line) for name, line in series.items()})
        self.attempt = attempt
        self.source = best
        self.on_card = best is not None and best.startswith("gpu:")
        whole = self.on_card and not any(s.source == best and "memory_ours_bytes" in s.values for s in samples)
        self.whole_card = whole
        """Nobody tells whose memory it is: the server's is what came on top of the idle card."""
        self.server = _Line(series.get(best or "", []))
        card = best if self.on_card else None
        self.card = _line(samples, card, "memory_used_bytes")
        self.others = _line(samples, card, "memory_others_bytes")
        self.free = _line(samples, "host", "memory_available_bytes")

    @property
    def starting_ns(self) -> int:
        return self.attempt.starting_ns or self.attempt.started_ns

    @property
    def idle_bytes(self) -> int | None:
        """In use on the card before the start."""
        return self.card.last(self.starting_ns)

    def at(self, stage: Stage, at_ns: int, server: int | None, **more: object) -> Checkpoint:
        if server is not None and self.whole_card:
            server = max(0, server - (self.idle_bytes or 0))
        values = {
            "server_bytes": server,
            "card_bytes": self.card.last(at_ns, at_ns - _NEAR_NS),
            "others_bytes": self.others.last(at_ns, at_ns - _NEAR_NS),
            "host_free_bytes": self.free.last(at_ns, at_ns - _NEAR_NS),
            **more,
        }
        at_s = round((at_ns - self.attempt.started_ns) / NS_PER_S, 3)
        return msgspec.convert({"stage": stage, "attempt": self.attempt.number, "at_s": at_s, **values}, Checkpoint)


def ledger(attempt: Attempt, samples: Sequence[Sample], levels: Sequence[Level], held: dict[int, int | None]) -> Ledger:
    """The ledger of an attempt. `held`: tokens held at most, by level number (`held_tokens`)."""
    life = _Life(attempt, samples)
    ordered = sorted(levels, key=lambda level: level.commit.level)
    points = [
        *_before(life, samples),
        *(_level(life, level, held.get(level.commit.level)) for level in ordered),
        *_after(life, ordered),
    ]
    server = [point.server_bytes for point in points if point.server_bytes is not None]
    return Ledger(
        source=source_words(life.source),
        checkpoints=tuple(points),
        peak_bytes=max(server, default=None),
        neighbours=attempt.neighbours,
        findings=tuple(_findings(points, attempt)),
    )


def _before(life: _Life, samples: Sequence[Sample]) -> Iterator[Checkpoint]:
    """From the idle machine to the ready server."""
    attempt, starting = life.attempt, life.starting_ns
    if life.free.last(starting) is not None or life.idle_bytes is not None:
        yield life.at("idle", starting, None)
    if (up := life.server.first(starting + 1)) is not None and up[0] < (attempt.ready_ns or up[0] + 1):
        yield life.at("process up", up[0], up[1])
    for stage, fact in _TOLD:
        told = next((s.at_ns for s in samples if s.source == "log" and fact in s.values), None)
        if told is not None:
            nearest = life.server.first(told, _NEAR_NS)
            yield life.at(stage, told, nearest[1] if nearest else life.server.last(told, told - _NEAR_NS))
    if attempt.ready_ns is not None and (ready := life.server.last(attempt.ready_ns + NS_PER_S)) is not None:
        yield life.at("ready", attempt.ready_ns, ready)


def _level(life: _Life, level: Level, held: int | None) -> Checkpoint:
    commit = level.commit
    run = commit.run
    full = filling(life.attempt.server, commit.stats.kv_use_max, held)
    return life.at(
        "level",
        run.ended_ns,
        life.server.most(run.started_ns, commit.at_ns),
        users=run.spec.concurrency,
        card_bytes=life.card.most(run.started_ns, commit.at_ns),
        others_bytes=life.others.most(run.started_ns, commit.at_ns),
        kv_use=full.use,
        kv_filled_bytes=full.bytes,
        kv_filled_tokens=full.tokens,
        kv_from=full.source,
    )


def _after(life: _Life, levels: Sequence[Level]) -> Iterator[Checkpoint]:
    """What is left when nobody asks any more, and when the server is gone."""
    stopped = life.attempt.stopped_ns
    if levels:
        drained = levels[-1].commit.run.ended_ns
        left = life.server.last(stopped or drained + 60 * NS_PER_S, drained)
        if left is not None and life.attempt.failure is None:
            yield life.at("drained", stopped or drained, left)
    if stopped is not None:
        gone = life.card.first(stopped)
        free = life.free.first(stopped)
        if gone or free:
            card = gone[1] if gone else None
            yield life.at("stopped", stopped, None, card_bytes=card, host_free_bytes=free[1] if free else None)


# --- what does not add up ---------------------------------------------------------------------------------------


def _findings(points: Sequence[Checkpoint], attempt: Attempt) -> Iterator[str]:
    by_stage = {point.stage: point for point in points}
    idle, ready = by_stage.get("idle"), by_stage.get("ready")
    drained, stopped = by_stage.get("drained"), by_stage.get("stopped")
    for neighbour in attempt.neighbours:
        name = neighbour.name or "a process that cannot be seen from here"
        used = size(neighbour.memory_bytes) if neighbour.memory_bytes is not None else "an unknown amount"
        yield f"{name} (pid {neighbour.pid}) held {used} of {neighbour.gpu} before the start."
    if ready and drained and ready.server_bytes is not None and drained.server_bytes is not None:
        grown = drained.server_bytes - ready.server_bytes - _buffers(attempt.server)
        if grown > max(NOISE_BYTES, 0.05 * ready.server_bytes):
            yield (
                f"After its last level it holds {size(drained.server_bytes - ready.server_bytes)} more than when it "
                "was ready: memory that is allocated late, or never given back."
            )
    if idle and stopped and idle.card_bytes is not None and stopped.card_bytes is not None:
        left = stopped.card_bytes - idle.card_bytes
        if left > NOISE_BYTES:
            yield f"After its end {size(left)} more of the card are in use than before its start."
    yield from _strangers(points)


def _buffers(server: ServerRecord | None) -> float:
    """Buffers that are reserved at the start and become resident with the first request."""
    value = server.facts.get("compute_bytes", 0.0) if server is not None else 0.0
    return float(value) if isinstance(value, int | float) else 0.0


def _strangers(points: Sequence[Checkpoint]) -> Iterator[str]:
    known = [point.others_bytes for point in points if point.others_bytes is not None]
    if known and max(known) - min(known) > NOISE_BYTES:
        yield f"Other processes' memory on the card moved between {size(min(known))} and {size(max(known))}."
