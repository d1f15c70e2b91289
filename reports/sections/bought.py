"""What the smaller weight format bought, and what it did not: memory by item, break and latency side by side.

Shown only where deployments of one stack differ in the format of their weights. Every sentence is made of measured
numbers of this run; a difference under 5 % is called unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

import msgspec
from markupsafe import Markup

from orchestrator.records import AskedCell
from reports.charts import bill_chart
from reports.economy import Economy
from reports.figures import NONE, change, count, latency, percent, significant, size
from reports.levels import LevelResult
from reports.reconcile import Reconciliation
from reports.result import Bill, CellResult, broke_at
from reports.sections.bill import signed
from reports.sections.decision import cost_text, energy_text, percentile_text
from stacks.memory.formats import find_weight_format
from stacks.memory.models import UnknownFactError

_UNCHANGED = 0.05
_LEAST = {"p50": 6, "p95": 59}
"""Independent requests from which METHOD.md lets a percentile be printed; never fewer are compared."""
_FORMAT = re.compile(
    r"(?<![a-z0-9])(i?q[2-8]_[a-z0-9_]+|bf16|f(?:p)?(?:16|32|8|4)|awq|gptq|int[48]|nf4|nvfp4|mxfp4|w4a16|w8a8|w8a16)(?![a-z0-9])",
    re.IGNORECASE,
)


class Format(NamedTuple):
    """How a deployment stores its weights."""

    label: str
    bits: int | None


class Column(NamedTuple):
    """One deployment of the comparison."""

    name: str
    format: Format
    bill: Bill
    cells: dict[str, CellResult]
    """By workload."""

    @property
    def reconciled(self) -> Reconciliation:
        """The bill of the cell with the highest peak."""
        return max(self.cells.values(), key=lambda cell: cell.ledger.peak_bytes or 0).reconciliation


class Row(NamedTuple):
    name: str
    term: str
    values: tuple[str, ...]
    change: str
    """Smallest format against largest."""


class Step(NamedTuple):
    """What it was and what it became: ``8,192 \u2192 16,384``, ``+8,192``."""

    words: str
    change: str = ""


class Gain(NamedTuple):
    """What the smallest format changes against the largest: predicted, and measured."""

    name: str
    term: str
    predicted: Step
    measured: Step
    limits: str
    """What was predicted to bind, and what did."""


class Comparison(NamedTuple):
    """The deployments of one stack, from the largest weights to the smallest."""

    stack: str
    columns: tuple[Column, ...]
    memory: tuple[Row, ...]
    served: tuple[tuple[str, tuple[Row, ...]], ...]
    """For each workload its rows."""
    gains: tuple[Gain, ...]
    """() where nothing was predicted."""
    bought: tuple[str, ...]
    not_bought: tuple[str, ...]
    chart: Markup | None
    items: tuple[str, ...]
    """Names of the chart's items, in the order of its colours."""
    bits: int | None
    """Of the smallest format."""


# --- formats ----------------------------------------------------------------------------------------------------


def weight_format(asked: AskedCell) -> Format:
    """From the quantization asked for, else from the name of the weights, else from the data type."""
    named = _FORMAT.search(PurePosixPath(asked.model).name)
    dtype = asked.dtype if asked.dtype != "auto" else "as stored"
    label = asked.quantization or (named[1] if named else dtype)
    return Format(label, _bits(label))


def _bits(label: str) -> int | None:
    try:
        return find_weight_format(label).bits
    except UnknownFactError:
        gguf = re.match(r"i?q([2-8])_", label, re.IGNORECASE)
        return int(gguf[1]) if gguf else None


# --- what is compared -------------------------------------------------------------------------------------------


def comparisons(cells: Sequence[CellResult]) -> tuple[Comparison, ...]:
    """One for each stack and card whose deployments differ in format and were measured."""
    found = []
    for group in dict.fromkeys(map(_group, cells)):
        columns = _columns([cell for cell in cells if _group(cell) == group])
        if len({column.format.label.lower() for column in columns}) > 1:
            stack, card, _ = group
            found.append(_comparison(f"{stack} on {card}" if card else stack, columns))
    return tuple(found)


def _group(cell: CellResult) -> tuple[str, str, tuple[str, ...]]:
    """Stack and cards: a format is compared on one card."""
    return cell.asked.stack, cell.asked.card, cell.asked.gpus


def _columns(cells: Sequence[CellResult]) -> list[Column]:
    columns = []
    for name in dict.fromkeys(cell.asked.deployment for cell in cells):
        own = [cell for cell in cells if cell.asked.deployment == name and cell.servers]
        if any(cell.levels for cell in own):
            by_workload = {cell.asked.workload: cell for cell in own}
            columns.append(Column(name, weight_format(own[0].asked), _merged([c.bill for c in own]), by_workload))
    return sorted(columns, key=lambda c: (-(c.bill.weights_bytes or 0), -(c.format.bits or 99)))


