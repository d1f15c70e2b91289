"""Why a level broke: the limit that its first failing criterion points to, with the evidence, or "unknown"."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from orchestrator.judge.level import HANG
from orchestrator.records import Criterion, LevelRun, LevelStats, LevelVerdict, ServerFailure

JudgedLevel = tuple[LevelRun, LevelStats, LevelVerdict]

PLATEAU = math.log(1.05)
"""Growth of ln(output tokens/s) per doubling of c below which throughput no longer grows."""
_LEAST_STEP = 1.5
"""A plateau is read off two levels that are at least this factor apart."""
_LEAST_REQUESTS = 20
_RUNNING_SHARE = 0.95
"""Of c; below it the engine runs fewer requests than it was given."""


class Cause(NamedTuple):
    """What limits, in words, and what shows it."""

    limiter: str
    evidence: tuple[str, ...] = ()


UNKNOWN = "unknown"
DECODE = "decode (compute or memory bandwidth)"


def cause_of_failure(failure: ServerFailure) -> Cause:
    """Why a server did not come up, or did not come up again."""
    evidence = (failure.message, *failure.evidence[-3:])
    return Cause(_death(failure.failure_class), evidence)


def _death(failure_class: str) -> str:
    words = failure_class.lower()
    if words == HANG:
        return "the engine hangs"
    memory = "memory" in words or "oom" in words
    return "memory" if memory else f"the server dies ({failure_class})"


def cause_of_break(broke: JudgedLevel, levels: Sequence[JudgedLevel]) -> Cause:
    """The limit that the level `broke` ran into; `levels` are all of its cell."""
    run, stats, verdict = broke
    if verdict.hard_break:
        return Cause(_death(verdict.hard_break), (f"At {run.spec.concurrency} users: {verdict.hard_break}.",))
    criteria = {criterion.id: criterion for criterion in verdict.criteria}
    if _beyond(criteria.get("S3")) or _beyond(criteria.get("S4")):
        return Cause("KV memory", _kv_evidence(stats, criteria))
    if _queues(criteria.get("S5"), run, stats):
        return _by_queue(criteria["S5"].note + ".", stats)
    missed = stats.offered - stats.good
    if missed and stats.failed >= missed / 2:
        kinds = ", ".join(f"{kind} {count}" for kind, count in stats.failures.items())
        return Cause("errors", (f"{stats.failed} of {stats.offered} requests failed: {kinds}.",))
    return _by_latency(broke, levels, criteria)


def _beyond(criterion: Criterion | None) -> bool:
    """FAIL, or over its limit where the window was too short to be sure."""
    if criterion is None or criterion.value is None or criterion.limit is None:
        return False
    return criterion.verdict == "FAIL" or (criterion.verdict == "UNDECIDED" and criterion.value > criterion.limit)


def _queues(criterion: Criterion | None, run: LevelRun, stats: LevelStats) -> bool:
    if stats.running_mean is None or stats.running_mean >= _RUNNING_SHARE * run.spec.concurrency:
        return False
    return _beyond(criterion)


_AT_ITS_CAP = 0.9
"""Mean over largest number of running requests from which a queueing engine stands at its own cap."""


def _by_queue(note: str, stats: LevelStats) -> Cause:
    """Why requests wait though the KV pool has room: the engine runs as many as it may, or it cannot prefill as fast as
    they come; then the number that runs goes up and down."""
    mean, most = stats.running_mean, stats.running_max
    if mean is not None and most and mean < _AT_ITS_CAP * most:
        return Cause(
            "prefill", (note, f"It ran {mean:.1f} on average and {most:.0f} at most, so no cap held them back.")
        )
    return Cause("the engine's limit on running requests", (note,))


def _kv_evidence(stats: LevelStats, criteria: dict[str, Criterion]) -> tuple[str, ...]:
    told = []
    if (s3 := criteria.get("S3")) is not None and s3.value is not None:
        told.append(f"{s3.value:.3g} preemptions per request.")
    if (s4 := criteria.get("S4")) is not None and s4.value is not None:
        told.append(f"The KV pool was full for {s4.value:.0%} of the time.")
    if stats.kv_use_mean is not None and stats.kv_use_max is not None:
        told.append(f"KV use was {stats.kv_use_mean:.0%} on average and {stats.kv_use_max:.0%} at most.")
    return tuple(told)


def _by_latency(broke: JudgedLevel, levels: Sequence[JudgedLevel], criteria: dict[str, Criterion]) -> Cause:
    """What is left when neither the KV pool, nor a queue, nor errors explain it: prefill or decode."""
    ttft, tpot = criteria.get("S1-ttft"), criteria.get("S1-tpot")
    told = tuple(
        f"{c.name}: kept by {c.value:.1%} of the requests."
        for c in (ttft, tpot)
        if c is not None and c.value is not None
    )
    ttft_fails = ttft is not None and ttft.verdict == "FAIL"
    tpot_fails = tpot is not None and tpot.verdict == "FAIL"
    if tpot_fails and (by_share := _by_prefill_share(broke, levels, told)) is not None:
        return by_share
    if tpot_fails and (plateau := _plateau(broke, levels)) is not None:
        return Cause(DECODE, (*told, plateau))
    if ttft_fails and not tpot_fails:
        s5 = criteria.get("S5")
        if s5 is not None and s5.verdict != "not reported":
            return Cause("prefill", (*told, f"The engine kept no queue: {s5.note}."))
        return Cause(UNKNOWN, (*told, "Prefill or a queue in the engine; it reports no queue, so neither is shown."))
    return Cause(UNKNOWN, told)


_ALONE = 4
"""Most users of a level whose TTFT is taken for the prefill alone."""


def _by_prefill_share(broke: JudgedLevel, levels: Sequence[JudgedLevel], told: tuple[str, ...]) -> Cause | None:
    """Slow tokens: is the card busy with prompts, or is it the decoding itself? None if no quiet level tells.

    The share of time that goes into prompts is their rate times what a prompt token takes on an idle server.
    """
    quiet = [level for level in levels if level[2].valid and level[0].spec.concurrency <= _ALONE]
    if not quiet:
        return None
    idle = min(quiet, key=lambda level: level[0].spec.concurrency)[1]
    rate = broke[1].prompt_tokens_per_s
    if not rate or not idle.mean_in_tokens or idle.ttft_ms.mean is None:
        return None
    share = rate * idle.ttft_ms.mean / 1000 / idle.mean_in_tokens
    return Cause(
        "prefill" if share > 0.5 else DECODE,
        (*told, f"Prompts take {min(share, 1):.0%} of the time, by what they take on an idle server."),
    )


def _plateau(broke: JudgedLevel, levels: Sequence[JudgedLevel]) -> str | None:
    """Throughput that no longer grows with c, told; None if it grows or cannot be compared."""
    run, stats, _ = broke
    c = run.spec.concurrency
    lower = [level for level in levels if level[2].valid and level[0].spec.concurrency * _LEAST_STEP <= c]
    if not lower or stats.offered < _LEAST_REQUESTS:
        return None
    below = max(lower, key=lambda level: level[0].spec.concurrency)
    base, now = below[1].output_tokens_per_s, stats.output_tokens_per_s
    if not base or not now:
        return None
    per_doubling = math.log(now / base) / math.log2(c / below[0].spec.concurrency)
    if per_doubling >= PLATEAU:
        return None
    return f"Output went from {base:.0f} tokens/s at {below[0].spec.concurrency} users to {now:.0f} at {c}."
