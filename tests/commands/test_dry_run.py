"""`loadproof run --dry-run`: what would be started, and by how many processes it would be loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.cli import main

PLAN = """
[model]
id = "m"
[[deployment]]
name = "theirs"
stack = "external"
launch = "external"
url = "http://127.0.0.1:9"
[[workload]]
name = "w"
prompt_tokens = 8
output_tokens = 8
{levels}
[ramp]
max = {most}
{client}
"""


def dry(
    capsys: pytest.CaptureFixture[str], folder: Path, *more: str, **plan: str | int
) -> tuple[int | str | None, str]:
    file = folder / "plan.toml"
    file.write_text(PLAN.format(**{"levels": "", "client": "", "most": 64, **plan}))
    with pytest.raises(SystemExit) as ended:
        main(["run", str(file), "--dry-run", *more])
    out, err = capsys.readouterr()
    return ended.value.code, out + err


@pytest.mark.parametrize(
    ("cores", "plan", "workers", "told"),
    [
        (8.0, {}, 1, "Load: one process for every level."),
        (8.0, {"most": 1200}, 3, "Load: one process, and up to 3 where the number of users"),
        (8.0, {"most": 64, "levels": "levels = [16, 1024]"}, 2, "Load: one process, and up to 2 where"),
        (2.0, {"most": 4096}, 1, "Load: one process for every level."),
        (2.0, {"client": "[client]\nworkers = 4"}, 4, "Load: 4 processes, as the plan says."),
        (8.0, {"most": 4096, "client": "[client]\nworkers = 1"}, 1, "Load: 1 process, as the plan says."),
    ],
)
def test_a_plan_shows_its_load_processes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    cores: float, plan: dict[str, str | int], workers: int, told: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("orchestrator.commands.run.usable_cpus", lambda: cores)
    code, out = dry(capsys, tmp_path, **plan)
    assert code == 0, out
    assert told in out
    _, out = dry(capsys, tmp_path, "--json", **plan)
    assert json.loads(out)["client"]["workers_expected"] == workers


@pytest.mark.parametrize("client", ["workers = 0", 'workers = "many"', "worker = 2", 'proxy = "http://x"'])
def test_a_client_that_cannot_be_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, client: str) -> None:
    code, out = dry(capsys, tmp_path, client=f"[client]\n{client}")
    assert code == 2
    assert f"client.{client.split()[0]}" in out


@pytest.mark.parametrize(
    ("ramp", "warned"),
    [
        ('method = "full"\nmax_seconds = 60', True),
        ('method = "full"', False),
        ("max_seconds = 60", False),
    ],
)
def test_a_plan_that_would_cut_every_fresh_run_says_so(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, ramp: str, warned: bool
) -> None:
    code, out = dry(capsys, tmp_path, most=f"64\n{ramp}")
    assert code == 0, out
    assert ("INVALID, after 1:00: raise ramp.max_seconds" in out) is warned, out


PAIRS = """
seed = 4
[model]
id = "m"
[defaults]
launch = "docker"
[[deployment]]
name = "one"
stack = "vllm"
[[deployment]]
name = "two"
stack = "sglang"
[[workload]]
name = "w"
prompt_tokens = 8
output_tokens = 8
[ramp]
max = 4
[[compare]]
a = "one"
b = "two"
workload = "w"
pairs = 4
concurrency = 2048
"""


def test_a_comparison_is_shown_with_its_order_and_its_cost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("orchestrator.commands.run.usable_cpus", lambda: 8.0)
    file = tmp_path / "plan.toml"
    file.write_text(PAIRS)

    def told(*more: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["run", str(file), "--dry-run", *more])
        assert ended.value.code == 0
        return capsys.readouterr().out

    out, document = told(), json.loads(told("--json"))
    (comparison,) = document["comparisons"]
    assert comparison["id"] == "one--two--w--2048"
    assert comparison["order"] in ("ABBA BAAB", "BAAB ABBA")
    assert comparison["expected_s"] > 8 * 180, "eight starts in Docker"
    assert "2 cells and 1 comparison in pairs, about" in out
    assert "two against one at 2,048 users: 4 pairs in the order " + comparison["order"] in out
    assert document["client"]["workers_expected"] > 1, "its level is the largest of the plan"
