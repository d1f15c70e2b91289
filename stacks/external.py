"""Any OpenAI-compatible endpoint: only what the format itself promises."""

from __future__ import annotations

from typing import ClassVar

from stacks.base import Capabilities, Deployment, LaunchKind, LaunchSpec, Readiness, Wire
from stacks.openai import ChatWire, TextCompletionsWire
from stacks.settings import Values
from stacks.sheet import DataSheet


class External(DataSheet):
    name = "external"
    title = "OpenAI-compatible endpoint"
    launches: ClassVar[tuple[LaunchKind, ...]] = ("external",)
    readiness = Readiness(health_path=None)
    capabilities = Capabilities(done_marker=False)
    wires: ClassVar[tuple[type[Wire], ...]] = (ChatWire, TextCompletionsWire)
    metrics_path = None
    quantizations = Values((((0, 0, 0), ()),))
    kv_dtypes = Values((((0, 0, 0), ()),))

    def arguments(self, deployment: Deployment, host: str, port: int) -> tuple[str, ...]:
        raise ValueError("An external endpoint is measured where it runs; there is nothing to start.")

    def launch(self, deployment: Deployment, host: str, port: int) -> LaunchSpec:
        raise ValueError("An external endpoint is measured where it runs; there is nothing to start.")

    def notes(self, deployment: Deployment) -> list[str]:
        return [
            "Nothing is known of the server behind this endpoint: output lengths are not forced, its prefix cache is "
            "not switched off, its memory is not seen. If it is one of the known stacks, name that one with launch = "
            '"external".'
        ]
