"""A serving stack of your own for loadproof: one data sheet, found by its entry point (see pyproject.toml beside it).

    pip install ./examples/own-stack && loadproof stacks show house

The engine here is called house-serve: `house-serve MODEL --listen HOST:PORT --name NAME [--slots N] [--quant int8] ...`
"""

from __future__ import annotations

import re
from typing import ClassVar

from stacks.base import Capabilities, Deployment, Readiness, Wire
from stacks.command import Flag, command_words, when
from stacks.logs import GIB, Fact, failure
from stacks.openai import ChatWire, CompletionsWire, Dialect
from stacks.prometheus import Metric
from stacks.settings import Values
from stacks.sheet import ANY_REVISION, DataSheet


class House(DataSheet):
    name = "house"  # what a plan says: stack = "house"
    title = "house-serve"
    versions = ("1.0.0", "1.4.0")  # anything else is measured too, with a warning
    default_image = "registry.example.com/house-serve:1.4.0"
    default_command = ("house-serve",)
    port = 9000

    # It is ready when /healthz says 200, /v1/models lists the model and a completion came back.
    readiness = Readiness(health_path="/healthz", version_path="/version")
    # What the report may compare: exact lengths, prompts as token ids, a proof that the prefix cache was off.
    capabilities = Capabilities(token_ids=True, exact_length="ignore_eos", cache_off="flag", kv_gauge=True)
    wires: ClassVar[tuple[type[Wire], ...]] = (CompletionsWire, ChatWire)  # the preferred one first
    dialect = Dialect(length="ignore_eos")

    # release, what it added, what it dropped
    quantizations = Values.growing(("1.0.0", "int8", ""), ("1.3.0", "int4", ""))
    on_load: ClassVar[dict[str, str]] = {"int8": "", "int4": "1.3.0"}
    kv_dtypes = Values.growing(("1.0.0", "fp8", ""))
    # Settings without a counterpart, and what to do instead: told before anything starts.
    refused: ClassVar[dict[str, str]] = {
        "kv_cache_bytes": "It sizes its KV cache in tokens: kv_cache_tokens.",
        **dict.fromkeys(("memory_fraction", "max_batched_tokens", "tensor_parallel"), "Leave it out."),
        "revision": ANY_REVISION,
    }

    # What its log says, how it fails, what its metrics mean. A line or a name that is absent is not reported.
    facts = (
        Fact("weights_bytes", re.compile(r"weights: (?P<value>[\d.]+) GiB"), GIB),
        Fact("kv_tokens", re.compile(r"KV pool of (?P<value>[\d,]+) tokens")),
    )
    failures = (
        failure("no-kv", r"no room for a KV pool", "Lower kv_cache_tokens, or take smaller weights."),
        failure("ctx-too-long", r"context too long, at most (?P<max>\d+)", "Set context_tokens to at most {max}."),
    )
    metrics: ClassVar[dict[str, tuple[Metric, ...]]] = {
        "running": (Metric("house_running"),),
        "waiting": (Metric("house_queued"),),
        "kv_use": (Metric("house_kv_use", over="max"), Metric("house_cache_share", over="max")),  # the second until 1.2
    }

    def arguments(self, deployment: Deployment, host: str, port: int) -> tuple[str, ...]:
        flags = [
            Flag("--listen", f"{host}:{port}"),
            Flag("--name", self.served_name(deployment)),
            when(deployment.max_concurrency, Flag("--slots", deployment.max_concurrency)),
            when(deployment.context_tokens, Flag("--context", deployment.context_tokens)),
            when(deployment.kv_cache_tokens, Flag("--kv-tokens", deployment.kv_cache_tokens)),
            when(deployment.quantization, Flag("--quant", deployment.quantization)),
            when(deployment.kv_dtype != "auto", Flag("--kv", deployment.kv_dtype)),
            Flag("--no-prefix-cache"),
        ]
        return (deployment.model, *command_words(flags, deployment.args))
