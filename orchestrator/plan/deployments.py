"""The deployments of a plan: defaults from [model], paths from the plan's folder, and everything a stack refuses."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from orchestrator.plan.secrets import carries_password, is_variable, names_a_secret, secret_flags
from orchestrator.plan.settings import ModelSettings
from orchestrator.plan.simulated import check_simulated, is_simulated
from orchestrator.plan.tables import Findings, shown
from stacks.base import REAL, Deployment, Setting, Stack
from stacks.catalog import stack as stack_named
from stacks.checkpoint import quantized_as

PYTHON = "{python}"
"""In `command`: the Python that runs loadproof."""


_USED_BY = {
    "url": ("external",),
    "card": ("simulated",),
    "gpus": REAL,
    "env": REAL,
    "secrets": REAL,
    "image": ("docker",),
    "mounts": ("docker",),
    "shm_bytes": ("docker",),
    "memory_limit_bytes": ("docker",),
    "cpus": ("docker",),
    "command": ("process", "docker"),
}
"""Settings that only some launch kinds have."""

_OF_ONE = {"name", "stack", "model", "revision", "served_name", "url"}
"""Settings that no two deployments share, or that stand in [model]."""


class Surroundings(NamedTuple):
    """What a plan is read against."""

    base: Path
    """Folder of the plan: relative paths start here."""
    environ: Mapping[str, str]


def read_defaults(table: Mapping[str, Any], findings: Findings) -> dict[str, Any]:
    """[defaults]: the keys of a deployment that stand for all of them, as far as they are right."""
    shared = _as_lists(table)
    for name in sorted(_OF_ONE & shared.keys()):
        findings.add(f"defaults.{name}", "belongs to one deployment and cannot be a default.")
        del shared[name]
    right = findings.values(shared, Deployment, "defaults")
    return {name: value for name, value in shared.items() if name in right}


def read_deployment(
    table: Mapping[str, Any],
    key: str,
    model: ModelSettings,
    defaults: Mapping[str, Any],
    around: Surroundings,
    findings: Findings,
) -> Deployment | None:
    """One [[deployment]], complete, with absolute paths; what is wrong is told. None without name, stack or model."""
    filled = _with_defaults(_as_lists(table), model, defaults)
    if "model" not in filled:
        findings.add(f"{key}.model", "is missing.", "Give it here, or for all deployments as [model] id.")
        filled["model"] = "missing"
    for place in _local_places(filled, around.base):
        findings.add(f"{key}.{place.key}", f"{shown(str(place.path), 300)} does not exist.", place.remedy)
    deployment = findings.read(filled, Deployment, key)
    if deployment is None:
        return None
    _check_secrets(deployment, key, around.environ, findings)
    _check_gpus(deployment, key, findings)
    stack = _stack(deployment, key, findings)
    if stack is not None:
        _check_launch(deployment, stack, key, findings)
        refused = (*stack.problems(deployment), *_checkpoint_problems(deployment, stack))
        for setting in refused:
            findings.add(f"{key}.{setting.key}", setting.message, setting.remedy)
        if is_simulated(deployment) and "simulated" in stack.launches and not refused:
            check_simulated(deployment, key, findings)
    return deployment


# --- filling in ---------------------------------------------------------------------------------------------------


def _with_defaults(table: Mapping[str, Any], model: ModelSettings, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The deployment's own keys, then those of [defaults] that its launch kind has, then those of [model]."""
    launch = table.get("launch", defaults.get("launch", "docker"))
    filled = {name: v for name, v in defaults.items() if launch in _USED_BY.get(name, (launch,))} | dict(table)
    if model.id is not None and "model" not in filled:
        filled["model"] = model.id
        filled.setdefault("revision", model.revision)
    filled.setdefault("served_name", model.served_name)
    filled.setdefault("context_tokens", model.context_tokens)
    parts = [filled.get(part) for part in ("stack", "quantization")]
    filled.setdefault("name", "-".join(part for part in parts if isinstance(part, str)) or "deployment")
    return {name: value for name, value in filled.items() if value is not None}


