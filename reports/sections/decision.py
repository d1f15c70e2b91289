"""The decision: for each cell the word, what it holds, where it breaks, what to configure, what is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from orchestrator.records import AskedCell, LevelStats, Percentiles, Slo
from reports.economy import NO_CARD, Economy
from reports.figures import NONE, count, latency, money, percent, significant, size, target
from reports.figures import limit as limit_text
from reports.levels import LevelResult, held_at
from reports.result import CellResult, Result, break_of, broke_at
from reports.sections.fragile import fragile

NO_VALUE = "no value"
"""A percentile that lies among the failed requests."""


class Check(NamedTuple):
    """One quantity at the level that held and at the level that broke."""

    name: str
    term: str
    """Its entry in the glossary."""
    limit: str
    at_ok: str
    at_bad: str
    ok_missed: bool
    bad_missed: bool


class Number(NamedTuple):
    """One of the three numbers of a cell."""

    name: str
    term: str
    value: str


class Card(NamedTuple):
    """The decision on one cell."""

    anchor: str
    asked: AskedCell
    word: str
    hardware: str
    headline: str
    sentence: str
    holds: str
    breaks: str
    numbers: tuple[Number, ...]
    """What holds in a closed loop, under independent arrivals, and what may be signed; () without that check."""
    span: str
    """Both in few characters, or why there is neither."""
    checks: tuple[Check, ...]
    ok_users: int | None
    bad_users: int | None
    why: str
    """Why not higher."""
    configure: str
    afterwards: tuple[str, ...]
    """What was seen after the break, and in the soak."""
    fragile: str
    """That it barely fits, and what that means; "" where it does not barely fit."""
    missing: tuple[str, ...]
    incident: bool


class Matrix(NamedTuple):
    """Deployments by workloads."""

    workloads: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Card | None, ...]], ...]


def cards(result: Result) -> tuple[Card, ...]:
    return tuple(_card(cell, f"cell-{number}", result.slo) for number, cell in enumerate(result.cells, 1))


def matrix(found: Sequence[Card]) -> Matrix | None:
    """The overview; None where there is one cell, which needs none."""
    if len(found) < 2:
        return None
    workloads = tuple(dict.fromkeys(card.asked.workload for card in found))
    deployments = dict.fromkeys(card.asked.deployment for card in found)
    by_place = {(card.asked.deployment, card.asked.workload): card for card in found}
    return Matrix(
        workloads,
        tuple((name, tuple(by_place.get((name, workload)) for workload in workloads)) for name in deployments),
    )


def tally(found: Iterable[Card]) -> list[tuple[str, int]]:
    """(word, number of cells) for every word that occurs, from good to bad."""
    counts = Counter(card.word for card in found)
    return [(word, counts[word]) for word in ("SIGNED", "PROVISIONAL", "REFUSED") if counts[word]]


def missing_everywhere(found: Sequence[Card]) -> tuple[str, ...]:
    """The missing steps that all provisional cells share: said once. () where there is one such cell or none."""
    lists = [card.missing for card in found if card.word == "PROVISIONAL"]
    return tuple(step for step in lists[0] if all(step in steps for steps in lists)) if len(lists) > 1 else ()


def by_workload(found: Iterable[Card]) -> dict[str, list[Card]]:
    """The cards of each workload beside each other, in the order of the plan."""
    groups: dict[str, list[Card]] = {}
    for card in found:
        groups.setdefault(card.asked.workload, []).append(card)
    return groups


def level_at(cell: CellResult, concurrency: int | None, *, held: bool) -> LevelResult | None:
    """The level that speaks for a concurrency: the latest valid one that held (`held_at`), or that did not."""
    if held:
        return held_at(cell.levels, concurrency)
    own = (level for level in cell.levels if level.concurrency == concurrency and level.verdict.valid)
    return max((level for level in own if level.verdict.verdict != "PASS"), key=lambda level: level.level, default=None)


def percentile_text(percentiles: Percentiles, value: float | None) -> str:
    """A latency percentile; says so where it has no value because too many requests failed."""
    if value is None:
        return NO_VALUE if percentiles.n > percentiles.n_finite else NONE
    return latency(value)


# --- one card ---------------------------------------------------------------------------------------------------


def _card(cell: CellResult, anchor: str, slo: Slo) -> Card:
    verdict = cell.verdict
    ok = level_at(cell, verdict.c_ok, held=True)
    bad = break_of(cell)
    return Card(
        anchor=anchor,
        asked=cell.asked,
        word=verdict.verdict,
        hardware=cell.hardware,
        headline=headline(cell),
        sentence=verdict.sentence,
        holds=count(verdict.c_ok),
        breaks=_breaks(cell),
        numbers=_numbers(cell),
        span=_span(cell),
        checks=(*_checks(ok, bad, slo), *_economy_checks(cell.economy)),
        ok_users=ok.concurrency if ok else None,
        bad_users=bad.concurrency if bad else None,
        why=_why(cell),
        configure=_configure(cell),
        afterwards=verdict.afterwards,
        fragile=fragile(cell),
        missing=tuple(verdict.missing),
        incident=bool(cell.incidents),
    )


def _undecided_at(cell: CellResult) -> int | None:
    """Users of the level above the last that held, if its requests did not decide it."""
    return cell.verdict.c_bad if broke_at(cell) is None else None


def _users(number: int) -> str:
    return f"{number:,} concurrent user{'' if number == 1 else 's'}"


def headline(cell: CellResult) -> str:
    """What happened, in one line."""
    ok, bad, undecided = cell.verdict.c_ok, broke_at(cell), _undecided_at(cell)
    if cell.outcome == "not started":
        return "Not measured: the run ended before it."
    if ok is not None and bad is not None:
        return f"Holds {_users(ok)}, breaks at {bad:,}."
    if undecided is not None:
        return f"{'Nothing' if ok is None else _users(ok)} held; {_users(undecided)} could not be decided."
    if ok is not None and _is_fixed(cell):
        return f"Holds {_users(ok)}, the most that was asked."
    if ok is not None:
        return f"Holds {_users(ok)}; no break was found."
    if bad is not None:
        return f"Breaks at {_users(bad)} already: nothing held."
    if cell.incidents:
        return f"Could not be measured: {cell.incidents[-1].failure.failure_class}."
    return "No level could be judged."


def in_short(cell: CellResult) -> str:
    """The headline, and beyond it the numbers of the open-loop check where there was one."""
    return " ".join([headline(cell), *(f"{number.name}: {number.value}." for number in _numbers(cell)[1:])])


def _is_fixed(cell: CellResult) -> bool:
    """The plan names the levels, so that no break was searched."""
    return bool(cell.asked.search.get("levels"))


def _breaks(cell: CellResult) -> str:
    if (bad := broke_at(cell)) is not None:
        return count(bad)
    if cell.verdict.c_bad is not None:
        return "undecided"
    if cell.verdict.c_ok is None:
        return NONE
    return "not tried" if _is_fixed(cell) else "not found"


def _span(cell: CellResult) -> str:
    ok, bad = cell.verdict.c_ok, cell.verdict.c_bad
    if ok is not None or bad is not None:
        return f"{'none' if ok is None else count(ok)} \u2192 {_breaks(cell)}"
    if cell.incidents:
        return cell.incidents[-1].failure.failure_class
    return "not measured" if not cell.levels else "not decided"


def _numbers(cell: CellResult) -> tuple[Number, ...]:
    verdict = cell.verdict
    check = verdict.open_loop
    if check is None:
        return ()
    signed = NONE
    if check.rate_sign is not None and verdict.c_sign is not None:
        signed = f"{significant(check.rate_sign)} requests/s on average, {_users(verdict.c_sign)}"
    return (
        Number("Holds", "c_ok", NONE if verdict.c_ok is None else _users(verdict.c_ok)),
        Number(
            "Independent arrivals",
            "rate_ok",
            "none held" if check.rate_ok is None else f"{significant(check.rate_ok)} requests/s",
        ),
        Number("May be signed", "rate_sign", signed),
    )


def _configure(cell: CellResult) -> str:
    """What to set, where there is something to set."""
    ok = cell.verdict.c_ok
    if ok is None:
        return ""
    if broke_at(cell) is None:
        return f"Nothing above {_users(ok)} was shown to hold: this is no ground to admit more."
    words = f"Set the concurrency limit of the server or gateway to {ok:,}."
    if cell.verdict.c_sign is not None:
        words += f" Plan for at most {_users(cell.verdict.c_sign)}."
    return words


def _why(cell: CellResult) -> str:
    """What limits the cell, with the evidence."""
    verdict, level = cell.verdict, break_of(cell)
    if level is None:
        remedy = cell.incidents[-1].failure.remedy if cell.incidents else ""
        return f"What to do: {remedy}" if remedy else ""
    if level.verdict.verdict == "UNDECIDED":
        notes = (c.note for c in level.verdict.criteria if c.binding and c.verdict == "UNDECIDED" and c.note)
        note = next(notes, None)
        return f"At {_users(level.concurrency)}: {note}." if note else ""
    return " ".join([f"What limits: {verdict.limiter}.", *verdict.evidence])


# --- the checks -------------------------------------------------------------------------------------------------


def _checks(ok: LevelResult | None, bad: LevelResult | None, slo: Slo) -> tuple[Check, ...]:
    if ok is None and bad is None:
        return ()
    good = [level.stats if level else None for level in (ok, bad)]
    rows = [_share_check("Good", "attainment", f"≥ {target(slo.attainment)}", *good, slo=slo)]
    for name, term, limit in (("TTFT p95", "ttft", slo.ttft_ms), ("TPOT p95", "tpot", slo.tpot_ms)):
        rows.append(_latency_check(name, term, limit, *good))
    if slo.e2e_ms is not None:
        rows.append(_latency_check("E2E p95", "e2e", slo.e2e_ms, *good))
    tokens = [f"{significant(s.output_tokens_per_s)} tok/s" if s and s.output_tokens_per_s else NONE for s in good]
    rows.append(Check("Output", "throughput", "", tokens[0], tokens[1], False, False))
    memory = [size(s.memory_peak_bytes) if s else NONE for s in good]
    rows.append(Check("Memory", "peak", "", memory[0], memory[1], False, False))
    return tuple(rows)


def cost_text(found: Economy) -> str:
    """Of a million output tokens; "" where the plan gives no price for it."""
    return "" if found.unpriced else money(found.cost_per_million_output_tokens, found.currency)


def energy_text(found: Economy) -> str:
    """Of a million output tokens; "" where neither a card told its power nor a price makes one ask for it."""
    if found.unmetered:
        asked = found.cost_per_million_output_tokens is not None and found.unmetered != NO_CARD
        return "not measured" if asked else ""
    return f"{significant(found.kwh_per_million_output_tokens)} kWh"


def _economy_checks(found: Economy) -> tuple[Check, ...]:
    """Cost and energy of a million output tokens, at the point that may be signed or held; never where it broke."""
    at = "" if found.concurrency is None else f"{found.concurrency:,} user{'' if found.concurrency == 1 else 's'}"
    where = f"at {at}" if found.point == "signed" else ""
    rows = (("Cost, 1M tok", "cost", cost_text(found)), ("Energy, 1M tok", "energy", energy_text(found)))
    return tuple(Check(name, term, where, said, NONE, False, False) for name, term, said in rows if said)


def _share_check(name: str, term: str, limit: str, ok: LevelStats | None, bad: LevelStats | None, *, slo: Slo) -> Check:
    texts = [percent(stats.attainment) if stats else NONE for stats in (ok, bad)]
    missed = [stats is not None and stats.attainment < slo.attainment for stats in (ok, bad)]
    return Check(name, term, limit, texts[0], texts[1], missed[0], missed[1])


def _latency_check(name: str, term: str, limit: float | None, ok: LevelStats | None, bad: LevelStats | None) -> Check:
    texts, missed = [], []
    for stats in (ok, bad):
        found: Percentiles | None = getattr(stats, f"{term}_ms") if stats else None
        value = found.p95 if found else None
        texts.append(percentile_text(found, value) if found else NONE)
        missed.append(limit is not None and (texts[-1] == NO_VALUE or (value is not None and value > limit)))
    return Check(name, term, f"≤ {limit_text(limit)}" if limit else "", texts[0], texts[1], missed[0], missed[1])
