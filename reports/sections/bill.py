"""The memory bill of every deployment: predicted beside measured, what stays unexplained, and the server's life."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from reports.figures import NONE, count, percent, size
from reports.ledger import Checkpoint
from reports.reconcile import Line, Reconciliation
from reports.result import CellResult

_TERMS = {
    "weights": "weights",
    "KV cache": "kv",
    "KV tokens": "kv",
    "compute buffers": "compute",
    "activation peak": "compute",
    "CUDA graphs": "graphs",
    "never filled": "rest",
    "total": "peak",
}
_STAGES = {
    "idle": "before the start",
    "process up": "process up",
    "weights loaded": "weights loaded",
    "pool reserved": "KV pool reserved",
    "graphs captured": "graphs captured",
    "ready": "ready",
    "drained": "after the last level",
    "stopped": "after its end",
}


_PRINTED = 0.0005
"""Differences below the last digit that a log prints are none."""


class Row(NamedTuple):
    """One item of a bill, in words."""

    name: str
    term: str | None
    predicted: str
    interval: str
    calibrated: str
    measured: str
    difference: str
    share: str
    """The difference as a share of the prediction."""
    outside: bool
    source: str


class Point(NamedTuple):
    """One checkpoint of a life, in words."""

    name: str
    at_s: float
    values: tuple[str, ...]


class Account(NamedTuple):
    """A deployment's memory."""

    name: str
    workload: str
    """Of the cell that is shown: the one with the highest peak."""
    rows: tuple[Row, ...]
    predicted: bool
    calibrated: bool
    unexplained: str
    note: str
    """Why nothing was predicted, or where the interval of the pool comes from; ""."""
    source: str
    columns: tuple[str, ...]
    """Heads of the life's columns; those that nothing reported are left out."""
    life: tuple[Point, ...]
    findings: tuple[str, ...]


def accounts(cells: Sequence[CellResult]) -> tuple[Account, ...]:
    """One for each deployment that started a server of which something is known."""
    found = []
    for name in dict.fromkeys(cell.asked.deployment for cell in cells):
        own = [cell for cell in cells if cell.asked.deployment == name and cell.reconciliation.lines]
        own = [cell for cell in own if any(line.measured is not None for line in cell.reconciliation.lines)]
        if own:
            # The first of the highest: it is the one that the later ones were calibrated by.
            found.append(_account(max(own, key=lambda cell: cell.ledger.peak_bytes or 0)))
    return tuple(found)


def amount(value: float | None, unit: str) -> str:
    return size(value) if unit == "bytes" else count(value)


def span(low: float, high: float, unit: str) -> str:
    """``14.4 to 15.9 MiB``; the unit once where both have the same."""
    first, second = amount(low, unit), amount(high, unit)
    number, _, word = first.rpartition(" ")
    return f"{number} to {second}" if word and second.endswith(f" {word}") else f"{first} to {second}"


def signed(value: float | None, unit: str) -> str:
    """A difference with its sign; one of less than a KiB is none."""
    if value is None:
        return NONE
    if abs(value) < (1024 if unit == "bytes" else 1):
        return "0"
    return ("+" if value > 0 else "\u2212") + amount(abs(value), unit)


def _row(line: Line) -> Row:
    interval = ""
    if line.low is not None and line.high is not None and line.low != line.high:
        interval = span(line.low, line.high, line.unit)
    share = ""
    difference = line.difference
    if difference is not None and line.predicted:
        if abs(difference) <= _PRINTED * abs(line.predicted):
            difference = 0.0
        else:
            share = percent(abs(difference / line.predicted))
    return Row(
        name="KV pool, in tokens" if line.name == "KV tokens" else line.name,
        term=_TERMS.get(line.name),
        predicted=amount(line.predicted, line.unit),
        interval=interval,
        calibrated=amount(line.calibrated, line.unit) if line.calibrated is not None else NONE,
        measured=amount(line.measured, line.unit),
        difference=signed(difference, line.unit),
        share=share,
        outside=bool(line.outside),
        source=line.source or "not reported",
    )


def _account(cell: CellResult) -> Account:
    bill, ledger = cell.reconciliation, cell.ledger
    shown = [
        (head, [read(point) for point in ledger.checkpoints])
        for head, read in _READINGS
        if any(read(point) != NONE for point in ledger.checkpoints)
    ]
    return Account(
        name=cell.asked.deployment,
        workload=cell.asked.workload,
        rows=tuple(_row(line) for line in bill.lines),
        predicted=any(line.predicted is not None for line in bill.lines),
        calibrated=any(line.calibrated is not None for line in bill.lines),
        unexplained=signed(bill.unexplained_bytes, "bytes"),
        note=_note(bill),
        source=ledger.source,
        columns=tuple(head for head, _ in shown),
        life=tuple(
            Point(_name(point), point.at_s, tuple(values[number] for _, values in shown))
            for number, point in enumerate(ledger.checkpoints)
        ),
        findings=ledger.findings,
    )


def _note(bill: Reconciliation) -> str:
    if bill.unpredicted:
        return f"Nothing was predicted: {bill.unpredicted}"
    if (found := re.fullmatch(r"class (\S+): (.+)", bill.basis, re.DOTALL)) is None:
        return f"KV pool: {bill.basis}" if bill.basis else ""
    kind, why = found.groups()
    if kind == "=":
        return "The KV pool is set in the configuration; it is not what the rest leaves over, so it has no interval."
    return f"How wide the interval of the KV pool is follows from the kind of start: {why}."


def _name(point: Checkpoint) -> str:
    if point.stage == "level":
        return f"{point.users:,} user{'' if point.users == 1 else 's'}"
    return _STAGES[point.stage]


def _filled(point: Checkpoint) -> str:
    if point.kv_use is None:
        return NONE
    mark = "" if point.kv_from == "gauge" else "about "
    return f"{mark}{percent(point.kv_use)}" + (f", {size(point.kv_filled_bytes)}" if point.kv_filled_bytes else "")


_READINGS = (
    ("Server", lambda point: size(point.server_bytes)),
    ("Card in use", lambda point: size(point.card_bytes)),
    ("Others on the card", lambda point: size(point.others_bytes)),
    ("KV pool filled", _filled),
    ("Machine's free memory", lambda point: size(point.host_free_bytes)),
)
