"""docs/plan.md: every key of a plan stands there, with the default that it has, and no other key does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orchestrator.plan.settings import (
    Budget,
    Client,
    Compare,
    Frontier,
    ModelSettings,
    OpenLoop,
    Ramp,
    WorkloadSettings,
)
from orchestrator.plan.settings import Soak as SoakSettings
from orchestrator.records import Cost, Demand, Slo
from stacks.base import Deployment

PAGE = (Path(__file__).parents[2] / "docs" / "plan.md").read_text(encoding="utf-8")
TABLES: dict[str, type[msgspec.Struct]] = {
    "model": ModelSettings,
    "slo": Slo,
    "deployment": Deployment,
    "workload": WorkloadSettings,
    "frontier": Frontier,
    "ramp": Ramp,
    "open_loop": OpenLoop,
    "demand": Demand,
    "soak": SoakSettings,
    "compare": Compare,
    "budget": Budget,
    "client": Client,
    "cost": Cost,
}
_CODE = re.compile(r"`([^`]+)`")
_ELSEWHERE = "resolved from another table, or from the deployment itself"


def _rows() -> dict[str, dict[str, Any]]:
    """Keys with their defaults as written, by table. _ELSEWHERE where the default is said in words."""
    found: dict[str, dict[str, Any]] = {}
    table = ""
    for line in PAGE.splitlines():
        if line.startswith("## "):
            named = re.match(r"## `\[+(\w+)\]+`", line)
            table = named[1] if named else ""
        cells = [cell.strip() for cell in line.split(" | ")]
        if not line.startswith("| ") or line.startswith(("| key", "| table")):
            continue
        cells[0] = cells[0].removeprefix("|").strip()
        if len(cells) == 4:  # the last section names the table in each row
            table = _CODE.findall(cells[0])[0].strip("[]") if cells[0] else table
            cells = cells[1:]
        keys, defaults = _CODE.findall(cells[0]), _CODE.findall(cells[1])
        for number, key in enumerate(keys):
            written: Any = None if cells[1] == "\u2013" else _ELSEWHERE
            if len(defaults) == len(keys) and not defaults[0].startswith("[model]"):
                written = json.loads(defaults[number])
            found.setdefault(table, {})[key] = written
    return found


@pytest.mark.parametrize("table", TABLES)
def test_every_key_stands_there_with_its_default(table: str) -> None:
    rows = _rows()[table]
    fields = {field.name: field for field in msgspec.structs.fields(TABLES[table])}
    assert rows.keys() == fields.keys()
    for key, written in rows.items():
        field = fields[key]
        if written == _ELSEWHERE:
            assert field.default is None or field.required, key
            continue
        default = field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default
        assert written == (list(default) if isinstance(default, tuple) else default), key


def test_no_other_table_stands_there() -> None:
    assert set(_rows()) == set(TABLES)
