"""Closed-loop levels made by hand: records whose every number is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from orchestrator.clock import NS_PER_S
from orchestrator.metrics import mean_in_flight_audit
from orchestrator.records import (
    ClientHealth,
    Failure,
    FailureKind,
    LevelRun,
    LevelSpec,
    Phase,
    Purpose,
    RequestRecord,
    Sample,
)


def ns(s: float) -> int:
    return round(s * NS_PER_S)


def answered(
    seq: int = 0,
    *,
    sent_s: float = 0.0,
    late_s: float = 0.0,
    ttft_s: float = 0.1,
    gaps_s: Sequence[float] = (0.02,) * 9,
    counts: tuple[int, ...] = (),
    out_tokens: int | None = -1,
    phase: Phase = "measured",
) -> RequestRecord:
    """A request that was answered. `late_s`: sent this long after it was due. `out_tokens` -1 = the events' sum."""
    stamps = [ns(sent_s) + ns(ttft_s)]
    for gap in gaps_s:
        stamps.append(stamps[-1] + ns(gap))
    told = sum(counts) if counts else len(stamps)
    tokens = told if out_tokens == -1 else out_tokens
    return RequestRecord(
        seq=seq,
        request_id=f"r{seq}",
        phase=phase,
        due_ns=ns(sent_s) - ns(late_s),
        sent_ns=ns(sent_s),
        end_ns=stamps[-1],
        asked_in=100,
        asked_out=told,
        first_byte_ns=stamps[0],
        first_ns=stamps[0],
        last_ns=stamps[-1],
        in_tokens=100,
        out_tokens=tokens,
        tokens_from="none" if tokens is None else "usage",
        finish="length",
        token_ns=tuple(stamps),
        token_counts=counts,
    )


def failed(
    seq: int = 0,
    kind: FailureKind = "status",
    *,
    sent_s: float = 0.0,
    end_s: float = 0.1,
    phase: Phase = "measured",
    asked_out: int = 10,
) -> RequestRecord:
    return RequestRecord(
        seq=seq,
        request_id=f"r{seq}",
        phase=phase,
        due_ns=ns(sent_s),
        sent_ns=ns(sent_s),
        end_ns=ns(end_s),
        asked_in=100,
        asked_out=asked_out,
        failure=Failure(kind=kind),
    )


def spec_of(concurrency: int, requests: int, purpose: Purpose = "bracket") -> LevelSpec:
    return LevelSpec(
        concurrency=concurrency,
        purpose=purpose,
        seed=1,
        requests=requests,
        min_seconds=0.0,
        max_seconds=3600.0,
        ramp_seconds=0.0,
        warmup_generations=1.0,
        warmup_seconds=0.0,
        filler_seconds=30.0,
        deadline_seconds=600.0,
    )


def health_of(loop_ms: float = 0.1, send_ms: float = 0.1) -> ClientHealth:
    return ClientHealth(
        loop_lag_ms_p99=loop_ms, send_lag_ms_p99=send_ms, cpu_s=1.0, wall_s=10.0, kernel_share=1.0, workers=1
    )


def run_of(
    records: Sequence[RequestRecord],
    concurrency: int,
    *,
    requests: int | None = None,
    purpose: Purpose = "bracket",
    cut: str | None = None,
    health: ClientHealth | None = None,
    held: float = 1.0,
) -> LevelRun:
    """The run that gives these records; `held` scales the loop's own in-flight against what the records show."""
    measured = [r for r in records if r.phase == "measured"]
    start = min((r.sent_ns for r in measured), default=None)
    end = max((r.sent_ns for r in measured), default=None)
    integral = 0.0
    if start is not None and end is not None and end > start:
        integral = mean_in_flight_audit(records, (start, end)) * (end - start) / NS_PER_S
    return LevelRun(
        spec=spec_of(concurrency, len(measured) if requests is None else requests, purpose),
        started_ns=min((r.sent_ns for r in records), default=0),
        window_start_ns=start,
        window_end_ns=end,
        ended_ns=max((r.end_ns for r in records), default=0),
        in_flight_integral_s=integral * held,
        health=health or health_of(),
        cut=cut,
    )


def closed_loop(
    concurrency: int, measured: int, make: Callable[[int, float], RequestRecord] | None = None
) -> list[RequestRecord]:
    """`concurrency` users back to back, one generation of warm-up, then the measured requests, then fillers.

    `make(index, sent_s)` gives the index-th measured request; by default all are good (280 ms each).
    """
    free = [0.0] * concurrency
    records: list[RequestRecord] = []
    issued = 0
    while True:
        user = free.index(min(free))
        sent_s = free[user]
        index = issued - concurrency
        if index >= measured and sent_s > max(r.end_ns for r in records if r.phase == "measured") / NS_PER_S:
            return records
        if 0 <= index < measured and make is not None:
            record = make(issued, sent_s)
        else:
            phase: Phase = "warmup" if index < 0 else "measured" if index < measured else "filler"
            record = answered(issued, sent_s=sent_s, phase=phase)
        records.append(record)
        free[user] = record.end_ns / NS_PER_S
        issued += 1


def engine_samples(every_s: float, until_s: float, **values: Callable[[float], float]) -> list[Sample]:
    """Samples of the engine on a grid; each value a function of the time in seconds."""
    steps = round(until_s / every_s) + 1
    return [
        Sample(at_ns=ns(i * every_s), source="engine", values={name: f(i * every_s) for name, f in values.items()})
        for i in range(steps)
    ]
