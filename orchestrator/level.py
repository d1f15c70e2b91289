"""One server under measurement: the levels that are run on it, judged and committed. What plays them is a `Load`."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import msgspec

from orchestrator.asked import level_seed, level_spec, open_spec, open_traffic
from orchestrator.journal import Journal, Lines
from orchestrator.judge.level import decided_early, judge_level
from orchestrator.judge.looks import RunningLooks
from orchestrator.judge.search import Measure
from orchestrator.metrics import is_good, level_stats
from orchestrator.plan import Cell, Plan
from orchestrator.progress import Progress
from orchestrator.records import LevelCommitted, LevelRun, LevelSpec, Request, RequestRecord, Sample, ServerFailure
from workloads.workload import requests_sha256

StopEarly = Callable[[RequestRecord, int], str | None]
"""(a measured record, its position among the measured ones in issue order, from 0) -> why the level ends, if so."""


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


_WHOLE = ("sentinel", "prefill", "recovery", "soak")
"""Levels whose SLO is not asked for: they are not ended early."""


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

    def _commits(self) -> list[LevelCommitted]:
        """Of the levels that say how long a request takes at a concurrency."""
        own = (e for e in self._journal.events if isinstance(e, LevelCommitted) and e.cell == self._cell.id)
        return [e for e in own if not e.run.spec.is_open and e.run.spec.purpose != "prefill"]

    def _expected_e2e_s(self, concurrency: int) -> float:
        """Ê: mean end-to-end time expected at a level: the nearest measured level's times c/c_prev; 0 = unknown."""
        known = [c for c in self._commits() if c.stats.e2e_ms.mean is not None]
        if not known:
            return 0.0
        nearest = min(known, key=lambda c: abs(c.run.spec.concurrency - concurrency))
        mean_ms = nearest.stats.e2e_ms.mean or 0.0
        return mean_ms / 1000 * max(1.0, concurrency / nearest.run.spec.concurrency)

    def spec(self, step: Measure) -> LevelSpec:
        """The level that a step of the search asks for, under the plan's rules.

        The n-th level at a concurrency asks the same list on every stack, however the searches came there: that makes
        pairs for a comparison.
        """
        if step.rate_per_s is not None:
            return open_spec(step, self._plan, self._cell)
        spec = level_spec(
            step, self._plan.ramp, self._seed(step, step.replicate), self._expected_e2e_s(step.concurrency)
        )
        if step.lengths_of is None:
            return spec
        return msgspec.structs.replace(spec, lengths_seed=self._seed(step, step.lengths_of))

    def _seed(self, step: Measure, replicate: int) -> int:
        return level_seed(self._plan.seed, self._cell.workload.name, step.concurrency, "level", replicate)

    def expected_seconds(self, spec: LevelSpec) -> float:
        """How long a level will take, for the display."""
        if spec.is_open:
            return spec.min_seconds
        each = self._expected_e2e_s(spec.concurrency)
        generations = spec.warmup_generations + spec.requests / spec.concurrency + 1
        return min(spec.max_seconds, spec.ramp_seconds + max(spec.min_seconds, each * generations))

    # --- measuring ----------------------------------------------------------------------------------------------

    async def measure(self, spec: LevelSpec, died: asyncio.Future[ServerFailure], level: int) -> LevelCommitted:
        """Run a level, judge it, commit it. Nothing of it is lost if the server dies: that is its result."""
        offset = self._requests.offset
        records: list[RequestRecord] = []
        demanded: list[Request] = []

        def on_record(record: RequestRecord) -> None:
            self._requests.append(record)
            records.append(record)
            self._progress.record(record)

        traffic = self._traffic(spec, demanded)
        played = await self._load.play(Asked(spec, traffic, on_record, self._stop_early(spec), died))
        self._requests.sync()
        run, samples, slo = played.run, played.samples, self._plan.slo
        stats = level_stats(run, records, samples, slo)
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
            workload_sha256=requests_sha256(demanded),
        )
        self._journal.commit(commit)
        return commit

    def _traffic(self, spec: LevelSpec, demanded: list[Request]) -> Users | Arrivals:
        """What a level asks; of the judged requests each that was asked for is put into `demanded`."""
        if not spec.is_open:
            return Users(_remember(self._draws(spec, "measured"), demanded), self._draws(spec, "other"))
        due_ns, requests = open_traffic(spec, self._plan, self._cell)
        return Arrivals(due_ns, _remember(requests, demanded), self._plan.open_loop.max_in_flight)

    def _stop_early(self, spec: LevelSpec) -> StopEarly:
        """Ends a level that a look decided, or that cannot pass any more."""
        slo = self._plan.slo
        looks = RunningLooks(spec.looks, slo.attainment, spec.alpha)
        bad = 0

        def stop_early(record: RequestRecord, position: int) -> str | None:
            nonlocal bad
            if spec.purpose in _WHOLE:
                return None
            good = is_good(record, slo, from_due=spec.is_open)
            bad += not good
            look = None if spec.is_open else looks.add(position, good=good)
            return look or decided_early(bad, spec.requests, slo)

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
