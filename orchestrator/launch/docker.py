"""The one door to the Docker SDK. Every call blocks: call them in threads.

A container is made and started in two steps, so that its name is known whatever happens; it carries the owner's labels;
it is never made with `--rm`, because its exit status and its log are the evidence. What the engine refuses comes out as
`HostError` in one sentence (`orchestrator.launch.refusals`).

Secrets are given to a container in its environment, never in its command. `docker inspect` shows that environment to
everybody who may talk to the engine, which is to say to root; our own records hold the names alone.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, Self, TypeVar
from urllib.parse import urlsplit

import docker
import requests
import urllib3
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.types import DeviceRequest, LogConfig
from docker.types import Mount as BindMount
from docker.utils import parse_repository_tag

from orchestrator.clock import now_ns, seconds
from orchestrator.errors import HostError
from orchestrator.launch.engine_facts import Found, Image, Plan, PullProgress, State, usage_values
from orchestrator.launch.owner import own_container_id
from orchestrator.launch.refusals import host_error
from stacks.base import Mount

TIMEOUT_S = 60
PULL_TIMEOUT_S = 900
"""Silence of a pull: checking a layer of many gigabytes on a slow disk says nothing for minutes."""
NETWORK_VARIABLE = "LOADPROOF_DOCKER_NETWORK"
LOOPBACK = "127.0.0.1"
RESTART_S = 30.0
"""How long an engine that answered before and is gone is waited for: it is being restarted."""
ASK_AGAIN_S = 0.2
REFUSED = (DockerException, requests.exceptions.RequestException, urllib3.exceptions.HTTPError)
"""The three families in which the SDK fails."""


P = ParamSpec("P")
T = TypeVar("T")
_answered: set[str] = set()
"""Addresses of the engines that have answered this process."""


class EngineGoneError(HostError):
    """Nobody answers at the engine's address."""


def patient(call: Callable[P, T]) -> Callable[P, T]:
    """A call that may be made again: while an engine that has answered before is away, it is."""

    @wraps(call)
    def again(*args: P.args, **kwargs: P.kwargs) -> T:
        since_ns = now_ns()
        while True:
            try:
                return call(*args, **kwargs)
            except EngineGoneError:
                if engine_address() not in _answered or seconds(now_ns() - since_ns) > RESTART_S:
                    raise
            time.sleep(ASK_AGAIN_S)  # nothing tells when an engine comes back

    return again


def engine_address() -> str:
    """Where the engine is looked for."""
    return os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"


def is_local(address: str) -> bool:
    """Whether the engine's loopback is ours: what it publishes on 127.0.0.1 can be reached."""
    url = urlsplit(address)
    host = url.hostname or ""
    return url.scheme in ("unix", "npipe", "") or host == "localhost" or host.startswith("127.") or host == "::1"


def _knock(address: str) -> None:
    """Raises HostError if nobody is behind a local socket. Asked before the SDK, which lets the socket of a connection
    that is refused lie open."""
    url = urlsplit(address)
    if url.scheme != "unix":
        return
    with socket.socket(socket.AF_UNIX) as knock:
        knock.settimeout(TIMEOUT_S)
        try:
            knock.connect(url.path)
        except OSError as error:
            raise _gone(repr(error)) from error


