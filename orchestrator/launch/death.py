"""Why a server ended: exit status, what the container engine says and the log, as one result. Pure."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from orchestrator.errors import StackError
from orchestrator.records import ServerFailure
from stacks.base import Stack

EVIDENCE_LINES = 20
EVIDENCE_CHARACTERS = 500
OUT_OF_MEMORY = "out of memory"
SERVER_DIED = "server died"
START_TIMEOUT = "start-timeout"
PORT_TAKEN = "port-taken"
_SHELL_SIGNALS = 128
"""Containers and shells give 128 + N for the death by signal N."""


class Exit(NamedTuple):
    """How a server ended."""

    code: int | None = None
    """Exit code; -N = killed by signal N; None = nobody could say."""
    oom_killed: bool | None = None
    """Killed by the kernel for memory; None = not known."""
    limit_bytes: int | None = None
    """The memory limit that it had, where it had one."""
    evidence: tuple[str, ...] = ()
    """What the engine or the kernel says of the end, in its own words."""


def ending(code: int | None) -> str:
    """An exit code in words: ``exited with code 3``, ``was killed by SIGKILL``."""
    if code is None:
        return "is gone, and its exit code is not known"
    number = -code if code < 0 else code - _SHELL_SIGNALS
    if code < 0 or _SHELL_SIGNALS < code <= _SHELL_SIGNALS + 64:
        try:
            return f"was killed by {signal.Signals(number).name}"
        except ValueError:
            return f"was killed by signal {number}"
    return f"exited with code {code}"


def tail(lines: Sequence[str], count: int = EVIDENCE_LINES) -> tuple[str, ...]:
    """The last lines of a log, bounded for a record."""
    return tuple(line[:EVIDENCE_CHARACTERS] for line in lines[-count:])


def failure_of(stack: Stack, ended: Exit, lines: Sequence[str], log: Path | None) -> ServerFailure:
    """The result that a death is. The engine's word on memory counts more than the log, which seldom sees it coming."""
    evidence = (*ended.evidence, *tail(lines))
    read_log = f"Read {log}." if log is not None else ""
    fits: int | None = None
    found = stack.find_failure(lines)
    if ended.oom_killed:
        limit = f" at its limit of {ended.limit_bytes / 1024**2:,.0f} MiB" if ended.limit_bytes else ""
        failure_class = OUT_OF_MEMORY
        message = f"{stack.title} was killed by the kernel for lack of host memory{limit}."
        remedy = "Give it more memory (memory_limit), a smaller model or a shorter context."
    elif found is not None:
        failure_class = found.failure_class
        message = f"{stack.title} {ending(ended.code)}: {found.line.strip()[:EVIDENCE_CHARACTERS]}"
        remedy, fits = found.remedy, found.fits_tokens
        evidence = (*ended.evidence, found.line[:EVIDENCE_CHARACTERS], *tail(lines))
    else:
        failure_class = SERVER_DIED
        message = f"{stack.title} {ending(ended.code)}, and no line of its log is known as a cause."
        remedy = read_log
    return ServerFailure(
        failure_class=failure_class,
        message=message,
        remedy=remedy,
        evidence=evidence,
        exit_code=ended.code,
        oom_killed=ended.oom_killed,
        fits_tokens=fits,
    )


def stack_error(failure: ServerFailure) -> StackError:
    """The same for whoever waits for a server to come up."""
    return StackError(
        failure.message,
        failure.remedy,
        failure_class=failure.failure_class,
        evidence=failure.evidence,
        fits_tokens=failure.fits_tokens,
    )
