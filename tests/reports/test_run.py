import json
from pathlib import Path

import pytest
from fakes.run_directory import FakeCell, asked_cell, build_run

from orchestrator.errors import JournalError
from orchestrator.judge.search import SearchRules
from reports.run import read_run


def test_a_complete_run_has_its_cells_in_the_order_of_the_plan(twelve: Path) -> None:
    run = read_run(twelve)
    assert [cell.asked.deployment for cell in run.cells] == ["4-bit"] * 4 + ["8-bit"] * 4 + ["16-bit"] * 4
    assert all(cell.finished and cell.finished.outcome == "measured" for cell in run.cells)
    assert run.closed
    assert run.closed.outcome == "complete"
    assert run.openings == 1


def test_levels_are_sorted_by_concurrency_and_keep_their_history(twelve: Path) -> None:
    cell = read_run(twelve).cells[2]
    users = [level.concurrency for level in cell.levels]
    assert len(users) > 4
    assert users == sorted(users)
    assert [level.commit.level for level in cell.history] == list(range(len(users)))
    assert cell.history[0].concurrency == 2


def test_records_are_read_from_disk_level_by_level(twelve: Path) -> None:
    level = read_run(twelve).cells[0].levels[0]
    records = level.records()
    assert sum(record.phase == "measured" for record in records) == level.commit.stats.offered == 60
    assert level.records() is not records


def test_an_interrupted_run_names_the_level_under_way_and_the_cell_never_begun(interrupted: Path) -> None:
    done, stopped, never = read_run(interrupted).cells
    assert done.finished
    assert done.unfinished is None
    assert stopped.finished is None
    assert stopped.unfinished
    assert stopped.unfinished.concurrency == 8
    assert len(stopped.levels) == 2
    assert never.attempts == ()
    assert never.server is None


def test_a_server_that_died_is_one_attempt_and_its_successor_another(dies: Path) -> None:
    cell = read_run(dies).cells[0]
    assert len(cell.attempts) == 2
    assert cell.attempts[0].failure
    assert cell.attempts[0].failure.oom_killed
    assert cell.attempts[1].failure is None
    assert cell.attempts[0].log_tail() == ("main: server is listening",)


def test_the_tail_of_a_large_log_is_bounded(tmp_path: Path) -> None:
    log = "first\n" + "x" * 100_000 + "\n" + "\n".join(f"line {i}" for i in range(30)) + "\n"
    run = read_run(
        build_run(tmp_path / "run", [FakeCell(asked_cell("a", "w"), rules=SearchRules(levels=(1,)), log=log)])
    )
    tail = run.cells[0].attempts[0].log_tail()
    assert tail == tuple(f"line {i}" for i in range(10, 30))


def test_a_run_without_the_question_is_still_told(tmp_path: Path) -> None:
    root = build_run(tmp_path / "run", [FakeCell(asked_cell("a", "w"), rules=SearchRules(levels=(1,)))])
    lines = (root / "journal.jsonl").read_text().splitlines()
    opened = json.loads(lines[0])
    del opened["asked"]
    (root / "journal.jsonl").write_text("\n".join([json.dumps(opened), *lines[1:]]) + "\n")
    (cell,) = read_run(root).cells
    assert cell.asked.cell == "a--w"
    assert cell.asked.deployment == "a"
    assert cell.asked.stack == "llamacpp"


@pytest.mark.parametrize("name", ["../../etc", "a/b", "..", ".", "/", ""])
def test_a_cell_that_leads_out_of_the_run_directory_is_refused(one: Path, tmp_path: Path, name: str) -> None:
    text = (one / "journal.jsonl").read_text()
    (tmp_path / "journal.jsonl").write_text(text.replace('"vllm-awq--chat"', json.dumps(name)))
    with pytest.raises(JournalError, match="no file name"):
        read_run(tmp_path)


def test_what_is_no_run_directory_says_so(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match=r"no journal\.jsonl"):
        read_run(tmp_path)
