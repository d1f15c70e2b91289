"""Cost and energy of a million tokens: by hand, and out of a run directory."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from fakes.run_directory import FakeCell, asked_cell, build_run

from orchestrator.commands.show import summary
from orchestrator.judge.search import SearchRules
from orchestrator.records import AskedCell, Cost
from reports.economy import cards_of, price_per_hour
from reports.html import write_report
from reports.levels import LevelResult, level_result
from reports.result import CellResult, result
from reports.run import read_run
from reports.sections.decision import cost_text, energy_text

COST = Cost(gpu_hour=2.5, currency="EUR")


def asked(*gpus: str) -> AskedCell:
    return asked_cell("vllm", "chat", gpus=list(gpus))


@pytest.mark.parametrize(
    ("gpus", "watched", "cards"),
    [(("0",), 8, 1), (("0", "GPU-b"), 8, 2), (("all",), 8, 8), (("all",), 0, None), ((), 8, None)],
)
def test_cards(gpus: tuple[str, ...], watched: int, cards: int | None) -> None:
    assert cards_of(asked(*gpus), watched) == cards


def test_cards_that_are_not_there_have_a_price_too() -> None:
    simulated = asked_cell("vllm", "chat", simulated=True, card="H100-SXM-80GB", tensor_parallel=2)
    assert price_per_hour(simulated, COST, cards_of(simulated, 0)) == (5.0, "")


def test_a_card_that_is_not_there_has_a_cost_and_no_energy(tmp_path: Path) -> None:
    fake = FakeCell(
        asked_cell("vllm", "chat", simulated=True, card="H100-SXM-80GB"),
        rules=SearchRules(levels=(3, 4)),
        ttft_ms=lambda c: 50.0,
    )
    found = result(read_run(build_run(tmp_path / "run", [fake], cost=COST))).cells[0].economy
    assert cost_text(found).endswith(" EUR")
    assert energy_text(found) == ""


def test_an_hour_costs_its_cards_or_what_the_plan_says_of_the_whole() -> None:
    assert price_per_hour(asked("0", "1"), COST, 2) == (5.0, "")
    assert price_per_hour(asked("0", "1"), Cost(gpu_hour=2.5, hour={"vllm": 3.0}), 2) == (3.0, "")
    assert price_per_hour(asked(), Cost(hour={"vllm": 3.0}), None) == (3.0, "")
    for cost, cards in ((Cost(), 1), (COST, None), (Cost(hour={"other": 1.0}), 1)):
        price, why = price_per_hour(asked("0"), cost, cards)
        assert price is None
        assert "price" in why


def cell(tmp_path: Path, cost: Cost, **more: object) -> tuple[Path, CellResult]:
    """A server that holds 4 users and breaks at 8."""
    fake = FakeCell(
        asked_cell("vllm", "chat", gpus=["0", "1"]),
        rules=SearchRules(start=2, maximum=8, confirm=1, precision=0.5),
        ttft_ms=lambda c: 50.0 if c < 8 else 900.0,
        source="gpu:GPU-1",
        **more,  # type: ignore[arg-type]
    )
    run = build_run(tmp_path / "run", [fake], cost=cost)
    return run, result(read_run(run)).cells[0]


def test_cost_and_energy_are_those_of_the_most_that_held(tmp_path: Path) -> None:
    run, found = cell(tmp_path, COST, power_w=250.0)
    economy, held = found.economy, [v for v in found.levels if v.concurrency == 4][-1]
    assert (found.verdict.c_ok, found.verdict.c_sign) == (4, 3), "no level was measured at 3"
    assert (economy.point, economy.concurrency, economy.cards, economy.price_per_hour) == ("held", 4, 2, 5.0)
    rate, prompt = held.stats.output_tokens_per_s, held.stats.prompt_tokens_per_s
    assert rate
    assert prompt
    assert economy.cost_per_million_output_tokens == pytest.approx(5.0 / (rate * 3600) * 1e6)
    assert economy.cost_per_million_tokens == pytest.approx(5.0 / ((rate + prompt) * 3600) * 1e6)
    assert economy.energy_j_per_output_token == pytest.approx(250 / rate)
    assert economy.kwh_per_million_output_tokens == pytest.approx(250 / rate / 3.6)
    page = write_report(run).read_text(encoding="utf-8")
    assert '<a class="term" href="#term-cost">Cost, 1M tok</a>' in page
    assert " EUR" in page
    assert " EUR" in summary(run)
    assert " kWh" in summary(run)


def test_the_point_that_may_be_signed_is_taken_where_it_was_measured(tmp_path: Path) -> None:
    fake = FakeCell(
        asked_cell("vllm", "chat", gpus=["0"]),
        rules=SearchRules(levels=(3, 4)),
        ttft_ms=lambda c: 50.0,
    )
    found = result(read_run(build_run(tmp_path / "run", [fake], cost=COST))).cells[0]
    assert (found.verdict.c_ok, found.verdict.c_sign) == (4, 3)
    assert (found.economy.point, found.economy.concurrency) == ("signed", 3)
    assert found.economy.unmetered == "no card told its power"


def test_where_only_the_runs_together_hold_their_cost_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    def alone(*given: Any) -> LevelResult:
        level = level_result(*given)
        verdict = msgspec.structs.replace(level.verdict, verdict="UNDECIDED")
        return msgspec.structs.replace(level, verdict=verdict) if level.concurrency == 4 else level

    monkeypatch.setattr("reports.result.level_result", alone)
    _, found = cell(tmp_path, COST, power_w=250.0)
    runs = [v for v in found.levels if v.concurrency == 4]
    assert (found.verdict.c_ok, {v.verdict.verdict for v in runs}) == (4, {"UNDECIDED"})
    assert (found.economy.point, found.economy.concurrency, found.economy.unpriced) == ("held", 4, "")
    assert found.economy.energy_j_per_output_token == pytest.approx(250 / (runs[-1].stats.output_tokens_per_s or 0))


def test_without_a_price_and_without_power_nothing_is_made_up(tmp_path: Path) -> None:
    run, found = cell(tmp_path, Cost())
    assert found.economy.cost_per_million_output_tokens is None
    assert found.economy.energy_j_per_output_token is None
    assert "gives no price" in found.economy.unpriced
    assert "1M tok" not in summary(run)


def test_where_nothing_held_there_is_no_point_to_speak_of(tmp_path: Path) -> None:
    _, found = cell(tmp_path, COST, power_w=250.0, failing=lambda c: True)
    assert found.verdict.c_ok is None
    assert found.economy.point is None
    assert found.economy.unpriced == found.economy.unmetered == "nothing held"
