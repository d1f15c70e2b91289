"""One server under measurement: its sender, its watch, its raw files, and the levels that are run on it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
from collections.abc import AsyncIterator, Iterator
from typing import Self

import msgspec

from orchestrator.asked import level_seed, level_spec, open_spec, open_traffic
from orchestrator.clock import NS_PER_S, now_ns
from orchestrator.host import usable_cpus
from orchestrator.journal import Journal, Lines
from orchestrator.judge.level import decided_early, judge_level
from orchestrator.judge.looks import RunningLooks
from orchestrator.judge.search import Measure
from orchestrator.launch.environment import secret_values
from orchestrator.launch.external import bearer
from orchestrator.launch.server import Server
from orchestrator.life import target_of
from orchestrator.load.capacity import USUAL_TOKENS_PER_S, Expected, expected, workers_needed
from orchestrator.load.engine import Engine, Load, Target, open_engine
from orchestrator.load.tally import StopEarly, never
from orchestrator.load.wire import RequestLimits
from orchestrator.metrics import is_good, level_stats
from orchestrator.plan import Cell, Plan
from orchestrator.progress import Progress
from orchestrator.records import LevelCommitted, LevelSpec, Request, RequestRecord, Sample, ServerFailure
from orchestrator.watch.watch import watching
from stacks.base import Stack
from workloads.text import PromptMaker
from workloads.workload import requests_sha256

_SETTLE_S = 30.0
_DEATH_GRACE_S = 5.0
_WHOLE = ("sentinel", "prefill", "recovery", "soak")
"""Levels whose SLO is not asked for: they are not ended early."""
_CALIBRATION_TOKENS = (64, 256)


def memory_of(sample: Sample) -> float | None:
    """The server's memory in bytes as this sample shows it, if it does."""
    for name in ("memory_ours_bytes", "memory_used_bytes", "pss_bytes", "rss_bytes"):
        if name in sample.values:
            return sample.values[name]
    return None


