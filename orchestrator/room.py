"""A cell whose server has no room for the context that was asked: what it serves instead, if the plan allows it.

Nothing is kept beside the journal: the failed starts stand there, each with the context that the engine said would fit,
so a resumed run goes on with the same server.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from orchestrator.plan import Cell
from orchestrator.records import AnyEvent, ServerStopped
from workloads.workload import SMALLEST_CONTEXT_TOKENS

MOST_SHRINKS = 3
"""An engine's estimate may be a little too high, and its next one then counts; one that never fits is a failure."""


def as_served(cell: Cell, events: Iterable[AnyEvent]) -> Cell:
    """The cell with the context that the last failed start was told would fit, and with its requests cut to that.

    The same cell where nothing was told, or where the plan wants the failure as its result.
    """
    if cell.deployment.on_no_room != "shrink_context":
        return cell
    context = cell.deployment.context_tokens
    for fits in list(_told(cell, events))[:MOST_SHRINKS]:
        if fits >= SMALLEST_CONTEXT_TOKENS and (context is None or fits < context):
            context = fits
    if context == cell.deployment.context_tokens:
        return cell
    asked = cell.workload.context_tokens
    return msgspec.structs.replace(
        cell,
        deployment=msgspec.structs.replace(cell.deployment, context_tokens=context),
        workload=msgspec.structs.replace(
            cell.workload, context_tokens=context if asked is None or context is None else min(asked, context)
        ),
    )


def _told(cell: Cell, events: Iterable[AnyEvent]) -> Iterator[int]:
    for event in events:
        failure = event.failure if isinstance(event, ServerStopped) and event.cell == cell.id else None
        if failure is not None and failure.fits_tokens is not None:
            yield failure.fits_tokens
