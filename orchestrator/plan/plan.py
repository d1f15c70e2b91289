"""A plan as it is measured: cells, their fingerprints, and how long they may take."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

import msgspec

from orchestrator.plan.settings import Budget, Client, ModelSettings, Ramp, WorkloadSettings
from orchestrator.records import SCHEMA, Slo
from stacks.base import Deployment
from workloads.workload import Workload

_START_SECONDS = {"docker": 180.0, "process": 60.0, "external": 5.0}
"""Usual time until a server is ready, by launch kind; for the estimate only."""
_FILE_START_SECONDS, _FILE_BYTES_PER_SECOND = 3.0, 200e6
"""The same of a process that serves one local file: it has no library of kernels to load, but the file."""


_FULL_REQUESTS, _FULL_CONFIRMATIONS = 800, 6
"""Usual size of a level of the full method, and its usual number of fresh runs at both ends; for the estimate only."""


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """A deployment under a workload."""

    id: str
    """`DEPLOYMENT--WORKLOAD`: unique in the plan, and safe as a file name and as a container name."""
    fingerprint: str
    """SHA-256 over all that could change the result. Not in it: the budget, which only says when to stop."""
    deployment: Deployment
    workload: WorkloadSettings


class Plan(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """A checked plan."""

    text: bytes
    """As given, byte for byte, without the overrides."""
    path: Path
    overrides: tuple[str, ...] = ()
    title: str = ""
    seed: int = 0
    slo: Slo
    model: ModelSettings
    deployments: tuple[Deployment, ...]
    workloads: tuple[WorkloadSettings, ...]
    ramp: Ramp
    budget: Budget
    client: Client = Client()
    lengths: Mapping[str, Workload]
    """The length pairs of each workload, by its name."""

    @property
    def name(self) -> str:
        """File name of the plan."""
        return self.path.name

    @property
    def sha256(self) -> str:
        """Of the text as given."""
        return hashlib.sha256(self.text).hexdigest()

    def cells(self) -> tuple[Cell, ...]:
        """Deployment by deployment, each under every workload, in the plan's order."""
        return tuple(
            Cell(
                id=f"{deployment.name}--{workload.name}",
                fingerprint=self._fingerprint(deployment, workload),
                deployment=deployment,
                workload=workload,
            )
            for deployment in self.deployments
            for workload in self.workloads
        )

    def workload(self, cell: Cell) -> Workload:
        """The length pairs that a cell draws its requests from."""
        return self.lengths[cell.workload.name]

    def _fingerprint(self, deployment: Deployment, workload: WorkloadSettings) -> str:
        document = {
            "schema": SCHEMA,
            "seed": self.seed,
            "slo": self.slo,
            "model": self.model,
            "deployment": deployment,
            "model_file_bytes": _file_bytes(deployment),
            "workload": workload,
            "pairs": self.lengths[workload.name].sha256(),
            "ramp": self.ramp,
        }
        return hashlib.sha256(msgspec.json.encode(document, order="sorted")).hexdigest()

    def expected_seconds(self, cell: Cell) -> float:
        """Rough time of a cell, for --dry-run and for sharing the budget.

        Assumes that the break lies half way up the ladder (on the logarithmic scale), that a request takes 15 % of
        what the SLO allows on an idle server and 60 % at the break, linear between, and that no level ends early. A
        start takes 3 min in Docker, 1 min as a process, and seconds where a process serves one local file.
        """
        allowed_s = self._allowed_seconds(cell)
        levels = cell.workload.levels or self._search_levels()
        shares = (0.15 + 0.45 * min(1.0, concurrency / self._middle()) for concurrency in levels)
        times = (self._level_seconds(c, share * allowed_s) for c, share in zip(levels, shares, strict=True))
        return _start_seconds(cell.deployment) + sum(times)

    def expected_total_seconds(self) -> float:
        """Rough time of the whole run: that of its cells, and the budget where that is less."""
        cells = sum(map(self.expected_seconds, self.cells()))
        return cells if self.budget.minutes is None else min(cells, 60 * self.budget.minutes)

    def _allowed_seconds(self, cell: Cell) -> float:
        """Longest time that the SLO leaves to a request of mean length (its defaults where a limit is not set)."""
        ttft_ms = 1000.0 if self.slo.ttft_ms is None else self.slo.ttft_ms
        tpot_ms = 50.0 if self.slo.tpot_ms is None else self.slo.tpot_ms
        tokens = self.workload(cell).stats(cell.workload.context_tokens).output_mean
        allowed_ms = ttft_ms + tpot_ms * max(0.0, tokens - 1)
        return (allowed_ms if self.slo.e2e_ms is None else min(allowed_ms, self.slo.e2e_ms)) / 1000

    def _middle(self) -> float:
        return math.sqrt(self.ramp.start * self.ramp.max)

    def _search_levels(self) -> list[int]:
        """Ladder up to the break and one beyond, bisection, confirmations on both sides."""
        ramp = self.ramp
        middle = self._middle()
        doublings = max(0, math.ceil(math.log(middle / ramp.start) / math.log(ramp.factor)))
        ladder = [min(ramp.max, round(ramp.start * ramp.factor**step)) for step in range(doublings + 2)]
        gap = (middle - middle / ramp.factor) / max(1.0, ramp.precision * middle)
        bisections = math.ceil(math.log2(max(1.0, gap)))
        confirmations = _FULL_CONFIRMATIONS if ramp.method == "full" else 2 * ramp.confirm
        return ladder + [round(middle)] * (bisections + confirmations)

    def _level_seconds(self, concurrency: int, request_s: float) -> float:
        ramp = self.ramp
        rising = max(2 * request_s, 10.0) if ramp.ramp_seconds is None else ramp.ramp_seconds
        rising = 0.0 if concurrency == 1 else rising
        least = _FULL_REQUESTS if ramp.method == "full" else ramp.requests
        requests = max(least, ramp.requests_per_user * concurrency)
        measured = max(ramp.min_seconds, requests / concurrency * request_s)
        return min(ramp.max_seconds, rising + (ramp.warmup_generations + 1) * request_s + measured)


def _start_seconds(deployment: Deployment) -> float:
    size = _file_bytes(deployment)
    if deployment.launch != "process" or size is None:
        return _START_SECONDS[deployment.launch]
    return _FILE_START_SECONDS + size / _FILE_BYTES_PER_SECOND


def _file_bytes(deployment: Deployment) -> int | None:
    """Size of a model that is one local file: another file under the same name is another deployment."""
    path = Path(deployment.model)
    return path.stat().st_size if path.is_absolute() and path.is_file() else None
