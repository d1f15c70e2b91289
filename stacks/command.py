"""Command lines out of flags: ours first, and the plan's own words instead of ours where they speak of the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from stacks.base import Deployment, Mount


class Flag(NamedTuple):
    """One option of a command line. A value of None is a switch."""

    name: str
    value: str | int | float | None = None
    aliases: tuple[str, ...] = ()
    """Other spellings of the option and of its opposite: given by the plan, they replace this one too."""

    @property
    def words(self) -> tuple[str, ...]:
        return (self.name,) if self.value is None else (self.name, _number(self.value))


def _number(value: str | int | float) -> str:
    return format(value, ".6g") if isinstance(value, float) else str(value)


def command_words(flags: Iterable[Flag | None], args: Sequence[str]) -> tuple[str, ...]:
    """The words of `flags` (None = not set) and then `args`. A flag that `args` give as well is left out: a launcher
    may refuse an option that comes twice, and what is shown should be what counts."""
    given = {word.partition("=")[0] for word in args if word.startswith("-")}
    kept = [flag for flag in flags if flag is not None and not given & {flag.name, *flag.aliases}]
    return (*(word for flag in kept for word in flag.words), *args)


def options(argv: Sequence[str]) -> list[tuple[str, ...]]:
    """A command line as a reader groups it: each flag with its value, and every other word alone."""
    groups: list[tuple[str, ...]] = []
    for word in argv:
        is_flag = word.startswith("-") and not word.lstrip("-").isdigit()
        if groups and not is_flag and groups[-1][0].startswith("-") and len(groups[-1]) == 1:
            groups[-1] = (*groups[-1], word)
        else:
            groups.append((word,))
    return groups


def when(condition: object, flag: Flag) -> Flag | None:
    """The flag, if the condition holds."""
    return flag if condition else None


def mounts_of(deployment: Deployment) -> tuple[Mount, ...]:
    """``HOST:CONTAINER[:ro]`` as mounts. Raises ValueError for anything else (`mount_problem` says so earlier)."""
    found = []
    for text in deployment.mounts:
        host, _, rest = text.partition(":")
        container, _, mode = rest.partition(":")
        if not host or not container.startswith("/") or mode not in ("", "ro", "rw"):
            raise ValueError(f"{text!r} is no mount")
        found.append(Mount(host, container, mode == "ro"))
    return tuple(found)


def visible_devices(gpus: Sequence[str]) -> dict[str, str]:
    """Environment that shows a process exactly these GPUs, counted as the driver counts them; {} = leave it alone."""
    if not gpus or "all" in gpus:
        return {}
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
