"""Engine versions: parsing, order, and constants keyed by version and hardware class, each with its source."""

from __future__ import annotations

import functools
import re
from importlib import resources
from typing import NamedTuple

import msgspec

from stacks.memory.cards import HardwareClass
from stacks.memory.models import Facts, UnknownFactError


class Version(NamedTuple):
    """Major, minor, patch. Pre-release, build and ``.x`` parts do not count: ``0.14.x`` is 0.14.0."""

    major: int
    minor: int = 0
    patch: int = 0

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


def parse_version(text: str) -> Version:
    """``v0.19.1``, ``0.9.1.dev287``, ``0.14.x``, ``1.4``; raises `UnknownFactError` for anything else."""
    found = re.match(r"v?(\d+)(?:\.(\d+|x))?(?:\.(\d+|x))?", text.strip())
    if found is None:
        raise UnknownFactError(f"{text!r} is not a version.", "Write it as MAJOR.MINOR.PATCH, e.g. vllm@0.19.0.")
    return Version(*(int(part) if part and part != "x" else 0 for part in found.groups()))


class Constant(Facts, frozen=True, kw_only=True):
    """One value with the versions and hardware it holds for, and where it comes from."""

    stack: str
    name: str
    value: float
    source: str
    since: str | None = None
    before: str | None = None
    hardware: tuple[HardwareClass, ...] = ()
    """Empty = any."""
    rows: int | None = None
    """Public rows it rests on; None = source code or a definition."""

    def holds(self, stack: str, name: str, version: Version, hardware: HardwareClass) -> bool:
        return (
            (self.stack, self.name) == (stack, name)
            and (not self.hardware or hardware in self.hardware)
            and (self.since is None or version >= parse_version(self.since))
            and (self.before is None or version < parse_version(self.before))
        )


class _Constants(Facts, frozen=True, kw_only=True):
    constants: tuple[Constant, ...]
    newest: dict[str, str]


@functools.cache
def _table() -> _Constants:
    text = resources.files("stacks.memory").joinpath("data", "engine-constants.json").read_bytes()
    return msgspec.json.decode(text, type=_Constants)


@functools.cache
def constant(stack: str, name: str, version: Version, hardware: HardwareClass) -> Constant:
    """The first constant that holds; the table has the narrower entries first. A gap in the table is our fault."""
    for entry in _table().constants:
        if entry.holds(stack, name, version, hardware):
            return entry
    raise LookupError(f"no {name} of {stack} {version} on {hardware}")


def newest_known(stack: str) -> Version:
    """The newest version whose constants were checked; what an unnamed version is taken for."""
    return parse_version(_table().newest.get(stack, "0"))