def _merged(bills: Sequence[Bill]) -> Bill:
    """The bill of a deployment over its cells: facts as first told, the highest peak with its own rest."""
    highest = max(bills, key=lambda bill: bill.peak_bytes or 0)
    told = {
        field: next((value for bill in bills if (value := getattr(bill, field)) is not None), None)
        for field in ("weights_bytes", "kv_bytes", "kv_tokens", "compute_bytes", "graphs_bytes", "ready_bytes")
    }
    return msgspec.structs.replace(highest, **told)


def _comparison(stack: str, columns: Sequence[Column]) -> Comparison:
    workloads = list(dict.fromkeys(workload for column in columns for workload in column.cells))
    bought, not_bought = _sentences(columns, workloads)
    chart, items = _chart(columns)
    return Comparison(
        stack=stack,
        columns=tuple(columns),
        memory=_memory_rows(columns),
        served=tuple((workload, _served_rows(columns, workload)) for workload in workloads),
        gains=_gains(columns, workloads),
        bought=tuple(bought),
        not_bought=tuple(not_bought),
        chart=chart,
        items=items,
        bits=columns[-1].format.bits,
    )


# --- tables -----------------------------------------------------------------------------------------------------

_ITEMS: tuple[tuple[str, str, Callable[[Bill], int | None]], ...] = (
    ("Weights", "weights", lambda bill: bill.weights_bytes),
    ("KV cache, reserved", "kv", lambda bill: bill.kv_bytes),
    ("Compute buffers", "compute", lambda bill: bill.compute_bytes),
    ("Graphs", "graphs", lambda bill: bill.graphs_bytes),
    ("Everything else", "rest", lambda bill: bill.rest_bytes),
    ("In use when ready", "peak", lambda bill: bill.ready_bytes),
    ("Peak under load", "peak", lambda bill: bill.peak_bytes),
)


def _changed(new: float | None, old: float | None) -> str:
    return change(new, old) if new is not None and old is not None and old > 0 else NONE


def _memory_rows(columns: Sequence[Column]) -> tuple[Row, ...]:
    rows = []
    for name, term, read in _ITEMS:
        values = [read(column.bill) for column in columns]
        if any(value is not None for value in values):
            rows.append(Row(name, term, tuple(size(value) for value in values), _changed(values[-1], values[0])))
    tokens = [column.bill.kv_tokens for column in columns]
    if any(value is not None for value in tokens):
        changed = _changed(tokens[-1], tokens[0])
        rows.append(Row("Tokens that fit in KV", "kv", tuple(count(value) for value in tokens), changed))
    return tuple(rows)


_BAR_ITEMS = {
    "Weights": ("weights",),
    "KV cache, reserved": ("KV cache",),
    "Compute and graphs": ("compute buffers", "CUDA graphs"),
}
"""Items of the chart and the lines of a bill that they hold; all that is left of the total is the fourth."""


def _predicted_bar(bill: Reconciliation) -> list[float] | None:
    """None where a part of the total was not predicted."""
    total = bill.line("total")
    if total is None or total.predicted is None:
        return None
    by_name = {line.name: line.predicted or 0.0 for line in bill.lines}
    items = [sum(by_name.get(name, 0.0) for name in names) for names in _BAR_ITEMS.values()]
    return [*items, max(0.0, total.predicted - sum(items))]


def _measured_bar(bill: Bill) -> list[float] | None:
    """None where the engine did not tell its items."""
    if bill.weights_bytes is None or bill.kv_bytes is None:
        return None
    rest = max(0, bill.rest_bytes or 0)
    items = (bill.weights_bytes, bill.kv_bytes, (bill.compute_bytes or 0) + (bill.graphs_bytes or 0), rest)
    return [float(item) for item in items]


def _chart(columns: Sequence[Column]) -> tuple[Markup | None, tuple[str, ...]]:
    """Bars of what is itemised, predicted above measured; None where no engine told its items."""
    names = (*_BAR_ITEMS, "Everything else")
    bars: list[tuple[str, list[float]]] = []
    faded = []
    for column in columns:
        predicted, measured = _predicted_bar(column.reconciled), _measured_bar(column.bill)
        if predicted is not None:
            faded.append(len(bars))
            bars.append((f"{column.name}, predicted", predicted))
        if measured is not None:
            bars.append((f"{column.name}, measured" if predicted else column.name, measured))
    if not bars:
        return None, ()
    told = "; ".join(f"{bar}: " + ", ".join(size(value) for value in values) for bar, values in bars)
    return bill_chart(bars, names, described=f"In the order {', '.join(names)}. {told}", faded=faded), names


