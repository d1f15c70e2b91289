import json
import shutil
from pathlib import Path

import msgspec
import pytest
from fakes.run_directory import MIB, FakeCell, asked_cell, build_run

import reports
from orchestrator.errors import HostError
from orchestrator.judge.search import SearchRules
from orchestrator.records import Sample
from reports.result import Result, encode, result, schema, write_result
from reports.run import read_run
from reports.timeline import best_source, memory_series, thin

SCHEMA_FILE = Path(reports.__file__).parent / "result.schema.json"


def read(path: Path) -> Result:
    return result(read_run(path))


def test_the_shipped_schema_is_the_one_of_the_types(update: bool) -> None:
    if update:
        SCHEMA_FILE.write_bytes(encode(schema()))
    assert SCHEMA_FILE.read_bytes() == encode(schema()), "run pytest with --update"


def test_result_json_is_the_same_twice_and_reads_back(one: Path, tmp_path: Path) -> None:
    root = shutil.copytree(one, tmp_path / "one")
    found = write_result(root)
    first = (root / "result.json").read_bytes()
    write_result(root)
    assert (root / "result.json").read_bytes() == first
    assert msgspec.json.decode(first, type=Result) == found
    assert "Infinity" not in first.decode()
    assert [path.name for path in root.iterdir() if path.name.endswith(".part")] == []


def test_a_complete_run(twelve: Path) -> None:
    found = read(twelve)
    assert (found.outcome, len(found.cells)) == ("complete", 12)
    for cell in found.cells:
        assert cell.outcome == "measured"
        assert cell.verdict.verdict == "PROVISIONAL"
        assert cell.hardware == "cpu"
        assert {level.judged_again for level in cell.levels} == {"same"}
    chat = found.cells[3]
    assert chat.verdict.c_ok is not None
    assert chat.verdict.c_bad is not None
    assert chat.search == f"{chat.verdict.c_ok} holds and {chat.verdict.c_bad} does not."
    assert set(found.files) >= {"plan.toml", "journal.jsonl", "cells/4-bit--chat/attempt-1/requests.jsonl"}


def test_the_bill_is_what_the_engine_told_and_what_was_seen(twelve: Path) -> None:
    bill = read(twelve).cells[0].bill
    assert (bill.weights_bytes, bill.kv_bytes, bill.compute_bytes) == (93 * MIB, 180 * MIB, 36 * MIB)
    assert bill.graphs_bytes is None
    assert (bill.ready_bytes, bill.peak_bytes) == (243 * MIB, 246 * MIB)
    assert bill.rest_bytes == (246 - 93 - 180 - 36) * MIB
    assert bill.source == "memory of the process tree"


def test_a_run_that_was_interrupted(interrupted: Path) -> None:
    found = read(interrupted)
    assert found.outcome == "interrupted"
    assert [cell.outcome for cell in found.cells] == ["measured", "unfinished", "not started"]
    assert found.cells[1].unfinished_concurrency == 8
    assert found.cells[1].search == ""
    assert found.cells[2].verdict.verdict == "REFUSED"


