"""Hugging Face's `transformers serve`, 5.x: experimental, no metrics, KV cache allocated by the first request."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

from stacks.base import Capabilities, Deployment, Readiness, Wire
from stacks.command import Flag, command_words, when
from stacks.logs import MIB, Fact, failure
from stacks.openai import ChatWire, Dialect, TextCompletionsWire
from stacks.settings import Values
from stacks.sheet import ANY_REVISION, DataSheet

BLOCK_TOKENS = 256
DEFAULT_BATCHED_TOKENS = 8192
DEFAULT_MEMORY_SHARE = 0.9

FACTS = (
    Fact("kv_room_bytes", re.compile(r"Memory available for cache allocation: (?P<value>\d+) MB"), MIB),
    Fact("prefill_tokens", re.compile(r"Paged cache initialized: self\.max_batch_tokens = (?P<value>\d+)")),
    Fact("continuous_batching", re.compile(r"\[Request received\] Model: \S+, CB: (?P<value>True|False)"), None),
)
FAILURES = (
    failure(
        "gguf-local",
        r"TypeError: 'NoneType' object is not subscriptable",
        "A GGUF file in a local folder is not taken: name it as REPO:FILE.gguf, or take a plain checkpoint.",
    ),
    failure(
        "no-cache-folder",
        r"Cache directory not found: ",
        "HF_HOME must hold a folder named hub: make it before the start.",
    ),
)


class Transformers(DataSheet):
    name = "transformers"
    title = "transformers serve"
    homepage = "https://huggingface.co/docs/transformers/serving"
    status = "transformers serve is experimental; its own documentation sends production use to vLLM and SGLang."
    versions = ("5.0.0", "5.23.0")
    default_command = ("transformers", "serve")
    readiness = Readiness(models_path=None)
    capabilities = Capabilities(
        exact_length="config_string",
        done_marker=False,
        role_before_prefill=True,
        when_kv_full="queues",
    )
    wires: ClassVar[tuple[type[Wire], ...]] = (TextCompletionsWire, ChatWire)
    metrics_path = None
    quantizations = Values.growing(("5.0.0", "bnb-4bit bnb-8bit", ""))
    on_load: ClassVar[Mapping[str, str]] = {"bnb-4bit": "", "bnb-8bit": ""}
    kv_dtypes = Values((((0, 0, 0), ()),))
    refused: ClassVar[Mapping[str, str]] = {
        "kv_cache_bytes": "Its pool is sized in tokens: kv_cache_tokens.",
        "max_concurrency": "It runs what its cache holds: kv_cache_tokens bounds it.",
        "revision": ANY_REVISION,
        "tensor_parallel": "It serves from one device: leave it out.",
    }
    renames = False
    dialect = Dialect(length="config_string")
    facts = FACTS
    failures = FAILURES

    def arguments(self, deployment: Deployment, host: str, port: int) -> tuple[str, ...]:
        tokens = deployment.kv_cache_tokens
        share = deployment.memory_fraction or DEFAULT_MEMORY_SHARE
        flags = [
            Flag("--host", host),
            Flag("--port", port),
            when(deployment.dtype != "auto", Flag("--dtype", deployment.dtype)),
            when(deployment.quantization, Flag("--quantization", deployment.quantization)),
            Flag("--continuous-batching", None, ("--no-continuous-batching",)),
            Flag("--cb-block-size", BLOCK_TOKENS),
            when(tokens, Flag("--cb-num-blocks", -(-(tokens or 0) // BLOCK_TOKENS))),
            when(not tokens, Flag("--cb-max-memory-percent", share)),
            Flag("--cb-max-batch-tokens", deployment.max_batched_tokens or DEFAULT_BATCHED_TOKENS),
            Flag("--log-level", "info"),
        ]
        return (deployment.model, *command_words(flags, deployment.args))

    def notes(self, deployment: Deployment) -> list[str]:
        found = [*super().notes(deployment), "transformers serve tells no metrics: its KV use and queue are not seen."]
        if deployment.launch != "external" and deployment.context_tokens is not None:
            found.append("context_tokens bounds the requests alone: transformers serve has no such limit.")
        return found
