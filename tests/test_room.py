"""A start without room for its context: what is served instead, and when nothing is."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from orchestrator.plan import Cell, parse_plan
from orchestrator.records import ServerFailure, ServerStopped
from orchestrator.room import MOST_SHRINKS, as_served
from workloads.workload import requests_sha256

PLAN = """
[model]
id = "meta-llama/Llama-3.1-8B-Instruct"
context_tokens = 16384
[[deployment]]
name = "d"
stack = "vllm"
on_no_room = "{wish}"
[[workload]]
name = "w"
prompt_tokens = 6000
output_tokens = 100
"""


def cell_of(wish: str = "shrink_context") -> Cell:
    (cell,) = parse_plan(PLAN.format(wish=wish).encode(), "p.toml", base=Path("/nowhere"), environ={}).cells()
    return cell


def refused(fits: int | None, cell: str = "d--w") -> ServerStopped:
    failure = ServerFailure(failure_class="ctx-too-long", message="No room.", fits_tokens=fits)
    return ServerStopped(at_ns=1, cell=cell, attempt=1, failure=failure)


def test_the_engine_s_own_length_is_served_and_the_requests_are_cut_to_it() -> None:
    served = as_served(cell_of(), [refused(8192)])
    assert (served.deployment.context_tokens, served.workload.context_tokens) == (8192, 8192)
    assert (served.id, served.fingerprint) == (cell_of().id, cell_of().fingerprint)


@pytest.mark.parametrize(
    "events",
    [
        [],
        [refused(None)],
        [refused(8192, cell="other--w")],
        [refused(16384)],
        [refused(0)],
        [ServerStopped(at_ns=1, cell="d--w", attempt=1)],
    ],
)
def test_without_a_shorter_length_nothing_changes(events: list[ServerStopped]) -> None:
    assert as_served(cell_of(), events) == cell_of()


def test_a_plan_that_does_not_allow_it_keeps_its_failure() -> None:
    assert as_served(cell_of("fail"), [refused(8192)]) == cell_of("fail")


def test_it_shrinks_a_few_times_and_not_for_ever() -> None:
    events = [refused(8000 - 100 * n) for n in range(MOST_SHRINKS + 5)]
    assert as_served(cell_of(), events).deployment.context_tokens == 8000 - 100 * (MOST_SHRINKS - 1)
    again = [refused(8000), refused(9000)]
    assert as_served(cell_of(), again).deployment.context_tokens == 8000, "it never grows again"


def test_a_deployment_without_a_context_takes_the_length_too() -> None:
    cell = cell_of()
    bare = msgspec.structs.replace(cell, deployment=msgspec.structs.replace(cell.deployment, context_tokens=None))
    assert as_served(bare, [refused(4096)]).deployment.context_tokens == 4096


def test_the_same_list_is_asked_where_every_request_fits_and_another_where_one_is_cut() -> None:
    plan = parse_plan(PLAN.format(wish="shrink_context").encode(), "p.toml", base=Path("/nowhere"), environ={})
    workload = plan.workload(cell_of())

    def asked(*events: ServerStopped) -> tuple[str, int]:
        requests = workload.draw(3, 40, as_served(cell_of(), events).workload.context_tokens)
        return requests_sha256(requests), sum(request.clamped for request in requests)

    whole, cut = asked()
    assert cut == 0
    assert asked(refused(8192)) == (whole, 0)
    shorter, cut = asked(refused(4096))
    assert shorter != whole
    assert cut == 40
