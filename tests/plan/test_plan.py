"""A sound plan: what it becomes, its cells, fingerprints and estimate."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from orchestrator.errors import PlanError
from orchestrator.plan import Plan, load_plan, parse_plan
from orchestrator.records import Slo

SMALL = """
[model]
id = "org/model"
context_tokens = 4096

[[deployment]]
name = "one"
stack = "vllm"

[[workload]]
name = "chat"
preset = "azure-conv-2023"
"""


def plan_of(
    text: str, *overrides: str, base: Path = Path("/nowhere"), environ: Mapping[str, str] | None = None
) -> Plan:
    return parse_plan(text.encode(), "plan.toml", overrides, base=base, environ=environ or {})


def test_a_small_plan_has_the_documented_defaults() -> None:
    plan = plan_of(SMALL)
    assert plan.slo == Slo()
    assert (plan.slo.ttft_ms, plan.slo.tpot_ms, plan.slo.attainment, plan.slo.error_budget) == (1000, 50, 0.95, 0.001)
    ramp = plan.ramp
    assert (ramp.start, ramp.max, ramp.factor, ramp.precision, ramp.confirm) == (1, 256, 2, 0.1, 1)
    assert (ramp.requests, ramp.requests_per_user, ramp.warmup_generations, ramp.deadline_seconds) == (100, 10, 3, 600)
    assert ramp.longest_s == 600
    assert plan_of(SMALL + '[ramp]\nmethod = "full"\n').ramp.longest_s == 7200
    assert plan_of(SMALL + '[ramp]\nmethod = "full"\nmax_seconds = 60\n').ramp.longest_s == 60
    assert plan.budget.minutes is None
    assert (plan.name, plan.title) == ("plan.toml", "plan")
    assert plan.text == SMALL.encode()
    assert plan.sha256 == hashlib.sha256(SMALL.encode()).hexdigest()


def test_the_model_is_the_default_of_every_deployment() -> None:
    text = SMALL.replace('id = "org/model"', 'id = "org/model"\nrevision = "abc"\nserved_name = "m"') + (
        '[[deployment]]\nname = "two"\nstack = "vllm"\nmodel = "org/model-AWQ"\ncontext_tokens = 2048\n'
    )
    one, two = plan_of(text).deployments
    assert (one.model, one.revision, one.served_name, one.context_tokens) == ("org/model", "abc", "m", 4096)
    # A revision belongs to its model; name and context are the plan's.
    assert (two.model, two.revision, two.served_name, two.context_tokens) == ("org/model-AWQ", None, "m", 2048)


def test_defaults_stand_for_every_deployment_that_has_such_a_key() -> None:
    plan = plan_of(
        SMALL
        + """
[defaults]
gpus = 0
args = "--a 1"
mounts = ["/cache:/c"]
[[deployment]]
name = "two"
stack = "vllm"
gpus = [1, 2]
[[deployment]]
name = "three"
stack = "vllm"
launch = "external"
url = "http://127.0.0.1:1"
"""
    )
    assert [(d.gpus, d.args, d.mounts) for d in plan.deployments] == [
        (("0",), ("--a", "1"), ("/cache:/c",)),
        (("1", "2"), ("--a", "1"), ("/cache:/c",)),
        (("0",), ("--a", "1"), ()),
    ]


def test_cells_are_every_deployment_under_every_workload() -> None:
    text = SMALL + (
        '[[deployment]]\nstack = "vllm"\nquantization = "fp8"\n'
        '[[workload]]\nprompt_tokens = 512\noutput_tokens = "uniform:10:20"\nlevels = [1, 4]\n'
    )
    plan = plan_of(text)
    cells = plan.cells()
    assert [cell.id for cell in cells] == [
        "one--chat", "one--p512-ouniform_10_20", "vllm-fp8--chat", "vllm-fp8--p512-ouniform_10_20",
    ]  # fmt: skip
    assert len({cell.fingerprint for cell in cells}) == 4
    assert cells[1].workload.levels == (1, 4)
    assert plan.workload(cells[1]).stats().prompt_mean == 512
    assert plan.workload(cells[0]) is plan.workload(cells[2])


def test_every_deployment_is_asked_the_same_lengths() -> None:
    """The smallest context of all cuts the pairs for all, so that the request lists are equal."""
    text = SMALL + '[[deployment]]\nname = "two"\nstack = "vllm"\ncontext_tokens = 2048\n'
    assert [cell.workload.context_tokens for cell in plan_of(text).cells()] == [2048, 2048]
    own = text.replace('preset = "azure-conv-2023"', 'preset = "azure-conv-2023"\ncontext_tokens = 1024')
    assert [cell.workload.context_tokens for cell in plan_of(own).cells()] == [1024, 1024]


def test_units_and_shorthands() -> None:
    plan = plan_of(
        SMALL
        + """
