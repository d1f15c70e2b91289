"""`--set a.b=c`: changes to a plan's document before it is read."""

from __future__ import annotations

import tomllib
from typing import Any

from orchestrator.plan.tables import Findings


def apply_overrides(document: dict[str, Any], overrides: tuple[str, ...], findings: Findings) -> None:
    """Change the document in place. Entries of lists are named by position or by their `name`."""
    for override in overrides:
        path, equals, text = override.partition("=")
        keys = [key.strip() for key in path.split(".")]
        if not equals or not all(keys):
            findings.add("", f"--set {path[:60]}: expected KEY=VALUE.", "For example --set ramp.max=64.")
            continue
        problem = _assign(document, keys, _value(text))
        if problem:
            findings.add("", f"--set {path[:60]}: {problem}")


def _value(text: str) -> object:
    """A TOML value where the text is one, else the text itself: `--set deployment.0.quantization=awq`."""
    try:
        document = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return document["value"] if len(document) == 1 else text


def _assign(document: dict[str, Any], keys: list[str], value: object) -> str | None:
    """Put the value where the keys lead; why that is impossible, or None."""
    place: Any = document
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(place, list):
            position = _position(place, key)
            if position is None:
                return f'there is no "{key}" in {".".join(keys[:depth])}, which has {len(place)} entries.'
            if last:
                place[position] = value
            else:
                place = place[position]
        elif isinstance(place, dict):
            if last:
                place[key] = value
            else:
                place = place.setdefault(key, {})
        else:
            return f"{'.'.join(keys[:depth])} is neither a table nor a list."
    return None


def _position(entries: list[Any], key: str) -> int | None:
    if key.isdecimal():
        return int(key) if int(key) < len(entries) else None
    named = [i for i, entry in enumerate(entries) if isinstance(entry, dict) and entry.get("name") == key]
    return named[0] if named else None
