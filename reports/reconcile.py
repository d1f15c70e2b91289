"""Predicted beside measured: the memory bill of a cell, item by item, with what stays unexplained.

The prediction stands in the journal since before the start; it is never overwritten. What the first start of a key
(engine, version, card, ranks) taught stands beside it, as `calibrated`, for the cells of the run that came after it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Literal

import msgspec

from orchestrator.records import Predicted, PredictedItem, ServerRecord
from reports.ledger import Ledger

LOG = "engine's log"

_ITEM_FACTS = {
    "weights": ("weights_bytes",),
    "KV cache": ("kv_bytes",),
    "activation peak": ("activation_bytes",),
    "compute buffers": ("compute_bytes",),
    "CUDA graphs": ("graphs_bytes",),
    "runtime context": ("non_torch_bytes",),
}
"""Facts of the log that measure an item of the bill. An item that is not here is told by no engine."""
_TRANSIENT = "activation peak"
"""Reserved within the engine's budget and given back: no part of what is resident."""


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One item, predicted and measured."""

    name: str
    unit: Literal["bytes", "tokens"]
    predicted: float | None = None
    low: float | None = None
    high: float | None = None
    """Stated 90 % interval."""
    calibrated: float | None = None
    """The prediction after what the first start of this key taught; None for that start itself."""
    measured: float | None = None
    source: str = ""
    """Where `measured` was read; "" = nobody reports it."""
    difference: float | None = None
    """Measured less predicted."""
    outside: bool | None = None
    """The measured value lies outside the stated interval."""


class Reconciliation(msgspec.Struct, frozen=True, kw_only=True):
    """The bill of a cell, predicted beside measured."""

    key: str = ""
    basis: str = ""
    lines: tuple[Line, ...] = ()
    """The items, then their total, then the tokens of the pool."""
    unexplained_bytes: int | None = None
    """The measured total less the items: each as measured, or as predicted where nobody reports it."""
    unpredicted: str = ""
    """Why nothing was predicted, one sentence."""

    def line(self, name: str) -> Line | None:
        return next((line for line in self.lines if line.name == name), None)


class Lesson(msgspec.Struct, frozen=True, kw_only=True):
    """What a start taught about its key: measured less predicted, bytes. None = not to be known."""

    pool_bytes: float | None = None
    total_bytes: float | None = None


def reconcile(
    predicted: Predicted | None,
    unpredicted: str,
    server: ServerRecord | None,
    ledger: Ledger,
    lessons: Mapping[str, Lesson],
) -> Reconciliation:
    """The bill of a cell after its server. `lessons`: what the run's earlier starts taught, by key."""
    if predicted is None:
        return Reconciliation(
            lines=tuple(_measured_lines(server, ledger)),
            unexplained_bytes=_unexplained((), server, ledger),
            unpredicted=unpredicted,
        )
    lesson = lessons.get(predicted.key, Lesson())
    lines = [_item_line(item, server, lesson) for item in predicted.items if item.name != "margin"]
    lines += _told_lines(server, beside={item.name for item in predicted.items})
    if predicted.total is not None:
        lines.append(_total_line(predicted.total, ledger, lesson))
    elif ledger.peak_bytes is not None:
        lines.append(Line(name="total", unit="bytes", measured=ledger.peak_bytes, source=ledger.source))
    if predicted.kv_tokens is not None:
        lines.append(_tokens_line(predicted, server, lesson))
    else:
        lines += _told_tokens(server)
    return Reconciliation(
        key=predicted.key,
        basis=predicted.basis,
        lines=tuple(lines),
        unexplained_bytes=_unexplained(predicted.items, server, ledger),
    )


def lesson_of(found: Reconciliation) -> Lesson | None:
    """What a start teaches those that come after it; None if it measured nothing that was predicted."""
    pool, total = found.line("KV cache"), found.line("total")
    learnt = Lesson(
        pool_bytes=pool.difference if pool else None,
        total_bytes=total.difference if total else None,
    )
    return None if learnt == Lesson() else learnt


