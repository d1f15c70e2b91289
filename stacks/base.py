"""The seam of every stack: a deployment goes in, what to start and how to talk to it comes out.

A stack is a value: image, flags, paths, log lines, metric names. It opens no socket and starts nothing.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import msgspec

from orchestrator.records import Prompt

LaunchKind = Literal["docker", "process", "external", "simulated"]
REAL: tuple[LaunchKind, ...] = ("docker", "process", "external")
"""Kinds of launch that start or find a server; the other one computes it."""
OnNoRoom = Literal["fail", "shrink_context"]


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """A stack with its model, quantization, KV type, memory settings, devices and launch kind."""

    name: str
    stack: str
    model: str
    """Hub id, directory or file, as the stack takes it."""
    launch: LaunchKind = "docker"
    served_name: str | None = None
    """The name that requests carry; None = the stack's own rule."""
    revision: str | None = None
    version: str | None = None
    """Version of the stack as far as it is known before the start, e.g. ``0.33.0``; from the image tag if None."""
    image: str | None = None
    command: tuple[str, ...] = ()
    """Process launch: what stands before the stack's own arguments, e.g. ``["/opt/vllm/bin/vllm"]``."""
    url: str | None = None
    api: str = "auto"
    """Dialect of the requests: ``auto`` or one that the stack speaks (``chat``, ``completions``, ...)."""
    quantization: str | None = None
    kv_dtype: str = "auto"
    dtype: str = "auto"
    card: str | None = None
    """Simulated launch: the card that is not there, by its name in the table of cards."""
    gpus: tuple[str, ...] = ()
    """Indices or UUIDs, or ``("all",)``; empty = none asked for."""
    tensor_parallel: int = 1
    context_tokens: int | None = None
    """Longest prompt plus output of one request (max_model_len)."""
    on_no_room: OnNoRoom = "fail"
    """What to do where the KV cache has no room for one request of that length: the failure is the result, or the
    server is started again with the length that it says would fit."""
    max_concurrency: int | None = None
    """The engine's own cap on running requests (max_num_seqs, slots, max_running_requests)."""
    max_batched_tokens: int | None = None
    memory_fraction: float | None = None
    kv_cache_bytes: int | None = None
    kv_cache_tokens: int | None = None
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = {}
    secrets: tuple[str, ...] = ()
    """Names of environment variables of ours that the server gets; values never leave the environment."""
    mounts: tuple[str, ...] = ()
    """``HOST:CONTAINER[:ro]``, docker only."""
    memory_limit_bytes: int | None = None
    cpus: float | None = None
    shm_bytes: int | None = None
    start_timeout_s: float | None = None


class Setting(NamedTuple):
    """One setting of a deployment that the stack refuses: which, why, what instead."""

    key: str
    message: str
    remedy: str = ""


class Mount(NamedTuple):
    host: str
    container: str
    read_only: bool = False


class LaunchSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What to start, for a process and for a container alike. Pure data; `launch` acts on it."""

    argv: tuple[str, ...]
    """Process: the whole command. Container: the arguments after `entrypoint`."""
    env: Mapping[str, str] = {}
    secret_env: tuple[str, ...] = ()
    port: int
    """Port that the server listens on (inside the container, if there is one)."""
    image: str | None = None
    entrypoint: tuple[str, ...] | None = None
    mounts: tuple[Mount, ...] = ()
    gpus: tuple[str, ...] = ()
    shm_bytes: int | None = None
    ipc_host: bool = False
    memory_limit_bytes: int | None = None
    cpus: float | None = None
    start_timeout_s: float = 900.0
    stop_timeout_s: float = 30.0


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """Ready = health answers 200, the model is listed, one completion of two tokens came back."""

    health_path: str | None = "/health"
    models_path: str | None = "/v1/models"
    version_path: str | None = None


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a stack can do; decides which comparisons are allowed (see METHOD.md)."""

    token_ids: bool = False
    exact_length: Literal["ignore_eos", "min_tokens", "config_string", "none"] = "none"
    cache_off: Literal["flag", "per request", "none"] = "none"
    cache_check: Literal["metric", "field", "log", "none"] = "none"
    kv_gauge: bool = False
    preempt_counter: bool = False
    done_marker: bool = True
    role_before_prefill: bool = False
    takes_all_gpus: bool = False
    when_kv_full: str = "not known"
    """``preempts``, ``queues``, ``fails``, ... in words for the report."""


# --- the wire ---------------------------------------------------------------------------------------------------


class Delta(NamedTuple):
    """What one event of a stream says."""

    text: bool = False
    """Carries answer text or token ids."""
    reasoning: bool = False
    """Carries reasoning text."""
    tokens: int | None = None
    """Tokens in this event, where it says so (token ids or running counts); None = not said."""
    finish: str | None = None
    in_tokens: int | None = None
    out_tokens: int | None = None
    """Totals from a usage record, where this event holds one."""
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    error: str | None = None