[[deployment]]
name = "two"
stack = "vllm"
gpus = 0
shm_bytes = "8GiB"
start_timeout_s = "20m"
args = "--foo 'a b'"
env = { WORKERS = 3, RATIO = 0.5, TOKENIZERS_PARALLELISM = "false", VLLM_MAX_TOKENS = 5 }
secrets = ["HF_TOKEN"]
mounts = ["cache:/c", "./models:/m:ro"]

[slo]
ttft_ms = "2s"
tpot_ms = "none"
e2e_ms = 30000

[ramp]
max_seconds = "5m"
[budget]
minutes = "2h"
""",
        base=Path("/plans"),
        environ={"HF_TOKEN": "x"},
    )
    two = plan.deployments[1]
    assert (two.gpus, two.shm_bytes, two.start_timeout_s, two.args) == (("0",), 8 * 2**30, 1200, ("--foo", "a b"))
    assert two.env == {
        "WORKERS": "3", "RATIO": "0.5", "TOKENIZERS_PARALLELISM": "false", "VLLM_MAX_TOKENS": "5"
    }  # fmt: skip
    assert two.secrets == ("HF_TOKEN",)
    assert two.mounts == ("cache:/c", "/plans/models:/m:ro")
    assert (plan.slo.ttft_ms, plan.slo.tpot_ms, plan.slo.e2e_ms) == (2000, None, 30000)
    assert (plan.ramp.max_seconds, plan.budget.minutes) == (300, 120)


def test_paths_start_at_the_plan_and_python_is_ours(tmp_path: Path) -> None:
    (tmp_path / "plans").mkdir()
    (tmp_path / "model.gguf").write_bytes(b"GGUF" * 8)
    (tmp_path / "plans" / "mine.csv").write_text("prompt_tokens,output_tokens\n10,5\n20,6\n")
    path = tmp_path / "plans" / "p.toml"
    path.write_text(
        '[model]\nid = "../model.gguf"\n[[deployment]]\nstack = "llamacpp"\nlaunch = "process"\n'
        'command = ["{python}", "-m", "server"]\n[[workload]]\ntrace = "mine.csv"\n'
    )
    plan = load_plan(path)
    (cell,) = plan.cells()
    assert cell.id == "llamacpp--mine"
    assert cell.deployment.model == str(tmp_path / "model.gguf")
    assert cell.deployment.command == (sys.executable, "-m", "server")
    assert plan.workload(cell).pairs.tolist() == [[10, 5], [20, 6]]
    assert plan.path == path

    (tmp_path / "model.gguf").write_bytes(b"GGUF" * 9)
    assert plan.cells()[0].fingerprint != cell.fingerprint
    (tmp_path / "model.gguf").write_bytes(b"GGUF" * 8)
    assert plan.cells()[0].fingerprint == cell.fingerprint
    path.with_name("mine.csv").write_text("prompt_tokens,output_tokens\n10,5\n20,7\n")
    assert load_plan(path).cells()[0].fingerprint != cell.fingerprint


def test_a_model_behind_a_mount_is_looked_for_on_the_host(tmp_path: Path) -> None:
    text = (
        SMALL.replace("org/model", "/models/x.gguf").replace("vllm", "llamacpp")
        + f"""
