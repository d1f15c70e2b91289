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