class Engine:
    """A Docker Engine that answers."""

    def __init__(self, client: docker.DockerClient) -> None:
        self._client = client
        self._api = client.api

    @classmethod
    @contextmanager
    def connect(cls) -> Iterator[Self]:
        """The engine of DOCKER_HOST, or of this machine. Raises HostError if none answers."""
        engine = cls.open()
        try:
            yield engine
        finally:
            engine.close()

    @classmethod
    @patient
    def open(cls) -> Self:
        """Raises EngineGoneError if none answers."""
        _knock(engine_address())
        with _told("connect"):
            engine = cls(docker.from_env(timeout=TIMEOUT_S))
        _answered.add(engine_address())
        return engine

    def close(self) -> None:
        self._client.close()

    def facts(self) -> dict[str, Any]:
        """``version``, ``root_dir`` (where it keeps images, on its machine) and ``runtimes``, as far as it tells."""
        with _told("connect"):
            told = self._api.info()
        return {
            "version": told.get("ServerVersion"),
            "root_dir": told.get("DockerRootDir"),
            "runtimes": tuple(told.get("Runtimes") or ()),
        }

    # --- before the start ---------------------------------------------------------------------------------------

    def image(self, reference: str, say: Callable[[str], None]) -> Image:
        """The image, pulled if it is not here. Raises HostError if it cannot be had."""
        with _told("pull", image=reference):
            try:
                attributes = self._api.inspect_image(reference)
            except ImageNotFound:
                say(f"pulling {reference}")
                _pull(reference, say)
                attributes = self._api.inspect_image(reference)
        digests = attributes.get("RepoDigests") or [attributes["Id"]]
        return Image(attributes["Id"], digests[0])

    def network(self) -> str | None:
        """The network by which we reach containers, or None where published ports do.

        On a machine the ports that an engine publishes on 127.0.0.1 are ours to reach. Inside a container (compose's
        service `bench`, with the engine's socket mounted) they are not: there the servers join one of our own networks.
        LOADPROOF_DOCKER_NETWORK names a network where this cannot be seen. Raises HostError where there is no way.
        """
        if named := os.environ.get(NETWORK_VARIABLE):
            return named
        own = own_container_id()
        with _told("connect"), suppress(NotFound):
            if own is not None:
                return _shared_network(self._api.inspect_container(own))
        if not is_local(engine_address()):
            raise HostError(
                f"The Docker Engine at {engine_address()} is on another machine: what it starts cannot be reached.",
                f'Run loadproof beside it, use launch = "external", or name a shared network in {NETWORK_VARIABLE}.',
            )
        return None

    def require_gpus(self) -> None:
        """Podman takes a request for GPUs and gives none, without a word. Raises HostError if this is Podman."""
        with _told("connect"):
            components = self._api.version().get("Components") or []
        if any("podman" in str(component.get("Name", "")).lower() for component in components):
            raise HostError(
                "This engine is Podman, which gives containers no GPU when asked through Docker's API.",
                'Use a Docker Engine, or start the server by hand and measure it with launch = "external".',
            )

    # --- the life of a container --------------------------------------------------------------------------------

    def create(self, plan: Plan) -> str:
        """Make the container; its id. Raises HostError."""
        with _told("start", image=plan.image):
            return str(self._client.containers.create(**creation(plan)).id)

    def start(self, container: str, image: str) -> None:
        with _told("start", image=image):
            self._api.start(container)

    def base_url(self, container: str, plan: Plan) -> str:
        """Where the started container is reached. Raises HostError if the engine gave it no way in."""
        with _told("start", image=plan.image):
            settings = self._api.inspect_container(container)["NetworkSettings"]
        if plan.network is not None:
            address = (settings["Networks"].get(plan.network) or {}).get("IPAddress")
            host, port = address, plan.port
        else:
            bindings = (settings.get("Ports") or {}).get(f"{plan.port}/tcp") or [{}]
            host, port = LOOPBACK, bindings[0].get("HostPort")
        if not host or not port:
            raise HostError(
                "The Docker Engine gave the container no port that can be reached (it may run with --bridge=none).",
                f"Start the engine with a bridge, or name a network in {NETWORK_VARIABLE}.",
            )
        return f"http://{host}:{port}"

    @patient
    def state(self, container: str) -> State | None:
        """Its state, or None if there is no such container. Raises HostError if the engine does not answer."""
        with _told("connect"):
            try:
                found = self._api.inspect_container(container)
            except NotFound:
                return None
        state = found["State"]
        return State(
            status=state.get("Status", ""),
            running=bool(state.get("Running")),
            exit_code=int(state.get("ExitCode", 0)),
            oom_killed=bool(state.get("OOMKilled")),
            error=state.get("Error", ""),
            pid=state.get("Pid") or None,
            memory_limit_bytes=found["HostConfig"].get("Memory") or None,
        )

    def wait(self, container: str) -> None:
        """Until it stops, or the engine does: ask for the state before believing anything."""
        with suppress(*REFUSED):
            self._api.wait(container, timeout=None)

    def logs(self, container: str) -> Iterator[bytes]:
        """Its output from the beginning, until it stops, is removed, or the engine ends. The order between its two
        streams is not kept."""
        with suppress(*REFUSED):
            stream = self._api.logs(container, stdout=True, stderr=True, stream=True, follow=True)
            try:
                yield from stream
            finally:
                stream.close()

    def pids(self, container: str) -> tuple[int, ...]:
        """Pids of its processes as the engine's machine counts them; () if it does not run."""
        with suppress(*REFUSED):
            table = self._api.top(container, "-eo pid")
            return tuple(int(row[0]) for row in table["Processes"])
        return ()

    def usage(self, container: str) -> dict[str, float]:
        """Memory and CPU; {} if it does not run."""
        with suppress(*REFUSED):
            return usage_values(self._api.stats(container, stream=False, one_shot=True))
        return {}

    @patient
    def stop(self, container: str, grace_s: float) -> None:
        """SIGTERM, and SIGKILL after a while; nothing if it has stopped or is gone."""
        with _told("connect"), suppress(NotFound):
            self._api.stop(container, timeout=max(1, round(grace_s)))

    @patient
    def remove(self, container: str) -> None:
        """End and remove it with its anonymous volumes; it is gone when this returns."""
        with _told("connect"), suppress(NotFound):
            try:
                self._api.remove_container(container, force=True, v=True)
            except APIError as error:
                if error.status_code != requests.codes.conflict:
                    raise
                self._api.wait(container, condition="removed")  # somebody else removes it at this moment

    def labelled(self, labels: Mapping[str, str]) -> list[Found]:
        """All containers, running or not, that carry all of these labels."""
        with _told("connect"):
            filters = {"label": [f"{name}={value}" for name, value in labels.items()]}
            listed = self._api.containers(all=True, filters=filters)
        return [
            Found(
                id=entry["Id"],
                name=(entry.get("Names") or ["?"])[0].lstrip("/"),
                running=entry.get("State") in ("running", "paused", "restarting"),
                labels=entry.get("Labels") or {},
            )
            for entry in listed
        ]


