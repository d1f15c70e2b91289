"""The study of vLLM against TGI on a simulated card: its golden figures, and that every page says what it is."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fakes.simulated_study import simulate

from orchestrator.commands.check import told
from orchestrator.commands.show import summary
from orchestrator.errors import JournalError
from reports.comparison import compare
from reports.exports.benchmark_report import benchmark_report
from reports.exports.tables import level_rows, write_csv
from reports.figures import with_units
from reports.gate import gate
from reports.html import write_comparison
from reports.result import CellResult, Result, result
from reports.run import read_run
from stacks.simulated.accuracy import ACCURACY, MARK

GOLDEN = Path(__file__).parent.parent / "golden" / "reports" / "simulated-study.json"


@pytest.fixture(scope="module")
def study(runs: Path) -> Path:
    return simulate(runs / "study")


@pytest.fixture(scope="module")
def found(study: Path) -> Result:
    return result(read_run(study))


def rounded(value: float | None) -> float | None:
    """To four digits: another processor may round the last ones otherwise."""
    return None if value is None else float(f"{value:.4g}")


def figures(cell: CellResult) -> dict[str, Any]:
    """What a reader takes away of a cell."""
    verdict = cell.verdict
    return {
        "verdict": verdict.verdict,
        "holds": verdict.c_ok,
        "breaks": verdict.c_bad,
        "limiter": verdict.limiter,
        "sentence": verdict.sentence,
        "memory": {line.name: rounded(line.measured) for line in cell.reconciliation.lines},
        "levels": [
            {
                "purpose": level.purpose,
                "users": level.concurrency,
                "word": level.verdict.verdict,
                "good": f"{level.stats.good} of {level.stats.offered}",
                "ttft_p95_ms": rounded(level.stats.ttft_ms.p95),
                "tpot_p95_ms": rounded(level.stats.tpot_ms.p95),
                "output_tokens_per_s": rounded(level.stats.output_tokens_per_s),
            }
            for level in sorted(cell.levels, key=lambda level: level.level)
        ],
    }


def test_golden(found: Result, update: bool) -> None:
    document = {cell.asked.cell: figures(cell) for cell in found.cells}
    if update:
        GOLDEN.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    expected = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert len(expected) == 4
    assert document == expected, "run pytest with --update and look at the difference"


def test_the_report_says_simulated_on_every_page(study: Path, written: Callable[[Path], Path]) -> None:
    page = written(study).read_text(encoding="utf-8")
    assert '<body class="simulated">' in page
    assert page.count(f'<p class="banner">{MARK}</p>') == 1
    assert f'@top-center {{ content: "{MARK}"' in page
    assert with_units(f"off by {ACCURACY.tpot_median:.0%} in the median") in page
    assert page.count('<span class="chip INVALID">SIMULATED</span>') == 4
    assert "ValueError: To serve at least one request" in page


def test_a_measured_report_does_not(one: Path, written: Callable[[Path], Path]) -> None:
    page = written(one).read_text(encoding="utf-8")
    assert '<p class="banner">' not in page
    assert "<body>" in page


def test_what_barely_fits_is_called_fragile(study: Path, written: Callable[[Path], Path]) -> None:
    page = written(study).read_text(encoding="utf-8")
    assert page.count(">FRAGILE</a> It barely fits") == 2, "16 bit, on both stacks"


def test_show_and_check_say_simulated(study: Path, found: Result) -> None:
    text = summary(study, found)
    assert "SIMULATED: no card" in text
    assert text.count("(simulated)") == 4
    assert "FRAGILE: It barely fits" in " ".join(text.split())
    answer = gate(found)
    assert answer.simulated
    assert told(answer).startswith("SIMULATED")
    provisional = msgspec.structs.replace(answer, word="PROVISIONAL")
    assert "lets nothing pass without --allow-simulated" in told(provisional)
    assert told(provisional, allow_simulated=True).endswith("The gate says PROVISIONAL of a simulation.")
    refused = msgspec.structs.replace(answer, word="REFUSED")
    assert told(refused).endswith("The gate says REFUSED of a simulation.")


def test_the_gate_says_why_what_holds_is_refused(found: Result) -> None:
    """A demand that is not met: that it holds so many users does not say it."""
    holding = next(cell for cell in found.cells if cell.verdict.c_ok is not None)
    why = "The launch needs 5000 users at once, and 3 may be signed."
    verdict = msgspec.structs.replace(holding.verdict, verdict="REFUSED", sentence=why)
    refused = msgspec.structs.replace(found, cells=(msgspec.structs.replace(holding, verdict=verdict),))
    (cell,) = gate(refused).cells
    assert cell.word == "REFUSED"
    assert cell.why.startswith("Holds ")
    assert cell.why.endswith(f" {why}")
    assert cell.why in told(gate(refused))


def test_vllm_against_tgi(found: Result, tmp_path: Path) -> None:
    both = compare(found, found, name_a="vllm", name_b="tgi")
    assert both.simulated
    assert len(both.cells) == 1
    page = tmp_path / "compare.html"
    write_comparison(found, found, both, page)
    assert MARK in page.read_text(encoding="utf-8")


def test_simulated_and_measured_are_not_comparable(found: Result, one: Path) -> None:
    with pytest.raises(JournalError, match=r"not comparable|no cell in common"):
        compare(found, result(read_run(one)), name_a="vllm", name_b="vllm-awq")


def test_exports_carry_it(found: Result, tmp_path: Path) -> None:
    write_csv(tmp_path / "levels.csv", level_rows(found))
    with (tmp_path / "levels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) >= 15
    assert {row["simulated"] for row in rows} == {"True"}
    told = benchmark_report(found, found.cells[0], found.cells[0].levels[0])
    assert told["run"]["description"].startswith("SIMULATED ")
    assert "SIMULATED" in told["run"]["keywords"]
