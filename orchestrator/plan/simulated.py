"""What a plan asks of a card that is not there: refused before the start where a fact is not known."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.errors import LoadproofError
from orchestrator.plan.tables import Findings
from orchestrator.records import Slo
from stacks.base import Deployment
from stacks.simulated.deployed import UNDERSTOOD_ARGS, simulated_setup

_LIKE_THIS = 'For example card = "RTX-4090-24GB".'


def is_simulated(deployment: Deployment) -> bool:
    return deployment.launch == "simulated"


def check_simulated(deployment: Deployment, key: str, findings: Findings) -> None:
    """A deployment that is launched as "simulated"."""
    if deployment.card is None:
        findings.add(f"{key}.card", 'is missing, and launch = "simulated" needs it.', _LIKE_THIS)
        return
    for word in deployment.args:
        if word not in UNDERSTOOD_ARGS:
            findings.add(
                f"{key}.args",
                f"{word[:60]} means nothing to a simulated card.",
                f"It understands {', '.join(sorted(UNDERSTOOD_ARGS))}, and the settings of the plan.",
            )
    try:
        simulated_setup(deployment)
    except (LoadproofError, OSError) as error:
        message = getattr(error, "message", None) or str(error)
        findings.add(f"{key}.{_blamed(message)}", message, getattr(error, "remedy", ""))


def _blamed(message: str) -> str:
    """The key that a refusal is about."""
    words = {"the card": "card", "The card": "card", "the model": "model", "format": "quantization"}
    return next((key for word, key in words.items() if word in message), "card")


def check_together(deployments: Sequence[Deployment], slo: Slo, findings: Findings) -> None:
    """A report is measured or simulated, never both; and no limit is judged that no simulation knows."""
    kinds = [is_simulated(deployment) for deployment in deployments]
    if not any(kinds):
        return
    if not all(kinds):
        number = kinds.index(False)
        findings.add(
            f"deployment[{number}].launch",
            f'is "{deployments[number].launch}", and other deployments are simulated: a report is one or the other.',
            "Make two plans of it, and set their runs side by side with loadproof compare.",
        )
    if slo.gap_ms is not None:
        findings.add(
            "slo.gap_ms", "a simulated card does not know gaps between single tokens.", "Limit TTFT and TPOT instead."
        )
