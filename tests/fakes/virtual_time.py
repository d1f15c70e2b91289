"""An event loop whose clock jumps to the next timer when nothing is ready: minutes of load in milliseconds, exactly."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from asyncio_throttle import throttler

from orchestrator.clock import NS_PER_S
from orchestrator.load import closed, health, tally
from orchestrator.load import open as open_loop

T = TypeVar("T")


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        super().__init__(selectors.SelectSelector())
        self.now_s = 1000.0

    def time(self) -> float:
        return self.now_s

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self.now_s = max(self.now_s, self._scheduled[0]._when)  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


def run_virtually(monkeypatch: pytest.MonkeyPatch, main: Coroutine[Any, Any, T]) -> T:
    """Run to the end with the load engine's clock being the loop's."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        loop = runner.get_loop()
        for module in (closed, open_loop, health, tally):
            monkeypatch.setattr(module, "now_ns", lambda: round(loop.time() * NS_PER_S))
        monkeypatch.setattr(throttler, "time", SimpleNamespace(monotonic=loop.time))
        return runner.run(main)
