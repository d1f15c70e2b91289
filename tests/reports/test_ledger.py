"""A server's life from its samples, how full its pool was, and its bill predicted beside measured."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from fakes.run_directory import MIB

from orchestrator.clock import NS_PER_S
from orchestrator.records import Neighbour, Predicted, PredictedItem, RequestRecord, Sample, ServerRecord
from reports.ledger import Ledger, held_tokens, ledger
from reports.reconcile import Lesson, lesson_of, reconcile
from reports.result import Result, result
from reports.run import Attempt, read_run
from reports.sections import bill, bought

GIB = 1 << 30
CARD = "gpu:GPU-1"
SERVER = ServerRecord(
    deployment="awq",
    stack="vllm",
    launch="docker",
    base_url="http://127.0.0.1:1",
    facts={"weights_bytes": 5.0 * GIB, "kv_bytes": 10.0 * GIB, "kv_tokens": 80_000.0, "graphs_bytes": 0.5 * GIB},
)


def at(second: float, source: str, **values: float) -> Sample:
    return Sample(at_ns=round(second * NS_PER_S), source=source, values=values)


def card(second: float, gib: float) -> Sample:
    return at(second, CARD, memory_used_bytes=gib * GIB)


LIFE = [
    card(1, 0.5),
    card(3, 1.0),
    card(10, 6.0),
    at(10, "log", weights_bytes=5.0 * GIB),
    at(20, "log", weights_bytes=5.0 * GIB, kv_bytes=10.0 * GIB),
    card(20.5, 16.2),
    card(30, 16.7),
    card(60, 16.7),
]


def attempt(**more: object) -> Attempt:
    values = {"server": SERVER, "starting_ns": 2 * NS_PER_S, "ready_ns": 30 * NS_PER_S, **more}
    return Attempt(Path("run"), "cell", 1, 0, **values)  # type: ignore[arg-type]


def item(name: str, gib: float, spread: float = 0.0) -> PredictedItem:
    low, high = (round((gib + sign * spread) * GIB) for sign in (-1, 1))
    return PredictedItem(name=name, value_bytes=round(gib * GIB), low_bytes=low, high_bytes=high)


def predicted(pool_gib: float = 10.5, spread_gib: float = 0.3) -> Predicted:
    return Predicted(
        key="vllm 0.33.0, H100, tensor parallel 1",
        basis="class A",
        items=(item("weights", 5.0, 0.1), item("KV cache", pool_gib, spread_gib), item("runtime context", 0.76, 0.2)),
        total=item("total", 17.0, 1.0),
        kv_bytes_per_token=131072.0,
        kv_tokens=86_000,
        kv_tokens_low=84_000,
        kv_tokens_high=88_000,
    )


# --- the life ---------------------------------------------------------------------------------------------------


def test_a_life_has_its_joints() -> None:
    found = ledger(attempt(), LIFE, [], {})
    told = {point.stage: point.server_bytes for point in found.checkpoints}
    # The card's 0.5 GiB before the start are not the server's.
    assert told == {
        "idle": None,
        "process up": 0.5 * GIB,
        "weights loaded": 5.5 * GIB,
        "pool reserved": pytest.approx(15.7 * GIB, abs=1),
        "ready": pytest.approx(16.2 * GIB, abs=1),
    }
    assert found.checkpoints[0].card_bytes == 0.5 * GIB
    assert found.source.startswith("GPU memory")


def test_memory_that_does_not_come_back_and_neighbours_are_named() -> None:
    guest = Neighbour(gpu="GPU-1", pid=7, name="Xorg", memory_bytes=300 * MIB)
    samples = [*LIFE, card(101, 0.9)]
    found = ledger(attempt(stopped_ns=100 * NS_PER_S, neighbours=(guest,)), samples, [], {})
    assert found.checkpoints[-1].stage == "stopped"
    assert found.findings == (
        "Xorg (pid 7) held 300 MiB of GPU-1 before the start.",
        "After its end 410 MiB more of the card are in use than before its start.",
    )


def test_other_processes_that_grow_are_named() -> None:
    samples = [at(s, CARD, memory_used_bytes=GIB, memory_ours_bytes=MIB, memory_others_bytes=s * GIB) for s in (1, 30)]
    found = ledger(attempt(), samples, [], {})
    assert found.findings == ("Other processes' memory on the card moved between 1.00 GiB and 30.0 GiB.",)


def test_nothing_watched_is_no_life() -> None:
    assert ledger(attempt(ready_ns=None), [], [], {}) == Ledger()


def request(first: int | None, end: int, tokens: tuple[int, ...] = (), counts: tuple[int, ...] = ()) -> RequestRecord:
    return RequestRecord(
        seq=0,
        request_id="r",
        phase="measured",
        due_ns=0,
        sent_ns=0,
        end_ns=end,
        asked_in=100,
        asked_out=3,
        first_ns=first,
        token_ns=tokens,
        token_counts=counts,
    )


def test_tokens_under_way_are_counted_at_their_highest() -> None:
    one, other = request(10, 40, (10, 20, 30)), request(40, 60, (40, 50))
    assert held_tokens([one]) == 103
    assert held_tokens([one, other]) == 103
    assert held_tokens([one, request(30, 60, (30,), (5,))]) == 208
    assert held_tokens([request(None, 10)]) is None


# --- predicted beside measured ----------------------------------------------------------------------------------


def test_a_value_outside_its_interval_is_flagged_and_the_rest_is_told() -> None:
    found = reconcile(predicted(), "", SERVER, ledger(attempt(), LIFE, [], {}), {})
    pool, weights = found.line("KV cache"), found.line("weights")
    assert pool
    assert weights
    assert (weights.outside, weights.difference) == (False, 0.0)
    assert (pool.outside, pool.difference) == (True, -0.5 * GIB)
    tokens = found.line("KV tokens")
    assert tokens
    assert tokens.outside
    # 16.2 in all, less 5 of weights, 10 of KV, 0.5 of graphs, and 0.76 of context that nobody reports.
    assert found.unexplained_bytes == pytest.approx(-0.06 * GIB, abs=2)


def test_the_first_start_teaches_those_after_it() -> None:
    life = ledger(attempt(), LIFE, [], {})
    lesson = lesson_of(reconcile(predicted(), "", SERVER, life, {}))
    assert lesson
    assert lesson.pool_bytes == -0.5 * GIB
    later = reconcile(predicted(), "", SERVER, life, {predicted().key: lesson})
    pool, tokens = later.line("KV cache"), later.line("KV tokens")
    assert pool
    assert tokens
    assert (pool.predicted, pool.calibrated) == (10.5 * GIB, 10.0 * GIB)
    assert tokens.calibrated == 86_000 - 4096
    assert lesson_of(reconcile(None, "why", None, Ledger(), {})) is None
    assert reconcile(predicted(), "", SERVER, life, {"another": Lesson(pool_bytes=1.0)}).line(
        "KV cache"
    ) == msgspec.structs.replace(pool, calibrated=None)


def test_what_was_not_predicted_is_still_measured() -> None:
    found = reconcile(None, "The server is not ours.", SERVER, ledger(attempt(), LIFE, [], {}), {})
    assert [line.name for line in found.lines] == ["weights", "KV cache", "CUDA graphs", "total", "KV tokens"]
    assert all(line.predicted is None and line.measured is not None for line in found.lines)
    assert found.unexplained_bytes == pytest.approx(0.7 * GIB, abs=2)
    assert found.unpredicted == "The server is not ours."


# --- the report -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def formats(twelve: Path) -> Result:
    return result(read_run(twelve))


def test_a_bill_for_every_deployment(formats: Result) -> None:
    accounts = bill.accounts(formats.cells)
    assert [account.name for account in accounts] == ["4-bit", "8-bit", "16-bit"]
    rows = {row.name: row for row in accounts[0].rows}
    assert (rows["weights"].measured, rows["weights"].difference) == ("93.0 MiB", "0")
    assert (rows["runtime"].measured, rows["runtime"].source) == ("\u2013", "not reported")
    assert rows["total"].outside
    assert accounts[0].unexplained.startswith("\u2212")
    assert {point.name for point in accounts[0].life} >= {"ready", "2 users", "16 users"}
    assert "KV pool filled" in accounts[0].columns


def test_what_it_bought_is_predicted_beside_measured(formats: Result) -> None:
    (comparison,) = bought.comparisons(formats.cells)
    gains = {gain.name: gain for gain in comparison.gains}
    assert gains["Weights"].predicted == gains["Weights"].measured == ("259 MiB \u2192 93.0 MiB", "\u2212166 MiB")
    assert gains["Tokens that fit in KV"].measured == ("8,192 \u2192 8,192", "unchanged")
    assert gains["Users, chat"].predicted == ("16 \u2192 16", "unchanged")
    assert gains["Users, chat"].limits.startswith("predicted: slots (-np); measured: ")
    assert "Users, short-one-user" not in gains
    assert comparison.chart
