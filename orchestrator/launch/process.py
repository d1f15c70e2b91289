"""A server as a process of this machine: its own session, a port proved to be its own, its log, and its end."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import psutil

from orchestrator.clock import now_ns
from orchestrator.errors import HostError, StackError
from orchestrator.launch.death import PORT_TAKEN, Exit, failure_of
from orchestrator.launch.environment import FINDABLE, inherited, secret_values
from orchestrator.launch.guard import Guard, guarded
from orchestrator.launch.listener import free_port, listeners, sockets_of
from orchestrator.launch.log import Secrets, ServerLog
from orchestrator.launch.ready import NotYetError, completed, prove_ready
from orchestrator.launch.running import Order, Server, in_daemon, see_through
from orchestrator.launch.tree import PROC, Tree, read_process, stop_tree
from orchestrator.records import ServerFailure, ServerRecord
from stacks.base import Deployment, LaunchSpec

HOST = "127.0.0.1"
CHUNK_BYTES = 64 * 1024
LAST_WORDS_S = 2.0
"""How long the end of a log may come after the end of its process."""


class Command(NamedTuple):
    """What is to be executed, with the environment in full (so it is never recorded as a whole)."""

    spec: LaunchSpec
    executable: str
    environment: dict[str, str]
    secrets: dict[str, str]


# --- what to start ------------------------------------------------------------------------------------------------


def command(order: Order, port: int) -> Command:
    """The command of a deployment. Raises HostError for what this machine lacks."""
    _refuse_limits(order.deployment)
    spec = order.stack.launch(order.deployment, HOST, port)
    secrets = secret_values(spec.secret_env)
    environment = inherited() | gpu_environment(spec) | FINDABLE | dict(spec.env) | secrets | order.owner.environment()
    executable = shutil.which(spec.argv[0], path=environment.get("PATH"))
    if executable is None:
        raise HostError(
            f"{spec.argv[0]} is not on this machine, or is not executable.",
            f"Install {order.stack.title}, or say in the deployment's command where it is.",
        )
    _require_model(order.deployment.model)
    return Command(spec, executable, environment, secrets)


def gpu_environment(spec: LaunchSpec) -> dict[str, str]:
    """The variable that limits a process to the cards that were asked for; `all` limits nothing."""
    if not spec.gpus or spec.gpus == ("all",):
        return {}
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(spec.gpus)}


def _refuse_limits(deployment: Deployment) -> None:
    if sys.platform != "linux":
        raise HostError('launch = "process" needs Linux.', 'Use launch = "docker" or "external" here.')
    named = {"memory_limit": deployment.memory_limit_bytes, "cpus": deployment.cpus, "mounts": deployment.mounts}
    if given := [name for name, value in named.items() if value]:
        raise HostError(
            f'The deployment {deployment.name} sets {", ".join(given)}, which launch = "process" cannot keep.',
            'Leave it away, or use launch = "docker".',
        )


def _require_model(model: str) -> None:
    """A model that is named by a path must be there: some engines take minutes to say that it is not."""
    is_path = model.startswith(("/", "./", "../", "~")) or model.endswith(".gguf")
    if is_path and not Path(model).expanduser().exists():
        raise HostError(f"The model {model} does not exist.", "Check the path in the plan.")


# --- the server ---------------------------------------------------------------------------------------------------


class ProcessServer(Server):
    """A process of ours and all that came from it."""

    def __init__(self, order: Order, command: Command, record: ServerRecord, log: ServerLog) -> None:
        """Start it. Raises HostError if the system refuses."""
        self._order = order
        self._log = log
        self._spec = command.spec
        self._oom_kills = oom_kills()
        self.log_path = log.path
        self.base_url = record.base_url
        self.started_ns = now_ns()
        read_end, write_end = os.pipe()
        try:
            self._popen = _execute(command, write_end)
        except OSError as error:
            os.close(read_end)
            raise HostError(
                f"{command.executable} cannot be started: {error.strerror or error}.",
                "Check the deployment's command.",
            ) from error
        finally:
            os.close(write_end)
        self._tree = Tree(read_process(self._popen.pid), order.owner.environment())
        self.record = msgspec.structs.replace(record, pid=self._popen.pid, pid_started=_created(self._popen.pid))
        self._pumped = in_daemon(lambda: log.pump(_chunks(read_end)), "server log")
        self._exit = in_daemon(self._popen.wait, "server exit")
        self._death: asyncio.Future[ServerFailure] = asyncio.get_running_loop().create_future()
        self._watcher = asyncio.ensure_future(self._watch())

    @property
    def tree(self) -> Tree:
        return self._tree

    def pids(self) -> tuple[int, ...]:
        return self._tree.pids()

    async def died(self) -> ServerFailure:
        return await asyncio.shield(self._death)

    async def ready(self, secrets: dict[str, str]) -> None:
        """Wait until it serves; complete the record."""
        try:
            ready = await prove_ready(
                self._order,
                base_url=self.base_url,
                timeout_s=self._order.deployment.start_timeout_s or self._spec.start_timeout_s,
                started_ns=self.started_ns,
                died=self._death,
                lines=self._log.lines,
                belongs=self._prove_listener,
                secrets=secrets,
            )
        except StackError as error:
            if error.failure_class == PORT_TAKEN:
                raise self._port_taken() from error
            raise
        self.record = completed(self.record, ready, self._order.stack, self._order.deployment, self._log.lines())

    async def stop(self) -> None:
        """End the whole tree. Raises HostError if the kernel holds a part of it."""
        self._watcher.cancel()
        left = await asyncio.to_thread(stop_tree, self._tree, self._spec.stop_timeout_s)
        ends: set[asyncio.Future[Any]] = {self._pumped, self._exit}
        await asyncio.wait(ends, timeout=LAST_WORDS_S)
        self._log.close()
        if left:
            raise HostError(
                f"Processes of {self._order.stack.title} cannot be ended: pids {', '.join(map(str, left))}.",
                "They hang in the kernel, mostly in a driver: look at dmesg, and restart the machine if they stay.",
            )

    async def _watch(self) -> None:
        code = await asyncio.shield(self._exit)
        await asyncio.wait({self._pumped}, timeout=LAST_WORDS_S)
        ended = Exit(code)
        if code == -9:
            before, now = self._oom_kills, oom_kills()
            if before is not None and now is not None:
                evidence = (f"/proc/vmstat: oom_kill {before} at the start, {now} at the end",)
                ended = Exit(code, oom_killed=now > before, evidence=evidence)
        self._death.set_result(failure_of(self._order.stack, ended, self._log.lines(), self.log_path))

    def _prove_listener(self) -> None:
        """Whatever listens on our port, and stays, is held by our tree. Blocking."""
        port = self._spec.port
        before = listeners(port)
        if not before:
            raise NotYetError(f"nothing listens on port {port}")
        strangers = (before - sockets_of(self.pids())) & listeners(port)
        if strangers:
            raise self._port_taken()

    def _port_taken(self) -> HostError:
        port = self._spec.port
        return HostError(
            f"Port {port} was free a moment ago, and now another program has taken it.",
            f"Run again; see who it is with: ss -ltnp 'sport = :{port}'",
        )


def _execute(command: Command, output: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command.spec.argv,
        executable=command.executable,
        env=command.environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _chunks(descriptor: int) -> Iterator[bytes]:
    """What comes out of a pipe, until everybody who could write into it is gone."""
    with open(descriptor, "rb", buffering=0) as pipe:
        while chunk := pipe.read(CHUNK_BYTES):
            yield chunk


def _created(pid: int) -> float | None:
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None


def oom_kills(proc: Path = PROC) -> int | None:
    """How many processes the kernel has killed for memory since the boot; None where it does not count them."""
    try:
        text = (proc / "vmstat").read_text(encoding="ascii")
    except OSError:
        return None
    counts = dict(line.split(maxsplit=1) for line in text.splitlines() if " " in line)
    return int(counts["oom_kill"]) if "oom_kill" in counts else None


@asynccontextmanager
async def open_process(order: Order) -> AsyncIterator[Server]:
    """Start a deployment as a process; the whole tree is gone afterwards."""
    port = free_port()
    planned = command(order, port)
    record = ServerRecord(
        deployment=order.deployment.name,
        stack=order.stack.name,
        launch="process",
        base_url=f"http://{HOST}:{port}",
        argv=planned.spec.argv,
        env=dict(planned.spec.env),
        secret_env=planned.spec.secret_env,
        context_tokens=order.deployment.context_tokens,
    )
    order.on_starting(record)
    async with guarded(order) as guard, _running(order, planned, record, guard) as server:
        yield server


@asynccontextmanager
async def _running(order: Order, planned: Command, record: ServerRecord, guard: Guard) -> AsyncIterator[ProcessServer]:
    with ServerLog(order.directory / "server.log", Secrets(planned.secrets)) as log:
        server = ProcessServer(order, planned, record, log)
        try:
            guard.watch(server.tree)
            order.on_starting(server.record)
            order.on_running(server)
            await server.ready(planned.secrets)
            yield server
        finally:
            await see_through(_end(server, guard))


async def _end(server: ProcessServer, guard: Guard) -> None:
    await server.stop()
    guard.release()
