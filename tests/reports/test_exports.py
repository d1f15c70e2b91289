"""A run in the formats of others: their own readers and schemas decide."""

import csv
import json
from pathlib import Path

import pytest
from fakes.hostile_run import hostile
from fakes.run_directory import FakeCell, asked_cell, build_run

from orchestrator.judge.search import SearchRules
from reports.exports.benchmark_report import benchmark_report
from reports.exports.tables import level_rows, request_rows, write_csv, write_parquet
from reports.exports.vllm_bench import vllm_bench
from reports.result import Result, result
from reports.run import Run, read_run

VLLM_KEYS = {
    *("date", "endpoint_type", "backend", "label", "model_id", "tokenizer_id", "num_prompts", "request_rate"),
    *("burstiness", "max_concurrency", "duration", "completed", "failed", "total_input_tokens", "total_output_tokens"),
    *("request_throughput", "request_goodput", "output_throughput", "total_token_throughput"),
    *("input_lens", "output_lens", "ttfts", "itls", "start_times", "generated_texts", "errors"),
    *("max_output_tokens_per_s", "max_concurrent_requests"),
    *(f"{kind}_{name}_ms" for kind in ("mean", "median", "std", "p99") for name in ("ttft", "tpot", "itl")),
}
"""What scripts read of a result file of `vllm bench serve`, vLLM 0.11 and later."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    cell = FakeCell(
        asked_cell("kv", "chat"), rules=SearchRules(start=2, maximum=8, confirm=0), failing=lambda c: c >= 8
    )
    dead = FakeCell(asked_cell("dead", "chat"), rules=SearchRules(levels=(1,)), failing=lambda c: True, requests=20)
    return read_run(build_run(tmp_path_factory.mktemp("export") / "run", [cell, dead]))


@pytest.fixture(scope="module")
def found(run: Run) -> Result:
    return result(run)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_tables_have_a_row_for_each_level_and_each_request(run: Run, found: Result, tmp_path: Path) -> None:
    write_csv(tmp_path / "levels.csv", level_rows(found))
    write_csv(tmp_path / "requests.csv", request_rows(run))
    levels, requests = rows_of(tmp_path / "levels.csv"), rows_of(tmp_path / "requests.csv")
    assert len(levels) == sum(len(cell.levels) for cell in found.cells)
    first = found.cells[0].levels[0]
    assert float(levels[0]["ttft_p95_ms"]) == first.stats.ttft_ms.p95
    assert float(levels[0]["ttft_p95_ms_lower"]) <= float(levels[0]["ttft_p95_ms"])
    measured = [row for row in requests if row["phase"] == "measured"]
    assert len(measured) == sum(level.stats.offered for cell in found.cells for level in cell.levels)
    failed = [row for row in measured if row["failure"]]
    assert failed
    assert {(row["ttft_ms"], row["failure_status"], row["good"]) for row in failed} == {("", "503", "False")}


def test_parquet_says_the_same_with_types(run: Run, found: Result, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pip install pyarrow")
    write_parquet(tmp_path / "r.parquet", request_rows(run), truths=("good", "clamped"))
    write_parquet(tmp_path / "l.parquet", level_rows(found), truths=("valid", "simulated"))
    table, levels = parquet.read_table(tmp_path / "r.parquet"), parquet.read_table(tmp_path / "l.parquet")
    assert table.to_pylist() == list(request_rows(run))
    assert levels.to_pylist() == list(level_rows(found))
    types = {field.name: str(field.type) for field in table.schema}
    assert (types["sent_ns"], types["ttft_ms"], types["good"], types["phase"]) == ("int64", "double", "bool", "string")


def test_text_that_a_spreadsheet_would_run_is_only_text(tmp_path: Path) -> None:
    write_csv(tmp_path / "x.csv", iter([{"a": "=cmd|' /C calc'!A0", "b": "-1+1", "c": -1.5, "d": "x\0\ud800"}]))
    assert (tmp_path / "x.csv").read_text(encoding="utf-8").splitlines()[1] == "'=cmd|' /C calc'!A0,'-1+1,-1.5,x\ufffd?"
    write_csv(tmp_path / "none.csv", iter([]))
    assert (tmp_path / "none.csv").read_bytes() == b""


def test_hostile_text_goes_through_every_export(tmp_path: Path) -> None:
    run = read_run(hostile(tmp_path))
    found = result(run)
    write_csv(tmp_path / "r.csv", request_rows(run))
    write_csv(tmp_path / "l.csv", level_rows(found))
    cell = found.cells[0]
    json.dumps(benchmark_report(found, cell, cell.levels[0]), allow_nan=False)
    json.dumps(vllm_bench(found, cell, cell.levels[0], run.cells[0].levels[0].records()), allow_nan=False)


def test_vllm_bench_has_the_keys_of_vllm_and_one_entry_a_request(run: Run, found: Result) -> None:
    for raw_cell, cell in zip(run.cells, found.cells, strict=True):
        for raw, level in zip(raw_cell.levels, cell.levels, strict=True):
            file = vllm_bench(found, cell, level, raw.records())
            assert set(file) >= VLLM_KEYS
            lists = [name for name, value in file.items() if isinstance(value, list)]
            assert {len(file[name]) for name in lists} == {level.stats.offered}
            assert file["completed"] + file["failed"] == file["num_prompts"] == level.stats.offered
            assert sum(bool(error) for error in file["errors"]) == level.stats.failed
            json.dumps(file, allow_nan=False)


def test_vllm_bench_agrees_with_itself(run: Run, found: Result) -> None:
    """What a script computes from the detailed lists is what the summary says."""
    cell, level, raw = found.cells[0], found.cells[0].levels[0], run.cells[0].levels[0]
    file = vllm_bench(found, cell, level, raw.records())
    assert sum(file["ttfts"]) / len(file["ttfts"]) * 1000 == pytest.approx(file["mean_ttft_ms"])
    itls = [gap for gaps in file["itls"] for gap in gaps]
    assert sum(itls) / len(itls) * 1000 == pytest.approx(file["mean_itl_ms"])
    assert sum(file["output_lens"]) / file["duration"] == pytest.approx(file["output_throughput"])
    assert file["max_concurrent_requests"] <= level.concurrency
    assert file["date"] == "20261124-190000"


def test_a_benchmark_report_is_valid_by_the_standards_own_library(found: Result) -> None:
    library = pytest.importorskip("llmd_benchmark_report", reason="pip install llmd-benchmark-report")
    seen = set()
    for cell in found.cells:
        for level in cell.levels:
            made = json.loads(json.dumps(benchmark_report(found, cell, level), allow_nan=False))
            read = library.load_benchmark_report(made)
            assert read.results.request_performance.aggregate.requests.failures == level.stats.failed
            assert read.scenario.load.standardized.concurrency == level.concurrency
            seen.add(read.run.uid)
    assert len(seen) == sum(len(cell.levels) for cell in found.cells)
