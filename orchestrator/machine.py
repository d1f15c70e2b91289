"""This machine as the site of a run: real servers, watched once a second, asked over sockets."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from orchestrator.asked import level_seed
from orchestrator.clock import NS_PER_S, now_ns
from orchestrator.journal import Lines
from orchestrator.launch.environment import secret_values
from orchestrator.launch.external import bearer
from orchestrator.launch.server import Server, open_server
from orchestrator.level import Asked, Load, Played, Users
from orchestrator.life import attending, target_of
from orchestrator.load.engine import Engine, Target, open_engine
from orchestrator.load.engine import Load as LevelLoad
from orchestrator.load.wire import RequestLimits
from orchestrator.plan import Cell, Plan
from orchestrator.progress import Progress
from orchestrator.records import Neighbour, Request, RequestRecord, Sample, ServerFailure
from orchestrator.watch.gpu import list_gpus
from orchestrator.watch.neighbours import neighbours
from orchestrator.watch.watch import watching
from stacks.base import Deployment, Stack
from workloads.text import PromptMaker

_SETTLE_S = 30.0
_DEATH_GRACE_S = 5.0
_CALIBRATION_TOKENS = (64, 256)


class Machine:
    """The site of every run whose servers are there."""

    now_ns = staticmethod(now_ns)
    gpus = staticmethod(list_gpus)
    attending = staticmethod(attending)
    open_server = staticmethod(open_server)

    def neighbours(self, deployment: Deployment) -> tuple[Neighbour, ...]:
        return neighbours(deployment.gpus)

    @contextlib.asynccontextmanager
    async def loading(
        self, server: Server, stack: Stack, plan: Plan, cell: Cell, samples: Path, progress: Progress
    ) -> AsyncIterator[Load]:
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
            load = SocketLoad(engine, samples, progress)
            try:
                async with watching(watched, load.on_sample) as watch:
                    yield load
                for note in watch.notes:
                    progress.note(note)
            finally:
                load.close()


def memory_of(sample: Sample) -> float | None:
    """The server's memory in bytes as this sample shows it, if it does."""
    for name in ("memory_ours_bytes", "memory_used_bytes", "pss_bytes", "rss_bytes"):
        if name in sample.values:
            return sample.values[name]
    return None


class SocketLoad:
    """Plays levels on a server that can be reached."""

    def __init__(self, engine: Engine, samples: Path, progress: Progress) -> None:
        self._engine = engine
        self._progress = progress
        self._lines = Lines(samples)
        self._samples: list[Sample] = []
        self._sampled = asyncio.Event()

    async def play(self, asked: Asked) -> Played:
        first_sample = len(self._samples)
        records: list[RequestRecord] = []

        def on_record(record: RequestRecord) -> None:
            records.append(record)
            asked.on_record(record)

        with _abort_on(asked.died) as abort:
            run = await self._engine.run(_load(asked), on_record=on_record, stop_early=asked.stop_early, abort=abort)
        hard_break = await self._hard_break(records, asked.died)
        if hard_break is None:
            await self._settle(asked.died)
        self._lines.sync()
        return Played(run, self._samples[first_sample:], now_ns(), hard_break)

    def close(self) -> None:
        self._lines.close()

    async def _hard_break(self, records: list[RequestRecord], died: asyncio.Future[ServerFailure]) -> str | None:
        """Class of the server's death, if it died; refused or reset connections get it a moment to be noticed."""
        lost = any(r.failure is not None and r.failure.kind in ("refused", "reset", "cancelled") for r in records)
        if lost and not died.done():
            await asyncio.wait({died}, timeout=_DEATH_GRACE_S)
        return died.result().failure_class if died.done() else None

    async def _settle(self, died: asyncio.Future[ServerFailure]) -> None:
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

    def on_sample(self, sample: Sample) -> None:
        self._samples.append(sample)
        self._lines.append(sample)
        self._sampled.set()
        if (memory := memory_of(sample)) is not None:
            self._progress.memory(sample.source, memory)


def _load(asked: Asked) -> LevelLoad:
    spec, traffic = asked.spec, asked.traffic
    if isinstance(traffic, Users):
        return LevelLoad(spec, traffic.measured, traffic.other)
    return LevelLoad(spec, traffic.requests, due=tuple(traffic.due_ns), most_in_flight=traffic.most_in_flight)


@contextlib.contextmanager
def _abort_on(died: asyncio.Future[ServerFailure]) -> Iterator[asyncio.Future[str]]:
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
