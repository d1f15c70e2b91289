"""A plan: the TOML file that says what is measured, read whole, checked whole, and never executed."""

from orchestrator.plan.plan import Cell, Paired, Plan
from orchestrator.plan.reading import load_plan, parse_plan
from orchestrator.plan.settings import Budget, ModelSettings, Ramp, WorkloadSettings

__all__ = ["Budget", "Cell", "ModelSettings", "Paired", "Plan", "Ramp", "WorkloadSettings", "load_plan", "parse_plan"]