[[deployment]]
name = "two"
stack = "llamacpp"
mounts = ["{tmp_path}:/models:ro"]
"""
    )
    text = text.replace('stack = "llamacpp"\n', f'stack = "llamacpp"\nmounts = ["{tmp_path}:/models"]\n', 1)
    with pytest.raises(PlanError, match=f"{tmp_path}/x.gguf"):
        plan_of(text)
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    assert [deployment.model for deployment in plan_of(text).deployments] == ["/models/x.gguf"] * 2


def test_what_changes_a_result_changes_the_fingerprint() -> None:
    base = plan_of(SMALL).cells()[0].fingerprint
    assert plan_of(SMALL).cells()[0].fingerprint == base
    for override in (
        "seed=1", "slo.ttft_ms=999", "ramp.requests=110", "model.vocab_size=32000", "model.context_tokens=4095",
        "deployment.0.quantization=fp8", "deployment.0.env.A=b", "workload.0.prompt_scale=1.1", "workload.0.levels=[1]",
    ):  # fmt: skip
        assert plan_of(SMALL, override).cells()[0].fingerprint != base, override
    for override in ("budget.minutes=5", "title=x"):
        assert plan_of(SMALL, override).cells()[0].fingerprint == base, override


def test_a_synthetic_workload_follows_the_plans_seed_unless_it_has_its_own() -> None:
    text = SMALL.replace('preset = "azure-conv-2023"', 'prompt_tokens = "normal:500:50"\noutput_tokens = 5')

    def sha(*overrides: str) -> str:
        plan = plan_of(text, *overrides)
        return plan.workload(plan.cells()[0]).sha256()

    assert sha() == sha("workload.0.seed=0") == sha("seed=3", "workload.0.seed=0")
    assert sha("seed=3") == sha("workload.0.seed=3") != sha()


def test_cells_are_immutable_and_encode_without_secrets() -> None:
    text = SMALL.replace('stack = "vllm"', 'stack = "vllm"\nsecrets = ["HF_TOKEN"]')
    cell = plan_of(text, environ={"HF_TOKEN": "hf_the_value"}).cells()[0]
    assert b"HF_TOKEN" in msgspec.json.encode(cell)
    assert b"hf_the_value" not in msgspec.json.encode(cell)
    with pytest.raises(AttributeError):
        cell.id = "other"  # type: ignore[misc]


def test_the_estimate_grows_with_the_work() -> None:
    plan = plan_of(SMALL)
    base = plan.expected_seconds(plan.cells()[0])

    def seconds(*overrides: str) -> float:
        changed = plan_of(SMALL, *overrides)
        return changed.expected_seconds(changed.cells()[0])

    assert base > 600
    # One level of one user: 100 requests of 15 % of 1 s + 50 ms per token, at most max_seconds; 180 s of start-up.
    tokens = plan.workload(plan.cells()[0]).stats(4096).output_mean
    one = 0.15 + 0.45 / 16
    expected = 180 + one * (1 + 0.05 * (tokens - 1)) * (3 + 1 + 100)
    assert seconds("workload.0.levels=[1]") == pytest.approx(expected)
    assert seconds("workload.0.levels=[1]", "ramp.max_seconds=30") == 210
    assert seconds("workload.0.levels=[1, 2]") > seconds("workload.0.levels=[1]")
    assert seconds("ramp.factor=1.2") > base
    assert seconds("ramp.precision=0.5") < base
    assert seconds("ramp.confirm=3") > base
    assert seconds("slo.ttft_ms=none", "slo.tpot_ms=none") == base
    assert seconds("slo.e2e_ms=500") < base
    assert seconds("ramp.max=1", "ramp.start=1", "ramp.factor=1.05") > 0
