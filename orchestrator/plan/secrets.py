"""Secrets do not belong in a plan: it is copied into the run directory, and the report shows what was started."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from urllib.parse import urlsplit

SECRET_VALUE = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|AKIA[A-Z0-9]{12,}"
    r"|glpat-[\w-]{16,}|nvapi-[\w-]{16,}|xox[abp]-[\w-]{10,})"
)
"""Tokens that can be told by their looks."""

_SECRET_NAME = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIAL)S?(?![A-Z])", re.IGNORECASE)
_COUNTS = re.compile(r"(MAX|NUM|MIN|TOTAL|BATCHED|PREFILL|NEW)_?\w*TOKENS", re.IGNORECASE)
_SECRET_FLAG = re.compile(r"--?(?:[\w-]*[-_])?(?:token|key|secret|password)(?P<value>=.*)?", re.IGNORECASE | re.DOTALL)
_SHOWN = 8
"""Deployments that a sentence names."""
_NAME = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")


def names_a_secret(variable: str) -> bool:
    """HF_TOKEN, API_KEY, ... but not TOKENIZERS_PARALLELISM and not MAX_TOKENS."""
    return bool(_SECRET_NAME.search(variable)) and not _COUNTS.search(variable)


def carries_password(url: str) -> bool:
    """`http://user:password@host`."""
    try:
        return "@" in urlsplit(url).netloc
    except ValueError:
        return False


def secret_flags(arguments: Sequence[str]) -> Iterator[str]:
    """Flags of a command line that hand over a secret, without its value."""
    for argument in arguments:
        if (match := _SECRET_FLAG.fullmatch(argument)) is not None:
            yield argument[: match.start("value")] if match["value"] else argument


def secret_places(value: object, key: str = "") -> Iterator[str]:
    """Keys of a document under which a text looks like a token."""
    if isinstance(value, str) and SECRET_VALUE.search(value):
        yield key
    elif isinstance(value, Mapping):
        for name, entry in value.items():
            yield from secret_places(entry, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for number, entry in enumerate(value):
            yield from secret_places(entry, f"{key}[{number}]")


def is_variable(name: str) -> bool:
    """Whether it looks like the name of an environment variable, and not like a secret itself: it may be shown."""
    return bool(_NAME.fullmatch(name)) and not SECRET_VALUE.search(name)


def unset_secrets(named: Iterable[tuple[str, Sequence[str]]], environ: Mapping[str, str]) -> Iterator[str]:
    """Variables that are not set, a sentence each with all who name it. `named`: (deployment, its `secrets`)."""
    by_variable: dict[str, list[str]] = {}
    for deployment, names in named:
        for name in dict.fromkeys(names):
            if is_variable(name) and not environ.get(name):
                by_variable.setdefault(name, []).append(deployment)
    for name, deployments in by_variable.items():
        more = f" and {len(deployments) - _SHOWN} more" if len(deployments) > _SHOWN else ""
        yield f"the environment variable {name} is not set, which {', '.join(deployments[:_SHOWN])}{more} must have."
