"""Weight and KV formats: bytes per value, what stays 16-bit, and which stack has them from which version on."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from importlib import resources

import msgspec

from stacks.memory.models import Facts, UnknownFactError, nearest
from stacks.memory.versions import Version, parse_version


class WeightFormat(Facts, frozen=True, kw_only=True):
    """Bytes per weight. The data file's `_fields` entry documents each key."""

    name: str = ""
    title: str
    bits: int
    bytes: float
    theory: float
    interval: float
    compute: str
    evidence: str
    stacks: dict[str, tuple[str | None, str | None]]
    embedding: float = 2.0
    lm_head: float = 2.0
    rest: float = 2.0
    experts_only: bool = False
    group: int | None = None
    zero_points: bool = False
    spellings: tuple[str, ...] = ()

    def bytes_at(self, group: int | None) -> float:
        """Bytes per quantised weight with the checkpoint's own group size: a 16-bit scale (and a 4-bit zero) a group.

        The excess of `bytes` over `theory` is the kernels' padding, which the group size does not change.
        """
        if group is None or self.group is None or group == self.group:
            return self.bytes
        per_group = 2.5 if self.zero_points else 2.0
        return self.bytes + per_group / group - per_group / self.group


class KvFormat(Facts, frozen=True, kw_only=True):
    name: str = ""
    bytes: float
    stacks: tuple[str, ...]
    spellings: tuple[str, ...] = ()


class _Table(Facts, frozen=True, kw_only=True):
    weights: dict[str, WeightFormat]
    kv: dict[str, KvFormat]


@functools.cache
def _table() -> _Table:
    text = resources.files("stacks.memory").joinpath("data", "formats.json").read_bytes()
    table = msgspec.json.decode(text, type=_Table)
    return _Table(
        weights={name: msgspec.structs.replace(entry, name=name) for name, entry in table.weights.items()},
        kv={name: msgspec.structs.replace(entry, name=name) for name, entry in table.kv.items()},
    )


def weight_formats() -> Mapping[str, WeightFormat]:
    return _table().weights


def kv_formats() -> Mapping[str, KvFormat]:
    return _table().kv


def find_weight_format(name: str) -> WeightFormat:
    """A weight format by name or by an engine's spelling; raises `UnknownFactError` with the nearest ones."""
    table = weight_formats()
    wanted = name.strip().lower()
    for entry in table.values():
        if wanted == entry.name or wanted in entry.spellings:
            return entry
    spelled = [*table, *(spelling for entry in table.values() for spelling in entry.spellings)]
    raise UnknownFactError(
        f"Nothing is known of the weight format {name!r}.",
        f"Nearest: {nearest(wanted, spelled)}. Known: {', '.join(table)}.",
    )


def find_kv_format(name: str, weights: WeightFormat) -> KvFormat:
    """A KV format by name; ``auto`` is the model's compute type (32-bit only where the weights are)."""
    table = kv_formats()
    wanted = name.strip().lower()
    if wanted == "auto":
        return table["fp32"] if weights.name == "fp32" else table["16-bit"]
    for entry in table.values():
        if wanted == entry.name or wanted in entry.spellings:
            return entry
    raise UnknownFactError(
        f"Nothing is known of the KV format {name!r}.",
        f"Nearest: {nearest(wanted, table)}. Known: auto, {', '.join(table)}.",
    )


def check_support(weights: WeightFormat, kv: KvFormat, stack: str, version: Version | None) -> None:
    """Raises `UnknownFactError` if the stack (in this version) does not have the formats, naming what has them."""
    if stack not in weights.stacks:
        raise UnknownFactError(
            f"{stack} has no {weights.name} weights.",
            f"{weights.name} is in: {', '.join(sorted(weights.stacks))}. "
            f"{stack} has: {', '.join(name for name, entry in weight_formats().items() if stack in entry.stacks)}.",
        )
    since, before = weights.stacks[stack]
    if version is not None and not _within(version, since, before):
        span = " and ".join(
            part for part in (f"from {since}" if since else "", f"before {before}" if before else "") if part
        )
        raise UnknownFactError(
            f"{stack} {version} has no {weights.name} weights.", f"The versions {span} have them: {stack}@VERSION."
        )
    if kv.name not in {"16-bit", "fp32"} and stack not in kv.stacks:
        raise UnknownFactError(
            f"{stack} has no {kv.name} KV cache.",
            f"{stack} has: {', '.join(name for name, entry in kv_formats().items() if stack in entry.stacks)}.",
        )


def _within(version: Version, since: str | None, before: str | None) -> bool:
    return (since is None or version >= parse_version(since)) and (before is None or version < parse_version(before))


def format_of_checkpoint(method: str, bits: int | None) -> str | None:
    """The format of a checkpoint's `quantization_config`: its method and bits; None if it says nothing known."""
    wanted = method.lower()
    if wanted in {"gptq", "compressed-tensors", "auto-round", "autoround"} and bits:
        return {4: "gptq-int4", 8: "gptq-int8" if wanted == "gptq" else "int8"}.get(bits)
    if wanted == "bitsandbytes":
        return "bnb-int8" if bits == 8 else "bnb-nf4"
    if wanted == "modelopt":
        return "nvfp4" if bits in {None, 4} else "fp8"
    try:
        return find_weight_format(wanted).name
    except UnknownFactError:
        return None


_ONLINE = re.compile(r"online|in-flight|on load")


def is_online(quantization: str | None) -> bool:
    """Whether a spelling says that the weights are quantised while they are loaded."""
    return bool(quantization and _ONLINE.search(quantization.lower()))


_GROUPED_INT8 = re.compile(r"gptq|w8a16", re.IGNORECASE)


def refine_format(weights: WeightFormat, quantization: str | None, *, scales_kept_double: bool) -> WeightFormat:
    """The variant that an engine holds of a format.

    `quantization` as reported tells grouped INT8 from per-channel INT8; V0 engines keep bitsandbytes' doubly quantised
    scales, later loaders expand them.
    """
    table = weight_formats()
    if weights.name == "int8" and quantization and _GROUPED_INT8.search(quantization):
        return table["gptq-int8"]
    if weights.name == "bnb-nf4" and scales_kept_double:
        return table["bnb-nf4-double"]
    return weights