def _as_lists(table: Mapping[str, Any]) -> dict[str, Any]:
    """The shorthands of a deployment written out: a command line in one text, one GPU, numbers in `env`."""
    filled = dict(table)
    for name in ("command", "args"):
        if isinstance(filled.get(name), str):
            filled[name] = _split(filled[name])
    if isinstance(filled.get("command"), list):
        filled["command"] = [sys.executable if part == PYTHON else part for part in filled["command"]]
    if "gpus" in filled:
        given = filled["gpus"] if isinstance(filled["gpus"], list) else [filled["gpus"]]
        filled["gpus"] = [str(gpu) if type(gpu) is int else gpu for gpu in given]
    if isinstance(filled.get("env"), dict):
        filled["env"] = {name: str(v) if type(v) in (int, float) else v for name, v in filled["env"].items()}
    return filled


def _split(text: str) -> list[str] | str:
    """A command line in one text as a shell would split it; an unclosed quote stays a text, which is then refused."""
    try:
        return shlex.split(text)
    except ValueError:
        return text


class _Missing(NamedTuple):
    key: str
    path: Path
    remedy: str


def _local_places(filled: dict[str, Any], base: Path) -> list[_Missing]:
    """Make the paths of a deployment absolute, in place; tell which model is not there."""
    mounts = filled.get("mounts")
    if isinstance(mounts, list):
        filled["mounts"] = [_absolute_mount(m, base) if isinstance(m, str) else m for m in mounts]
    model = filled["model"]
    if not isinstance(model, str) or filled.get("launch") == "external":
        return []
    mounted = _behind_mount(model, filled) if filled.get("launch", "docker") == "docker" else None
    if mounted is not None:
        return [] if _exists(mounted) else [_Missing("model", mounted, "That is where the mount puts it on this host.")]
    path = absolute(model, base)
    if not looks_local(model) and not _exists(path):
        return []
    filled["model"] = str(path)
    remedy = 'Give the path of a model, relative to the plan, or a hub id such as "org/name".'
    return [] if _exists(path) else [_Missing("model", path, remedy)]


def looks_local(model: str) -> bool:
    """A path and not a hub id."""
    return model.startswith(("/", "./", "../", "~")) or model.endswith(".gguf")


def absolute(path: str, base: Path) -> Path:
    """The path from the plan's folder; `~` is the user's home (left alone where there is none)."""
    try:
        return (base / Path(path).expanduser()).resolve()
    except (RuntimeError, OSError, ValueError):
        return base / "unreadable path"


def _exists(path: Path) -> bool:
    """A path that cannot even be looked up (a name too long, no right to look) is not there for us."""
    try:
        return path.exists()
    except OSError:
        return False


def _absolute_mount(mount: str, base: Path) -> str:
    """A host part that is a path is made absolute; a bare word stays a Docker volume."""
    host, colon, rest = mount.partition(":")
    return f"{absolute(host, base)}{colon}{rest}" if host.startswith((".", "~", "/")) else mount


def _behind_mount(model: str, filled: Mapping[str, Any]) -> Path | None:
    """Where a path inside the container lies on the host, if a mount of a folder covers it."""
    mounts = filled.get("mounts")
    for mount in mounts if isinstance(mounts, list) else ():
        host, _, rest = str(mount).partition(":")
        inside = rest.partition(":")[0].rstrip("/")
        if inside and host.startswith("/") and (model == inside or model.startswith(f"{inside}/")):
            return Path(host) / model[len(inside) :].lstrip("/")
    return None


# --- checking -----------------------------------------------------------------------------------------------------


def _checkpoint_problems(deployment: Deployment, stack: Stack) -> list[Setting]:
    """Where the weights lie on this machine, also behind a mount, their own configuration has a say."""
    if deployment.launch == "external":
        return []
    filled = {"mounts": list(deployment.mounts)}
    mounted = _behind_mount(deployment.model, filled) if deployment.launch == "docker" else None
    method = quantized_as(mounted or Path(deployment.model))
    return [] if method is None else stack.checkpoint_problems(deployment, method)


