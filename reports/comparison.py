"""Two cells side by side: refused where they are not comparable, judged by intervals where they are (METHOD.md).

A pair is one level of each run with the same list of requests at the same concurrency. Three claims are declared:
output throughput and p95 TTFT at the reference concurrency, and what holds; all else is shown without a verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import msgspec

from orchestrator.errors import JournalError
from orchestrator.judge.claims import THROUGHPUT, TTFT, Bracket, Claim, Word, adjusted, what_holds
from orchestrator.judge.steps import SEARCHING
from orchestrator.records import AskedCell
from reports.levels import LevelResult
from reports.pairs import paired_claims
from reports.result import CellResult, Result, broke_at

Difference = Literal["version", "machine", "limits", "lengths", "cache", "tokens", "workload"]
NAMES: dict[Difference, str] = {
    "version": "version of the load generator",
    "machine": "machine",
    "limits": "limits",
    "lengths": "lengths",
    "cache": "cache state",
    "tokens": "token source",
    "workload": "workload hash",
}
MAY_DIFFER: tuple[Difference, ...] = ("version", "machine", "limits", "cache", "tokens")
"""What may be the difference under test. Other requests are another question."""


class PairedLevel(msgspec.Struct, frozen=True, kw_only=True):
    """One pair, for looking at: no claim is made from it."""

    concurrency: int
    list_sha256: str
    valid: bool
    """In both runs; others enter no claim."""
    output_tokens_per_s: tuple[float | None, float | None]
    ttft_p95_ms: tuple[float | None, float | None]
    tpot_p95_ms: tuple[float | None, float | None]
    attainment: tuple[float, float]


class CellComparison(msgspec.Struct, frozen=True, kw_only=True):
    """One workload on two deployments, or on one deployment twice."""

    workload: str
    a: str
    b: str
    reference: int | None
    """Concurrency of the claims on latency and throughput."""
    differs: tuple[str, ...]
    """What is not the same, and allowed to differ: a sentence each."""
    claims: tuple[Claim, ...]
    levels: tuple[PairedLevel, ...]


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Run B against run A."""

    run_a: str
    run_b: str
    title_a: str
    title_b: str
    simulated: bool
    """On one side at least no card was there."""
    cells: tuple[CellComparison, ...]

    def words(self) -> set[Word]:
        return {claim.word for cell in self.cells for claim in cell.claims}


class Side(NamedTuple):
    """One cell with the run that it stands in."""

    run: Result
    cell: CellResult


def compare(
    a: Result,
    b: Result,
    *,
    name_a: str | None = None,
    name_b: str | None = None,
    under_test: Sequence[str] = (),
) -> Comparison:
    """Run B against run A, cell by cell.

    Deployments of the same name are compared, or those that `name_a` and `name_b` choose. Raises JournalError where
    nothing is in both, or where what is in both is not comparable; `under_test` names what may differ.
    """
    return comparison(a, b, list(_matched(a, b, name_a, name_b)), under_test)


def comparison(a: Result, b: Result, sides: Sequence[tuple[Side, Side]], under_test: Sequence[str]) -> Comparison:
    """The comparison of cells that were matched before. Raises JournalError where some are not comparable."""
    refused = [line for one, other in sides for line in _refusals(one, other, under_test)]
    if refused:
        raise JournalError(
            f"The runs are not comparable: {'; '.join(dict.fromkeys(refused))}.",
            f"Measure both on the same terms, or name the difference under test ({', '.join(MAY_DIFFER)}).",
        )
    cells = [_cell(one, other) for one, other in sides]
    claims = adjusted([cell.claims for cell in cells])
    return Comparison(
        run_a=a.run_id,
        run_b=b.run_id,
        title_a=a.title,
        title_b=b.title,
        simulated=a.simulated or b.simulated,
        cells=tuple(msgspec.structs.replace(cell, claims=own) for cell, own in zip(cells, claims, strict=True)),
    )


# --- which cells ------------------------------------------------------------------------------------------------


def _matched(a: Result, b: Result, name_a: str | None, name_b: str | None) -> Iterator[tuple[Side, Side]]:
    names = [list(dict.fromkeys(cell.asked.deployment for cell in run.cells)) for run in (a, b)]
    for name, known, run in ((name_a, names[0], a), (name_b, names[1], b)):
        if name is not None and name not in known:
            raise JournalError(f"{run.run_id} has no deployment {name!r}.", f"It has {', '.join(known)}.")
    if name_a is None and name_b is None:
        wanted = [(name, name) for name in names[0] if name in names[1]]
    else:
        wanted = [(name_a or name_b or "", name_b or name_a or "")]
    if not wanted and len(names[0]) == len(names[1]) == 1:
        wanted = [(names[0][0], names[1][0])]
    found = [pair for one, other in wanted for pair in _by_workload(a, b, one, other)]
    if not found:
        raise JournalError(
            f"{a.run_id} and {b.run_id} have no cell in common.",
            f"Choose with --a ({', '.join(names[0])}) and --b ({', '.join(names[1])}); the workload must be in both.",
        )
    yield from found


def _by_workload(a: Result, b: Result, one: str, other: str) -> Iterator[tuple[Side, Side]]:
    theirs = {cell.asked.workload: cell for cell in b.cells if cell.asked.deployment == other}
    for cell in a.cells:
        if cell.asked.deployment == one and (match := theirs.get(cell.asked.workload)) is not None:
            yield Side(a, cell), Side(b, match)


# --- may they be compared? --------------------------------------------------------------------------------------


