"""The workloads of a plan: settings, the lengths built from them, and how these meet the context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from orchestrator.plan.deployments import absolute
from orchestrator.plan.settings import WorkloadSettings
from orchestrator.plan.tables import Findings, nearest, shown
from stacks.base import Deployment
from workloads.presets import names as preset_names
from workloads.rows import TraceError
from workloads.sources import workload_from
from workloads.synthetic import distribution
from workloads.workload import Workload, template_reserve_tokens

MOST_CLAMPED = 0.5
"""Above this share of cut requests a context that nobody asked for makes another workload of it."""


def read_workload(
    table: Mapping[str, Any], key: str, seed: int, base: Path, findings: Findings
) -> tuple[WorkloadSettings, Workload] | None:
    """One [[workload]] and its length pairs; None if something in it is wrong (told)."""
    filled = dict(table)
    filled.setdefault("name", _default_name(filled))
    if isinstance(filled.get("trace"), str):
        filled["trace"] = str(absolute(filled["trace"], base))
    if type(filled.get("levels")) is int:
        filled["levels"] = [filled["levels"]]
    settings = findings.read(filled, WorkloadSettings, key)
    if settings is None:
        return None
    if len(set(settings.levels)) != len(settings.levels):
        findings.add(f"{key}.levels", "names a concurrency twice.")
        return None
    return _built(settings, key, seed, findings) if _source_is_sound(settings, key, findings) else None


def _default_name(filled: Mapping[str, Any]) -> str:
    if isinstance(filled.get("preset"), str):
        return str(filled["preset"])
    if isinstance(filled.get("trace"), str):
        return Path(filled["trace"]).stem
    if "prompt_tokens" in filled and "output_tokens" in filled:
        return f"p{filled['prompt_tokens']}-o{filled['output_tokens']}".replace(":", "_")
    return "workload"


def _source_is_sound(settings: WorkloadSettings, key: str, findings: Findings) -> bool:
    """Exactly one source, and texts that mean something."""
    before = len(findings.problems)
    synthetic = settings.prompt_tokens is not None
    chosen = [settings.preset is not None, settings.trace is not None, synthetic]
    if sum(chosen) != 1:
        found = "names no source" if not any(chosen) else "names more than one source"
        findings.add(key, f"{found}.", "Give one of preset, trace, or prompt_tokens with output_tokens.")
    if settings.preset is not None and settings.preset not in preset_names():
        known = preset_names()
        remedy = f"{nearest(settings.preset, known)} The presets are {', '.join(known)}.".strip()
        findings.add(f"{key}.preset", f"there is no preset {shown(settings.preset)}.", remedy)
    if synthetic and settings.output_tokens is None:
        findings.add(f"{key}.output_tokens", "is missing beside prompt_tokens.")
    if settings.preset is not None and settings.output_tokens is not None:
        findings.add(f"{key}.output_tokens", "has no meaning beside a preset.", "Use output_scale.")
    if settings.trace is not None and isinstance(settings.output_tokens, str):
        findings.add(
            f"{key}.output_tokens", "beside a trace is a whole number, for rows without a length of their own."
        )
    for name in ("prompt_tokens", "output_tokens"):
        _check_distribution(getattr(settings, name), f"{key}.{name}", findings)
    return len(findings.problems) == before


def _check_distribution(text: str | int | None, where: str, findings: Findings) -> None:
    if text is None:
        return
    try:
        distribution(text)
    except ValueError as error:
        findings.add(where, f"{error}.")


def _built(
    settings: WorkloadSettings, key: str, seed: int, findings: Findings
) -> tuple[WorkloadSettings, Workload] | None:
    try:
        return settings, workload_from(
            preset=settings.preset,
            trace=None if settings.trace is None else Path(settings.trace),
            prompt=settings.prompt_tokens,
            output=settings.output_tokens,
            prompt_scale=settings.prompt_scale,
            output_scale=settings.output_scale,
            seed=seed if settings.seed is None else settings.seed,
        )
    except TraceError as error:
        findings.add(f"{key}.trace", error.message, error.remedy)
        return None


def smallest_context(deployments: Sequence[Deployment]) -> tuple[int | None, str]:
    """The context in tokens that every deployment has, and which has no more; None where none says."""
    return min(((d.context_tokens, d.name) for d in deployments if d.context_tokens is not None), default=(None, ""))


def within_context(
    settings: WorkloadSettings, workload: Workload, deployments: Sequence[Deployment], key: str, findings: Findings
) -> WorkloadSettings:
    """The settings with the context that every deployment of the plan has; problems where the requests do not fit."""
    smallest, owner = smallest_context(deployments)
    asked = settings.context_tokens
    if asked is not None:
        if smallest is not None and asked > smallest:
            findings.add(
                f"{key}.context_tokens",
                f"is {asked}, but deployment {owner} serves only {smallest}.",
                "Raise context_tokens of the deployment or lower this one.",
            )
        return settings
    if smallest is None:
        return settings
    share = workload.stats(smallest).clamped_share
    if share > MOST_CLAMPED:
        findings.add(
            key,
            f"{share:.0%} of its requests do not fit the {smallest} tokens of deployment {owner} "
            f"({template_reserve_tokens(smallest)} are kept for the chat template).",
            f"Raise context_tokens, scale the lengths down, or accept the cut by context_tokens = {smallest} here.",
        )
    return msgspec.structs.replace(settings, context_tokens=smallest)