def common_level(cells: Sequence[CellResult]) -> list[LevelResult] | None:
    """The highest concurrency that every cell measured validly and with enough requests, as one level each: one that
    all of them held, if there is one, for a level that broke may have ended early. None if there is none, and where the
    cells were not asked for the same: one had room for a shorter context only."""
    if len({cell.cut_to for cell in cells}) > 1:
        return None
    latest = [
        {v.concurrency: v for v in cell.levels if v.verdict.valid and v.stats.offered >= _LEAST["p50"]}
        for cell in cells
    ]
    shared = set.intersection(*(set(levels) for levels in latest)) if latest else set()
    held = {c for c in shared if all(levels[c].verdict.verdict == "PASS" for levels in latest)}
    return [levels[max(held or shared)] for levels in latest] if shared else None


def _percentile(levels: Sequence[LevelResult]) -> str:
    """The highest percentile that the requests of all levels carry."""
    return "p95" if min(level.stats.offered for level in levels) >= _LEAST["p95"] else "p50"


def _served_rows(columns: Sequence[Column], workload: str) -> tuple[Row, ...]:
    cells = [column.cells.get(workload) for column in columns]
    holds = [cell.verdict.c_ok if cell else None for cell in cells]
    breaks = [broke_at(cell) if cell else None for cell in cells]
    rows = []
    if any(value is not None for value in breaks):
        rows = [
            Row("Holds, users", "c_ok", tuple(count(value) for value in holds), _changed(holds[-1], holds[0])),
            Row("Breaks at, users", "c_bad", tuple(count(value) for value in breaks), _changed(breaks[-1], breaks[0])),
        ]
    present = [cell for cell in cells if cell is not None]
    if any(cell.shrunk_to for cell in present):
        contexts = [cell.shrunk_to or cell.asked.context_tokens if cell is not None else None for cell in cells]
        rows.append(Row("Context served, tokens", "clamped", tuple(map(count, contexts)), NONE))
    levels = common_level(present) if len(present) == len(cells) else None
    if levels is not None:
        rows += _equal_rows(levels)
    return (*rows, *_economy_rows([cell.economy if cell else Economy() for cell in cells]))


def _economy_rows(found: Sequence[Economy]) -> Iterator[Row]:
    """Cost and energy of a million output tokens, each deployment at what it holds; none where none is known."""
    costs = [one.cost_per_million_output_tokens for one in found]
    energies = [one.kwh_per_million_output_tokens for one in found]
    if any(cost is not None for cost in costs):
        yield Row("Cost, 1M tok", "cost", tuple(map(cost_text, found)), _changed(costs[-1], costs[0]))
    if any(energy is not None for energy in energies):
        yield Row("Energy, 1M tok", "energy", tuple(map(energy_text, found)), _changed(energies[-1], energies[0]))


def _equal_rows(levels: Sequence[LevelResult]) -> list[Row]:
    """Latency and throughput at equal concurrency."""
    at = f"at {levels[0].concurrency:,} user{'' if levels[0].concurrency == 1 else 's'}"
    rows = []
    rank = _percentile(levels)
    for name, term in (("TTFT", "ttft"), ("TPOT", "tpot")):
        found = [getattr(level.stats, f"{term}_ms") for level in levels]
        values = [getattr(percentiles, rank) for percentiles in found]
        texts = tuple(percentile_text(percentiles, value) for percentiles, value in zip(found, values, strict=True))
        rows.append(Row(f"{name} {rank} {at}", term, texts, _changed(values[-1], values[0])))
    rates = [level.stats.output_tokens_per_s for level in levels]
    texts = tuple(f"{significant(rate)} tok/s" if rate is not None else NONE for rate in rates)
    rows.append(Row(f"Output {at}", "throughput", texts, _changed(rates[-1], rates[0])))
    return rows


# --- predicted and measured --------------------------------------------------------------------------------------


def _step(old: float | None, new: float | None, unit: str) -> Step:
    if old is None or new is None:
        return Step(NONE)
    show = size if unit == "bytes" else count
    return Step(f"{show(old)} \u2192 {show(new)}", signed(new - old, unit) if new != old else "unchanged")