def differences(a: Side, b: Side) -> dict[Difference, str]:
    """What is not the same of the conditions, with both values."""
    told: dict[Difference, Callable[[Side], str]] = {
        "version": lambda side: side.run.loadproof_version,
        "machine": _machine,
        "limits": _limits,
        "lengths": _lengths,
        "cache": _cache,
        "tokens": _token_source,
    }
    found = {name: f"{read(a)} against {read(b)}" for name, read in told.items() if read(a) != read(b)}
    if a.cell.levels and b.cell.levels and not pairs(a.cell, b.cell):
        found["workload"] = "no level has the same list of requests at the same concurrency"
    return found


def _refusals(a: Side, b: Side, under_test: Sequence[str]) -> Iterator[str]:
    for name, told in differences(a, b).items():
        if name not in under_test or name not in MAY_DIFFER:
            yield f"{NAMES[name]} differs in {a.cell.asked.workload or 'a cell'} ({told})"


def _machine(side: Side) -> str:
    if side.cell.hardware == "simulated":
        return f"simulated {side.cell.asked.card or 'card'}"
    host = side.run.host
    cards = sorted(str(value) for name, value in host.items() if name.startswith("gpu:"))
    told = [host.get("cpu_model"), f"{cores:g} cores" if isinstance(cores := host.get("cpu_cores"), float) else None]
    return ", ".join(str(part) for part in (*told, *cards) if part) or "not known"


def _limits(side: Side) -> str:
    slo, asked = side.run.slo, side.cell.asked
    limits = {"TTFT": slo.ttft_ms, "TPOT": slo.tpot_ms, "gap": slo.gap_ms, "E2E": slo.e2e_ms}
    told = [f"{name} {limit:g} ms" for name, limit in limits.items() if limit is not None]
    return ", ".join([*told, f"{slo.attainment:.2%} good", f"context {asked.context_tokens or 'not limited'}"])


def _lengths(side: Side) -> str:
    asked = side.cell.asked
    means = [f"{mean:.4g}" for mean in (asked.mean_prompt_tokens, asked.mean_output_tokens) if mean is not None]
    return f"{' and '.join(means) or 'unknown'} tokens, {'forced' if asked.lengths_forced else 'not forced'}"


def _cache(side: Side) -> str:
    hits = any(level.stats.cached_tokens for level in side.cell.levels)
    return "prompts found in a prefix cache" if hits else "no hits in a prefix cache"


def _token_source(side: Side) -> str:
    sources = {source for level in side.cell.levels for source in level.tokens_from}
    return ", ".join(sorted(sources)) or "none"


def _deployments_differ(a: AskedCell, b: AskedCell) -> Iterator[str]:
    """What is different in the deployments: the thing under test."""
    for name in ("stack", "launch", "model", "quantization", "kv_dtype", "dtype", "max_concurrency", "gpus", "card"):
        one, other = getattr(a, name), getattr(b, name)
        if one != other:
            yield f"{name.replace('_', ' ')}: {_plain(one)} against {_plain(other)}"


def _plain(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


# --- pairs and claims -------------------------------------------------------------------------------------------


def pairs(a: CellResult, b: CellResult) -> list[tuple[LevelResult, LevelResult]]:
    """Levels with the same list at the same concurrency, by concurrency, then in the order of measuring A.

    Those of the search: a sentinel looks for drift, and what follows a break or lasts for hours is another question.
    """
    theirs = {_list(level): level for level in b.levels if level.purpose in SEARCHING}
    own = (level for level in a.levels if level.purpose in SEARCHING)
    return [(level, other) for level in own if (other := theirs.get(_list(level))) is not None]


def _list(level: LevelResult) -> tuple[int, int, str]:
    """What makes two levels a pair: concurrency, seed of the prompts, and the lengths that were asked in order."""
    return level.concurrency, level.seed, level.list_sha256


def _reference(a: CellResult, b: CellResult, valid: Sequence[tuple[LevelResult, LevelResult]]) -> int | None:
    """The concurrency of the claims: where both hold if there is one, with the most pairs, then the highest."""
    counts = {level.concurrency: 0 for level, _ in valid}
    for level, _ in valid:
        counts[level.concurrency] += 1
    both = min(a.verdict.c_ok or 0, b.verdict.c_ok or 0)
    held = {c: n for c, n in counts.items() if c <= both} or counts
    return max(held, key=lambda c: (held[c], c), default=None)


def _cell(a: Side, b: Side) -> CellComparison:
    found = pairs(a.cell, b.cell)
    valid = [(one, other) for one, other in found if one.verdict.valid and other.verdict.valid]
    reference = _reference(a.cell, b.cell, valid)
    used = [pair for pair in valid if pair[0].concurrency == reference]
    return CellComparison(
        workload=a.cell.asked.workload,
        a=a.cell.asked.deployment,
        b=b.cell.asked.deployment,
        reference=reference,
        differs=(
            *_deployments_differ(a.cell.asked, b.cell.asked),
            *(f"{NAMES[name]}: {told}" for name, told in differences(a, b).items()),
        ),
        claims=(*paired_claims(used, THROUGHPUT, TTFT), what_holds(*(_bracket(side.cell) for side in (a, b)))),
        levels=tuple(_paired(one, other) for one, other in found),
    )


def _bracket(cell: CellResult) -> Bracket:
    return Bracket(cell.verdict.c_ok, broke_at(cell))


def _paired(a: LevelResult, b: LevelResult) -> PairedLevel:
    return PairedLevel(
        concurrency=a.concurrency,
        list_sha256=a.list_sha256,
        valid=a.verdict.valid and b.verdict.valid,
        output_tokens_per_s=(a.stats.output_tokens_per_s, b.stats.output_tokens_per_s),
        ttft_p95_ms=(a.stats.ttft_ms.p95, b.stats.ttft_ms.p95),
        tpot_p95_ms=(a.stats.tpot_ms.p95, b.stats.tpot_ms.p95),
        attainment=(a.stats.attainment, b.stats.attainment),
    )
