"""One server under measurement: the levels that are run on it, judged and committed. What plays them is a `Load`."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import msgspec

from orchestrator.asked import level_seed, level_spec, open_spec, open_traffic
from orchestrator.folded import folded
from orchestrator.host import usable_cpus
from orchestrator.journal import Journal, Lines
from orchestrator.judge.level import decided_early, judge_level
from orchestrator.judge.looks import RunningLooks
from orchestrator.judge.search import Measure
from orchestrator.known import Known
from orchestrator.load.capacity import Expected, workers_needed
from orchestrator.metrics import is_good, level_stats
from orchestrator.plan import Cell, Plan
from orchestrator.progress import Progress
from orchestrator.records import (
    LevelCommitted,
    LevelRun,
    LevelSpec,
    Request,
    RequestRecord,
    Sample,
    ServerFailure,
    StopEarly,
    never,
)
from workloads.workload import requests_sha256


class Users(NamedTuple):
    """What the users of a closed level ask."""

    measured: Iterator[Request]
    other: Iterator[Request]
    """Ramp, warm-up and fillers."""


class Arrivals(NamedTuple):
    """What comes at an open level, and when."""

    due_ns: Sequence[int]
    """After its start, in order."""
    requests: Iterator[Request]
    most_in_flight: int
    """What is due beyond it is dropped."""


class Asked(NamedTuple):
    """A level as it is to be played."""

    spec: LevelSpec
    traffic: Users | Arrivals
    on_record: Callable[[RequestRecord], None]
    stop_early: StopEarly
    died: asyncio.Future[ServerFailure]
    """Done when the server is gone."""


class Played(NamedTuple):
    """A level as it was played."""

    run: LevelRun
    samples: list[Sample]
    """Taken from its start until the engine was idle again."""
    ended_ns: int
    """When that was."""
    hard_break: str | None
    """Class of the server's death, if it died of it."""


class Load(Protocol):
    """Plays levels on one ready server: over sockets (`orchestrator.machine`), or in virtual time
    (`orchestrator.simulation`)."""

    async def play(self, asked: Asked) -> Played: ...


_WHOLE = ("sentinel", "prefill", "recovery", "soak", "pair")
"""Levels whose SLO is not asked for: they are not ended early."""


def load_processes(plan: Plan, cell: Cell, load: Expected) -> int:
    """As many load processes as the plan says; else as are needed for this. None loads a simulated card."""
    if cell.deployment.launch == "simulated":
        return 1
    return workers_needed(load, usable_cpus()) if plan.client.workers is None else plan.client.workers


