from pathlib import Path

import msgspec
import pytest
from fakes.run_directory import FakeCell, asked_cell, build_run

from orchestrator.judge.search import SearchRules
from reports.result import CellResult, Result, broke_at, result
from reports.run import read_run
from reports.sections import belief, bought, breaks, decision, repeat
from reports.sections.bought import weight_format


@pytest.fixture(scope="module")
def twelve_result(twelve: Path) -> Result:
    return result(read_run(twelve))


def read(path: Path) -> Result:
    return result(read_run(path))


# --- the decision -----------------------------------------------------------------------------------------------


def test_a_card_says_what_holds_what_breaks_and_what_to_set(twelve_result: Result) -> None:
    card = decision.cards(twelve_result)[3]
    verdict = twelve_result.cells[3].verdict
    assert card.headline == f"Holds {verdict.c_ok} concurrent users, breaks at {verdict.c_bad}."
    assert card.configure.startswith(f"Set the concurrency limit of the server or gateway to {verdict.c_ok}.")
    assert (card.ok_users, card.bad_users) == (verdict.c_ok, verdict.c_bad)
    good, ttft, tpot, *_ = card.checks
    assert (good.limit, good.ok_missed, good.bad_missed) == ("\u2265 95 %", False, True)
    assert ttft.limit == "\u2264 400 ms"
    assert ttft.bad_missed or tpot.bad_missed
    assert not ttft.ok_missed
    assert card.missing


def test_a_fixed_level_is_not_called_a_search(twelve_result: Result) -> None:
    card = decision.cards(twelve_result)[0]
    assert card.headline == "Holds 1 concurrent user, the most that was asked."
    assert card.span == "1 \u2192 not tried"
    assert "no ground to admit more" in card.configure


def test_words_for_every_end(failures: Path, interrupted: Path, dies: Path) -> None:
    failed = decision.cards(read(failures))[0]
    assert (failed.word, failed.span) == ("REFUSED", "oom-weights")
    assert failed.headline == "Could not be measured: oom-weights."
    never = decision.cards(read(interrupted))[2]
    assert (never.headline, never.span) == ("Not measured: the run ended before it.", "not measured")
    died = decision.cards(read(dies))[0]
    assert died.incident
    assert any(check.at_bad == decision.NO_VALUE and check.bad_missed for check in died.checks)


def test_a_cell_that_breaks_at_once(tmp_path: Path) -> None:
    cell = FakeCell(asked_cell("slow", "w"), ttft_ms=lambda c: 5000.0, rules=SearchRules(start=2, maximum=4, confirm=0))
    (card,) = decision.cards(read(build_run(tmp_path / "run", [cell])))
    assert card.headline == "Breaks at 1 concurrent user already: nothing held."
    assert (card.word, card.span, card.configure) == ("REFUSED", "none \u2192 1", "")


def test_too_few_requests_are_no_break(tmp_path: Path) -> None:
    cell = FakeCell(asked_cell("short", "w"), requests=10, rules=SearchRules(levels=(2,)))
    found = read(build_run(tmp_path / "run", [cell]))
    assert [breaks.word(level) for level in found.cells[0].levels] == ["UNDECIDED"]
    (card,) = decision.cards(found)
    assert card.headline == "Nothing held; 2 concurrent users could not be decided."
    assert (card.span, card.breaks) == ("none \u2192 undecided", "undecided")
    assert card.why.startswith("At 2 concurrent users: 10 measured requests, ")
    assert broke_at(found.cells[0]) is None


def test_the_overview_has_a_place_for_every_cell(twelve_result: Result) -> None:
    cards = decision.cards(twelve_result)
    matrix = decision.matrix(cards)
    assert matrix
    assert matrix.workloads == ("short-one-user", "long-one-user", "long-overlapping", "chat")
    assert [name for name, _ in matrix.rows] == ["4-bit", "8-bit", "16-bit"]
    assert [card for _, row in matrix.rows for card in row] == list(cards)
    assert decision.matrix(cards[:1]) is None
    assert decision.tally(cards) == [("PROVISIONAL", 12)]


def test_steps_that_all_cells_lack_are_said_once(twelve_result: Result) -> None:
    cards = decision.cards(twelve_result)
    shared = decision.missing_everywhere(cards)
    assert shared
    assert all(set(shared) <= set(card.missing) for card in cards)
    assert decision.missing_everywhere(cards[:1]) == ()


# --- what it bought ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "label", "bits"),
    [
        ({"model": "models/SmolLM2-135M-Instruct.Q4_1.gguf"}, "Q4_1", 4),
        ({"model": "models/SmolLM2-135M-Instruct.F16.gguf"}, "F16", 16),
        ({"model": "org/Llama-3-8B-AWQ"}, "AWQ", 4),
        ({"model": "org/Llama-3-8B", "quantization": "fp8"}, "fp8", 8),
        ({"model": "org/Llama-3-8B", "dtype": "bfloat16"}, "bfloat16", 16),
        ({"model": "org/Llama-3-8B"}, "as stored", None),
        ({"model": "org/q", "quantization": "mystery"}, "mystery", None),
    ],
)
def test_the_format_of_the_weights(more: dict[str, object], label: str, bits: int | None) -> None:
    assert weight_format(asked_cell("d", "w", **more)) == (label, bits)