class Bench:
    """Runs levels on one living server and commits them."""

    def __init__(
        self, engine: Engine, server: Server, plan: Plan, cell: Cell, journal: Journal, attempt: int, progress: Progress
    ) -> None:
        self._engine = engine
        self._plan = plan
        self._cell = cell
        self._journal = journal
        self._attempt = attempt
        self._progress = progress
        files = journal.files
        self._requests = Lines(files.requests(cell.id, attempt))
        self._samples_file = Lines(files.samples(cell.id, attempt))
        self._samples: list[Sample] = []
        self._sampled = asyncio.Event()

    @classmethod
    @contextlib.asynccontextmanager
    async def on(
        cls, server: Server, stack: Stack, plan: Plan, cell: Cell, journal: Journal, attempt: int, progress: Progress
    ) -> AsyncIterator[Self]:
        deployment = cell.deployment
        wire = stack.wire(deployment)
        model = stack.served_name(deployment)
        limits = RequestLimits(total_s=plan.ramp.deadline_seconds)
        watched = target_of(server, stack, deployment)
        headers = bearer(secret_values(deployment.secrets)) if deployment.launch == "external" else {}
        draft = Target(
            base_url=server.base_url,
            wire=wire,
            model=model,
            prompts=PromptMaker(form="text"),
            headers=headers,
            limits=limits,
        )
        target = dataclasses.replace(draft, prompts=await _prompt_maker(draft, plan))
        async with open_engine(target) as engine:
            bench = cls(engine, server, plan, cell, journal, attempt, progress)
            try:
                async with watching(watched, bench._on_sample) as watch:
                    yield bench
                for note in watch.notes:
                    progress.note(note)
            finally:
                bench.close()

    def close(self) -> None:
        """Close the raw files."""
        self._requests.close()
        self._samples_file.close()

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
            spec = open_spec(step, self._plan, self._cell)
            return msgspec.structs.replace(spec, workers=self._workers(self._expected_open(step.rate_per_s)))
        spec = level_spec(
            step, self._plan.ramp, self._seed(step, step.replicate), self._expected_e2e_s(step.concurrency)
        )
        return msgspec.structs.replace(
            spec,
            lengths_seed=None if step.lengths_of is None else self._seed(step, step.lengths_of),
            workers=self._workers(self._expected_closed(step.concurrency)),
        )

    def _seed(self, step: Measure, replicate: int) -> int:
        return level_seed(self._plan.seed, self._cell.workload.name, step.concurrency, "level", replicate)

    def _workers(self, load: Expected) -> int:
        """As many load processes as the plan says; else as are needed for this."""
        asked = self._plan.client.workers
        return workers_needed(load, usable_cpus()) if asked is None else asked

    def _expected_closed(self, concurrency: int) -> Expected:
        """As many streams as users, each as fast as at the nearest level."""
        known = [c for c in self._commits() if c.stats.output_tokens_per_s is not None and c.stats.mean_in_flight]
        if not known:
            return expected(concurrency)
        nearest = min(known, key=lambda c: abs(c.run.spec.concurrency - concurrency))
        return expected(concurrency, (nearest.stats.output_tokens_per_s or 0.0) / (nearest.stats.mean_in_flight or 1.0))

    def _expected_open(self, rate_per_s: float) -> Expected:
        """Little's law, with the longest mean time of a request that a level has shown."""
        lengths = self._plan.workload(self._cell).stats(self._cell.workload.context_tokens)
        events_per_s = rate_per_s * lengths.output_mean
        known = [c.stats.e2e_ms.mean for c in self._commits() if c.stats.e2e_ms.mean is not None]
        if not known:
            return Expected(events_per_s / USUAL_TOKENS_PER_S, events_per_s)
        return Expected(rate_per_s * max(known) / 1000, events_per_s)

    def expected_seconds(self, spec: LevelSpec) -> float:
        """How long a level will take, for the display."""
        if spec.is_open:
            return spec.min_seconds
        each = self._expected_e2e_s(spec.concurrency)
        generations = spec.warmup_generations + spec.requests / spec.concurrency + 1
        return min(spec.max_seconds, spec.ramp_seconds + max(spec.min_seconds, each * generations))

    # --- measuring ----------------------------------------------------------------------------------------------

    async def measure(self, spec: LevelSpec, died: asyncio.Task[ServerFailure], level: int) -> LevelCommitted:
        """Run a level, judge it, commit it. Nothing of it is lost if the server dies: that is its result."""
        offset = self._requests.offset
        first_sample = len(self._samples)
        records: list[RequestRecord] = []
        demanded: list[Request] = []

        def on_record(record: RequestRecord) -> None:
            self._requests.append(record)
            records.append(record)
            self._progress.record(record)

        load = self._load(spec, demanded)
        with _abort_on(died) as abort:
            run = await self._engine.run(load, on_record=on_record, stop_early=self._stop_early(spec), abort=abort)
        hard_break = await self._hard_break(records, died)
        if hard_break is None:
            await self._settle(died)
        self._requests.sync()
        self._samples_file.sync()
        samples = self._samples[first_sample:]
        stats = level_stats(run, records, samples, self._plan.slo)
        asked = demanded[: len(records) if spec.is_open else stats.offered]  # more are drawn ahead
        commit = LevelCommitted(
            at_ns=now_ns(),
            cell=self._cell.id,
            attempt=self._attempt,
            level=level,
            run=run,
            stats=stats,
            verdict=judge_level(run, stats, records, samples, self._plan.slo, hard_break=hard_break),
            offset=offset,
            length=self._requests.offset - offset,
            workload_sha256=requests_sha256(asked),
        )
        self._journal.commit(commit)
        return commit

    def _load(self, spec: LevelSpec, demanded: list[Request]) -> Load:
        """What is sent; the measured requests (of an open level all) are remembered as they are drawn."""
        if not spec.is_open:
            return Load(spec, _remember(self._draws(spec, "measured"), demanded), self._draws(spec, "other"))
        due, requests = open_traffic(spec, self._plan, self._cell)
        most = self._plan.open_loop.max_in_flight
        return Load(spec, _remember(requests, demanded), due=due, most_in_flight=most)

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

    async def _hard_break(self, records: list[RequestRecord], died: asyncio.Task[ServerFailure]) -> str | None:
        """Class of the server's death, if it died; refused or reset connections get it a moment to be noticed."""
        lost = any(r.failure is not None and r.failure.kind in ("refused", "reset", "cancelled") for r in records)
        if lost and not died.done():
            await asyncio.wait({died}, timeout=_DEATH_GRACE_S)
        return died.result().failure_class if died.done() else None

    async def _settle(self, died: asyncio.Task[ServerFailure]) -> None:
        """Wait until the engine says that nothing runs or waits; engines that do not report it are taken as idle."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SETTLE_S):
                while self._busy() and not died.done():
                    self._sampled.clear()
                    await self._sampled.wait()

    def _busy(self) -> bool:
        latest = next((s for s in reversed(self._samples) if s.source == "engine"), None)
        if latest is None or latest.at_ns < now_ns() - 5 * NS_PER_S:
            return False
        return latest.values.get("running", 0.0) + latest.values.get("waiting", 0.0) > 0

    def _on_sample(self, sample: Sample) -> None:
        self._samples.append(sample)
        self._samples_file.append(sample)
        self._sampled.set()
        if (memory := memory_of(sample)) is not None:
            self._progress.memory(sample.source, memory)


def _reseeded(request: Request, seed: int) -> Request:
    """The same lengths with another prompt."""
    return msgspec.structs.replace(request, prompt_seed=request.prompt_seed ^ seed)


def _remember(requests: Iterator[Request], into: list[Request]) -> Iterator[Request]:
    for request in requests:
        into.append(request)
        yield request


@contextlib.contextmanager
def _abort_on(died: asyncio.Task[ServerFailure]) -> Iterator[asyncio.Future[str]]:
    """A future that tells the load to end at once when the server is gone."""
    abort: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def tell(_: object) -> None:
        if not abort.done():
            abort.set_result("the server died")

    died.add_done_callback(tell)
    try:
        yield abort
    finally:
        died.remove_done_callback(tell)


async def _prompt_maker(draft: Target, plan: Plan) -> PromptMaker:
    """Token ids where the stack takes them; else text whose tokens per word are measured on the server itself."""
    if draft.wire.takes_token_ids:
        return PromptMaker(form="token_ids", vocab_size=plan.model.vocab_size)
    counts: list[tuple[int, int]] = []
    async with draft.sender() as sender:
        for seq, words in enumerate(_CALIBRATION_TOKENS):
            seed = level_seed(0, "calibration", words, "", 0)
            request = Request(seq=seq, prompt_tokens=words, output_tokens=2, prompt_seed=seed)
            record = await sender.send(request, seq=seq, phase="warmup", due_ns=now_ns())
            if record.in_tokens is not None:
                counts.append((words, record.in_tokens))
    if len(counts) < 2:
        return draft.prompts
    (words_a, tokens_a), (words_b, tokens_b) = counts
    per_word = (tokens_b - tokens_a) / (words_b - words_a)
    if per_word <= 0:
        return draft.prompts
    return PromptMaker(form="text", tokens_per_word=per_word, overhead_tokens=round(tokens_a - per_word * words_a))
