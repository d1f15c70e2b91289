"""From TOML tables to immutable settings, key by key, so that every problem is found and not only the first."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin

import msgspec

from orchestrator.errors import Problem
from orchestrator.plan.quantities import in_unit_of
from orchestrator.plan.secrets import SECRET_VALUE
from orchestrator.plan.settings import BOUNDS

Settings = TypeVar("Settings", bound=msgspec.Struct)

SYNONYMS = {
    "max_model_len": "context_tokens",
    "ctx_size": "context_tokens",
    "max_total_tokens": "context_tokens",
    "gpu_memory_utilization": "memory_fraction",
    "mem_fraction_static": "memory_fraction",
    "cuda_memory_fraction": "memory_fraction",
    "max_num_seqs": "max_concurrency",
    "max_running_requests": "max_concurrency",
    "max_concurrent_requests": "max_concurrency",
    "max_num_batched_tokens": "max_batched_tokens",
    "kv_cache_dtype": "kv_dtype",
    "tensor_parallel_size": "tensor_parallel",
    "tp": "tensor_parallel",
    "base_url": "url",
    "endpoint": "url",
    "concurrency": "levels",
    "users": "levels",
}
"""What the engines call it, where the plan has one word for all of them."""

_TYPE_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
}


def shown(value: object, longest: int = 60) -> str:
    """A value of a plan in a message: bounded, escaped, and never a secret."""
    text = repr(value)
    if SECRET_VALUE.search(text):
        return "a secret (not shown)"
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def nearest(word: str, known: Iterable[str]) -> str:
    """`Did you mean "x"?`, or nothing if no known word is near."""
    names = list(known)
    synonym = SYNONYMS.get(word.lower().replace("-", "_"))
    beginnings = [name for name in names if len(word) > 2 and name.startswith(word)]
    close = [synonym] if synonym in names else beginnings or difflib.get_close_matches(word, names, n=1, cutoff=0.55)
    return f'Did you mean "{close[0]}"?' if close else ""


def is_deeper_than(document: object, most: int) -> bool:
    """Whether tables and lists stand in each other more than `most` deep: what follows walks them by recursion."""
    level = [document]
    for _ in range(most):
        level = [entry for outer in level for entry in _entries(outer)]
    return any(isinstance(entry, (dict, list)) for entry in level)


def _entries(value: object) -> Iterable[object]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


class Findings:
    """The problems of one plan, in the order in which they are found."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []

    def add(self, key: str, message: str, remedy: str = "") -> None:
        """One more problem. Whoever worded it (a stack, a trace): what looks like a secret is cut out."""
        where = f"{self.file}: {key}" if key else self.file
        self.problems.append(Problem(*(SECRET_VALUE.sub("(not shown)", text) for text in (where, message, remedy))))

    def table(self, value: object, key: str) -> dict[str, Any]:
        """The value as a table; {} with a problem if it is none, {} without one if it is absent."""
        if value is None:
            return {}
        if isinstance(value, dict):
            return value
        self.add(key, f"found {shown(value)}, expected a table.", f"Write [{key}].")
        return {}

    def tables(self, value: object, key: str, most: int) -> list[dict[str, Any]]:
        """The value as a list of 1 to `most` tables; problems otherwise."""
        if isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
            if len(value) > most:
                self.add(key, f"there are {len(value)}, at most {most} are allowed.", "Split the plan.")
            return value[:most]
        found = (
            "there is none"
            if value in (None, [])
            else f"found {'a table' if isinstance(value, dict) else shown(value)}"
        )
        self.add(key, f"{found}, at least one is needed.", f"Write [[{key}]] with two brackets, once for each.")
        return []

    def unknown_keys(self, table: Mapping[str, object], known: Iterable[str], key: str) -> None:
        names = list(known)
        for name in table:
            if name not in names:
                remedy = nearest(name, names) or f"Known keys: {', '.join(names)}."
                self.add(f"{key}.{name}" if key else name[:60], "there is no such key.", remedy)

    def read(self, table: Mapping[str, object], kind: type[Settings], key: str) -> Settings | None:
        """The table as settings. Wrong values are told and left at their defaults, so that checking goes on with the
        rest; None if a key without a default is missing or wrong."""
        values = self.values(table, kind, key)
        needed = [field.name for field in msgspec.structs.fields(kind) if field.required]
        for name in needed:
            if name not in table:
                self.add(f"{key}.{name}", "is missing.")
        return kind(**values) if all(name in values for name in needed) else None

    def values(self, table: Mapping[str, object], kind: type[msgspec.Struct], key: str) -> dict[str, Any]:
        """The right values of a table, of the types that the settings have; what is wrong is told and left out."""
        fields = {field.name: field for field in msgspec.structs.fields(kind)}
        self.unknown_keys(table, fields, key)
        values: dict[str, Any] = {}
        for name in (name for name in table if name in fields):
            value = self._value(f"{key}.{name}", name, table[name], fields[name].type)
            if value is not _WRONG:
                values[name] = value
        return values

    def read_optional(self, document: Mapping[str, object], kind: type[Settings], key: str) -> Settings:
        """The table of that key, whose every setting has a default."""
        return self.read(self.table(document.get(key), key), kind, key) or kind()

    def _value(self, where: str, name: str, value: object, kind: Any) -> Any:
        if value == "none" and type(None) in getattr(kind, "__args__", ()):
            return None
        if get_origin(kind) is Literal and value not in get_args(kind):
            allowed = ", ".join(map(str, get_args(kind)))
            self.add(where, f"found {shown(value)}, allowed are {allowed}.", nearest(str(value), get_args(kind)))
            return _WRONG
        try:
            converted = msgspec.convert(in_unit_of(name, value), kind)
        except msgspec.ValidationError as error:
            self.add(where, f"found {shown(value)}: {_in_words(str(error))}.")
        except ValueError as error:
            self.add(where, f"found {shown(value)}: {error}.")
        else:
            return converted if self._is_within_bound(where, name, converted) else _WRONG
        return _WRONG

    def _is_within_bound(self, where: str, name: str, value: object) -> bool:
        before = len(self.problems)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                self.add(where, f"found {number}, expected a finite number.")
            elif name in BOUNDS and isinstance(number, (int, float)) and not BOUNDS[name].holds(number):
                self.add(where, f"found {shown(number)}, allowed is {BOUNDS[name]}.")
        return len(self.problems) == before

    def told(self, key: str) -> bool:
        """Something is already said of that key."""
        return any(problem.where == f"{self.file}: {key}" for problem in self.problems)


_WRONG = object()
"""In place of a value that cannot be read."""


def _in_words(message: str) -> str:
    """msgspec's sentence in the words of a plan."""
    head, _, place = message.partition(" - at ")
    words = re.sub("`([^`]+)`", lambda match: _type_words(match[1]), head)
    return words[:1].lower() + words[1:] + (f" (at {place.strip('`')})" if place else "")


def _type_words(types: str) -> str:
    names = [name for name in types.split(" | ") if name != "null"]
    return " or ".join(_TYPE_WORDS.get(name, name) for name in names)
