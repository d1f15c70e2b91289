"""Log lines of a serving stack -> facts in base units, and the failures that every stack shares.

Logs are untrusted and come in every state: coloured, with carriage returns of progress bars, with the prefixes of
compose, Ray and worker processes, with several starts in one file. Patterns therefore search, never match.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from stacks.base import FailurePattern, FoundFailure

GIB = 2**30
MIB = 2**20
MAX_TEXT_FACT = 120

_ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_LINE_END = re.compile(r"\r\n|\r|\n")
_RANK = re.compile(r"(?<![A-Za-z])(?:(?:TP|PP|DP|EP)\d+(?:[_ ](?:TP|PP|DP|EP)\d+)*|rank=\d+)")
_PREFIX_CHARACTERS = 160


def clean_lines(lines: Iterable[str]) -> list[str]:
    """Lines without colours and empty ones; every carriage return ends a line too."""
    parts = (part for line in lines for part in _LINE_END.split(_ANSI.sub("", line)))
    return [part.rstrip() for part in parts if part.strip()]


def since_last_start(lines: Sequence[str], marker: re.Pattern[str]) -> Sequence[str]:
    """The lines from the last start on: a restarted container goes on in the same log."""
    starts = [number for number, line in enumerate(lines) if marker.search(line)]
    return lines[starts[-1] :] if starts else lines


# --- facts ------------------------------------------------------------------------------------------------------


class Fact(NamedTuple):
    """One thing that a line says. Its group ``value`` holds it, in units of `scale`; ``part`` names what it is of."""

    name: str
    pattern: re.Pattern[str]
    scale: float | None = 1.0
    """Factor to the base unit; None = text."""
    over: Literal["ranks", "parts"] = "ranks"
    """Several ranks: the largest counts, as on one card, and the sum of bytes is told beside it. Several parts
    (buffers, devices): their sum counts. Of one rank or part, the last line counts: engines size their memory in
    two passes."""


def facts_of(lines: Sequence[str], table: Iterable[Fact]) -> dict[str, float | str]:
    """The facts of clean lines. Of two entries with one name, the first that finds something counts."""
    facts: dict[str, float | str] = {}
    for fact in table:
        if fact.name not in facts:
            facts.update(_read(fact, lines))
    return facts


def _read(fact: Fact, lines: Sequence[str]) -> Mapping[str, float | str]:
    numbers: dict[str, float] = {}
    texts: dict[str, None] = {}
    for line in lines:
        found = fact.pattern.search(line)
        if found is None or found["value"] is None:
            continue
        if fact.scale is None:
            texts[_text(found)] = None
        elif (number := number_of(found["value"])) is not None:
            numbers[_part(fact, found, line)] = number * fact.scale
    if texts:
        return {fact.name: ", ".join(texts)[:MAX_TEXT_FACT]}
    return _folded(fact, list(numbers.values())) if numbers else {}


def _folded(fact: Fact, values: list[float]) -> dict[str, float | str]:
    if fact.over == "parts":
        return {fact.name: sum(values)}
    several = len(values) > 1 and fact.name.endswith("_bytes")
    more: dict[str, float | str] = {f"{fact.name}_all_ranks": sum(values)} if several else {}
    return {fact.name: max(values), **more}


def _text(found: re.Match[str]) -> str:
    what = found.groupdict().get("what")
    return f"{found['value']} ({what})" if what else found["value"]


def _part(fact: Fact, found: re.Match[str], line: str) -> str:
    if fact.over == "parts":
        return found.groupdict().get("part") or ""
    rank = _RANK.search(line[: max(found.start(), 0)][:_PREFIX_CHARACTERS]) or _RANK.search(line[found.end() :])
    return rank.group(0) if rank else ""


def number_of(text: str) -> float | None:
    """``46,592`` or ``1.5`` as a number."""
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


# --- failures ---------------------------------------------------------------------------------------------------


def find_failure(lines: Sequence[str], table: Iterable[FailurePattern]) -> FoundFailure | None:
    """The first line that the first matching pattern of the table matches: causes stand before consequences in it.

    Named groups of the pattern may stand in the remedy, as in ``at most {max} tokens``; the group ``max`` is the
    context that would fit.
    """
    for failure_class, pattern, remedy in table:
        for line in lines:
            if found := pattern.search(line):
                groups = {name: text or "" for name, text in found.groupdict().items()}
                told = remedy.format_map(groups) if groups else remedy
                fits = groups.get("max", "")
                return FoundFailure(failure_class, line.strip(), told, int(fits) if fits.isdecimal() else None)
    return None


def failure(failure_class: str, pattern: str, remedy: str) -> FailurePattern:
    """A row of a failure table."""
    return FailurePattern(failure_class, re.compile(pattern), remedy)


SHARED_FAILURES = (
    failure(
        "gated",
        r"Cannot access gated repo|is restricted and you are not in the authorized list|trying to access a gated repo",
        'Ask for access on the model\'s page and pass a token: secrets = ["HF_TOKEN"].',
    ),
    failure(
        "not-found",
        r"Repository Not Found for url|is not a valid model identifier|Revision Not Found for url"
        r"|Repo id must be in the form",
        "Check the model's path, name and revision; a private model also needs a token, and a path must be mounted.",
    ),
    failure(
        "offline",
        r"outgoing traffic has been disabled|We couldn't connect to '",
        "Download the model first and mount the cache, or let the server reach the hub.",
    ),
    failure(
        "model-unknown",
        r"does not recognize this architecture",
        "The stack is older than the model: take a newer version.",
    ),
    failure(
        "driver-too-old",
        r"driver on your system is too old|driver version is insufficient for CUDA runtime"
        r"|unsatisfied condition: cuda>=",
        "Install a newer NVIDIA driver, or take an image built for an older CUDA.",
    ),
    failure(
        "no-kernel",
        r"no kernel image is available for execution|is not compatible with the current PyTorch installation",
        "Take an image that is built for this card's compute capability.",
    ),
    failure(
        "no-gpu",
        r"Found no NVIDIA driver on your system|No CUDA GPUs are available|could not select device driver",
        "Name the GPUs in the deployment, and install the NVIDIA container toolkit for containers.",
    ),
    failure(
        "port-taken",
        r"\[Errno 98\]|[Aa]ddress already in use|couldn't bind HTTP server socket",
        "Something else listens on the port: stop it, or let loadproof choose another one.",
    ),
    failure(
        "shm",
        r"Bus error|/dev/shm.*No space left on device|No space left on device.*/dev/shm",
        "Give the container more shared memory: shm_bytes.",
    ),
    failure(
        "nccl",
        r"NCCL error.*unhandled system error",
        "The GPUs cannot talk to each other, mostly for want of shared memory: raise shm_bytes; NCCL_DEBUG=INFO tells.",
    ),
    failure(
        "xid",
        r"NVRM: Xid \(",
        "The card or its driver failed, not the load: look at dmesg, reset or replace the card.",
    ),
    failure(
        "out of memory",
        r"CUDA out of memory\. Tried to allocate|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED",
        "Take smaller weights, a shorter context, a lower memory_fraction or a bigger card.",
    ),
    failure(
        "bad-argument",
        r"error: unrecognized arguments: |error: argument .*invalid choice|error: unexpected argument "
        r"|error: invalid value .* for |error: invalid argument: |No such option: ",
        "This version does not know the option: check version and args of the deployment.",
    ),
)
"""Class, sentence and remedy of the failures that come from torch, the hub, the driver and the machine."""
