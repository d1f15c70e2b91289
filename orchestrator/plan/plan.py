"""A plan as it is measured: cells, their fingerprints, and how long they may take."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import msgspec

from orchestrator.errors import Problem
from orchestrator.plan.expected import is_checked
from orchestrator.plan.settings import (
    Budget,
    Client,
    Compare,
    Frontier,
    ModelSettings,
    OpenLoop,
    Ramp,
    Soak,
    WorkloadSettings,
)
from orchestrator.records import SCHEMA, Cost, Demand, Side, Slo
from stacks.base import Deployment
from workloads.expected import Expected
from workloads.workload import Workload

_START_SECONDS = {"docker": 180.0, "process": 60.0, "external": 5.0, "simulated": 10.0}
"""Usual time until a server is ready, by launch kind; for the estimate only."""
_FILE_START_SECONDS, _FILE_BYTES_PER_SECOND = 3.0, 200e6
"""The same of a process that serves one local file: it has no library of kernels to load, but the file."""


_RATES = 6
"""Usual number of levels at a rate: three on the way and three fresh runs; for the estimate only."""
_FULL_REQUESTS, _FULL_CONFIRMATIONS = 800, 6
_FRESH_REQUESTS = 1600
"""Of a fresh run that confirms, in the full method."""
"""Usual size of a level of the full method, and its usual number of fresh runs at both ends; for the estimate only."""
_SENTINEL_REQUESTS = 30


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """A deployment under a workload."""

    id: str
    """`DEPLOYMENT--WORKLOAD`: unique in the plan, and safe as a file name and as a container name."""
    fingerprint: str
    """SHA-256 over all that could change the result. Not in it: the budget, which only says when to stop, and
    the prices."""
    deployment: Deployment
    workload: WorkloadSettings


class Paired(msgspec.Struct, frozen=True, kw_only=True):
    """Two cells that are measured in pairs, after their searches."""

    id: str
    fingerprint: str
    a: Cell
    b: Cell
    settings: Compare

    def cell(self, side: Side) -> Cell:
        return self.a if side == "a" else self.b


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
    """Those of the frontier come last."""
    ramp: Ramp
    open_loop: OpenLoop = OpenLoop()
    demand: Demand = Demand()
    """[demand]: what the launch needs. A cell of which less may be signed is REFUSED."""
    soak: Soak = Soak()
    compare: tuple[Compare, ...] = ()
    budget: Budget
    cost: Cost = Cost()
    client: Client = Client()
    frontier: Frontier | None = None
    lengths: Mapping[str, Workload]
    """The length pairs of each workload, by its name."""
    expected: Mapping[str, Expected] = MappingProxyType({})
    """The traffic expected of each workload, where anything is known of it and the check is made."""
    lacking: tuple[Problem, ...] = ()
    """What the environment does not hold. Only a plan that is shown, and not run, may lack anything."""

    @property
    def name(self) -> str:
        """File name of the plan."""
        return self.path.name

    @property
    def simulated(self) -> bool:
        """No server is started: every deployment is a simulated card (a plan mixes them with real ones never)."""
        return any(deployment.launch == "simulated" for deployment in self.deployments)

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

    def comparisons(self) -> tuple[Paired, ...]:
        """What is measured in pairs, in the plan's order."""
        cells = {(cell.deployment.name, cell.workload.name): cell for cell in self.cells()}
        return tuple(
            _paired(settings, cells[settings.a, settings.workload], cells[settings.b, settings.workload])
            for settings in self.compare
        )

    def workload(self, cell: Cell) -> Workload:
        """The length pairs that a cell draws its requests from."""
        return self.lengths[cell.workload.name]

    def frontier_prompt_tokens(self, workload: WorkloadSettings) -> int | None:
        """The prompt length for which a workload stands on the frontier; None for those of the plan's own."""
        lengths = self.frontier.prompt_tokens if self.frontier else ()
        return next((n for n in lengths if self.frontier and self.frontier.workload_name(n) == workload.name), None)

    def ramp_of(self, workload: WorkloadSettings) -> Ramp:
        """How the concurrency is raised under a workload."""
        if self.frontier is None or self.frontier_prompt_tokens(workload) is None:
            return self.ramp
        return msgspec.structs.replace(self.ramp, precision=self.frontier.precision)

    def is_searched(self, workload: WorkloadSettings) -> bool:
        """Whether anything may follow the search: a fixed ladder is none, and along the frontier it stands alone."""
        return not workload.levels and self.frontier_prompt_tokens(workload) is None

    def soak_seconds(self, workload: WorkloadSettings) -> float | None:
        """Length of the soak that follows; None = there is none."""
        return 60 * self.soak.minutes if self.soak.minutes is not None and self.is_searched(workload) else None

    def is_checked(self, workload: WorkloadSettings) -> bool:
        """Whether the open-loop check follows the search; a fixed ladder has none, nor has the frontier."""
        return is_checked(self.open_loop, self.ramp) and self.is_searched(workload)

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
            "ramp": self.ramp_of(workload),
        }
        if self.is_checked(workload):
            traffic = self.expected.get(workload.name)
            document["open_loop"] = self.open_loop
            document["expected"] = "" if traffic is None else traffic.sha256()
        if (soak := self.soak_seconds(workload)) is not None:
            document["soak_seconds"] = soak
        return hashlib.sha256(msgspec.json.encode(document, order="sorted")).hexdigest()

    def expected_seconds(self, cell: Cell) -> float:
        """Rough time of a cell, for --dry-run and for sharing the budget.

        Assumes that the break lies half way up the ladder (on the logarithmic scale), that a request takes 15 % of
        what the SLO allows on an idle server and 60 % at the break, linear between, and that no level ends early. A
        start takes 3 min in Docker, 1 min as a process, and seconds where a process serves one local file.
        """
        allowed_s = self._allowed_seconds(cell)
        levels = cell.workload.levels or self._search_levels(self.ramp_of(cell.workload))
        if self.ramp.recovery and self.is_searched(cell.workload):
            levels = [*levels, self.ramp.start]
        shares = (0.15 + 0.45 * min(1.0, concurrency / self._middle()) for concurrency in levels)
        times = (self._level_seconds(c, share * allowed_s) for c, share in zip(levels, shares, strict=True))
        soak = self.soak_seconds(cell.workload) or 0.0
        return _start_seconds(cell.deployment) + sum(times) + self._check_seconds(cell, allowed_s) + soak

    def expected_turn_seconds(self, cell: Cell, settings: Compare) -> float:
        """Rough time of one side of a pair: a start, a sentinel of one user, and the level."""
        concurrency = settings.concurrency or round(self._middle())
        allowed_s = self._allowed_seconds(cell)
        alone, together = 0.15 * allowed_s, 0.6 * allowed_s
        sentinel = (_SENTINEL_REQUESTS + self.ramp.warmup_generations + 1) * alone
        level = (
            self._rising_seconds(concurrency, together)
            + (self.ramp.warmup_generations + 1 + settings.requests_at(concurrency) / concurrency) * together
        )
        return _start_seconds(cell.deployment) + sentinel + level

    def expected_pairs_seconds(self, paired: Paired) -> float:
        """Rough time of a comparison, every turn of both sides."""
        return paired.settings.pairs * sum(
            self.expected_turn_seconds(cell, paired.settings) for cell in (paired.a, paired.b)
        )

    def expected_total_seconds(self) -> float:
        """Rough time of the whole run: that of its cells and comparisons, and the budget where that is less."""
        total = sum(map(self.expected_seconds, self.cells()))
        total += sum(map(self.expected_pairs_seconds, self.comparisons()))
        return total if self.budget.minutes is None else min(total, 60 * self.budget.minutes)

    def fresh_run_cut_seconds(self, cell: Cell) -> float | None:
        """Rough time of a fresh run of the full method half way up the ladder, if `ramp.max_seconds` would cut it: it
        would be INVALID then, and nothing could be confirmed. None if there is time enough, or no fresh run."""
        if self.ramp.method != "full" or not self.is_searched(cell.workload):
            return None
        users = self._middle()
        needed_s = max(_FRESH_REQUESTS, 10 * users) / users * 0.6 * self._allowed_seconds(cell)
        return needed_s if needed_s > self.ramp.longest_s else None

    def _allowed_seconds(self, cell: Cell) -> float:
        """Longest time that the SLO leaves to a request of mean length (its defaults where a limit is not set)."""
        ttft_ms = 1000.0 if self.slo.ttft_ms is None else self.slo.ttft_ms
        tpot_ms = 50.0 if self.slo.tpot_ms is None else self.slo.tpot_ms
        tokens = self.workload(cell).stats(cell.workload.context_tokens).output_mean
        allowed_ms = ttft_ms + tpot_ms * max(0.0, tokens - 1)
        return (allowed_ms if self.slo.e2e_ms is None else min(allowed_ms, self.slo.e2e_ms)) / 1000

    def _middle(self) -> float:
        return math.sqrt(self.ramp.start * self.ramp.max)

    def _search_levels(self, ramp: Ramp) -> list[int]:
        """Ladder up to the break and one beyond, bisection, confirmations on both sides."""
        middle = self._middle()
        doublings = max(0, math.ceil(math.log(middle / ramp.start) / math.log(ramp.factor)))
        ladder = [min(ramp.max, round(ramp.start * ramp.factor**step)) for step in range(doublings + 2)]
        gap = (middle - middle / ramp.factor) / max(1.0, ramp.precision * middle)
        bisections = math.ceil(math.log2(max(1.0, gap)))
        confirmations = _FULL_CONFIRMATIONS if ramp.method == "full" else 2 * ramp.confirm
        return ladder + [round(middle)] * (bisections + confirmations)

    def _check_seconds(self, cell: Cell, allowed_s: float) -> float:
        """Of the open-loop check: the probe, and so many rates and replays, at what the middle of the ladder does."""
        if not self.is_checked(cell.workload):
            return 0.0
        own, request_s = self.open_loop, 0.6 * allowed_s
        rate = 0.8 * self._middle() / request_s
        level_s = 1.25 * max(own.min_seconds, 20 * request_s, max(own.requests, 10 * self._middle()) / rate)
        replay = self.expected.get(cell.workload.name)
        replay_s = 0.0 if replay is None else max(level_s, min(own.replay_seconds, replay.length_s(rate)))
        return own.prefill_seconds + _RATES * level_s + replay_s

    def _rising_seconds(self, concurrency: int, request_s: float) -> float:
        if concurrency == 1:
            return 0.0
        return max(2 * request_s, 10.0) if self.ramp.ramp_seconds is None else self.ramp.ramp_seconds

    def _level_seconds(self, concurrency: int, request_s: float) -> float:
        ramp = self.ramp
        rising = self._rising_seconds(concurrency, request_s)
        least = _FULL_REQUESTS if ramp.method == "full" else ramp.requests
        requests = max(least, ramp.requests_per_user * concurrency)
        measured = max(ramp.min_seconds, requests / concurrency * request_s)
        return min(ramp.longest_s, rising + (ramp.warmup_generations + 1) * request_s + measured)


def _paired(settings: Compare, a: Cell, b: Cell) -> Paired:
    document = msgspec.json.encode([a.fingerprint, b.fingerprint, settings], order="sorted")
    return Paired(id=settings.id, fingerprint=hashlib.sha256(document).hexdigest(), a=a, b=b, settings=settings)


def _start_seconds(deployment: Deployment) -> float:
    size = _file_bytes(deployment)
    if deployment.launch != "process" or size is None:
        return _START_SECONDS[deployment.launch]
    return _FILE_START_SECONDS + size / _FILE_BYTES_PER_SECOND


def _file_bytes(deployment: Deployment) -> int | None:
    """Size of a model that is one local file: another file under the same name is another deployment."""
    path = Path(deployment.model)
    return path.stat().st_size if path.is_absolute() and path.is_file() else None
