"""What the container engine refuses, in our words: its sentence and status -> one sentence with the remedy. Pure.

Engines of ten years word the same refusal differently, so each row matches a short part of it; the first one that
matches counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from orchestrator.errors import HostError

MAX_SAID = 400


class Refusal(NamedTuple):
    pattern: str
    message: str
    """May name ``{image}``, ``{said}`` (the engine's own words) and the pattern's groups."""
    remedy: str


_NO_ENGINE = (
    Refusal(
        r"FileNotFoundError|No such file or directory'\)|Not supported URL scheme|ConnectionRefused|Connection refused",
        "No Docker Engine answers at {address}.",
        'Start it (systemctl start docker), set DOCKER_HOST, or use launch = "process".',
    ),
    Refusal(
        r"PermissionError|Permission denied",
        "Docker's socket at {address} may not be opened by this user.",
        "Join the group docker and log in again, or run as root.",
    ),
    Refusal(
        r"is too new\. Maximum supported API version",
        "The Docker Engine at {address} is too old for the client.",
        "Update the engine, or set DOCKER_API_VERSION to what it speaks.",
    ),
    Refusal(r"", "The Docker Engine at {address} does not answer: {said}", "Check DOCKER_HOST and the engine's log."),
)

_PULL = (
    Refusal(
        r"invalid reference format",
        "{image} is no image name.",
        "Write it as registry/repository:tag, in lower case.",
    ),
    Refusal(
        r"^(?:(?:failed to copy: |httpReadSeeker: |read tcp ).{0,200})?(?:unexpected EOF|connection reset by peer)",
        "The registry broke off while it sent the image {image}.",
        "Run again: the layers that came whole are kept.",
    ),
    Refusal(
        r"no such host|dial tcp|failed to resolve reference|TLS handshake timeout|i/o timeout|connection reset",
        "The image {image} is not on this machine, and its registry cannot be reached.",
        "Load it first (docker load, docker pull), or check the network and the proxy of the engine.",
    ),
    Refusal(
        r"manifest unknown|not found|repository does not exist|name unknown",
        "The image {image} is not on this machine, and its registry does not have it.",
        "Check its name and tag, or whether it needs a login (docker login).",
    ),
    Refusal(
        r"no basic auth credentials|unauthorized|authentication required|denied|forbidden",
        "The registry wants a login before it gives the image {image}.",
        "Run docker login for it.",
    ),
    Refusal(
        r"no space left on device",
        "The engine's disk is full: the image {image} cannot be stored.",
        "Make room (docker image prune), or move the engine's data-root.",
    ),
    Refusal(
        r"toomanyrequests|rate limit",
        "The registry gives no more images to this address for now ({image}).",
        "Log in (docker login), or try later.",
    ),
    Refusal(r"", "The image {image} cannot be pulled: {said}", "Try: docker pull {image}"),
)

_START = (
    Refusal(
        r"could not select device driver|unknown or invalid runtime name|Unknown runtime specified",
        "The Docker Engine cannot give a GPU to a container: NVIDIA's container toolkit is missing.",
        "Install nvidia-container-toolkit, run nvidia-ctk runtime configure, and restart the engine.",
    ),
    Refusal(
        r"unresolvable CDI devices?|unknown device",
        "The Docker Engine does not know the GPU that was asked for: {said}",
        "Check gpus in the deployment against nvidia-smi -L.",
    ),
    Refusal(
        r"nvidia-container-cli.*unsatisfied condition: (?P<condition>[^\s,\"]+)",
        "The GPU's driver is too old for the image {image}: it needs {condition}.",
        "Update the driver, or take an older image.",
    ),
    Refusal(
        r"nvidia-container-cli|error running (?:prestart )?hook|nvml error",
        "The GPU cannot be given to the container: {said}",
        "Check with nvidia-smi whether the driver is loaded.",
    ),
    Refusal(
        r"port is already allocated|address already in use",
        "The port for the container is taken on this machine: {said}",
        "Run again.",
    ),
    Refusal(
        r"cannot assign requested address",
        "The Docker Engine is on another machine, or has no loopback address to publish on.",
        'Run loadproof beside the engine, or use launch = "external".',
    ),
    Refusal(
        r"bind source path does not exist: (?P<path>[^\"]+)",
        "The mount's folder {path} does not exist on the engine's machine.",
        "Create it, or correct mounts in the deployment.",
    ),
    Refusal(
        r"Minimum memory limit allowed is (?P<least>\w+)",
        "The memory limit is below the engine's least, {least}.",
        "Raise memory_limit in the deployment.",
    ),
    Refusal(
        r"exec: \\?\"(?P<program>[^\"\\]+)\\?\"|no command specified|executable file not found",
        "The image {image} does not hold the program that is to be started: {said}",
        "Check image and command in the deployment.",
    ),
    Refusal(
        r"network .{1,120} not found",
        "The network that the container is to join does not exist: {said}",
        "Create it, or correct LOADPROOF_DOCKER_NETWORK.",
    ),
    Refusal(
        r"range of CPUs is from|NanoCPUs",
        "The engine does not have that many CPUs: {said}",
        "Lower cpus in the deployment.",
    ),
    Refusal(r"no such image", "The image {image} has gone while it was to be started.", "Run again."),
    Refusal(
        r"no space left on device",
        "The engine's disk is full: no container can be made.",
        "Make room (docker system df tells where), or move the engine's data-root.",
    ),
    Refusal(r"", "The Docker Engine does not start a container of {image}: {said}", "Look into the engine's log."),
)

TABLES: Mapping[str, tuple[Refusal, ...]] = {"connect": _NO_ENGINE, "pull": _PULL, "start": _START}


def host_error(act: str, said: str, **context: str) -> HostError:
    """The refusal of an act (``connect``, ``pull``, ``start``) as the error that a person meets."""
    for refusal in TABLES[act]:
        if found := re.search(refusal.pattern, said, re.IGNORECASE | re.DOTALL):
            words = {"image": "?", "address": "?", **context, "said": _short(said)}
            words |= {name: value or "?" for name, value in found.groupdict().items()}
            return HostError(refusal.message.format(**words), refusal.remedy.format(**words))
    raise AssertionError(f"the table {act} ends without a row for everything")


def _short(said: str) -> str:
    text = " ".join(said.split()).rstrip(".")
    return (text if len(text) <= MAX_SAID else text[: MAX_SAID - 3] + "...") + "."
