"""From a plan's deployment to its simulated card: what loadproof would start the stack with, on the card it names."""

from __future__ import annotations

import msgspec

from stacks.base import Deployment
from stacks.memory.cards import find_card
from stacks.memory.deployed import setup_of
from stacks.memory.formats import check_support
from stacks.memory.setup import Setup
from stacks.simulated.card import SimulatedCard, simulated_card
from stacks.tgi import ADMITTED_REQUESTS

UNDERSTOOD_ARGS = frozenset({"--enforce-eager", "-kvu", "--kv-unified"})
"""Arguments of a deployment that change what is simulated."""


def simulated_setup(deployment: Deployment) -> Setup:
    """The memory setup of a deployment on its simulated card.

    Raises `UnknownFactError` or `NonsenseError` for what nothing is known of, and for formats that the stack has not;
    OSError for a model that lies on this machine and cannot be read.
    """
    # It stands for the server that Docker would start: the release is that of the stack's own image.
    setup = setup_of(msgspec.structs.replace(deployment, launch="docker"), find_card(deployment.card or ""))
    check_support(setup.weights, setup.kv, setup.stack, setup.known_version)
    card_of(setup, deployment)
    return setup


def card_of(setup: Setup, deployment: Deployment) -> SimulatedCard:
    """The card of a checked deployment."""
    admitted = max(ADMITTED_REQUESTS, deployment.max_concurrency or 0) if setup.stack == "tgi" else None
    return simulated_card(setup, admitted=admitted)
