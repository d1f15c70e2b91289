"""check, compare, export and report: their exit codes and the sentences that people meet."""

import builtins
import json
import re
from pathlib import Path
from typing import Any

import pytest
from fakes.run_directory import FakeCell, asked_cell, build_run

from orchestrator.cli import main
from orchestrator.judge.search import SearchRules
from reports import pdf


def cell(slower: float = 1.0, name: str = "vllm") -> FakeCell:
    return FakeCell(
        asked_cell(name, "chat"),
        rules=SearchRules(start=4, maximum=4, confirm=2),
        ttft_ms=lambda c: (60 + 30 * c) * slower,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    build_run(root / "base", [cell()])
    build_run(root / "slow", [cell(1.5)])
    build_run(root / "other", [cell()], host={"cpu_model": "Another CPU"})
    build_run(root / "broken", [cell(30.0)])
    return root


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run loadproof as from the shell: (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        code = left.value.code
        assert isinstance(code, int)
        return code, out, err

    return run


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["base"], 6, "The gate says PROVISIONAL."),
        (["base", "--allow-provisional"], 0, "The gate says PROVISIONAL."),
        (["broken", "--allow-provisional"], 1, "The gate says REFUSED."),
        (["base", "--baseline", "base", "--allow-provisional"], 0, "The gate says PROVISIONAL."),
        (
            ["slow", "--baseline", "base", "--allow-provisional"],
            1,
            "vllm, chat at 4 users: TTFT p95 is 1.",
        ),
        (["other", "--baseline", "base", "--under-test", "machine", "--allow-provisional"], 0, "PROVISIONAL"),
    ],
)
def test_the_gate_answers_by_its_exit_code(call: Any, runs: Path, arguments: list[str], code: int, said: str) -> None:
    named = [str(runs / a) if (runs / a).exists() else a for a in arguments]
    found, out, _ = call("check", *named)
    assert found == code
    assert said in out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["report", "base", "--out", "/no/such/folder/x.html"], 3, "there is no folder /no/such/folder"),
        (["compare", "base", "base", "--html", "/no/such/folder/x.html"], 3, "there is no folder /no/such/folder"),
        (["compare", "base", "/no/such/run"], 5, "/no/such/run is not a run directory"),
        (["check", "base", "--baseline", "/no/such/run"], 5, "/no/such/run is not a run directory"),
    ],
)
def test_what_cannot_be_written_or_read_is_told_before_the_work(
    call: Any, runs: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, said: str
) -> None:
    def work(*_: object) -> None:
        raise AssertionError("the run was worked on first")

    for name in ("report.write_result", "compare.result", "check.result"):
        monkeypatch.setattr(f"orchestrator.commands.{name}", work)
    command, *rest = (str(runs / a) if (runs / a).exists() else a for a in arguments)
    found, out, err = call(command, *rest)
    assert (found, out) == (code, "")
    assert said in err


def test_a_baseline_on_other_terms_is_refused_in_one_sentence(call: Any, runs: Path) -> None:
    code, out, err = call("check", runs / "other", "--baseline", runs / "base")
    assert (code, out) == (5, "")
    assert err.startswith("loadproof: The runs are not comparable: machine differs in chat (Example CPU 3000")
    assert err.count("\n") == 1


def test_the_gate_as_json(call: Any, runs: Path) -> None:
    code, out, _ = call("check", runs / "slow", "--baseline", runs / "base", "--json")
    found = json.loads(out)
    assert (code, found["word"], len(found["regressions"]) >= 1) == (1, "REFUSED", True)


def test_compare_prints_claims_and_writes_a_page(call: Any, runs: Path, tmp_path: Path) -> None:
    code, out, _ = call("compare", runs / "base", runs / "slow", "--html", tmp_path / "c.html")
    assert code == 0
    line = next(line for line in out.splitlines() if "TTFT p95" in line)
    assert "ratio 1.5" in line or "ratio 1.4" in line
    assert "worse" in line
    page = (tmp_path / "c.html").read_text(encoding="utf-8")
    assert "Content-Security-Policy" in page
    assert page.count("<script") == 1
    code, out, _ = call("compare", runs / "base", runs / "slow", "--json")
    assert json.loads(out)["cells"][0]["workload"] == "chat"


