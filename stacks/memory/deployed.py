"""From a deployment to its memory setup: the files and settings that a plan names, read before anything is started.

What the engine is told by `Deployment.args` alone is not looked through, with one exception that doubles a cache:
llama.cpp's ``-kvu``.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import msgspec

from stacks.base import Deployment
from stacks.catalog import stack as stack_named
from stacks.llamacpp import DEFAULT_UBATCH_TOKENS, context_of, file_type
from stacks.memory.cards import GIB, Card
from stacks.memory.checkpoint import FoundModel, read_model
from stacks.memory.formats import (
    WeightFormat,
    find_kv_format,
    find_weight_format,
    format_of_checkpoint,
    is_online,
    refine_format,
)
from stacks.memory.models import UnknownFactError, find_model
from stacks.memory.pools import layout_of
from stacks.memory.setup import PREDICTED_STACKS, Setup, check_setup
from stacks.memory.versions import Version
from stacks.sheet import DataSheet
from stacks.tgi import ADMITTED_REQUESTS, prefill_tokens
from stacks.vllm import block_tokens_of

LLAMACPP_SLOTS = 4
CPU_BLOCK_TOKENS = 128
"""vLLM's CPU backend unless --block-size says otherwise (logged by 0.33: cache_config_info block_size)."""
PORTABLE = "stacks.llamacpp_portable"
"""The module that runs llama.cpp inside a Python process, which has memory of its own."""

_NAMED_FORMATS = (
    (re.compile(r"awq", re.IGNORECASE), "awq-int4"),
    (re.compile(r"w4a16|gptq.*int4|gptq.*4bit|gptq$", re.IGNORECASE), "gptq-int4"),
    (re.compile(r"w8a8|gptq.*int8", re.IGNORECASE), "int8"),
    (re.compile(r"fp8", re.IGNORECASE), "fp8"),
    (re.compile(r"nvfp4", re.IGNORECASE), "nvfp4"),
    (re.compile(r"bnb-4bit", re.IGNORECASE), "bnb-nf4"),
)


def format_in_name(name: str) -> str | None:
    """The weight format that a checkpoint's name tells, as a key of the format table."""
    return next((weights for pattern, weights in _NAMED_FORMATS if pattern.search(name)), None)


def known_model(name: str) -> FoundModel:
    """A model of the built-in table with the format that its checkpoint has. Raises `UnknownFactError`."""
    model = find_model(name)
    shipped = model.checkpoint_quantization
    return FoundModel(model, format_of_checkpoint(shipped.method, shipped.bits) if shipped else format_in_name(name))


def weights_of(found: FoundModel, asked: str | None) -> WeightFormat:
    """The format asked for, else the checkpoint's; a file of mixed types has the average of its own bytes."""
    named = asked or found.weight_format
    if named is not None:
        return find_weight_format(named)
    if found.weight_bytes is None:
        return find_weight_format("16-bit")
    per_weight = found.weight_bytes / max(1, found.model.params.text_total)
    return WeightFormat(
        name="file",
        title="As in the file",
        bits=round(8 * per_weight),
        bytes=per_weight,
        theory=per_weight,
        embedding=per_weight,
        lm_head=per_weight,
        interval=0.005,
        compute="fp16",
        evidence="tensor bytes of the file",
        stacks=dict.fromkeys(PREDICTED_STACKS, (None, None)),
    )


def host_path(deployment: Deployment) -> Path:
    """Where this machine has the model, if it does: behind the container's mount, else under its own name."""
    for mount in deployment.mounts:
        host, _, rest = mount.partition(":")
        inside = rest.partition(":")[0].rstrip("/")
        if inside and deployment.model.startswith(f"{inside}/"):
            return Path(host) / deployment.model[len(inside) + 1 :]
    return Path(deployment.model).expanduser()


def _found(deployment: Deployment) -> FoundModel:
    path = host_path(deployment)
    return read_model(path) if path.exists() else known_model(deployment.model)


def _version(deployment: Deployment) -> Version | None:
    stack = stack_named(deployment.stack)
    number = stack.release(deployment) if isinstance(stack, DataSheet) else None
    return Version(*number) if number is not None else None


def _refuse(deployment: Deployment) -> None:
    if deployment.launch == "external":
        raise UnknownFactError("The server is not ours: what it was started with is not known.")
    if deployment.stack not in PREDICTED_STACKS:
        raise UnknownFactError(f"How {deployment.stack} sizes its memory is not modelled.")


