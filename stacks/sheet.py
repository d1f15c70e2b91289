"""The form that a stack's data sheet fills in: tables as class attributes, read here in one way for all stacks."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import msgspec

from stacks.base import Deployment, FailurePattern, FoundFailure, LaunchSpec, Setting, Stack, Wire
from stacks.checkpoint import FROM_CHECKPOINT
from stacks.command import mounts_of, visible_devices
from stacks.logs import SHARED_FAILURES, Fact, clean_lines, facts_of, find_failure, since_last_start
from stacks.openai import PLAIN, Dialect, OpenAIWire
from stacks.prometheus import Metric, values_of
from stacks.settings import Release, Values, dotted, not_accepted, release, release_of

NEVER = re.compile(r"(?!)")
SIMULATED = Fact("simulated", re.compile(r"loadproof: simulated on (?P<value>\S+), which is not there"), None)
"""The line by which a server that simulates a card says so, whatever stack it speaks for."""
GIB = 2**30
ANY_REVISION = "It takes the newest one: download the revision, and name its folder or file as the model."
QUIET = {"NO_COLOR": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
"""Environment of every server: no colours in its log, no telemetry."""
SIMULATED_MEMORY = {"memory_used_bytes": (Metric("loadproof_simulated_memory_bytes"),)}
"""What a simulated card holds. A real engine's page does not tell its memory; the card does."""
_UNSET = {field.name: field.default for field in msgspec.structs.fields(Deployment)}