def test_a_journal_without_its_end_is_an_unfinished_run(one: Path, tmp_path: Path) -> None:
    root = shutil.copytree(one, tmp_path / "one")
    lines = (root / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (root / "journal.jsonl").write_bytes(b"".join(lines[:-2]) + b'{"event":"run-clo')
    assert read(root).outcome == "unfinished"


def test_failures_carry_class_remedy_and_the_end_of_the_log(failures: Path) -> None:
    found = read(failures)
    assert [cell.outcome for cell in found.cells] == ["failed", "failed"]
    (incident,) = found.cells[0].incidents
    assert incident.failure.failure_class == "oom-weights"
    assert incident.failure.remedy
    assert incident.log_tail == ("line",) * 20
    assert incident.ended_cell


def test_a_death_under_load_is_an_incident_that_did_not_end_the_cell(dies: Path) -> None:
    (cell,) = read(dies).cells
    (incident,) = cell.incidents
    assert not incident.ended_cell
    assert [level.verdict.hard_break for level in cell.levels if level.concurrency == 16] == ["out of memory"]
    assert {level.attempt for level in cell.levels} == {1, 2}
    starts = [span.start_s for span in cell.timeline.levels]
    assert len(starts) == len(cell.levels)
    assert starts == sorted(starts)
    assert len(cell.timeline.servers) == 2
    assert cell.timeline.servers[1][0][0] > cell.timeline.servers[0][-1][0]


def test_a_cut_search_at_an_endpoint_that_is_not_ours(external: Path) -> None:
    (cell,) = read(external).cells
    assert (cell.outcome, cell.hardware) == ("cut", "unknown")
    assert "budget" in cell.note
    assert cell.bill.peak_bytes is None
    assert any("lengths" in step for step in cell.verdict.missing)


@pytest.mark.parametrize(
    ("host", "more", "hardware"),
    [
        ({}, {}, "cpu"),
        ({"gpu0": "NVIDIA L4"}, {}, "unknown"),
        ({"gpu0": "NVIDIA L4"}, {"gpus": ["0"]}, "gpu"),
        ({}, {"launch": "simulated", "simulated": True}, "simulated"),
    ],
)
def test_hardware_is_claimed_only_where_it_is_known(
    tmp_path: Path, host: dict[str, str | float | None], more: dict[str, object], hardware: str
) -> None:
    cell = FakeCell(asked_cell("a", "w", **more), rules=SearchRules(levels=(1,)))
    root = build_run(tmp_path / "run", [cell], host={"cpu_model": "x", **host})
    assert read(root).cells[0].hardware == hardware


def test_a_stored_verdict_that_the_records_do_not_give_is_told(one: Path, tmp_path: Path) -> None:
    root = shutil.copytree(one, tmp_path / "one")
    lines = (root / "journal.jsonl").read_text().splitlines()
    changed = 0
    for number, line in enumerate(lines):
        event = json.loads(line)
        if event["event"] == "level-committed" and event["verdict"]["verdict"] == "FAIL" and event["verdict"]["valid"]:
            event["verdict"]["verdict"] = "PASS"
            lines[number] = json.dumps(event)
            changed += 1
    assert changed
    (root / "journal.jsonl").write_text("\n".join(lines) + "\n")
    (cell,) = read(root).cells
    assert [level.judged_again for level in cell.levels].count("differs") == changed
    assert "this version's search" in cell.search


def test_a_place_that_cannot_be_written_is_one_sentence(one: Path, tmp_path: Path) -> None:
    root = shutil.copytree(one, tmp_path / "one")
    (root / "result.json").mkdir()
    with pytest.raises(HostError, match=r"result\.json cannot be written"):
        write_result(root)


def test_memory_is_told_by_the_nearest_source() -> None:
    samples = [
        Sample(at_ns=1, source="tree", values={"pss_bytes": 5.0, "rss_bytes": 9.0}),
        Sample(at_ns=1, source="container", values={"memory_used_bytes": 6.0}),
        Sample(at_ns=1, source="gpu:a", values={"memory_ours_bytes": 7.0, "memory_used_bytes": 8.0}),
        Sample(at_ns=1, source="host", values={"memory_used_bytes": 99.0}),
        Sample(at_ns=2, source="gpu:b", values={"power_w": 300.0}),
    ]
    assert memory_series(samples) == {"tree": [(1, 5.0)], "container": [(1, 6.0)], "gpu:a": [(1, 7.0)]}
    assert best_source({"tree": 9.0, "container": 1.0}) == "container"
    assert best_source({"gpu:a": 1.0, "gpu:b": 2.0, "tree": 9.0}) == "gpu:b"
    assert best_source({}) is None


def test_a_thinned_line_keeps_its_peak_and_its_order() -> None:
    line = [(float(i), 1.0 if i != 777 else 50.0) for i in range(1000)]
    shown = thin(line, 100)
    assert len(shown) == 100
    assert (777.0, 50.0) in shown
    assert list(shown) == sorted(shown)
    assert thin(line[:5], 100) == tuple(line[:5])


def test_a_line_of_memory_is_of_one_quantity() -> None:
    samples = [
        Sample(at_ns=1, source="tree", values={"rss_bytes": 30.0}),
        Sample(at_ns=2, source="tree", values={"rss_bytes": 30.0, "pss_bytes": 20.0}),
        Sample(at_ns=3, source="tree", values={"rss_bytes": 31.0}),
        Sample(at_ns=4, source="gpu:a", values={"power_w": 1.0}),
    ]
    assert memory_series(samples) == {"tree": [(2, 20.0)]}