def setup_of(deployment: Deployment, card: Card | None = None, *, measured: bool = False) -> Setup:
    """The setup of a deployment on `card`, or without one; `measured`: its memory is this machine's own figure.

    Raises `UnknownFactError` or `NonsenseError` with the reason where there is none, OSError for a file that cannot be
    read.
    """
    _refuse(deployment)
    found = _found(deployment)
    if deployment.stack == "llamacpp":
        return check_setup(_llamacpp(deployment, found, card))
    weights = _weights(deployment, found)
    seqs, batched_tokens = _caps(deployment)
    setup = Setup(
        model=found.model,
        weights=weights,
        kv=find_kv_format(deployment.kv_dtype, weights),
        card=card,
        total_is_measured=measured,
        stack=deployment.stack,
        version=_version(deployment),
        checkpoint=deployment.model,
        online=is_online(deployment.quantization),
        weight_bytes=found.weight_bytes
        if deployment.quantization is None or weights.name == found.weight_format
        else None,
        tensor=deployment.tensor_parallel,
        memory_fraction=deployment.memory_fraction,
        max_model_len=deployment.context_tokens,
        max_num_seqs=seqs,
        max_num_batched_tokens=batched_tokens,
        eager="--enforce-eager" in deployment.args,
        kv_cache_bytes=deployment.kv_cache_bytes,
    )
    if setup.stack == "vllm" and card is None:
        setup = _on_cpu(setup, deployment)
    if deployment.kv_cache_tokens is not None:
        setup = _pinned(setup, deployment, deployment.kv_cache_tokens)
    double = setup.stack == "vllm" and setup.engine == "V0"
    refined = refine_format(weights, deployment.quantization, scales_kept_double=double)
    return check_setup(msgspec.structs.replace(setup, weights=refined))


def _caps(deployment: Deployment) -> tuple[int | None, int | None]:
    """The most requests and tokens of a batch: those of the plan, else those that we start TGI with."""
    if deployment.stack == "tgi":
        return deployment.max_concurrency or ADMITTED_REQUESTS, prefill_tokens(deployment)
    return deployment.max_concurrency, deployment.max_batched_tokens


def _weights(deployment: Deployment, found: FoundModel) -> WeightFormat:
    """The format asked for; where that names a family of formats (``compressed-tensors``), the checkpoint's own."""
    try:
        return weights_of(found, deployment.quantization)
    except UnknownFactError:
        if found.weight_format is None:
            raise
        return weights_of(found, None)


def _on_cpu(setup: Setup, deployment: Deployment) -> Setup:
    """vLLM's CPU backend: the pool is what ``VLLM_CPU_KVCACHE_SPACE`` says (GiB), in blocks of 128 tokens."""
    space = deployment.env.get("VLLM_CPU_KVCACHE_SPACE", "")
    named = [after for flag, after in pairwise(deployment.args) if flag == "--block-size" and after.isdecimal()]
    return msgspec.structs.replace(
        setup,
        cpu=True,
        kv_cache_bytes=int(space) * GIB if space.isdecimal() and int(space) else setup.kv_cache_bytes,
        block_tokens=int(named[-1]) if named else CPU_BLOCK_TOKENS,
    )


def _pinned(setup: Setup, deployment: Deployment, tokens: int) -> Setup:
    """A pool of so many tokens. vLLM takes them in whole blocks of the size that it is told, and one more block, which
    it never hands out (`stacks.vllm`)."""
    if setup.stack == "vllm":
        setup = msgspec.structs.replace(setup, block_tokens=block_tokens_of(deployment))
    layout = layout_of(setup)
    blocks = -(-tokens // layout.block_tokens) + (setup.stack == "vllm")
    return msgspec.structs.replace(setup, kv_cache_bytes=round(blocks * layout.page_bytes))


def _llamacpp(deployment: Deployment, found: FoundModel, card: Card | None) -> Setup:
    named = file_type(deployment.model) if found.weight_bytes is None else None
    weights = weights_of(found, deployment.quantization or named)
    slots = deployment.max_concurrency or LLAMACPP_SLOTS
    batch = deployment.max_batched_tokens or DEFAULT_UBATCH_TOKENS
    return Setup(
        model=found.model,
        weights=weights,
        kv=find_kv_format(deployment.kv_dtype, weights),
        card=card,
        cpu=card is None,
        stack="llamacpp",
        checkpoint=deployment.model,
        weight_bytes=found.weight_bytes,
        # The cache of all slots together.
        max_model_len=context_of(deployment, slots) or None,
        max_num_seqs=slots,
        max_num_batched_tokens=min(batch, DEFAULT_UBATCH_TOKENS),
        unified_kv=deployment.kv_cache_tokens is not None or bool({"-kvu", "--kv-unified"} & set(deployment.args)),
        in_python=PORTABLE in deployment.command,
    )