class Wire(ABC):
    """One dialect: how a request is put, and what an event of the answer means. Pure; no socket."""

    name: ClassVar[str]
    path: ClassVar[str]
    takes_token_ids: ClassVar[bool] = False
    forces_length: bool = True
    """The served output length can be demanded exactly."""

    @abstractmethod
    def body(self, prompt: Prompt, output_tokens: int, model: str) -> dict[str, Any]:
        """JSON body of a streaming request that asks for exactly `output_tokens` where the stack can do it."""

    @abstractmethod
    def delta(self, event: Any) -> Delta:
        """Meaning of one decoded JSON event; never raises on odd shapes: unknown keys and types mean nothing."""

    def read(self, data: bytes) -> Delta:
        """Meaning of one event as it came; the same as `delta`, for dialects that have a faster way. Raises
        `msgspec.DecodeError` on what is not JSON, `UnicodeDecodeError` on what is not UTF-8."""
        return self.delta(msgspec.json.decode(data))

    def count_texts(self, events: bytes) -> int | None:
        """Number of events in a JSON array of them, if each means `Delta(text=True)`; None if not, or if this dialect
        has no fast way to tell."""
        return None


# --- the log and the metrics ------------------------------------------------------------------------------------


class FailurePattern(NamedTuple):
    """A sentence of a log that means a failure of a class; the first match of the first matching pattern wins."""

    failure_class: str
    pattern: re.Pattern[str]
    remedy: str


class FoundFailure(NamedTuple):
    failure_class: str
    line: str
    remedy: str
    fits_tokens: int | None = None
    """The context that would fit, where the line says it."""


class Stack(ABC):
    """All that is known of a serving stack before it starts. Subclasses are data sheets; instances have no state."""

    name: ClassVar[str]
    title: ClassVar[str]
    homepage: ClassVar[str] = ""
    status: ClassVar[str] = ""
    """A sentence for the report where the project's state matters (e.g. maintenance mode)."""
    default_image: ClassVar[str | None] = None
    default_command: ClassVar[tuple[str, ...]] = ()
    launches: ClassVar[tuple[LaunchKind, ...]] = REAL
    readiness: ClassVar[Readiness] = Readiness()
    capabilities: ClassVar[Capabilities] = Capabilities()
    wires: ClassVar[tuple[type[Wire], ...]]
    """Dialects it speaks, the preferred one first."""
    metrics_path: ClassVar[str | None] = "/metrics"
    tells_what_fits: ClassVar[bool] = False
    """A start that has no room for the context says which context would fit."""
    start_timeout_s: ClassVar[float] = 900.0

    @abstractmethod
    def problems(self, deployment: Deployment) -> list[Setting]:
        """Every setting that this stack (in the deployment's version) does not accept."""

    def checkpoint_problems(self, deployment: Deployment, quantized_as: str) -> list[Setting]:
        """What does not fit to a checkpoint that is on this machine: quantized by that method, or plain (``""``)."""
        return []

    @abstractmethod
    def launch(self, deployment: Deployment, host: str, port: int) -> LaunchSpec:
        """What to start so that it listens on host:port. For docker, `port` is the port inside the container."""

    def container_port(self, deployment: Deployment) -> int:
        """Port inside the container."""
        return 8000

    @abstractmethod
    def served_name(self, deployment: Deployment) -> str:
        """The model name that requests must carry."""

    def wire(self, deployment: Deployment) -> Wire:
        """The dialect of a deployment: the one asked for in `api`, else the preferred one."""
        for wire in self.wires:
            if deployment.api in ("auto", wire.name):
                return wire()
        raise ValueError(f"{self.name} does not speak {deployment.api!r}")

    @abstractmethod
    def log_facts(self, lines: Sequence[str]) -> dict[str, float | str]:
        """What a start's log lines say: weights_bytes, kv_bytes, kv_tokens, graphs_bytes, compute_bytes,
        activation_bytes, context_tokens, slots, kernel, version, load_s, ... A thing that no line says is absent."""

    @abstractmethod
    def find_failure(self, lines: Sequence[str]) -> FoundFailure | None:
        """The cause in a failed start's (or a dying server's) log, or None."""

    @abstractmethod
    def metric_values(self, text: str) -> dict[str, float]:
        """Prometheus text -> canonical values: running, waiting, kv_use, preemptions_total, prompt_tokens_total,
        output_tokens_total, cached_tokens_total, kv_tokens. A metric that is absent is absent, never 0."""

    def version_note(self, version: str | None) -> str | None:
        """A warning if a release lies outside of those that are known, so that its lines and metrics may be unknown."""
        return None

    def path_note(self, deployment: Deployment, facts: Mapping[str, float | str]) -> str | None:
        """A sentence if the log's facts show another way of computing than the settings ask for."""
        return None

    def notes(self, deployment: Deployment) -> list[str]:
        """Sentences for the report: what this combination cannot show, which traps were defeated."""
        return []