def test_what_four_bit_bought_and_what_not(twelve_result: Result) -> None:
    (comparison,) = bought.comparisons(twelve_result.cells)
    assert [column.name for column in comparison.columns] == ["16-bit", "8-bit", "4-bit"]
    assert comparison.bits == 4
    assert comparison.bought[0] == "Weights: 259 MiB became 93.0 MiB (\u221264 %)."
    assert "KV cache, reserved: 180 MiB against 180 MiB, unchanged." in comparison.not_bought
    assert any(sentence.startswith("Beside its weights 4-bit uses") for sentence in comparison.not_bought)
    chat = next(rows for workload, rows in comparison.served if workload == "chat")
    assert chat[0].name == "Holds, users"
    holds = [int(value) for value in chat[0].values]
    assert holds[0] < holds[-1]
    assert comparison.chart


def test_latency_is_compared_at_equal_concurrency_only(twelve_result: Result) -> None:
    cells = [cell for cell in twelve_result.cells if cell.asked.workload == "chat"]
    levels = bought.common_level(cells)
    assert levels
    assert len({level.concurrency for level in levels}) == 1
    alone = msgspec.structs.replace(cells[0], levels=cells[0].levels[:1])
    other = msgspec.structs.replace(cells[1], levels=cells[1].levels[-1:])
    assert alone.levels[0].concurrency != other.levels[0].concurrency
    assert bought.common_level([alone, other]) is None


def test_few_requests_are_compared_by_their_median(tmp_path: Path) -> None:
    cells = [
        FakeCell(asked_cell(name, "w", quantization=name), requests=requests, rules=SearchRules(levels=(1,)))
        for name, requests in (("awq", 20), ("fp16", 60))
    ]
    (comparison,) = bought.comparisons(read(build_run(tmp_path / "run", cells)).cells)
    ((_, rows),) = comparison.served
    assert [row.name for row in rows] == ["TTFT p50 at 1 user", "TPOT p50 at 1 user", "Output at 1 user"]


def test_a_run_of_one_format_compares_nothing(one: Path, failures: Path) -> None:
    assert bought.comparisons(read(one).cells) == ()
    assert bought.comparisons(read(failures).cells) == ()


def test_slower_is_not_bought(twelve_result: Result) -> None:
    """The same cells with the formats' names exchanged: the smaller one is now the slower one."""

    def renamed(cell: CellResult) -> CellResult:
        swap = {"4-bit": 259, "16-bit": 93}
        weights = swap.get(cell.asked.deployment, 138) << 20
        return msgspec.structs.replace(cell, bill=msgspec.structs.replace(cell.bill, weights_bytes=weights))

    (comparison,) = bought.comparisons([renamed(cell) for cell in twelve_result.cells])
    assert [column.name for column in comparison.columns] == ["4-bit", "8-bit", "16-bit"]
    assert any(sentence.startswith("chat: holds") for sentence in comparison.not_bought)
    assert not any(sentence.startswith("chat") for sentence in comparison.bought)


# --- where it breaks, belief, repeat ----------------------------------------------------------------------------


def test_ladders_draw_what_has_more_than_one_level(twelve_result: Result) -> None:
    ladders = breaks.ladders(twelve_result)
    assert [len(ladder.pictures) for ladder in ladders] == [0, 0, 4, 4]
    assert sum(len(ladder.lines) for ladder in ladders) == sum(len(cell.levels) for cell in twelve_result.cells)
    assert [picture.caption for picture in ladders[3].pictures] == [
        "limit 95 %",
        "limit 400 ms",
        "limit 60 ms",
        "no limit",
    ]


def test_an_invalid_level_is_named_invalid_with_its_reason(one: Path) -> None:
    found = read(one)
    (ladder,) = breaks.ladders(found)
    assert {line.word for line in ladder.lines if line.level.concurrency == 16} == {"INVALID"}
    (health,) = belief.health(found)
    assert health.invalid == 2
    remarks = [remark for remark in belief.remarks(found) if remark.what.startswith("INVALID: ")]
    assert len(remarks) == 2
    assert remarks[0].where == "vllm-awq, chat, 16 users"


def test_hardware_is_told_once(twelve_result: Result, one: Path) -> None:
    (note,) = belief.hardware_notes(twelve_result)
    assert note.startswith("No GPU was used")
    assert belief.hardware_notes(read(one)) == []


def test_what_was_started_can_be_started_again(one: Path, tmp_path: Path) -> None:
    (server,) = repeat.started(read(one))
    rows = dict(server.rows)
    assert rows["Image digest"] == "sha256:" + "ab" * 32
    assert rows["Environment"] == "VLLM_LOGGING_LEVEL=INFO"
    assert rows["Secrets, by name"] == "HF_TOKEN"
    assert server.command.startswith("llama-server -m ")
    cell = FakeCell(asked_cell("a", "w"), rules=SearchRules(levels=(1,)))
    root = build_run(tmp_path / "run", [cell], overrides=("ramp.max=8", "title=a b"))
    assert repeat.command(read(root)) == "loadproof run plan.toml --set ramp.max=8 --set 'title=a b'"
