"""The memory bill of a cell, predicted before its server is started, as it goes into the journal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from orchestrator.errors import LoadproofError
from orchestrator.plan import Cell, Plan
from orchestrator.records import Predicted, PredictedItem
from orchestrator.watch.gpu import GpuInfo, gpu_uuids
from stacks.base import Deployment
from stacks.memory.bill import Bill, Item
from stacks.memory.cards import Card, card_with_memory, find_card
from stacks.memory.deployed import setup_of
from stacks.memory.intervals import Spread
from stacks.memory.models import UnknownFactError
from stacks.memory.pools import in_host_memory
from stacks.memory.setup import Setup
from stacks.memory.sizing import Sizing, size
from stacks.simulated.deployed import simulated_setup
from workloads.workload import clamp_pairs


class Foreseen(NamedTuple):
    """A prediction, or why there is none."""

    predicted: Predicted | None
    unpredicted: str = ""


def foresee(plan: Plan, cell: Cell, gpus: Sequence[GpuInfo]) -> Foreseen:
    """Never raises: what cannot be predicted is told, and measured all the same. Reads the header of a local model."""
    try:
        setup = _setup(cell.deployment, gpus)
        context = cell.workload.context_tokens or cell.deployment.context_tokens
        pairs, _ = clamp_pairs(plan.workload(cell).pairs, context)
        return Foreseen(as_record(size(setup, [(int(row[0]), int(row[1])) for row in pairs]), int(pairs[:, 0].max())))
    except (LoadproofError, OSError) as error:
        return Foreseen(None, getattr(error, "message", None) or str(error))


def _setup(deployment: Deployment, gpus: Sequence[GpuInfo]) -> Setup:
    """What is known of a deployment: on the card that it simulates, or on those of this machine that it names."""
    if deployment.launch == "simulated":
        return simulated_setup(deployment)
    if gpus and not deployment.gpus and deployment.stack != "llamacpp":
        raise UnknownFactError("The deployment names no GPU, and this machine has some: which it takes is not known.")
    card, measured = _card(deployment.gpus, gpus)
    return setup_of(deployment, card, measured=measured)


def _card(asked: Sequence[str], gpus: Sequence[GpuInfo]) -> tuple[Card | None, bool]:
    """The first card of a deployment, and whether its memory is what the driver says (else the table's)."""
    uuids = gpu_uuids(asked, gpus) if asked else ()
    gpu = next((gpu for gpu in gpus if gpu.uuid in uuids), None)
    if gpu is None:
        return None, False
    try:
        return find_card(gpu.name), False
    except UnknownFactError:
        return card_with_memory(gpu.name, gpu.memory_total_bytes or 0), True


def as_record(sizing: Sizing, longest_prompt: int) -> Predicted:
    """A sizing as it is journalled: bytes, tokens, requests, each with its interval; `longest_prompt` in tokens."""
    result, requests = sizing.bill, sizing.requests
    setup, pool = result.setup, result.pool
    never = tuple(_never_filled(result, longest_prompt))
    version = setup.version or "version not known"
    card = setup.card.name if setup.card is not None else "CPU"
    return Predicted(
        key=f"{setup.stack} {version}, {card}, tensor parallel {setup.tensor}",
        basis=result.no_pool or f"class {result.pool_class.name}: {result.pool_class.why}",
        items=(*(_item(item) for item in result.items), *never),
        total=_total(result, never),
        kv_bytes_per_token=pool.held.bytes_per_token
        if pool is not None
        else result.layout.page_bytes / result.layout.block_tokens,
        kv_tokens=pool.held.tokens if pool is not None else None,
        kv_tokens_low=pool.tokens_low if pool is not None else None,
        kv_tokens_high=pool.tokens_high if pool is not None else None,
        requests=requests.mean if requests else None,
        requests_low=requests.low if requests else None,
        requests_high=requests.high if requests else None,
        cap=result.limits.seqs if requests else None,
        limit=requests.limit.name if requests else "",
    )


def _item(item: Item) -> PredictedItem:
    value, low, high = (round(bound) for bound in item.spread)
    return PredictedItem(name=item.name, value_bytes=value, low_bytes=low, high_bytes=high, why=item.why)


def _never_filled(result: Bill, longest_prompt: int) -> Iterator[PredictedItem]:
    """Host memory of compute buffers that no batch of this workload reaches: reserved, and never resident."""
    share = 1 - result.limits.seqs * longest_prompt / result.limits.batched_tokens
    if in_host_memory(result.setup) and share > 0:
        never = -result.terms.activation * share
        yield _item(Item("never filled", Spread(never, never, never), "compute buffers beyond the largest batch"))


def _total(result: Bill, never: Sequence[PredictedItem]) -> PredictedItem | None:
    """What is resident once it has worked."""
    if result.resident is None:
        return None
    less = sum(item.value_bytes for item in never)
    value, low, high = (bound + less for bound in result.resident)
    return _item(Item("total", Spread(value, low, high), "what is resident once it has worked"))