class DataSheet(Stack):
    """A stack out of tables. Subclasses fill in the tables and write the command line."""

    versions: ClassVar[tuple[str, str] | None] = None
    """Oldest and newest release whose flags, lines and metrics are known."""
    port: ClassVar[int] = 8000
    shm_bytes: ClassVar[int | None] = None
    stop_timeout_s: ClassVar[float] = 30.0

    quantizations: ClassVar[Values]
    on_load: ClassVar[Mapping[str, str]] = {}
    """Values that quantize a 16-bit checkpoint while loading -> the release from which they do ('' = always)."""
    kv_dtypes: ClassVar[Values]
    """KV types beside ``auto``."""
    dtypes: ClassVar[tuple[str, ...]] = ("bfloat16", "float16", "float32")
    """Compute types beside ``auto``."""
    refused: ClassVar[Mapping[str, str]] = {}
    """Settings of a deployment that the stack has no counterpart of -> what to do instead."""
    renames: ClassVar[bool] = True
    """Serves a model under any name that it is told."""

    dialect: ClassVar[Dialect] = PLAIN
    salts: ClassVar[bool] = False
    """Takes ``cache_salt``, which keeps prompts out of a prefix cache that is not ours to switch off."""
    start_marker: ClassVar[re.Pattern[str]] = NEVER
    """A line that every start prints; only what follows the last one is read."""
    stop_marker: ClassVar[re.Pattern[str]] = NEVER
    """A line that a normal stop prints; what follows it is no failure."""
    facts: ClassVar[tuple[Fact, ...]] = ()
    failures: ClassVar[tuple[FailurePattern, ...]] = ()
    last_failures: ClassVar[tuple[FailurePattern, ...]] = ()
    """Consequences, looked for after the causes that all stacks share."""
    metrics: ClassVar[Mapping[str, tuple[Metric, ...]]] = {}

    # --- settings -----------------------------------------------------------------------------------------------

    def release(self, deployment: Deployment) -> Release | None:
        """Release of a deployment as far as it is known before the start."""
        return release_of(deployment, self.default_image)

    def problems(self, deployment: Deployment) -> list[Setting]:
        found = [*self._api_problems(deployment), *_size_problems(deployment)]
        if deployment.launch != "external":
            found += self._value_problems(deployment)
            found += self._refused_settings(deployment)
            found += self._name_problems(deployment)
            found += self.more_problems(deployment)
        return found

    def checkpoint_problems(self, deployment: Deployment, quantized_as: str) -> list[Setting]:
        asked, number = deployment.quantization, self.release(deployment)
        if asked is None or asked not in self.quantizations.at(number):
            return []
        on_load = self.quantizes_on_load(asked, number)
        if not quantized_as and not on_load and FROM_CHECKPOINT.search(asked):
            able = ", ".join(value for value in self.quantizations.at(number) if self.quantizes_on_load(value, number))
            message = f"{asked} needs a checkpoint that is quantized already, and {deployment.model} is plain."
            remedy = "Take a quantized one" + (f", or quantize while it loads: {able}." if able else ".")
            return [Setting("quantization", message, remedy)]
        if quantized_as and on_load and not (asked.startswith(quantized_as) or quantized_as.startswith(asked)):
            message = f"{asked} quantizes a plain checkpoint, and {deployment.model} is quantized as {quantized_as}."
            return [Setting("quantization", message, "Leave quantization out, or take the plain checkpoint.")]
        return []

    def spelled(self, quantization: str) -> str:
        """A quantization as the tables spell it."""
        return quantization

    def more_problems(self, deployment: Deployment) -> list[Setting]:
        """What only this stack refuses, of a deployment that is to be started."""
        return []

    def _label(self, deployment: Deployment) -> str:
        number = self.release(deployment)
        return f"{self.title} {dotted(number)}" if number else self.title

    def _api_problems(self, deployment: Deployment) -> list[Setting]:
        spoken = ["auto", *(wire.name for wire in self.wires)]
        return [] if deployment.api in spoken else [not_accepted("api", deployment.api, spoken, self.title)]

    def _value_problems(self, deployment: Deployment) -> list[Setting]:
        number, label = self.release(deployment), self._label(deployment)
        found = []
        asked = deployment.quantization
        if asked is not None and self.spelled(asked) not in (allowed := self.quantizations.at(number)):
            found.append(not_accepted("quantization", asked, allowed, label, self.quantizations.span(asked)))
        kv_dtype = deployment.kv_dtype
        if kv_dtype != "auto" and kv_dtype not in (allowed := self.kv_dtypes.at(number)):
            span = self.kv_dtypes.span(kv_dtype)
            found.append(not_accepted("kv_dtype", kv_dtype, ("auto", *allowed), label, span))
        if deployment.dtype not in (allowed := ("auto", *self.dtypes)):
            found.append(not_accepted("dtype", deployment.dtype, allowed, label))
        return found

    def _refused_settings(self, deployment: Deployment) -> list[Setting]:
        return [
            Setting(key, f"{self.title} has no such setting.", remedy)
            for key, remedy in self.refused.items()
            if getattr(deployment, key) != _UNSET[key]
        ]

    def _name_problems(self, deployment: Deployment) -> list[Setting]:
        own = self.own_name(deployment)
        if self.renames or deployment.served_name in (None, own):
            return []
        return [Setting("served_name", f'{self.title} serves this model as "{own}".', "Leave served_name out.")]

    # --- what to start ------------------------------------------------------------------------------------------

    def container_port(self, deployment: Deployment) -> int:
        return self.port

    def own_name(self, deployment: Deployment) -> str:
        """The name under which it serves a model unless it is told another one."""
        return deployment.model

    def served_name(self, deployment: Deployment) -> str:
        return deployment.served_name or self.own_name(deployment)

    @abstractmethod
    def arguments(self, deployment: Deployment, host: str, port: int) -> tuple[str, ...]:
        """The words after the command."""

    def entrypoint(self, deployment: Deployment) -> tuple[str, ...] | None:
        """Entry point of the container; None = the image's own."""
        return self.default_command or None

    def environment(self, deployment: Deployment) -> Mapping[str, str]:
        """Environment variables of the stack itself; those of the plan count more."""
        return QUIET

    def image(self, deployment: Deployment) -> str | None:
        return deployment.image or self.default_image

    def launch(self, deployment: Deployment, host: str, port: int) -> LaunchSpec:
        arguments = self.arguments(deployment, host, port)
        env = {**self.environment(deployment), **deployment.env}
        if deployment.launch == "process":
            command = deployment.command or self.default_command
            return LaunchSpec(
                argv=(*command, *arguments),
                env={**visible_devices(deployment.gpus), **env},
                secret_env=deployment.secrets,
                port=port,
                gpus=deployment.gpus,
                memory_limit_bytes=deployment.memory_limit_bytes,
                cpus=deployment.cpus,
                start_timeout_s=deployment.start_timeout_s or self.start_timeout_s,
                stop_timeout_s=self.stop_timeout_s,
            )
        return LaunchSpec(
            argv=arguments,
            env=env,
            secret_env=deployment.secrets,
            port=port,
            image=self.image(deployment),
            entrypoint=deployment.command or self.entrypoint(deployment),
            mounts=mounts_of(deployment),
            gpus=deployment.gpus,
            shm_bytes=deployment.shm_bytes or self.shm_bytes,
            memory_limit_bytes=deployment.memory_limit_bytes,
            cpus=deployment.cpus,
            start_timeout_s=deployment.start_timeout_s or self.start_timeout_s,
            stop_timeout_s=self.stop_timeout_s,
        )

    # --- the wire -----------------------------------------------------------------------------------------------

    def dialect_of(self, deployment: Deployment) -> Dialect:
        """The options that requests of a deployment carry."""
        salted = self.salts and deployment.launch == "external"
        return msgspec.structs.replace(self.dialect, salted=True) if salted else self.dialect

    def wire(self, deployment: Deployment) -> Wire:
        for wire in self.wires:
            if deployment.api in ("auto", wire.name):
                return wire(self.dialect_of(deployment)) if issubclass(wire, OpenAIWire) else wire()
        raise ValueError(f"{self.title} does not speak {deployment.api!r}")

    # --- what it says -------------------------------------------------------------------------------------------

    def log_facts(self, lines: Sequence[str]) -> dict[str, float | str]:
        clean = since_last_start(clean_lines(lines), self.start_marker)
        return {**self.derived_facts(clean), **facts_of(clean, (*self.facts, SIMULATED))}

    def derived_facts(self, lines: Sequence[str]) -> dict[str, float | str]:
        """Facts that no single group of a line holds, from the clean lines of the last start. The table counts more."""
        return {}

    def find_failure(self, lines: Sequence[str]) -> FoundFailure | None:
        clean = since_last_start(clean_lines(lines), self.start_marker)
        stop = next((number for number, line in enumerate(clean) if self.stop_marker.search(line)), len(clean))
        return find_failure(clean[:stop], (*self.failures, *SHARED_FAILURES, *self.last_failures))

    def metric_values(self, text: str) -> dict[str, float]:
        return values_of(text, {**self.metrics, **SIMULATED_MEMORY})

    # --- what the report says -----------------------------------------------------------------------------------

    def notes(self, deployment: Deployment) -> list[str]:
        number = self.release(deployment)
        told = (self.status, self.version_note(dotted(number) if number else None))
        found = [sentence for sentence in told if sentence]
        if deployment.launch != "external":
            found += self._weight_notes(deployment)
        return found

    def version_note(self, version: str | None) -> str | None:
        number = release(version)
        oldest, newest = map(release, self.versions or ("", ""))
        if number is None or oldest is None or newest is None or oldest <= number <= newest:
            return None
        return (
            f"{self.title} {dotted(number)} lies outside of what is known ({dotted(oldest)} to {dotted(newest)}): "
            "a log line or a metric that it has renamed is shown as not reported."
        )

    def _weight_notes(self, deployment: Deployment) -> list[str]:
        asked = deployment.quantization
        if asked is None or asked not in self.quantizations.at(self.release(deployment)):
            return []
        if self.quantizes_on_load(asked, self.release(deployment)):
            return [f"{asked} quantizes a 16-bit checkpoint while it loads."]
        return [f"{asked} needs a checkpoint that is quantized already; a plain one does not start."]

    def quantizes_on_load(self, value: str, number: Release | None) -> bool:
        """Whether a quantization value takes a 16-bit checkpoint, in that release (None = the newest known)."""
        if value not in self.on_load:
            return False
        since = release(self.on_load[value])
        return number is None or since is None or number >= since