def _stack(deployment: Deployment, key: str, findings: Findings) -> Stack | None:
    try:
        return stack_named(deployment.stack)
    except ValueError as error:
        findings.add(f"{key}.stack", f"{str(error).rstrip('.')}.")
        return None


def _check_launch(deployment: Deployment, stack: Stack, key: str, findings: Findings) -> None:
    launch = deployment.launch
    if launch not in stack.launches:
        allowed = ", ".join(stack.launches)
        findings.add(f"{key}.launch", f'{stack.title} cannot be launched as "{launch}"; allowed: {allowed}.')
    elif launch == "external":
        _check_url(deployment, key, findings)
    elif launch == "docker" and deployment.image is None and stack.default_image is None:
        findings.add(f"{key}.image", f"is missing, and {stack.title} has no default image.", "Name an image.")
    elif launch == "process" and not (deployment.command or stack.default_command):
        findings.add(
            f"{key}.command", f"is missing, and {stack.title} has no default command.", "Say what starts the server."
        )
    if deployment.on_no_room != "fail" and (launch == "external" or not stack.tells_what_fits):
        why = "the server is not ours to start" if launch == "external" else f"{stack.title} tells no length that fits"
        findings.add(f"{key}.on_no_room", f'is "{deployment.on_no_room}", but {why}.', "Set context_tokens yourself.")
    for name, kinds in _USED_BY.items():
        if getattr(deployment, name) and launch not in kinds:
            needed = " or ".join(f'"{kind}"' for kind in kinds)
            findings.add(f"{key}.{name}", f'has no meaning with launch = "{launch}".', f"It needs launch = {needed}.")


def _check_url(deployment: Deployment, key: str, findings: Findings) -> None:
    where, example = f"{key}.url", 'For example url = "http://127.0.0.1:8000".'
    if deployment.url is None:
        findings.add(where, 'is missing, and launch = "external" needs it.', example)
        return
    if carries_password(deployment.url):
        findings.add(where, "carries a password.", 'Put a token into the environment and name it: secrets = ["NAME"].')
        return
    try:
        parts = urlsplit(deployment.url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound:
        findings.add(where, f"found {shown(deployment.url)}, expected an http or https URL with a host.", example)


def _check_secrets(deployment: Deployment, key: str, environ: Mapping[str, str], findings: Findings) -> None:
    remedy = 'Set it in the environment of loadproof and name it: secrets = ["NAME"].'
    for name in deployment.env:
        if names_a_secret(name) and not findings.told(f"{key}.env.{name}"):
            findings.add(f"{key}.env.{name[:60]}", "is a secret, and a plan must not carry one.", remedy)
    for part in ("command", "args"):
        for flag in secret_flags(getattr(deployment, part)):
            findings.add(f"{key}.{part}", f"{flag[:60]} puts a secret on a command line.", remedy)
    for number, name in enumerate(deployment.secrets):
        where = f"{key}.secrets[{number}]"
        if not (is_variable(name) or environ.get(name) or findings.told(where)):
            findings.add(where, "this is not the name of an environment variable that is set.", "Name one.")


def _check_gpus(deployment: Deployment, key: str, findings: Findings) -> None:
    gpus = deployment.gpus
    if len(set(gpus)) != len(gpus):
        findings.add(f"{key}.gpus", "names a GPU twice.")
    if "all" in gpus and len(gpus) > 1:
        findings.add(f"{key}.gpus", '"all" stands alone.')
    for gpu in gpus:
        if not (gpu == "all" or gpu.isdecimal() or gpu.startswith(("GPU-", "MIG-"))):
            allowed = 'an index, a UUID ("GPU-..."), or "all"'
            findings.add(f"{key}.gpus", f"found {shown(gpu)}, expected {allowed}.")
    if gpus and "all" not in gpus and deployment.tensor_parallel > len(gpus):
        findings.add(
            f"{key}.tensor_parallel",
            f"is {deployment.tensor_parallel}, but gpus names {len(gpus)}.",
            "Name as many GPUs.",
        )
