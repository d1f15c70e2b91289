"""Run directories made by the real journal, the real metrics and the real judge, around a server that is a formula.

The formula: a request takes `ttft_ms(c)` to its first token and `tpot_ms(c)` for each further one, with a little noise
from a seeded generator. Everything else (which level next, what a level is worth, what is written) is the product's.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from orchestrator.clock import NS_PER_MS, NS_PER_S
from orchestrator.journal import Journal, Lines, sha256
from orchestrator.judge.level import judge_level
from orchestrator.judge.search import Measure, Outcome, SearchRules, next_step
from orchestrator.metrics import level_stats
from orchestrator.records import (
    SCHEMA,
    Asked,
    AskedCell,
    CellFinished,
    CellStarted,
    ClientHealth,
    Failure,
    LevelCommitted,
    LevelRun,
    LevelSpec,
    LevelStarted,
    Phase,
    RequestRecord,
    RunClosed,
    RunOpened,
    Sample,
    ServerFailure,
    ServerReady,
    ServerRecord,
    ServerStarting,
    ServerStopped,
    Slo,
)
from workloads.arrivals import poisson, schedule

MIB = 1 << 20
TOKENS = 12
HOST: dict[str, str | float | None] = {
    "cpu_model": "Example CPU 3000",
    "cpu_cores": 8.0,
    "memory_bytes": 32.0 * 1024 * MIB,
    "kernel": "Linux 6.1.0",
    "python": "CPython 3.12.1",
    "cpu_governor": None,
}


@dataclass(frozen=True)
class FakeCell:
    """A cell and how its server behaves."""

    asked: AskedCell
    ttft_ms: Callable[[int], float] = lambda c: 60.0 + 12.0 * c
    tpot_ms: Callable[[int], float] = lambda c: 9.0 + 1.9 * c
    failing: Callable[[int], bool] = lambda c: False
    """Every fifth request fails at this concurrency."""
    slots: int = 64
    base_mib: float = 400.0
    mib_per_user: float = 3.0
    source: str = "tree"
    facts: Mapping[str, float | str] = field(default_factory=dict)
    rules: SearchRules = field(default_factory=lambda: SearchRules(maximum=64))
    requests: int = 60
    """Least measured requests of a level."""
    tokens: int = TOKENS
    """Output tokens of a request, each an event."""
    loop_lag_ms: Callable[[int], float] = lambda c: 0.4
    worn: float = 1.0
    """By what everything takes longer once a level did not hold."""
    leaks_mib_per_hour: float = 0.0
    dies_at: int | None = None
    """Concurrency at which the server is killed for its memory."""
    refuses: ServerFailure | None = None
    """The server does not come up."""
    levels: int | None = None
    """The run is interrupted after that many levels of this cell, in the middle of the next."""
    note: str | None = None
    """The budget cut the search after `levels` levels."""
    server: Mapping[str, object] = field(default_factory=dict)
    log: str = "main: server is listening\n"
    power_w: float | None = None
    """Of the card, where `source` is one."""
    failure_detail: str = "<b>overloaded</b>"
    samples_named: str = ""
    """A further source and value that the watch tells, under this name."""


def asked_cell(deployment: str, workload: str, /, **more: object) -> AskedCell:
    values = {
        "stack": "llamacpp",
        "launch": "process",
        "model": f"models/Example-135M.{deployment}.gguf",
        "workload_title": "Fixed lengths",
        "mean_prompt_tokens": 512.0,
        "mean_output_tokens": float(TOKENS),
        "context_tokens": 2048,
        **more,
    }
    return msgspec.convert(
        {"cell": f"{deployment}--{workload}", "deployment": deployment, "workload": workload} | values, AskedCell
    )


class _Writer:
    """A run while it is written; its clock moves only when something is said to take time."""

    def __init__(self, root: Path, slo: Slo, journal: Journal) -> None:
        self.slo = slo
        self.journal = journal
        self.files = journal.files
        self.now_ns = 5_000 * NS_PER_S
        self.root = root

    def wait(self, s: float) -> int:
        self.now_ns += round(s * NS_PER_S)
        return self.now_ns


def build_run(
    root: Path,
    cells: Sequence[FakeCell],
    *,
    slo: Slo | None = None,
    title: str = "Example model on an example host",
    plan: bytes = b'title = "Example"\n\n[slo]\nttft_ms = 1000\n',
    host: Mapping[str, str | float | None] | None = None,
    overrides: tuple[str, ...] = (),
) -> Path:
    """Write a whole run directory and return it. A cell with `levels` and without `note` interrupts the run."""
    slo = slo or Slo(ttft_ms=400.0, tpot_ms=60.0)
    with Journal.create(root, plan) as journal:
        writer = _Writer(root, slo, journal)
        journal.commit(
            RunOpened(
                schema=SCHEMA,
                at_ns=writer.now_ns,
                run_id=root.name,
                wall_time="2026-11-24T19:00:00.000+00:00",
                loadproof_version="0.1.0",
                plan_sha256=sha256(plan),
                overrides=overrides,
                host=dict(host or HOST),
                asked=Asked(title=title, slo=slo, cells=tuple(_asked(cell) for cell in cells)),
                pid=4242,
                pid_started=1_000_000.0,
            )
        )
        for cell in cells:
            if not _write_cell(writer, cell):
                journal.commit(RunClosed(at_ns=writer.wait(0.1), outcome="interrupted"))
                return root
        journal.commit(RunClosed(at_ns=writer.wait(0.1), outcome="complete"))
    return root


def _asked(cell: FakeCell) -> AskedCell:
    return msgspec.structs.replace(cell.asked, search=msgspec.to_builtins(cell.rules))


def _server(cell: FakeCell) -> ServerRecord:
    asked = cell.asked
    values = {
        "deployment": asked.deployment,
        "stack": asked.stack,
        "launch": asked.launch,
        "base_url": "http://127.0.0.1:40123",
        "argv": ["llama-server", "-m", asked.model, "--port", "40123", "-np", str(cell.slots)],
        "version": "b7000",
        "ready_s": 4.2,
        "facts": dict(cell.facts),
        **cell.server,
    }
    return msgspec.convert(values, ServerRecord)


def _write_cell(writer: _Writer, cell: FakeCell) -> bool:
    """False: the run is interrupted in this cell."""
    name, journal = cell.asked.cell, writer.journal
    history: list[Outcome] = []
    attempt = 0
    while True:
        attempt += 1
        journal.commit(CellStarted(at_ns=writer.wait(0.5), cell=name, fingerprint="f" * 64, attempt=attempt))
        journal.commit(ServerStarting(at_ns=writer.wait(0.1), cell=name, attempt=attempt, server=_server(cell)))
        log = writer.files.server_log(name, attempt)
        log.parent.mkdir(parents=True)
        log.write_text(cell.log, encoding="utf-8")
        if cell.refuses is not None:
            journal.commit(ServerStopped(at_ns=writer.wait(2), cell=name, attempt=attempt, failure=cell.refuses))
            journal.commit(CellFinished(at_ns=writer.wait(0), cell=name, outcome="failed", failure=cell.refuses))
            return True
        journal.commit(ServerReady(at_ns=writer.wait(4), cell=name, attempt=attempt, server=_server(cell)))
        ended = _climb(writer, cell, attempt, history)
        if ended == "interrupted":
            return False
        failure = _killed() if ended == "died" else None
        journal.commit(ServerStopped(at_ns=writer.wait(1), cell=name, attempt=attempt, failure=failure))
        if ended != "died" or not isinstance(next_step(history, cell.rules), Measure):
            outcome = "cut" if ended == "cut" else "measured"
            journal.commit(
                CellFinished(at_ns=writer.wait(0), cell=name, outcome=outcome, note=cell.note or "")  # type: ignore[arg-type]
            )
            return True


def _killed() -> ServerFailure:
    return ServerFailure(
        failure_class="out of memory",
        message="The server was killed for its memory limit.",
        remedy="Give it more memory, or fewer slots.",
        evidence=("exit code 137", "OOMKilled: true"),
        exit_code=137,
        oom_killed=True,
    )


def _climb(writer: _Writer, cell: FakeCell, attempt: int, history: list[Outcome]) -> str:
    """Level after level; ``done``, ``died``, ``cut`` or ``interrupted``."""
    files = writer.files
    requests, samples = Lines(files.requests(cell.asked.cell, attempt)), Lines(files.samples(cell.asked.cell, attempt))
    try:
        for sample in _idle(cell, writer):
            samples.append(sample)
        while isinstance(step := next_step(history, cell.rules), Measure):
            spec = _spec(cell, step)
            if cell.levels is not None and len(history) >= cell.levels and cell.note is not None:
                return "cut"
            writer.journal.append(
                LevelStarted(
                    at_ns=writer.wait(0.2), cell=cell.asked.cell, attempt=attempt, level=len(history), spec=spec
                )
            )
            if cell.levels is not None and len(history) >= cell.levels:
                return "interrupted"
            died = cell.dies_at is not None and spec.concurrency >= cell.dies_at
            worn = cell.worn if any(o.fails for o in history) else 1.0
            history.append(_level(writer, cell, attempt, spec, requests, samples, died, len(history), worn))
            if died:
                return "died"
        return "done"
    finally:
        requests.close()
        samples.close()


def _spec(cell: FakeCell, step: Measure) -> LevelSpec:
    c = step.concurrency
    request_s = (cell.ttft_ms(c) + cell.tokens * cell.tpot_ms(c)) / 1000
    least = max(cell.requests, 10 * c if cell.requests >= 60 else 0)
    return LevelSpec(
        concurrency=c,
        purpose=step.purpose,
        seed=1000 * c + step.replicate,
        requests=step.looks[-1] if step.looks else max(least, round((step.min_seconds or 0) * c / request_s / 10) * 10),
        min_seconds=1.0,
        max_seconds=600.0,
        ramp_seconds=0.0,
        warmup_generations=1.0,
        warmup_seconds=0.0,
        filler_seconds=30.0,
        deadline_seconds=60.0,
        rate_per_s=step.rate_per_s,
        arrivals="" if step.rate_per_s is None else "the trace" if step.purpose == "replay" else "poisson",
        looks=step.looks,
    )


def _level(
    writer: _Writer,
    cell: FakeCell,
    attempt: int,
    spec: LevelSpec,
    requests: Lines,
    samples: Lines,
    died: bool,
    level: int,
    worn: float,
) -> Outcome:
    offset = requests.offset
    if spec.is_open:
        run, records = _load_open(cell, spec, writer.now_ns, died)
    else:
        run, records = _load(cell, spec, writer.now_ns, died, worn)
    watched = _watch(cell, spec, run)
    for record in records:
        requests.append(record)
    for sample in watched:
        samples.append(sample)
    requests.sync()
    samples.sync()
    writer.now_ns = run.ended_ns
    stats = level_stats(run, records, watched, writer.slo)
    hard_break = "out of memory" if died else None
    verdict = judge_level(run, stats, records, watched, writer.slo, hard_break=hard_break)
    writer.journal.commit(
        LevelCommitted(
            at_ns=writer.wait(0.1),
            cell=cell.asked.cell,
            attempt=attempt,
            level=level,
            run=run,
            stats=stats,
            verdict=verdict,
            offset=offset,
            length=requests.offset - offset,
            workload_sha256=sha256(str(spec.seed).encode()),
        )
    )
    return Outcome.of(run, stats, verdict)


def _load(
    cell: FakeCell, spec: LevelSpec, start_ns: int, died: bool, worn: float
) -> tuple[LevelRun, list[RequestRecord]]:
    """A closed loop in virtual time: every user sends its next request when its last one ended."""
    c, noise = spec.concurrency, random.Random(spec.seed)
    users = [(start_ns + i, i) for i in range(c)]
    records: list[RequestRecord] = []
    last_measured_end = 0
    while users:
        sent_ns, user = heapq.heappop(users)
        seq = len(records)
        phase = _phase(seq, c, spec.requests)
        if phase == "filler" and sent_ns > last_measured_end:
            continue
        record = _request(cell, c, seq, phase, sent_ns, user, noise, died, worn)
        records.append(record)
        if phase == "measured":
            last_measured_end = max(last_measured_end, record.end_ns)
        heapq.heappush(users, (record.end_ns, user))
    return _ran(cell, spec, start_ns, records)


def _load_open(cell: FakeCell, spec: LevelSpec, start_ns: int, died: bool) -> tuple[LevelRun, list[RequestRecord]]:
    """An open loop in virtual time: a request is as slow as the requests under way make it."""
    noise, warm_up = random.Random(spec.seed), spec.requests // 4
    ends: list[int] = []
    records: list[RequestRecord] = []
    for seq, due in enumerate(schedule(poisson(spec.rate_per_s or 0.0, spec.seed), requests=spec.requests + warm_up)):
        while ends and ends[0] <= start_ns + due:
            heapq.heappop(ends)
        phase: Phase = "warmup" if seq < warm_up else "measured"
        record = _request(cell, len(ends) + 1, seq, phase, start_ns + due, 0, noise, died, 1.0)
        records.append(msgspec.structs.replace(record, user=None))
        heapq.heappush(ends, record.end_ns)
    return _ran(cell, spec, start_ns, records)


def _ran(
    cell: FakeCell, spec: LevelSpec, start_ns: int, records: list[RequestRecord]
) -> tuple[LevelRun, list[RequestRecord]]:
    c = spec.concurrency
    measured = [record for record in records if record.phase == "measured"]
    t_a, t_b = measured[0].sent_ns, measured[-1].sent_ns
    ended_ns = max(record.end_ns for record in records)
    run = LevelRun(
        spec=spec,
        started_ns=start_ns,
        window_start_ns=t_a,
        window_end_ns=t_b,
        ended_ns=ended_ns,
        in_flight_integral_s=sum(max(0, min(r.end_ns, t_b) - max(r.sent_ns, t_a)) for r in records) / NS_PER_S,
        health=ClientHealth(
            loop_lag_ms_p99=cell.loop_lag_ms(c),
            send_lag_ms_p99=0.2,
            cpu_s=0.02 * c,
            wall_s=(ended_ns - start_ns) / NS_PER_S,
            kernel_share=1.0,
        ),
    )
    return run, sorted(records, key=lambda record: (record.end_ns, record.seq))


def _phase(seq: int, concurrency: int, requests: int) -> Phase:
    return "warmup" if seq < concurrency else "measured" if seq < concurrency + requests else "filler"


def _request(
    cell: FakeCell,
    c: int,
    seq: int,
    phase: Phase,
    sent_ns: int,
    user: int,
    noise: random.Random,
    died: bool,
    worn: float,
) -> RequestRecord:
    first = sent_ns + round(worn * cell.ttft_ms(c) * noise.uniform(0.9, 1.1) * NS_PER_MS)
    step = worn * cell.tpot_ms(c) * noise.uniform(0.97, 1.03) * NS_PER_MS
    tokens = tuple(first + round(i * step) for i in range(cell.tokens))
    base = RequestRecord(
        seq=seq,
        request_id=f"r{seq}",
        phase=phase,
        due_ns=sent_ns,
        sent_ns=sent_ns,
        end_ns=tokens[-1] + NS_PER_MS,
        asked_in=512,
        asked_out=cell.tokens,
        stamp="kernel",
        user=user,
    )
    replace = msgspec.structs.replace
    if died and seq > c:
        return replace(
            base, end_ns=sent_ns + 5 * NS_PER_MS, failure=Failure(kind="refused", detail="connection refused")
        )
    if cell.failing(c) and seq % 5 == 0:
        return replace(base, end_ns=first, failure=Failure(kind="status", status=503, detail=cell.failure_detail))
    return replace(
        base,
        first_byte_ns=first - NS_PER_MS,
        first_ns=first,
        last_ns=tokens[-1],
        in_tokens=512,
        out_tokens=cell.tokens,
        tokens_from="usage",
        finish="length",
        token_ns=tokens,
    )


def _idle(cell: FakeCell, writer: _Writer) -> list[Sample]:
    return [_memory(cell, writer.wait(1), cell.base_mib) for _ in range(3)]


def _memory(cell: FakeCell, at_ns: int, mib: float) -> Sample:
    name = "pss_bytes" if cell.source == "tree" else "memory_used_bytes"
    power = {} if cell.power_w is None else {"power_w": cell.power_w}
    return Sample(at_ns=at_ns, source=cell.source, values={name: round(mib * MIB), **power})


def _watch(cell: FakeCell, spec: LevelSpec, run: LevelRun) -> list[Sample]:
    c, found = spec.concurrency or 8, []
    for at_ns in range(run.started_ns, run.ended_ns, NS_PER_S):
        leaked = cell.leaks_mib_per_hour * (at_ns - run.started_ns) / NS_PER_S / 3600
        found.append(_memory(cell, at_ns, cell.base_mib + cell.mib_per_user * c + leaked))
        running = min(c, cell.slots)
        values = {"running": float(running), "waiting": float(c - running), "kv_use": min(1.0, running / cell.slots)}
        found.append(Sample(at_ns=at_ns, source="engine", values=values))
        if cell.samples_named:
            named = {cell.samples_named: 1.0, "memory_used_bytes": 1.0, "power_w": 1.0}
            found.append(Sample(at_ns=at_ns, source=f"gpu:{cell.samples_named}", values=named))
    return found
