"""What every level keeps while it runs: requests in flight over time, the window of the measured ones, the records."""

from __future__ import annotations

from orchestrator.clock import NS_PER_S, now_ns
from orchestrator.load.health import SelfWatch
from orchestrator.records import LevelRun, LevelSpec, RequestRecord


def never(_: RequestRecord) -> str | None:
    """A level that ends by its own rules alone."""
    return None


class Window:
    """State of a level; one thread, so no locks. The window runs from the first measured issue to the last."""

    def __init__(self) -> None:
        self.started_ns = now_ns()
        self.start_ns: int | None = None
        self.end_ns: int | None = None
        self.in_flight = 0
        self.records: list[RequestRecord] = []
        self._changed_ns = self.started_ns
        self._integral = 0
        self._integral_at_start = 0
        self._integral_at_end = 0

    def count(self, step: int, at_ns: int) -> None:
        """A request was sent (+1) or has ended (-1)."""
        self._integral += self.in_flight * (at_ns - self._changed_ns)
        self._changed_ns = at_ns
        self.in_flight += step

    def measured_issue(self, at_ns: int) -> None:
        """The request that was counted last is a measured one."""
        if self.start_ns is None:
            self.start_ns, self._integral_at_start = at_ns, self._integral
        self.end_ns, self._integral_at_end = at_ns, self._integral

    def run(self, spec: LevelSpec, watch: SelfWatch, cut: str | None) -> LevelRun:
        """The level as it was run, now that it is over."""
        return LevelRun(
            spec=spec,
            started_ns=self.started_ns,
            window_start_ns=self.start_ns,
            window_end_ns=self.end_ns,
            ended_ns=now_ns(),
            in_flight_integral_s=(self._integral_at_end - self._integral_at_start) / NS_PER_S,
            health=watch.health(self.records),
            cut=cut,
            undrained=sum(r.phase == "measured" and _cancelled(r) for r in self.records),
        )


def _cancelled(record: RequestRecord) -> bool:
    return record.failure is not None and record.failure.kind == "cancelled"
