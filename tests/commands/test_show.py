from pathlib import Path

import pytest
from click.testing import CliRunner
from fakes.run_directory import FakeCell, asked_cell, build_run

from orchestrator.commands.report import report
from orchestrator.commands.show import show, summary
from orchestrator.errors import JournalError
from orchestrator.judge.search import SearchRules
from orchestrator.records import ServerFailure


def cell(name: str, quantization: str, slower: float) -> FakeCell:
    return FakeCell(
        asked_cell(name, "chat", quantization=quantization),
        rules=SearchRules(start=2, maximum=8, confirm=0),
        ttft_ms=lambda c: (60 + 40 * c) * slower,
        facts={"weights_bytes": 1e8 * slower, "kv_bytes": 5e7},
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return build_run(tmp_path / "run", [cell("small", "awq", 1.0), cell("large", "fp16", 2.0)])


def test_show_prints_a_table_and_says_what_it_bought(run: Path) -> None:
    done = CliRunner().invoke(show, [str(run)])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    rows = [line for line in lines if "PROVISIONAL" in line]
    assert [line.split()[:3] for line in rows] == [["small", "chat", "PROVISIONAL"], ["large", "chat", "PROVISIONAL"]]
    assert "What 4-bit bought (small against large):" in lines
    assert "What it did not:" in lines
    assert any(line.lstrip().startswith("+ Weights:") for line in lines)
    assert any(line.lstrip().startswith("- KV cache, reserved:") for line in lines)
    assert "\x1b" not in done.output


def test_no_control_character_of_a_log_reaches_the_terminal(tmp_path: Path) -> None:
    text = "\x1b]0;owned\x07[red]x[/red]\r\n"
    failure = ServerFailure(failure_class=text, message=text, remedy=text)
    asked = asked_cell("a", "w", deployment=text, workload=text)
    printed = summary(build_run(tmp_path / "run", [FakeCell(asked, refuses=failure)], title=text))
    assert "REFUSED" in printed
    assert "[red]x[/red]" in printed
    assert "\x1b" not in printed
    assert "\x07" not in printed


def test_report_writes_both_derived_files_where_it_is_told(run: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(report, [str(run)])
    assert done.exit_code == 0, done.output
    assert done.output.strip() == str(run / "report.html")
    assert (run / "result.json").exists()
    elsewhere = tmp_path / "elsewhere.html"
    assert CliRunner().invoke(report, [str(run), "--out", str(elsewhere)]).exit_code == 0
    assert elsewhere.read_bytes() == (run / "report.html").read_bytes()


@pytest.mark.parametrize("command", [show, report])
def test_what_is_no_run_directory_is_one_error(command: object, tmp_path: Path) -> None:
    done = CliRunner().invoke(command, [str(tmp_path)])  # type: ignore[arg-type]
    assert isinstance(done.exception, JournalError)
