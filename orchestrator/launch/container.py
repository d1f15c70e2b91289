"""A server as a container: made, started, watched, removed; the event loop never waits for the engine."""

from __future__ import annotations

import asyncio
import re
import secrets as randomness
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import msgspec

from orchestrator.clock import now_ns
from orchestrator.errors import HostError
from orchestrator.launch.death import Exit, failure_of
from orchestrator.launch.docker import Engine
from orchestrator.launch.engine_facts import Plan, State
from orchestrator.launch.environment import secret_values
from orchestrator.launch.guard import Guard, guarded
from orchestrator.launch.log import Secrets, ServerLog
from orchestrator.launch.ready import completed, prove_ready
from orchestrator.launch.running import Order, Server, in_daemon, see_through
from orchestrator.launch.tree import PROC
from orchestrator.records import ServerFailure, ServerRecord
from stacks.base import LaunchSpec

LAST_WORDS_S = 2.0
ASK_AGAIN_S = 1.0


class ContainerServer(Server):
    """A container of ours that has been made and started."""

    def __init__(self, order: Order, engine: Engine, spec: LaunchSpec, record: ServerRecord, log: ServerLog) -> None:
        assert record.container_id is not None
        self.record = record
        self.base_url = record.base_url
        self.log_path = log.path
        self.started_ns = now_ns()
        self._order = order
        self._engine = engine
        self._spec = spec
        self._container = record.container_id
        self._log = log
        self._root: int | None = None
        self._pumped = in_daemon(lambda: log.pump(engine.logs(self._container)), "server log")
        self._death: asyncio.Future[ServerFailure] = asyncio.get_running_loop().create_future()
        self._watcher = asyncio.ensure_future(self._watch())

    def pids(self) -> tuple[int, ...]:
        """() also where the engine counts its processes otherwise than we do: from inside another container."""
        if self._root is None:
            state = self._engine.state(self._container)
            if state is None or state.pid is None or not _is_seen(state.pid, self._container):
                return ()
            self._root = state.pid
        pids = self._engine.pids(self._container)
        return tuple(sorted(pids, key=lambda pid: (pid != self._root, pid)))

    def usage(self) -> dict[str, float]:
        return self._engine.usage(self._container)

    async def died(self) -> ServerFailure:
        return await asyncio.shield(self._death)

    async def ready(self, secrets: dict[str, str]) -> None:
        """Wait until it serves; complete the record."""
        ready = await prove_ready(
            self._order,
            base_url=self.base_url,
            timeout_s=self._order.deployment.start_timeout_s or self._spec.start_timeout_s,
            started_ns=self.started_ns,
            died=self._death,
            lines=self._log.lines,
            secrets=secrets,
        )
        self.record = completed(self.record, ready, self._order.stack, self._order.deployment, self._log.lines())

    async def stop(self) -> None:
        """End it, and take its last words; it is still there."""
        self._watcher.cancel()
        await in_daemon(partial(self._engine.stop, self._container, self._spec.stop_timeout_s), "container stop")
        await asyncio.wait({self._pumped}, timeout=LAST_WORDS_S)

    async def _watch(self) -> None:
        ended = await self._exit()
        await asyncio.wait({self._pumped}, timeout=LAST_WORDS_S)
        self._death.set_result(failure_of(self._order.stack, ended, self._log.lines(), self.log_path))

    async def _exit(self) -> Exit:
        """How it ended, by the word of the engine: a wait also returns when the engine itself ends."""
        while True:
            await in_daemon(partial(self._engine.wait, self._container), "container wait")
            try:
                state = await in_daemon(partial(self._engine.state, self._container), "container state")
            except HostError as error:
                return Exit(evidence=(f"engine: {error}",))
            if state is None:
                return Exit(evidence=("engine: the container is gone; somebody else removed it",))
            if not state.running:
                return exit_of(state)
            await asyncio.sleep(ASK_AGAIN_S)


def exit_of(state: State) -> Exit:
    """The end of a container from its state."""
    return Exit(
        code=state.exit_code,
        oom_killed=state.oom_killed,
        limit_bytes=state.memory_limit_bytes,
        evidence=state.evidence(),
    )


