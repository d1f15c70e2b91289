"""One level judged: is the measurement VALID, and did the level hold?"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.judge.criteria import (
    Outcomes,
    admission_criterion,
    error_criterion,
    kv_criterion,
    limit_criteria,
    preemption_criterion,
    slo_criterion,
    slo_look,
    stability_criterion,
)
from orchestrator.judge.looks import Word
from orchestrator.judge.rules import LevelRules as LevelRules
from orchestrator.judge.silence import longest_silence_s
from orchestrator.judge.validity import invalid_reasons, level_flags
from orchestrator.records import Criterion, LevelRun, LevelStats, LevelVerdict, RequestRecord, Sample, Slo

HANG = "hang"


def decided_early(bad: int, n: int, slo: Slo) -> str | None:
    """Why a level of `n` measured requests cannot pass any more once `bad` of them missed the SLO; None while it can.

    Exact: even if every other request were good, the attainment would be below the target.
    """
    if n < 1 or (n - bad) / n >= slo.attainment:
        return None
    return f"decided: {bad} of {n} requests missed the SLO, and {slo.attainment:.2%} cannot be reached any more"


def judge_level(
    run: LevelRun,
    stats: LevelStats,
    records: Sequence[RequestRecord],
    samples: Sequence[Sample],
    slo: Slo,
    *,
    hard_break: str | None = None,
    rules: LevelRules | None = None,
) -> LevelVerdict:
    """The verdict of a level, from its records (all phases) and the samples taken meanwhile.

    `hard_break` is the class of the server's death during the level; a hang is found here, in the records. A hard break
    is a FAIL that needs no statistics, and no rule of validity can take it back.
    """
    rules = rules or LevelRules()
    broke = hard_break or _hang(records, slo, rules)
    outcomes = Outcomes.of(records, slo, from_due=run.spec.is_open)
    decided = run.cut is not None and _decided(run, outcomes, slo)
    look = None if decided else slo_look(outcomes, run.spec, slo)
    whole = decided or (bool(run.spec.looks) and look is not None and look.verdict != "UNDECIDED")
    invalid = () if broke else invalid_reasons(run, stats, records, samples, slo, rules, decided=whole)
    criteria = (
        *([_broke(broke)] if broke else []),
        slo_criterion(outcomes, run.spec, slo, rules, decided=decided),
        *limit_criteria(outcomes, slo),
        error_criterion(stats, outcomes, slo, rules),
        preemption_criterion(run, stats, samples, rules),
        kv_criterion(run, samples, rules),
        *((stability_criterion(run, records),) if run.spec.is_open else (admission_criterion(run, samples, rules),)),
    )
    return LevelVerdict(
        valid=not invalid,
        invalid=invalid,
        flags=tuple(level_flags(run, stats, samples, slo, rules)),
        verdict="UNDECIDED" if invalid else _word(criteria),
        criteria=criteria,
        hard_break=broke,
        good_per_batch=look.good if look else (),
        batch=look.batch if look else 0,
    )


def _hang(records: Sequence[RequestRecord], slo: Slo, rules: LevelRules) -> str | None:
    allowed = max(rules.silence_s, 3 * (slo.ttft_ms or 0.0) / 1000)
    return HANG if longest_silence_s(records) > allowed else None


def _decided(run: LevelRun, outcomes: Outcomes, slo: Slo) -> bool:
    """Whether the cut left no doubt: enough requests had missed, whatever those still to come would have done."""
    return decided_early(outcomes.missed, max(run.spec.requests, len(outcomes.broken)), slo) is not None


def _broke(hard_break: str) -> Criterion:
    return Criterion(id="hard", name="the server keeps running", verdict="FAIL", note=hard_break)


def _word(criteria: Sequence[Criterion]) -> Word:
    """FAIL if a binding criterion fails, PASS if S1 passes, else UNDECIDED."""
    if any(c.binding and c.verdict == "FAIL" for c in criteria):
        return "FAIL"
    return "PASS" if any(c.id == "S1" and c.verdict == "PASS" for c in criteria) else "UNDECIDED"
