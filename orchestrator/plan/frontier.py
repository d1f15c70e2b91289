"""The frontier of a plan: how many users each prompt length allows, as one constant workload for each length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from orchestrator.plan.settings import Frontier, WorkloadSettings
from orchestrator.plan.tables import Findings, shown
from orchestrator.plan.workloads import smallest_context
from stacks.base import Deployment
from workloads.rows import LARGEST_TOKENS
from workloads.synthetic import synthetic
from workloads.workload import Workload, template_reserve_tokens

MOST_LENGTHS = 32

_LENGTHS = "frontier.prompt_tokens"


def read_frontier(document: Mapping[str, Any], findings: Findings) -> Frontier | None:
    """[frontier], its lengths in rising order; None where there is none, or where something in it is wrong (told)."""
    if "frontier" not in document:
        return None
    before = len(findings.problems)
    frontier = findings.read(findings.table(document["frontier"], "frontier"), Frontier, "frontier")
    if frontier is None or len(findings.problems) > before:
        return None
    lengths = frontier.prompt_tokens
    for name, given in (("prompt_tokens", lengths), ("output_tokens", (frontier.output_tokens,))):
        if wrong := [n for n in given if not 1 <= n <= LARGEST_TOKENS]:
            findings.add(f"frontier.{name}", f"found {shown(wrong[0])}, allowed is 1 to {LARGEST_TOKENS:,}.")
    if len(set(lengths)) != len(lengths):
        findings.add(_LENGTHS, "names a length twice.")
    if not 2 <= len(lengths) <= MOST_LENGTHS:
        remedy = "For one length write a [[workload]]." if len(lengths) < 2 else "Fewer points draw the same curve."
        named = "1 length" if len(lengths) == 1 else f"{len(lengths)} lengths"
        findings.add(_LENGTHS, f"names {named}, allowed are 2 to {MOST_LENGTHS}.", remedy)
    if len(findings.problems) > before:
        return None
    return msgspec.structs.replace(frontier, prompt_tokens=tuple(sorted(lengths)))


def frontier_workloads(
    frontier: Frontier, deployments: Sequence[Deployment], findings: Findings
) -> list[tuple[WorkloadSettings, Workload]]:
    """A workload for each length. One that does not fit every deployment is a problem: cut, it would be another."""
    context, owner = smallest_context(deployments)
    found = []
    for prompt in frontier.prompt_tokens:
        name, output = frontier.workload_name(prompt), frontier.output_tokens
        if context is not None and prompt + output > context - template_reserve_tokens(context):
            findings.add(
                _LENGTHS,
                f"a prompt of {prompt} and an output of {output} tokens do not fit the {context} tokens of deployment "
                f"{owner} ({template_reserve_tokens(context)} are kept for the chat template).",
                "Raise context_tokens, or leave that length out.",
            )
        settings = WorkloadSettings(name=name, prompt_tokens=prompt, output_tokens=output, context_tokens=context)
        found.append((settings, synthetic(prompt=prompt, output=output, name=name)))
    return found
