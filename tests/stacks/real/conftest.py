"""The table of what was measured, at the end of the tests of real stacks."""

from __future__ import annotations

import pytest
from real import table


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if table.ROWS:
        terminalreporter.section("real stacks")
        for line in table.lines():
            terminalreporter.write_line(line)
