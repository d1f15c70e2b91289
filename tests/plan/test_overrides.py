"""`--set a.b=c`."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import PlanError
from orchestrator.plan import Plan, parse_plan

TEXT = b"""
[[deployment]]
name = "a"
stack = "vllm"
model = "org/m"
[[deployment]]
name = "b"
stack = "vllm"
model = "org/m"
[[workload]]
preset = "azure-conv-2023"
"""


def plan_of(*overrides: str) -> Plan:
    return parse_plan(TEXT, "plan.toml", overrides, base=Path("/nowhere"))


def test_values_are_toml_where_they_can_be_and_text_otherwise() -> None:
    plan = plan_of(
        "deployment.0.quantization=fp8",
        "deployment.b.context_tokens=8192",
        "deployment.1.gpus=[0, 1]",
        'deployment.1.args=["--x=y"]',
        "deployment.1.env.A=b=c",
        "ramp.max_seconds=2m",
        "ramp.ramp_seconds=none",
        'title="in quotes"',
    )
    first, second = plan.deployments
    assert first.quantization == "fp8"
    assert (second.context_tokens, second.gpus, second.args) == (8192, ("0", "1"), ("--x=y",))
    assert second.env == {"A": "b=c"}
    assert (plan.ramp.max_seconds, plan.ramp.ramp_seconds, plan.title) == (120, None, "in quotes")
    assert plan.text == TEXT
    assert plan.overrides[0] == "deployment.0.quantization=fp8"


def test_a_later_override_wins() -> None:
    assert plan_of("ramp.max=8", "ramp.max=16").ramp.max == 16


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("ramp.max", "--set ramp.max: expected KEY=VALUE"),
        ("=5", "expected KEY=VALUE"),
        ("ramp..max=5", "expected KEY=VALUE"),
        ("deployment.2.image=x", 'there is no "2" in deployment, which has 2 entries'),
        ("deployment.c.image=x", 'there is no "c" in deployment'),
        ("deployment.-1.image=x", 'there is no "-1" in deployment'),
        ("deployment.0.name.x=1", "deployment.0.name is neither a table nor a list"),
        ("deployment.0.immage=x", r'deployment\[0\].immage: there is no such key. Did you mean "image"'),
        ("deployment=5", "found 5, at least one is needed"),
        ("ramp=5", r"ramp: found 5, expected a table. Write \[ramp\]"),
        ("ramp.max=5\nx=3", "ramp.max: found '5"),
        ("title=2024-01-01", "title: found datetime.date"),
        ("ramp.max=" + "[" * 3000, "ramp.max: found"),
        (".".join(["x"] * 40) + "=1", "nested too deeply"),
    ],
)
def test_a_wrong_override_is_a_problem(override: str, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        plan_of(override)
