"""Rows of measured starts (one JSON object each): their configuration -> a `Setup`; measured fields are ignored."""

from __future__ import annotations

import re

import msgspec

from stacks.memory.bill import bill
from stacks.memory.cards import GIB, Card, card_of_size, card_with_memory, find_card
from stacks.memory.formats import find_kv_format, find_weight_format, is_online, refine_format
from stacks.memory.models import Facts, Model, UnknownFactError, find_model
from stacks.memory.setup import Setup, check_setup
from stacks.memory.versions import Version, parse_version


class Row(Facts, frozen=True, kw_only=True):
    """The configuration of a start. Null = not logged, so the engine's default applied. Other keys are ignored."""

    row_id: str
    model: str
    stack: str = "vllm"
    stack_version: str | None = None
    engine_generation: str | None = None
    reference_model: str | None = None
    no_lm_head: bool | None = False
    weight_quantization: str | None = None
    weight_format: str | None = "16-bit"
    dtype: str | None = None
    kv_cache_dtype: str | None = "auto"
    card: str | None = None
    card_id: str | None = None
    tp: int | None = 1
    pp: int | None = 1
    gpu_memory_utilization: float | None = None
    mem_fraction_static: float | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    enforce_eager: bool | None = None
    usage_context: str | None = None
    total_gpu_memory_gib: float | None = None
    """What the card has, as the runtime says: part of the configuration where it is known."""
    block_size: int | None = None
    kv_cache_memory_bytes: int | None = None


def _find_model(row: Row) -> Model:
    try:
        return find_model(row.reference_model or row.model)
    except UnknownFactError:
        return find_model(row.model)


class _CardFacts(Facts, frozen=True, kw_only=True):
    card: Card | None = None
    low_gib: float | None = None
    high_gib: float | None = None
    measured: bool = False


def _find_card(row: Row) -> _CardFacts:
    name = row.card_id or row.card
    if row.total_gpu_memory_gib is not None:
        return _CardFacts(card=card_with_memory(name or "card", round(row.total_gpu_memory_gib * GIB)), measured=True)
    if name is None:
        return _CardFacts()
    sized = card_of_size(name)
    if sized is not None:
        return _CardFacts(card=sized.card, low_gib=sized.low_gib, high_gib=sized.high_gib)
    try:
        return _CardFacts(card=find_card(name))
    except UnknownFactError:
        return _CardFacts()


def _version(row: Row) -> Version | None:
    return parse_version(row.stack_version) if row.stack_version else None


def _is_online(row: Row) -> bool:
    """Quantised while loading: said so, or the name is that of a plain checkpoint with a format that can be."""
    if is_online(row.weight_quantization):
        return True
    return row.weight_quantization == "fp8" and not re.search(r"fp8|w8a8", row.model, re.IGNORECASE)


def setup_of_row(row: Row) -> Setup:
    """The setup of a row; raises `UnknownFactError` or `NonsenseError` with the reason where there is none."""
    version = _version(row)
    card = _find_card(row)
    weights = find_weight_format(row.weight_format or "16-bit")
    kv = find_kv_format(row.kv_cache_dtype or "auto", weights)
    setup = Setup(
        model=_find_model(row),
        weights=weights,
        kv=kv,
        card=card.card,
        card_low_gib=card.low_gib,
        card_high_gib=card.high_gib,
        total_is_measured=card.measured,
        stack=row.stack,
        version=version,
        generation="V0" if row.engine_generation == "V0" else "V1" if row.engine_generation == "V1" else None,
        checkpoint=row.model,
        online=_is_online(row),
        pooling=bool(row.no_lm_head),
        tensor=row.tp or 1,
        pipeline=row.pp or 1,
        memory_fraction=row.mem_fraction_static if row.stack == "sglang" else row.gpu_memory_utilization,
        max_model_len=row.max_model_len,
        max_num_seqs=row.max_num_seqs,
        max_num_batched_tokens=row.max_num_batched_tokens,
        eager=bool(row.enforce_eager),
        offline=row.usage_context == "llm_class",
        kv_cache_bytes=row.kv_cache_memory_bytes,
        block_tokens=row.block_size or 16,
    )
    double = setup.stack == "vllm" and setup.engine == "V0"
    refined = refine_format(weights, row.weight_quantization, scales_kept_double=double)
    return check_setup(msgspec.structs.replace(setup, weights=refined))


class Prediction(Facts, frozen=True, kw_only=True):
    """One line of `--batch`'s output, GiB of one card. Null = not predicted; then `reason` says why."""

    row_id: str
    weights_gib: float
    kv_tokens: int | None
    kv_bytes_per_token: float
    kv_gib: float | None
    activation_gib: float | None
    graphs_gib: float | None
    context_gib: float | None
    interval: dict[str, list[float]]
    starts: str
    """``yes``, ``no``, or ``undecided`` where the interval spans what one longest request needs."""
    fits: bool | None
    """The same as a single best guess."""
    interval_class: str
    reason: str | None = None


def no_point(setup: Setup, pool_bytes: float) -> str | None:
    """Why a pool has bounds but no single value, one sentence; None if it has one."""
    if setup.card_low_gib is not None:
        return (
            "Only the card's marketing size is known, which is no base for a fraction: "
            "the interval spans the cards of that size; name the card or its total for a value."
        )
    if pool_bytes <= 0:
        return f"The predicted pool is {pool_bytes / GIB:.2f} GiB: the weights leave nothing for KV."
    return None


def _gib(value: float) -> float:
    return round(value / GIB, 4)


def predict_row(row: Row) -> Prediction:
    """The prediction of a row; raises `UnknownFactError` or `NonsenseError` where the row cannot be predicted."""
    result = bill(setup_of_row(row))
    pool, reason = result.pool, result.no_pool
    interval: dict[str, list[float]] = {"weights_gib": [_gib(result.weights.low), _gib(result.weights.high)]}
    tokens = None
    if pool is not None:
        interval["kv_tokens"] = [pool.tokens_low, pool.tokens_high]
        reason = no_point(result.setup, pool.bytes.value)
        tokens = pool.held.tokens if reason is None else None
    engine = result.setup.stack in {"vllm", "tgi"}
    flat = result.layout.page_bytes / result.layout.block_tokens
    return Prediction(
        row_id=row.row_id,
        weights_gib=_gib(result.weights.value),
        kv_tokens=tokens,
        kv_bytes_per_token=round(pool.held.bytes_per_token if pool is not None else flat, 3),
        kv_gib=_gib(pool.bytes.value) if pool is not None and result.setup.card_low_gib is None else None,
        activation_gib=_gib(result.terms.activation) if engine else None,
        graphs_gib=_gib(result.terms.graphs) if result.setup.stack != "llamacpp" else None,
        context_gib=_gib(result.terms.context + result.terms.non_torch) if result.setup.stack != "llamacpp" else None,
        interval=interval,
        starts=result.starts,
        fits=None if pool is None else pool.bytes.value >= result.need_bytes,
        interval_class=result.pool_class.name,
        reason=reason,
    )