def fact(server: ServerRecord | None, *names: str) -> float | None:
    """The first of the named facts that the engine's log told as a number."""
    facts = server.facts if server is not None else {}
    return next((float(facts[name]) for name in names if isinstance(facts.get(name), int | float)), None)


def _line(
    name: str,
    unit: Literal["bytes", "tokens"],
    spread: tuple[float, float, float],
    measured: float | None,
    source: str,
    delta: float | None,
) -> Line:
    predicted, low, high = spread
    # A unit in the last place of what a log prints is no miss.
    slack = max(0.0005 * abs(predicted), 1.0)
    return Line(
        name=name,
        unit=unit,
        predicted=predicted,
        low=low,
        high=high,
        calibrated=predicted + delta if delta is not None else None,
        measured=measured,
        source=source if measured is not None else "",
        difference=measured - predicted if measured is not None else None,
        outside=None if measured is None else not low - slack <= measured <= high + slack,
    )


def _spread(item: PredictedItem) -> tuple[float, float, float]:
    return item.value_bytes, item.low_bytes, item.high_bytes


def _item_line(item: PredictedItem, server: ServerRecord | None, lesson: Lesson) -> Line:
    measured = fact(server, *_ITEM_FACTS.get(item.name, ()))
    delta = lesson.pool_bytes if item.name == "KV cache" else None
    return _line(item.name, "bytes", _spread(item), measured, LOG, delta)


def _total_line(total: PredictedItem, ledger: Ledger, lesson: Lesson) -> Line:
    measured = float(ledger.peak_bytes) if ledger.peak_bytes is not None else None
    return _line("total", "bytes", _spread(total), measured, ledger.source, lesson.total_bytes)


def _tokens_line(predicted: Predicted, server: ServerRecord | None, lesson: Lesson) -> Line:
    assert predicted.kv_tokens is not None
    low = predicted.kv_tokens if predicted.kv_tokens_low is None else predicted.kv_tokens_low
    high = predicted.kv_tokens if predicted.kv_tokens_high is None else predicted.kv_tokens_high
    delta = None if lesson.pool_bytes is None else float(round(lesson.pool_bytes / predicted.kv_bytes_per_token))
    return _line("KV tokens", "tokens", (predicted.kv_tokens, low, high), fact(server, "kv_tokens"), LOG, delta)


def _told_lines(server: ServerRecord | None, *, beside: Collection[str] = ()) -> Iterator[Line]:
    """What the log tells of items that have no prediction."""
    for name, facts in _ITEM_FACTS.items():
        if name not in beside and (value := fact(server, *facts)) is not None:
            yield Line(name=name, unit="bytes", measured=value, source=LOG)


def _measured_lines(server: ServerRecord | None, ledger: Ledger) -> Iterator[Line]:
    """What was measured where nothing was predicted."""
    yield from _told_lines(server)
    if ledger.peak_bytes is not None:
        yield Line(name="total", unit="bytes", measured=ledger.peak_bytes, source=ledger.source)
    yield from _told_tokens(server)


def _told_tokens(server: ServerRecord | None) -> Iterator[Line]:
    if (tokens := fact(server, "kv_tokens")) is not None:
        yield Line(name="KV tokens", unit="tokens", measured=tokens, source=LOG)


def _unexplained(items: tuple[PredictedItem, ...], server: ServerRecord | None, ledger: Ledger) -> int | None:
    """Needs a measured total, and of the items at least the weights and the pool."""
    if ledger.peak_bytes is None:
        return None
    known = {item.name: float(item.value_bytes) for item in items if item.name not in ("margin", _TRANSIENT)}
    told = {name: fact(server, *facts) for name, facts in _ITEM_FACTS.items() if name != _TRANSIENT}
    known |= {name: value for name, value in told.items() if value is not None}
    if not {"weights", "KV cache"} <= known.keys():
        return None
    return round(ledger.peak_bytes - sum(known.values()))
