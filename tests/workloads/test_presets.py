"""The built-in tables, against their own declared figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from workloads import presets

DATA = Path(presets.__file__).parent / "data"


@pytest.mark.parametrize("name", presets.TABLES)
def test_a_table_is_what_it_declares(name: str) -> None:
    declared = json.loads((DATA / f"{name}.json").read_text("utf-8"))
    workload = presets.preset(name)
    pairs = workload.pairs
    assert len(pairs) == declared["representation"]["pairs"] == 2000
    for side, key in enumerate(("prompt", "output")):
        assert pairs[:, side].mean() == pytest.approx(declared["moments"][key]["mean"], rel=1e-4)
        # Slices average the extremes: close to the source's quantiles, never beyond its extremes.
        assert declared["moments"][key]["min"] <= pairs[:, side].min()
        assert pairs[:, side].max() <= declared["moments"][key]["max"]
        percent, tokens = (declared["marginals"][key][part] for part in ("percent", "value"))
        middle = percent.index(50)
        assert np.median(pairs[:, side]) == pytest.approx(tokens[middle], rel=0.02, abs=1)
    assert workload.source_max == (declared["moments"]["prompt"]["max"], declared["moments"]["output"]["max"])
    assert workload.licence == declared["licence"]
    assert "Changed: reduced to a derived table." in workload.attribution
    assert declared["source"]["repository"] in workload.source


@pytest.mark.parametrize("name", presets.TABLES)
def test_a_table_stands_in_snake_order(name: str) -> None:
    for number, stratum in enumerate(np.split(presets.preset(name).pairs, 50)):
        outputs = stratum[:, 1] if number % 2 == 0 else stratum[::-1, 1]
        assert (np.diff(outputs) >= 0).all()


@pytest.mark.parametrize(
    ("name", "kv_held"),
    [
        ("azure-conv-2023", 1227),
        ("azure-code-2023", 2131),
        ("mooncake-conv-2025", 13126),
        ("rag-2025", 3457),
        ("reasoning-2025", 3438),
    ],
)
def test_kv_held_per_running_request(name: str, kv_held: int) -> None:
    """Figures of the full sources; the tables are within 1.5 % of them."""
    assert presets.preset(name).stats().kv_held_tokens == pytest.approx(kv_held, rel=0.016)


@pytest.mark.parametrize(
    ("name", "beta", "factor"),
    [("azure-conv-2023", 2, 1.65), ("azure-code-2023", 0, 4.29), ("mooncake-conv-2025", 6, 1.24)],
)
def test_the_bins_give_the_published_traffic_factor(name: str, beta: float, factor: float) -> None:
    """F = max(1.10, 1 + 2.33 CV, max/mean) of offered work per bin: reads both token columns of the arrivals."""
    arrivals = presets.preset(name).arrivals
    assert arrivals is not None
    work = np.array(arrivals.prompt_tokens_per_bin) + beta * np.array(arrivals.output_tokens_per_bin)
    assert len(work) >= 57
    swing = max(1.10, 1 + 2.33 * work.std() / work.mean(), work.max() / work.mean())
    assert swing == pytest.approx(factor, abs=0.02)


def test_rates_become_counts() -> None:
    arrivals = presets.preset("reasoning-2025").arrivals
    assert arrivals is not None
    assert len(arrivals.requests_per_bin) == 144
    assert sum(arrivals.requests_per_bin) == pytest.approx(1_383_669, rel=1e-3)


def test_constants() -> None:
    fixed = presets.preset("fixed-8k1k")
    assert fixed.pairs.tolist() == [[8192, 1024]]
    assert not fixed.signable
    assert presets.preset("rag-2025").signable


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'azure'.*azure-conv-2023.*fixed-1k8k"):
        presets.preset("azure")


def test_every_table_has_its_licence_beside_it() -> None:
    licences = (DATA / "LICENSES.md").read_text("utf-8")
    for name in presets.TABLES:
        assert f"{name}.json" in licences
    assert "Copyright (c) 2025 zhengchao wang" in licences
    assert "Apache License" in licences
