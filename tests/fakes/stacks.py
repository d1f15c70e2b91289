"""A stack that launches `launched_server`, as a process of this Python or as a container of `engine.fake_image`."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.records import Prompt
from stacks.base import Delta, Deployment, FoundFailure, LaunchSpec, Mount, Readiness, Setting, Stack, Wire

SERVER = Path(__file__).with_name("launched_server.py")
IN_IMAGE = "/opt/site/server.py"
PORT_IN_IMAGE = 8000


class FakeWire(Wire):
    name = "completions"
    path = "/v1/completions"

    def body(self, prompt: Prompt, output_tokens: int, model: str) -> dict[str, Any]:
        return {"prompt": prompt.text, "max_tokens": output_tokens, "model": model, "stream": True}

    def delta(self, event: Any) -> Delta:
        if not isinstance(event, dict):
            return Delta()
        if "error" in event:
            return Delta(error=str(event["error"]))
        choice = (event.get("choices") or [{}])[0]
        return Delta(text=bool(choice.get("text")), finish=choice.get("finish_reason"))


class FakeStack(Stack):
    name = "fake"
    title = "Fake"
    readiness = Readiness(version_path="/version")
    wires = (FakeWire,)
    start_timeout_s = 20.0

    def problems(self, deployment: Deployment) -> list[Setting]:
        return []

    def container_port(self, deployment: Deployment) -> int:
        return PORT_IN_IMAGE

    def launch(self, deployment: Deployment, host: str, port: int) -> LaunchSpec:
        in_container = deployment.launch == "docker"
        start = deployment.command or (sys.executable, str(SERVER))
        own = ("--host", host, "--port", str(port), *deployment.args)
        return LaunchSpec(
            argv=own if in_container else (*start, *own),
            env=deployment.env,
            secret_env=deployment.secrets,
            port=port,
            image=deployment.image,
            entrypoint=("python3", IN_IMAGE) if in_container else None,
            mounts=tuple(Mount(host, inside) for host, _, inside in (m.partition(":") for m in deployment.mounts)),
            gpus=deployment.gpus,
            shm_bytes=deployment.shm_bytes,
            memory_limit_bytes=deployment.memory_limit_bytes,
            cpus=deployment.cpus,
            start_timeout_s=deployment.start_timeout_s or self.start_timeout_s,
            stop_timeout_s=5.0,
        )

    def served_name(self, deployment: Deployment) -> str:
        return deployment.served_name or deployment.model

    def log_facts(self, lines: Sequence[str]) -> dict[str, float | str]:
        found = next((m for line in lines if (m := re.search(r"KV pool (\d+) tokens", line))), None)
        return {"kv_tokens": float(found[1])} if found else {}

    def find_failure(self, lines: Sequence[str]) -> FoundFailure | None:
        for line in lines:
            if "CUDA out of memory" in line:
                return FoundFailure("oom-weights", line, "Take a bigger card.")
            if "Address already in use" in line:
                return FoundFailure("port-taken", line, "Take another port.")
        return None

    def metric_values(self, text: str) -> dict[str, float]:
        return {}
