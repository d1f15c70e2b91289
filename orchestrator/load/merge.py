"""The records of several workers as one list, in the order of their ends."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from orchestrator.records import RequestRecord


class Merge:
    """Holds a record back until no worker can tell of an earlier one."""

    def __init__(self, workers: int) -> None:
        self._told_until = dict.fromkeys(range(workers), 0)
        """By worker that goes on: the time up to which it has told all, ns."""
        self._held: list[tuple[int, int, RequestRecord]] = []

    def add(self, record: RequestRecord) -> None:
        heapq.heappush(self._held, (record.end_ns, record.seq, record))

    def told_until(self, worker: int, at_ns: int) -> None:
        """This worker has told every record that ended before this time."""
        self._told_until[worker] = at_ns

    def close(self, worker: int) -> None:
        """This worker tells no more."""
        self._told_until.pop(worker, None)

    def take(self) -> Iterator[RequestRecord]:
        """The records whose turn has come."""
        while self._held and (not self._told_until or self._held[0][0] <= min(self._told_until.values())):
            yield heapq.heappop(self._held)[2]