def _is_seen(pid: int, container: str, proc: Path = PROC) -> bool:
    """Whether our /proc shows the container's process under this pid."""
    try:
        return container in (proc / str(pid) / "cgroup").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def container_name(cell: str) -> str:
    """A readable name of its own; containers are found by their labels, never by it."""
    slug = re.sub(r"[^a-zA-Z0-9_.-]+", "-", cell).strip("-.")[:40]
    return f"loadproof-{slug}-{randomness.token_hex(4)}"


# --- opening ------------------------------------------------------------------------------------------------------


def _plan(order: Order, spec: LaunchSpec, secrets: dict[str, str], network: str | None) -> Plan:
    assert spec.image is not None
    return Plan(
        name=container_name(order.owner.cell),
        image=spec.image,
        command=spec.argv,
        entrypoint=spec.entrypoint,
        environment=dict(spec.env) | secrets,
        labels=order.owner.labels(),
        port=spec.port,
        network=network,
        mounts=spec.mounts,
        gpus=spec.gpus,
        shm_bytes=spec.shm_bytes,
        ipc_host=spec.ipc_host,
        memory_limit_bytes=spec.memory_limit_bytes,
        cpus=spec.cpus,
    )


def _spec(order: Order) -> LaunchSpec:
    deployment = order.deployment
    spec = order.stack.launch(deployment, "0.0.0.0", order.stack.container_port(deployment))
    if spec.image is None:
        raise HostError(
            f"The deployment {deployment.name} has no image, and {order.stack.title} has no usual one.",
            "Set its image.",
        )
    return spec


@asynccontextmanager
async def open_container(order: Order) -> AsyncIterator[Server]:
    """Start a deployment as a container; it is removed afterwards."""
    spec = _spec(order)
    secrets = secret_values(spec.secret_env)
    engine = await in_daemon(Engine.open, "engine")
    try:
        plan, record = await _prepare(order, engine, spec, secrets)
        order.on_starting(record)
        async with guarded(order) as guard:
            try:
                async with _running(order, engine, spec, plan, record) as server:
                    order.on_running(server)
                    await server.ready(secrets)
                    yield server
            finally:
                # By its name, which was ours before the engine knew of it.
                await see_through(_remove(engine, plan.name, guard))
    finally:
        engine.close()


async def _remove(engine: Engine, name: str, guard: Guard) -> None:
    await in_daemon(partial(engine.remove, name), "container remove")
    guard.release()


async def _prepare(
    order: Order, engine: Engine, spec: LaunchSpec, secrets: dict[str, str]
) -> tuple[Plan, ServerRecord]:
    """Everything that can be asked before something is started: a way to reach it, GPUs, the image."""
    network = await in_daemon(engine.network, "engine")
    if spec.gpus:
        await in_daemon(engine.require_gpus, "engine")
    plan = _plan(order, spec, secrets, network)
    loop = asyncio.get_running_loop()

    def tell(text: str) -> None:
        loop.call_soon_threadsafe(order.on_progress, text)

    image = await in_daemon(lambda: engine.image(plan.image, tell), "image pull")
    record = ServerRecord(
        deployment=order.deployment.name,
        stack=order.stack.name,
        launch="docker",
        base_url="",
        argv=(*(spec.entrypoint or ()), *spec.argv),
        env=dict(spec.env),
        secret_env=spec.secret_env,
        image=plan.image,
        context_tokens=order.deployment.context_tokens,
        image_digest=image.digest,
    )
    return plan, record


@asynccontextmanager
async def _running(
    order: Order, engine: Engine, spec: LaunchSpec, plan: Plan, record: ServerRecord
) -> AsyncIterator[ContainerServer]:
    """The container from its creation to its end, with its log."""
    order.on_progress(f"starting {plan.image}")
    container = await see_through(in_daemon(partial(engine.create, plan), "container create"))
    record = msgspec.structs.replace(record, container_id=container)
    order.on_starting(record)
    await see_through(in_daemon(partial(engine.start, container, plan.image), "container start"))
    base_url = await in_daemon(partial(engine.base_url, container, plan), "container address")
    record = msgspec.structs.replace(record, base_url=base_url)
    with ServerLog(order.directory / "server.log", Secrets(secret_values(spec.secret_env))) as log:
        server = ContainerServer(order, engine, spec, record, log)
        try:
            yield server
        finally:
            await see_through(server.stop())