def test_what_is_not_comparable_exits_5_and_says_why(call: Any, runs: Path) -> None:
    code, _, err = call("compare", runs / "base", runs / "other")
    assert code == 5
    assert "machine differs" in err
    assert call("compare", runs / "base", runs / "nowhere")[0] == 5


@pytest.mark.parametrize(
    ("form", "files"),
    [
        ("json", ["result.json"]),
        ("csv", ["levels.csv", "requests.csv"]),
        ("benchmark-report", ["vllm--chat-0-c4.json"]),
        ("vllm-bench", ["vllm--chat-0-c4.json"]),
    ],
)
def test_export_writes_a_folder_of_files(call: Any, runs: Path, tmp_path: Path, form: str, files: list[str]) -> None:
    code, out, _ = call("export", runs / "base", "--format", form, "--out", tmp_path)
    assert code == 0
    written = sorted(tmp_path.iterdir())
    assert out == f"Wrote {len(written)} file{'s' * (len(written) > 1)} to {tmp_path}.\n"
    assert {path.name for path in written} >= set(files)
    assert all(path.stat().st_size > 100 for path in written)


def test_an_export_inside_the_run_directory_is_no_raw_file(call: Any, tmp_path: Path) -> None:
    root = build_run(tmp_path / "run", [cell()])
    call("report", root)
    before = (root / "report.html").read_bytes()
    assert call("export", root, "--format", "csv")[0] == 0
    assert (root / "exports" / "csv" / "levels.csv").exists()
    call("report", root)
    assert (root / "report.html").read_bytes() == before


def test_the_pandas_of_the_readme(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build_run(tmp_path / "runs" / "ci", [cell()])
    assert call("export", tmp_path / "runs" / "ci", "--format", "csv")[0] == 0
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"```python\n(import pandas.*?)```", readme, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(lines, {})
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["deployment", "vllm"]
    assert rows[0].split() == ["workload", "concurrency"]
    assert re.fullmatch(r"chat +4 +[\d.]+", rows[1])


def test_parquet_without_pyarrow_is_one_sentence(
    call: Any, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def missing(name: str, *more: Any, **named: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *more, **named)

    monkeypatch.setattr(builtins, "__import__", missing)
    code, _, err = call("export", runs / "base", "--format", "parquet", "--out", tmp_path)
    assert code == 3
    assert err == (
        "loadproof: Parquet needs pyarrow, which is not installed. pip install 'loadproof[parquet]', or export csv.\n"
    )


def test_a_place_that_cannot_be_written_is_one_sentence(call: Any, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = call("export", runs / "base", "--format", "csv", "--out", tmp_path / "file" / "deeper")
    assert code == 3
    assert "cannot be written" in err


def test_a_pdf_without_chromium_is_one_sentence_before_any_work(
    call: Any, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pdf, "NAMES", ("no-such-browser",))
    code, _, err = call("report", runs / "base", "--pdf", "--out", tmp_path / "r.html")
    assert code == 3
    assert "printed by Chromium, and none is on PATH" in err
    assert not (tmp_path / "r.html").exists()


def test_a_chromium_that_does_not_print_is_told(
    call: Any, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pdf, "find_chromium", lambda: "false")
    code, _, err = call("report", runs / "base", "--pdf", "--out", tmp_path / "r.html")
    assert code == 3
    assert "did not print" in err


@pytest.mark.chromium
def test_the_report_as_pdf(call: Any, runs: Path, tmp_path: Path) -> None:
    code, out, _ = call("report", runs / "base", "--pdf", "--out", tmp_path / "r.html")
    assert code == 0
    assert out.splitlines() == [str(tmp_path / "r.html"), str(tmp_path / "r.pdf")]
    assert (tmp_path / "r.pdf").read_bytes().startswith(b"%PDF-")