class Bench:
    """Runs levels on one living server and commits them."""

    def __init__(self, load: Load, plan: Plan, cell: Cell, journal: Journal, attempt: int, progress: Progress) -> None:
        self._load = load
        self._plan = plan
        self._cell = cell
        self._journal = journal
        self._attempt = attempt
        self._progress = progress
        self._requests = Lines(journal.files.requests(cell.id, attempt))

    def close(self) -> None:
        self._requests.close()

    # --- what a level is ----------------------------------------------------------------------------------------

    def _known(self) -> Known:
        return Known.of(self._journal.events, self._cell.id)

    def spec(self, step: Measure) -> LevelSpec:
        """The level that a step of the search asks for, under the plan's rules.

        The n-th level at a concurrency asks the same list on every stack, however the searches came there: that makes
        pairs for a comparison.
        """
        known = self._known()
        if step.rate_per_s is not None:
            spec = open_spec(step, self._plan, self._cell)
            lengths = self._plan.workload(self._cell).stats(self._cell.workload.context_tokens)
            load = known.open(step.rate_per_s, lengths.output_mean)
            return msgspec.structs.replace(spec, workers=load_processes(self._plan, self._cell, load))
        expected_s = known.e2e_s(step.concurrency)
        spec = level_spec(step, self._plan.ramp, self._seed(step, step.replicate), expected_s)
        return msgspec.structs.replace(
            spec,
            lengths_seed=None if step.lengths_of is None else self._seed(step, step.lengths_of),
            workers=load_processes(self._plan, self._cell, known.closed(step.concurrency)),
        )

    def _seed(self, step: Measure, replicate: int) -> int:
        return level_seed(self._plan.seed, self._cell.workload.name, step.concurrency, "level", replicate)

    def expected_seconds(self, spec: LevelSpec) -> float:
        """How long a level will take, for the display."""
        return self._known().seconds(spec)

    # --- measuring ----------------------------------------------------------------------------------------------

    async def measure(self, spec: LevelSpec, died: asyncio.Future[ServerFailure], level: int) -> LevelCommitted:
        """Run a level, judge it, commit it. Nothing of it is lost if the server dies: that is its result."""
        offset = self._requests.offset
        records: list[RequestRecord] = []
        demanded: list[Request] = []

        def on_record(record: RequestRecord) -> None:
            self._requests.append(record)
            records.append(folded(record) if spec.purpose == "soak" else record)
            self._progress.record(record)

        traffic = self._traffic(spec, demanded)
        played = await self._load.play(Asked(spec, traffic, on_record, self._stop_early(spec), died))
        self._requests.sync()
        run, samples, slo = played.run, played.samples, self._plan.slo
        stats = level_stats(run, records, samples, slo)
        asked = demanded[: len(records) if spec.is_open else stats.offered]  # more are drawn ahead
        commit = LevelCommitted(
            at_ns=played.ended_ns,
            cell=self._cell.id,
            attempt=self._attempt,
            level=level,
            run=run,
            stats=stats,
            verdict=judge_level(run, stats, records, samples, slo, hard_break=played.hard_break),
            offset=offset,
            length=self._requests.offset - offset,
            workload_sha256=requests_sha256(asked),
        )
        self._journal.commit(commit)
        return commit

    def _traffic(self, spec: LevelSpec, demanded: list[Request]) -> Users | Arrivals:
        """What a level asks; the measured requests (of an open level all) are put into `demanded` as they are drawn."""
        if not spec.is_open:
            return Users(_remember(self._draws(spec, "measured"), demanded), self._draws(spec, "other"))
        due_ns, requests = open_traffic(spec, self._plan, self._cell)
        return Arrivals(due_ns, _remember(requests, demanded), self._plan.open_loop.max_in_flight)

    def _stop_early(self, spec: LevelSpec) -> StopEarly:
        """Ends a level that is decided: by its looks, or by misses that no later request can make good."""
        slo, bad = self._plan.slo, 0
        if spec.purpose in _WHOLE:
            return never
        looks = None if spec.is_open else RunningLooks(spec.looks, slo.attainment, spec.alpha)

        def stop_early(record: RequestRecord, place: int, of: int | None) -> str | None:
            nonlocal bad
            good = is_good(record, slo, from_due=spec.is_open)
            bad += not good
            seen = looks.add(place, good=good) if looks is not None else None
            return seen or (decided_early(bad, of, slo) if of is not None else None)

        return stop_early

    def _draws(self, spec: LevelSpec, part: str) -> Iterator[Request]:
        """Stratified draws of the level's size, one after another, each with a seed of its own."""
        workload = self._plan.workload(self._cell)
        context = self._cell.workload.context_tokens
        # A sentinel asks the same lengths each time, of prompts that no cache has seen.
        known = self._plan.seed if spec.purpose == "sentinel" else spec.lengths_seed
        for number in itertools.count():
            base = spec.seed if known is None else known
            seed = level_seed(base, self._cell.workload.name, spec.concurrency, part, number)
            for request in workload.draw(seed, spec.requests, context):
                if spec.purpose == "prefill":
                    yield msgspec.structs.replace(request, output_tokens=1)
                else:
                    yield request if known is None else _reseeded(request, spec.seed)


def _reseeded(request: Request, seed: int) -> Request:
    """The same lengths with another prompt."""
    return msgspec.structs.replace(request, prompt_seed=request.prompt_seed ^ seed)


def _remember(requests: Iterator[Request], into: list[Request]) -> Iterator[Request]:
    for request in requests:
        into.append(request)
        yield request