def _gains(columns: Sequence[Column], workloads: Sequence[str]) -> tuple[Gain, ...]:
    """Memory and users, from the largest format to the smallest."""
    large, small = columns[0], columns[-1]
    if large.reconciled.line("KV tokens") is None and large.reconciled.line("weights") is None:
        return ()
    rows = []
    for name, term, line in (
        ("Weights", "weights", "weights"),
        ("Tokens that fit in KV", "kv", "KV tokens"),
        ("Memory at its peak", "peak", "total"),
    ):
        old, new = large.reconciled.line(line), small.reconciled.line(line)
        if old is None or new is None or old.predicted is None or new.predicted is None:
            continue
        predicted = _step(old.predicted, new.predicted, old.unit)
        rows.append(Gain(name, term, predicted, _step(old.measured, new.measured, old.unit), ""))
    for workload in workloads:
        pair = (large.cells.get(workload), small.cells.get(workload))
        if pair[0] is not None and pair[1] is not None:
            rows += _user_gains(workload, pair[0], pair[1])
    return tuple(rows)


def _then(*words: str) -> str:
    """What it was and what it became, once where they are the same."""
    return " \u2192 ".join(dict.fromkeys(words))


def _user_gains(workload: str, large: CellResult, small: CellResult) -> list[Gain]:
    """Users: those whose tokens the KV pool holds, and those that the search found to hold; () without a search."""
    old, new = large.asked.predicted, small.asked.predicted
    if old is None or new is None or old.requests is None or new.requests is None:
        return []
    if broke_at(large) is None and broke_at(small) is None:
        return []
    limits = (
        f"predicted: {_then(old.limit, new.limit)}; measured: {_then(large.verdict.limiter, small.verdict.limiter)}"
    )
    measured = _step(large.verdict.c_ok, small.verdict.c_ok, "users")
    return [Gain(f"Users, {workload}", "c_ok", _step(old.requests, new.requests, "users"), measured, limits)]


# --- sentences --------------------------------------------------------------------------------------------------


def _sentences(columns: Sequence[Column], workloads: Sequence[str]) -> tuple[list[str], list[str]]:
    """(what the smallest format bought against the largest, what it did not)."""
    large, small = columns[0], columns[-1]
    bought: list[str] = []
    not_bought: list[str] = []
    for name, term, read in _ITEMS:
        if term in ("weights", "kv") or name == "Peak under load":
            _sort_memory(name, read(small.bill), read(large.bill), bought, not_bought)
    not_bought += _beside_weights(small)
    for workload in workloads:
        pair = (small.cells.get(workload), large.cells.get(workload))
        if pair[0] is not None and pair[1] is not None:
            _sort_served(workload, pair[0], pair[1], bought, not_bought)
    return bought, not_bought


def _beside_weights(column: Column) -> list[str]:
    """What a smaller format leaves as it is: everything but the weights."""
    weights, peak = column.bill.weights_bytes, column.bill.peak_bytes
    if weights is None or peak is None or weights >= peak:
        return []
    rest = peak - weights
    return [f"Beside its weights {column.name} uses {size(rest)} at its peak, {percent(rest / peak)} of its memory."]


def _sort_memory(name: str, new: int | None, old: int | None, bought: list[str], not_bought: list[str]) -> None:
    if not new or not old:
        return
    if new < old * (1 - _UNCHANGED):
        bought.append(f"{name}: {size(old)} became {size(new)} ({change(new, old)}).")
    elif new > old * (1 + _UNCHANGED):
        words = "more room for tokens" if name.startswith("KV") else "more, not less"
        (bought if name.startswith("KV") else not_bought).append(
            f"{name}: {size(old)} became {size(new)} ({change(new, old)}): {words}."
        )
    else:
        not_bought.append(f"{name}: {size(new)} against {size(old)}, unchanged.")


def _sort_served(workload: str, small: CellResult, large: CellResult, bought: list[str], not_bought: list[str]) -> None:
    """Concurrency and latency under one workload, each on its side."""
    new, old = small.verdict.c_ok, large.verdict.c_ok
    searched = broke_at(small) is not None or broke_at(large) is not None
    if searched and new is not None and old is not None:
        words = f"{workload}: holds {new:,} user{'s' if new != 1 else ''} against {old:,}"
        (bought if new > old else not_bought).append(f"{words} ({change(new, old)})." if new != old else f"{words}.")
    levels = common_level([small, large])
    if levels is None:
        return
    users = f"{levels[0].concurrency:,} user{'' if levels[0].concurrency == 1 else 's'}"
    rank = _percentile(levels)
    better: list[str] = []
    worse: list[str] = []
    for name, term in (("TTFT", "ttft"), ("TPOT", "tpot")):
        after, before = (getattr(getattr(level.stats, f"{term}_ms"), rank) for level in levels)
        if after is None or not before:
            continue
        words = f"{name} {rank} {latency(after)} against {latency(before)} ({change(after, before)})"
        (better if after < before * (1 - _UNCHANGED) else worse).append(words)
    for side, words_of in ((bought, better), (not_bought, worse)):
        if words_of:
            side.append(f"{workload} at {users}: {', '.join(words_of)}.")
