"""Two deployments of one run in pairs: the pairs that count, those that are void, and what may be claimed of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from orchestrator.judge.claims import (
    THROUGHPUT,
    TTFT,
    Bracket,
    Claim,
    Metric,
    Reading,
    adjusted,
    claim_of,
    what_holds,
    withheld,
)
from orchestrator.judge.pairs import SIDES, blocks_in_words, drifted
from orchestrator.judge.search import Outcome
from orchestrator.records import AskedCell, AskedPairs, Side, Slo
from reports.levels import LevelResult, level_result
from reports.run import Attempt, Level, Pairing
from reports.traffic import Counted

PairsOutcome = Literal["measured", "cut", "failed", "unfinished", "not started"]


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """One pair. It counts where `void` is empty."""

    pair: int
    a: LevelResult | None
    b: LevelResult | None
    void: str
    """Why it does not count; "" if it does."""


class Sentinel(msgspec.Struct, frozen=True, kw_only=True):
    """A fixed list asked by one user, on the server of a turn."""

    pair: int
    side: Side
    valid: bool
    output_tokens_per_s: float | None
    tpot_p50_ms: float | None


class PairsResult(msgspec.Struct, frozen=True, kw_only=True):
    """A comparison in pairs: B against A."""

    asked: AskedPairs
    a: str
    """Deployment."""
    b: str
    workload: str
    outcome: PairsOutcome
    note: str
    concurrency: int | None
    """Of all pairs; None: none was measured."""
    order: str
    """Blocks: ``ABBA BAAB``."""
    pairs: tuple[Pair, ...]
    sentinels: tuple[Sentinel, ...]
    withheld: tuple[str, ...]
    """Why nothing is claimed of throughput and latency, a sentence each; () where something may be."""
    claims: tuple[Claim, ...]

    @property
    def counted(self) -> tuple[Pair, ...]:
        return tuple(pair for pair in self.pairs if not pair.void)


def paired_claims(used: Sequence[tuple[LevelResult, LevelResult]], throughput: Metric, ttft: Metric) -> list[Claim]:
    """The two declared metrics that take pairs of levels (A, B)."""
    return [
        claim_of(throughput, [(_throughput(a), _throughput(b)) for a, b in used]),
        claim_of(ttft, [(_ttft(a), _ttft(b)) for a, b in used]),
    ]


def _throughput(level: LevelResult) -> Reading:
    return Reading(level.stats.output_tokens_per_s, level.certainty.output_tokens_per_s)


def _ttft(level: LevelResult) -> Reading:
    return Reading(level.stats.ttft_ms.p95, level.certainty.ttft_p95_ms)


def pairs_results(
    pairings: Sequence[Pairing], cells: Mapping[str, tuple[AskedCell, Bracket]], slo: Slo
) -> tuple[PairsResult, ...]:
    """All comparisons of a run, their claims adjusted together. `cells`: what was asked and found, by cell."""
    found = [_result(pairing, cells, slo) for pairing in pairings]
    claims = adjusted([one.claims for one in found])
    return tuple(msgspec.structs.replace(one, claims=own) for one, own in zip(found, claims, strict=True))


def _result(pairing: Pairing, cells: Mapping[str, tuple[AskedCell, Bracket]], slo: Slo) -> PairsResult:
    asked = pairing.asked
    (cell_a, held_a), (cell_b, held_b) = (cells.get(name) or _unknown(name) for name in (asked.a, asked.b))
    levels = _levels(pairing, slo)
    pairs = tuple(_pair(number, pairing, levels) for number in sorted({turn.pair for turn in asked.order}))
    used = [(pair.a, pair.b) for pair in pairs if not pair.void and pair.a is not None and pair.b is not None]
    why = tuple(_withheld(pairing, used, cell_a, cell_b))
    margins = (THROUGHPUT._replace(margin=asked.throughput_margin), TTFT._replace(margin=asked.ttft_margin))
    claims = paired_claims(used, *margins)
    if why or not used:
        claims = [withheld(claim, " ".join(why) or "no pair counts") for claim in claims]
    return PairsResult(
        asked=asked,
        a=cell_a.deployment,
        b=cell_b.deployment,
        workload=cell_a.workload,
        outcome=pairing.finished.outcome if pairing.finished else "unfinished" if pairing.attempts else "not started",
        note=pairing.finished.note if pairing.finished else "",
        concurrency=next((level.concurrency for level in levels.values()), None),
        order=blocks_in_words(asked.order),
        pairs=pairs,
        sentinels=tuple(_sentinels(pairing)),
        withheld=why,
        claims=(*claims, what_holds(held_a, held_b)),
    )


def _unknown(cell: str) -> tuple[AskedCell, Bracket]:
    """Of a journal that was changed by hand."""
    return AskedCell(cell=cell, deployment=cell, workload=""), Bracket(None, None)


def _levels(pairing: Pairing, slo: Slo) -> dict[tuple[int, Side], LevelResult]:
    """By pair and side."""
    attempts = {attempt.number: attempt for attempt in pairing.attempts}
    found = {}
    for level in pairing.levels:
        attempt = attempts[level.commit.attempt]
        if level.commit.run.spec.purpose == "pair" and attempt.turn is not None:
            place = attempt.turn.pair, attempt.turn.side
            found[place] = level_result(level, attempt.started_ns, attempt.samples(), slo, Counted())
    return found


# --- which pairs count ------------------------------------------------------------------------------------------


def _pair(number: int, pairing: Pairing, levels: Mapping[tuple[int, Side], LevelResult]) -> Pair:
    a, b = (levels.get((number, side)) for side in SIDES)
    void = [text for side in SIDES if (text := _void(number, side, levels.get((number, side)), pairing.attempts))]
    if not void and (a is None or b is None):
        void = ["not measured"]
    elif not void and a is not None and b is not None and a.list_sha256 != b.list_sha256:
        void = ["the two were not asked the same requests"]
    return Pair(pair=number, a=a, b=b, void="; ".join(void))


def _void(number: int, side: Side, level: LevelResult | None, attempts: Sequence[Attempt]) -> str:
    """What happened to a side; "" where nothing did, or where it was not begun."""
    name = side.upper()
    if level is None:
        own = (one for one in attempts if one.turn is not None and (one.turn.pair, one.turn.side) == (number, side))
        failure = next((one.failure for one in own if one.failure is not None), None)
        return f"{name} could not be measured ({failure.failure_class}): {failure.message}" if failure else ""
    if level.verdict.hard_break is not None:
        return f"{name} broke ({level.verdict.hard_break})"
    return "" if level.verdict.valid else f"{name} is INVALID: {' '.join(level.verdict.invalid)}"


# --- what stands against a claim --------------------------------------------------------------------------------


def _withheld(
    pairing: Pairing, used: Sequence[tuple[LevelResult, LevelResult]], a: AskedCell, b: AskedCell
) -> Iterator[str]:
    moved = [
        cell.deployment
        for side, cell in zip(SIDES, (a, b), strict=True)
        if drifted([_outcome(level) for level in _sentinel_levels(pairing, side)])
    ]
    if moved:
        yield f"The machine drifted: sentinels of {' and '.join(moved)} moved by more than 3 % from the first."
    if not used:
        return
    own = [cell.deployment for cell in (a, b) if not cell.lengths_forced]
    if own:
        means = " and ".join(f"{_mean_out(levels):.4g}" for levels in zip(*used, strict=True))
        yield f"How long an answer is, {' and '.join(own)} decided: {means} tokens on average, so not the same work."
    cached, counted = ({read(side) for side in zip(*used, strict=True)} for read in (_any_cached, _token_sources))
    if len(cached) > 1:
        yield "Prompts were found in a prefix cache on one side only."
    if len(counted) > 1:
        yield "Tokens were not counted by the same source on both sides."


def _any_cached(levels: Sequence[LevelResult]) -> bool:
    return any(level.stats.cached_tokens for level in levels)


def _token_sources(levels: Sequence[LevelResult]) -> frozenset[str]:
    return frozenset(source for level in levels for source in level.tokens_from)


def _mean_out(levels: Sequence[LevelResult]) -> float:
    known = [mean for level in levels if (mean := level.stats.mean_out_tokens) is not None]
    return sum(known) / len(known) if known else 0.0


def _outcome(level: Level) -> Outcome:
    return Outcome.of(level.commit.run, level.commit.stats, level.commit.verdict)


def _sentinel_levels(pairing: Pairing, side: Side) -> list[Level]:
    sides = {attempt.number: attempt.turn.side for attempt in pairing.attempts if attempt.turn is not None}
    own = (level for level in pairing.levels if sides.get(level.commit.attempt) == side)
    return [level for level in own if level.commit.run.spec.purpose == "sentinel"]


def _sentinels(pairing: Pairing) -> Iterator[Sentinel]:
    turns = {attempt.number: attempt.turn for attempt in pairing.attempts}
    for level in pairing.levels:
        turn, stats = turns[level.commit.attempt], level.commit.stats
        if level.commit.run.spec.purpose == "sentinel" and turn is not None:
            yield Sentinel(
                pair=turn.pair,
                side=turn.side,
                valid=level.commit.verdict.valid,
                output_tokens_per_s=stats.output_tokens_per_s,
                tpot_p50_ms=stats.tpot_ms.p50,
            )