def _size_problems(deployment: Deployment) -> list[Setting]:
    """Numbers that no stack can take."""
    found = []
    for key in (
        "context_tokens",
        "max_concurrency",
        "max_batched_tokens",
        "kv_cache_bytes",
        "kv_cache_tokens",
        "tensor_parallel",
    ):
        value = getattr(deployment, key)
        if value is not None and value < 1:
            found.append(Setting(key, f"{value} is below 1.", "Give a positive number, or leave the key out."))
    fraction = deployment.memory_fraction
    if fraction is not None and not 0 < fraction <= 1:
        found.append(Setting("memory_fraction", f"{fraction:g} is no share.", "Give a number above 0 and up to 1."))
    if deployment.kv_cache_bytes is not None and deployment.kv_cache_tokens is not None:
        found.append(
            Setting("kv_cache_tokens", "The KV cache has two sizes.", "Give kv_cache_tokens or kv_cache_bytes.")
        )
    for mount in deployment.mounts:
        host, _, rest = mount.partition(":")
        container, _, mode = rest.partition(":")
        if not host or not container.startswith("/") or mode not in ("", "ro", "rw"):
            found.append(Setting("mounts", f'"{mount}" is no mount.', "Write HOST:CONTAINER or HOST:CONTAINER:ro."))
    return found
