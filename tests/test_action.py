"""The GitHub Action: its steps call what the command line has, and its gate answers with the gate's exit code."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fakes.run_directory import FakeCell, asked_cell, build_run

from orchestrator.judge.search import SearchRules

ACTION = Path(__file__).parent.parent / "action.yml"


@pytest.fixture(scope="module")
def steps() -> dict[str, dict[str, Any]]:
    yaml = pytest.importorskip("yaml", reason="pip install pyyaml")
    action = yaml.safe_load(ACTION.read_text(encoding="utf-8"))
    found: dict[str, dict[str, Any]] = {step["name"]: step for step in action["runs"]["steps"]}
    assert action["runs"]["using"] == "composite"
    return found


def shell(step: dict[str, Any], folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a step as the runner does: bash, stopping at the first error."""
    bin_folder = folder / "loadproof" / "bin"
    bin_folder.mkdir(parents=True, exist_ok=True)
    called = bin_folder / "loadproof"
    called.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m orchestrator.cli "$@"\n')
    called.chmod(0o755)
    names = {"RUNNER_TEMP": str(folder), "GITHUB_STEP_SUMMARY": str(folder / "summary.md"), **env}
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        env={**os.environ, "PYTHONPATH": str(ACTION.parent), **names},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_no_input_is_pasted_into_a_script(steps: dict[str, dict[str, Any]]) -> None:
    """An input in a script is code; in the environment it is text."""
    assert not [name for name, step in steps.items() if "${{" in step.get("run", "")]


@pytest.mark.parametrize(("allow", "code"), [("false", 6), ("true", 0)])
def test_the_gate_step(steps: dict[str, dict[str, Any]], tmp_path: Path, allow: str, code: int) -> None:
    run = build_run(tmp_path / "run", [FakeCell(asked_cell("a", "w"), rules=SearchRules(levels=(4,)))])
    done = shell(steps["Gate"], tmp_path, RUN=str(run), BASELINE=str(run), UNDER_TEST="", ALLOW_PROVISIONAL=allow)
    assert done.returncode == code, done.stderr
    assert "The gate says PROVISIONAL." in done.stdout
    assert "The gate says PROVISIONAL." in (tmp_path / "summary.md").read_text()


def test_what_is_installed_is_the_action_s_own_checkout_or_what_was_named(
    steps: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    """pip and venv stand in as a script that tells what it was called with."""
    fake = tmp_path / "bin" / "python3"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\nmkdir -p "$3/bin"; cp "$0" "$3/bin/python" 2>/dev/null; echo "$@"\n')
    fake.chmod(0o755)
    path = f"{fake.parent}:{os.environ['PATH']}"
    for version, installed in (("", "/a checkout"), ("loadproof==1.0", "loadproof==1.0")):
        done = shell(steps["Install"], tmp_path, VERSION=version, OWN="/a checkout", PATH=path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == f"-m pip install --quiet {installed}"


def test_the_measuring_step_hands_every_override_on(steps: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    done = shell(steps["Measure"], tmp_path, PLAN="no-such.toml", RUN="r", OVERRIDES="ramp.max=8\ntitle=a b\n")
    assert done.returncode == 2
    assert "no-such.toml" in done.stderr


def test_the_report_is_uploaded_whatever_the_gate_says(steps: dict[str, dict[str, Any]]) -> None:
    assert steps["Upload"]["if"] == "always()"
    assert list(steps)[-2:] == ["Gate", "Upload"]
