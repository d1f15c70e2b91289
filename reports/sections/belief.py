"""Can I believe it? Validity of the levels, the load generator's own health, and what the run does not show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from orchestrator.judge.bounds import Estimate
from reports.figures import NONE, latency, percent, significant
from reports.levels import LevelResult
from reports.result import CellResult, Hardware, Result
from stacks.simulated.accuracy import SENTENCE

HARDWARE_WORDS: dict[Hardware, str] = {
    "gpu": "",
    "cpu": "No GPU was used: the server ran on the CPU. Nothing here holds for a card.",
    "simulated": SENTENCE,
    "unknown": "No card was watched for a server here, and what hardware it ran on is not known.",
}


class Health(NamedTuple):
    """The worst that a cell's levels saw of the load generator."""

    deployment: str
    workload: str
    levels: int
    invalid: int
    loop_lag_ms: float | None
    read_backlog_ms: float | None
    send_lag_ms: float | None
    cpu_share: float | None
    """CPU of the load generator, in processors."""
    kernel_share: float | None
    in_flight_share: float | None
    """Smallest mean in-flight, as a share of the users asked for."""
    asked_output: float | None
    served_output: float | None
    clamped: int
    differs: int


class Sureness(NamedTuple):
    """One level: is it valid, and how well are its figures known?"""

    deployment: str
    workload: str
    concurrency: int
    purpose: str
    word: str
    requests: int
    n_eff: float | None
    design_effect: float | None
    good: str
    ttft: str
    tpot: str
    output: str
    kernel_share: float
    loop_lag_ms: float


_NOTES = ("version_note", "path_note")
"""Facts of a server that a reader must know: its release is not known, or it computes otherwise than was asked."""


class Remark(NamedTuple):
    """Something that was said of one level, or of a server."""

    where: str
    what: str


def hardware_notes(result: Result) -> list[str]:
    """One sentence for every kind of hardware that a reader must know of before believing a number."""
    kinds = dict.fromkeys(cell.hardware for cell in result.cells if cell.outcome != "not started")
    return [HARDWARE_WORDS[kind] for kind in kinds if HARDWARE_WORDS[kind]]


def health(result: Result) -> tuple[Health, ...]:
    return tuple(_health(cell) for cell in result.cells if cell.levels)


def sureness(result: Result) -> tuple[Sureness, ...]:
    return tuple(_sureness(cell, level) for cell in result.cells for level in cell.levels)


def _sureness(cell: CellResult, level: LevelResult) -> Sureness:
    sure = level.certainty
    return Sureness(
        deployment=cell.asked.deployment,
        workload=cell.asked.workload,
        concurrency=level.concurrency,
        purpose=level.purpose,
        word="VALID" if level.verdict.valid else "INVALID",
        requests=level.stats.offered,
        n_eff=sure.attainment.n_eff,
        design_effect=sure.design_effect,
        good=interval(sure.attainment, percent),
        ttft=interval(sure.ttft_p95_ms, latency),
        tpot=interval(sure.tpot_p95_ms, latency),
        output=interval(sure.output_tokens_per_s, significant),
        kernel_share=level.health.kernel_share,
        loop_lag_ms=level.health.loop_lag_ms_p99,
    )


def interval(found: Estimate, text: Callable[[float | None], str]) -> str:
    """``330 to 342 ms``; ``over 330 ms`` where too few requests bound it above."""
    if found.lower is not None and found.upper is not None:
        low, high = text(found.lower), text(found.upper)
        unit = " " + high.rpartition(" ")[2]
        return f"{low.removesuffix(unit)} to {high}"
    if found.lower is not None:
        return f"over {text(found.lower)}"
    return NONE if found.upper is None else f"under {text(found.upper)}"


def _worst(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _least(values: Sequence[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)


def _health(cell: CellResult) -> Health:
    levels = (*cell.levels, *cell.checks)
    served = [v.stats.mean_out_tokens for v in cell.levels if v.stats.mean_out_tokens is not None]
    return Health(
        deployment=cell.asked.deployment,
        workload=cell.asked.workload,
        levels=len(levels),
        invalid=sum(not level.verdict.valid for level in levels),
        loop_lag_ms=_worst([level.health.loop_lag_ms_p99 for level in levels]),
        read_backlog_ms=_worst([level.health.read_backlog_ms_p99 for level in levels]),
        send_lag_ms=_worst([level.health.send_lag_ms_p99 for level in levels]),
        cpu_share=_worst([level.health.cpu_s / level.health.wall_s for level in levels if level.health.wall_s > 0]),
        kernel_share=_least([level.health.kernel_share for level in levels]),
        in_flight_share=_least([_in_flight(level) for level in levels]),
        asked_output=cell.asked.mean_output_tokens,
        served_output=sum(served) / len(served) if served else None,
        clamped=sum(level.stats.clamped for level in levels),
        differs=sum(level.judged_again == "differs" for level in levels),
    )


def _in_flight(level: LevelResult) -> float | None:
    mean = level.stats.mean_in_flight
    return None if mean is None or level.rate_per_s is not None else mean / level.concurrency


def remarks(result: Result) -> tuple[Remark, ...]:
    """What a server's log warns of, why levels are invalid, what is flagged, and verdicts that the raw records do not
    give again."""
    found = []
    for cell in result.cells:
        notes = [server.facts[name] for server in cell.servers for name in _NOTES if name in server.facts]
        found += [Remark(f"{cell.asked.deployment}, {cell.asked.workload}", str(note)) for note in dict.fromkeys(notes)]
        for level in (*cell.levels, *cell.checks):
            where = f"{cell.asked.deployment}, {cell.asked.workload}, {_place(level)}"
            found += [Remark(where, f"INVALID: {reason}") for reason in level.verdict.invalid]
            found += [Remark(where, flag) for flag in level.verdict.flags]
            if level.cut:
                found.append(Remark(where, f"The level ended early: {level.cut}."))
            if level.judged_again == "differs":
                found.append(Remark(where, "The stored verdict is not the one that the raw records give now."))
    return tuple(found)


def _place(level: LevelResult) -> str:
    return f"{level.concurrency} users" if level.rate_per_s is None else f"{significant(level.rate_per_s)} requests/s"


def notes(result: Result) -> tuple[str, ...]:
    """What the stacks cannot show, each sentence once."""
    return tuple(dict.fromkeys(note for cell in result.cells for note in cell.asked.notes))