# --- what is asked of the SDK: pure -------------------------------------------------------------------------------


def creation(plan: Plan) -> dict[str, Any]:
    """Arguments of `containers.create` for a plan."""
    arguments: dict[str, Any] = {
        "name": plan.name,
        "image": plan.image,
        "command": list(plan.command),
        "environment": dict(plan.environment),
        "labels": dict(plan.labels),
        # Whatever driver the engine's owner chose: this one can be read back.
        "log_config": LogConfig(type="json-file", config={"max-size": "512m", "max-file": "1"}),
        "mounts": [_mount(mount) for mount in plan.mounts],
        "detach": True,
    }
    if plan.entrypoint is not None:
        arguments["entrypoint"] = list(plan.entrypoint)
    if plan.network is None:
        arguments["ports"] = {f"{plan.port}/tcp": (LOOPBACK, None)}
    else:
        arguments["network"] = plan.network
    if plan.gpus:
        arguments["device_requests"] = [device_request(plan.gpus)]
    return arguments | _limits(plan)


def device_request(gpus: tuple[str, ...]) -> DeviceRequest:
    """The cards of a container, by index or UUID; ``("all",)`` = all."""
    # `compute` and `utility` set NVIDIA_DRIVER_CAPABILITIES, which images that do not set it themselves need.
    capabilities = [["gpu", "compute", "utility"]]
    if gpus == ("all",):
        return DeviceRequest(count=-1, capabilities=capabilities)
    return DeviceRequest(device_ids=list(gpus), capabilities=capabilities)


def _limits(plan: Plan) -> dict[str, Any]:
    limits: dict[str, Any] = {}
    if plan.memory_limit_bytes is not None:
        # The same limit with swap: a server that swaps is no measurement.
        limits |= {"mem_limit": plan.memory_limit_bytes, "memswap_limit": plan.memory_limit_bytes}
    if plan.cpus is not None:
        limits["nano_cpus"] = round(plan.cpus * 1e9)
    if plan.ipc_host:
        limits["ipc_mode"] = "host"
    elif plan.shm_bytes is not None:
        limits["shm_size"] = plan.shm_bytes
    return limits


def _mount(mount: Mount) -> BindMount:
    """A bind mount, which refuses a folder that is missing; a name without a slash is a volume of the engine's."""
    source = mount.host
    if source.startswith(("~", ".")):
        source = str(Path(source).expanduser().absolute())
    kind = "bind" if "/" in source else "volume"
    return BindMount(target=mount.container, source=source, type=kind, read_only=mount.read_only)


def _shared_network(own: Mapping[str, Any]) -> str | None:
    """One of our own container's networks; None if it shares the machine's."""
    if own["HostConfig"].get("NetworkMode") == "host":
        return None
    names = sorted(own["NetworkSettings"]["Networks"], key=lambda name: (name == "bridge", name))
    if not names or names == ["none"]:
        raise HostError(
            "loadproof runs in a container without a network: what the engine starts cannot be reached.",
            "Give the container a network, or network_mode: host.",
        )
    return str(names[0])


# --- pulling ------------------------------------------------------------------------------------------------------


def _pull(reference: str, say: Callable[[str], None]) -> None:
    """Pull, telling how far it is. The stream raises nothing when it fails midway: its last item tells."""
    repository, tag = parse_repository_tag(reference)
    client = docker.from_env(timeout=PULL_TIMEOUT_S)
    try:
        progress = PullProgress(reference)
        for item in client.api.pull(repository, tag=tag or "latest", stream=True, decode=True):
            if error := item.get("error"):
                raise DockerException(error)
            if text := progress.text(item):
                say(text)
    finally:
        client.close()


@contextmanager
def _told(act: str, image: str = "?") -> Iterator[None]:
    """The SDK's failures as one sentence."""
    try:
        yield
    except REFUSED as error:
        said = str(getattr(error, "explanation", None) or error)
        unreached = isinstance(error, requests.exceptions.ConnectionError | urllib3.exceptions.HTTPError)
        if unreached or (act == "connect" and not isinstance(error, APIError)):
            raise _gone(said) from error
        raise host_error(act, said, image=image, address=engine_address()) from error


def _gone(said: str) -> EngineGoneError:
    told = host_error("connect", said, address=engine_address())
    return EngineGoneError(told.message, told.remedy)
