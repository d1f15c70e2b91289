"""Every example is a plan that loads."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from orchestrator.demo import demo_plan, simulated_plan
from orchestrator.plan import load_plan

EXAMPLES = Path(__file__).parents[2] / "examples"

CELLS = {
    "vllm-vs-tgi.toml": 6,
    "vllm-vs-sglang.toml": 4,
    "external.toml": 2,
    "demo.toml": 12,
    "demo-simulated.toml": 26,
}


def test_every_example_is_tested() -> None:
    assert sorted(path.name for path in EXAMPLES.glob("*.toml")) == sorted(CELLS)


@pytest.mark.parametrize("name", CELLS)
def test_an_example_loads(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "set")
    monkeypatch.setenv("HOME", str(tmp_path))
    document = tomllib.loads((EXAMPLES / name).read_text("utf-8"))
    models = [document.get("model", {}).get("id", ""), *(d.get("model", "") for d in document["deployment"])]
    for model in (Path(model).expanduser() for model in models if model.endswith(".gguf")):
        model.parent.mkdir(parents=True, exist_ok=True)
        model.write_bytes(b"GGUF")
    plan = load_plan(EXAMPLES / name)
    cells = plan.cells()
    assert len(cells) == CELLS[name]
    assert plan.title
    for cell in cells:
        assert len(plan.workload(cell).draw(1, 50, cell.workload.context_tokens)) == 50
        assert plan.expected_seconds(cell) > 0


def test_the_demo_as_a_plan_is_the_demo() -> None:
    """The same text, but for where the weights lie."""
    embedded = demo_plan(Path("~/.cache/loadproof/models")).decode()
    assert (EXAMPLES / "demo.toml").read_text("utf-8") == embedded
    assert (EXAMPLES / "demo-simulated.toml").read_bytes() == simulated_plan()
