"""Every error a person meets: one clear sentence with the remedy, and the exit code of the command."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Problem(NamedTuple):
    """One thing that is wrong in a plan: where, what, and how to put it right."""

    where: str
    """The file and the key, e.g. ``plan.toml: deployment[1].quantization``."""
    message: str
    """What was found and what is allowed, one sentence."""
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" + (f" {self.remedy}" if self.remedy else "")


class LoadproofError(Exception):
    """Base of all errors that are told to the user without a traceback."""

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


class PlanError(LoadproofError):
    """The plan is wrong; every problem is listed and nothing was started."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


class HostError(LoadproofError):
    """The machine lacks something: no Docker, no GPU, image missing, port taken, disk full."""

    exit_code = 3


class StackError(LoadproofError):
    """A server did not come up or did not stay up. A result: it is journalled and the next cell goes on.

    `failure_class` is a short stable name (``oom-weights``, ``port-taken``, ``start-timeout``, ...);
    `evidence` holds the lines or the engine state that prove it, oldest first, bounded by the raiser; `fits_tokens` is
    the context that would fit, where the server says it.
    """

    exit_code = 4

    def __init__(
        self,
        message: str,
        remedy: str = "",
        *,
        failure_class: str = "unknown",
        evidence: Sequence[str] = (),
        fits_tokens: int | None = None,
    ) -> None:
        super().__init__(message, remedy)
        self.failure_class = failure_class
        self.evidence = tuple(evidence)
        self.fits_tokens = fits_tokens


class JournalError(LoadproofError):
    """A run directory is unreadable, of a newer schema, or belongs to another plan."""

    exit_code = 5
