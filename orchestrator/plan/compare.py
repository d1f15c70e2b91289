"""[[compare]]: which deployments are measured in pairs. What no pair could decide is refused before anything starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.plan.settings import Compare, WorkloadSettings
from orchestrator.plan.tables import Findings, nearest, shown
from stacks.base import Deployment

MOST_COMPARISONS = 64


def read_comparisons(
    document: Mapping[str, Any],
    deployments: Sequence[Deployment],
    workloads: Sequence[WorkloadSettings],
    findings: Findings,
) -> tuple[Compare, ...]:
    """Every [[compare]] table; () where there is none. Wrong ones are told and left out."""
    if "compare" not in document:
        return ()
    broken = bool(findings.problems)
    tables = findings.tables(document["compare"], "compare", MOST_COMPARISONS)
    found: dict[str, Compare] = {}
    for number, table in enumerate(tables):
        key = f"compare[{number}]"
        before = len(findings.problems)
        settings = findings.read(table, Compare, key)
        if settings is None:
            continue
        if not broken:  # what could not be read cannot be named either
            _check(settings, key, deployments, [workload.name for workload in workloads], findings)
        if settings.id in found:
            findings.add(key, "compares the same two at the same concurrency again.", "Raise pairs of the first.")
        if len(findings.problems) == before:
            found[settings.id] = settings
    return tuple(found.values())


def _check(
    settings: Compare, key: str, deployments: Sequence[Deployment], workloads: Sequence[str], findings: Findings
) -> None:
    by_name = {deployment.name: deployment for deployment in deployments}
    for side in ("a", "b"):
        name = getattr(settings, side)
        if name not in by_name:
            remedy = nearest(name, by_name) or f"The plan has {', '.join(by_name)}."
            findings.add(f"{key}.{side}", f"there is no deployment {shown(name)}.", remedy)
    if settings.workload not in workloads:
        remedy = nearest(settings.workload, workloads) or f"The plan has {', '.join(workloads)}."
        findings.add(f"{key}.workload", f"there is no workload {shown(settings.workload)}.", remedy)
    if settings.pairs % 2:
        findings.add(
            f"{key}.pairs",
            f"found {settings.pairs}, expected an even number: blocks of two pairs (ABBA) take out an even drift.",
            f"Write {settings.pairs + 1}.",
        )
    if settings.a == settings.b:
        findings.add(
            f"{key}.b",
            f"is {shown(settings.b)}, as a is.",
            "Name another deployment; for A against A give the same settings a second name.",
        )
    elif settings.a in by_name and settings.b in by_name:
        _check_terms(by_name[settings.a], by_name[settings.b], key, findings)


def _check_terms(a: Deployment, b: Deployment, key: str, findings: Findings) -> None:
    """Both are started anew for every pair, on one card, with one limit on the context."""
    for side, deployment in (("a", a), ("b", b)):
        if deployment.launch == "external":
            findings.add(
                f"{key}.{side}",
                f"{deployment.name} is external, so it cannot be started anew for every pair.",
                "Let loadproof start it (docker or process), or set two runs side by side with loadproof compare.",
            )
    if a.card != b.card:
        findings.add(
            key,
            f"{a.name} is on {a.card} and {b.name} on {b.card}: a pair is measured on one card.",
            "Compare two deployments of one card.",
        )
    if a.context_tokens != b.context_tokens:
        findings.add(
            key,
            f"{a.name} serves a context of {_limit(a)} and {b.name} of {_limit(b)}: pairs are measured on equal terms.",
            "Give both the same context_tokens.",
        )


def _limit(deployment: Deployment) -> str:
    return "its model's length" if deployment.context_tokens is None else f"{deployment.context_tokens:,} tokens"
