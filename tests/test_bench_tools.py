"""`make bench-tools`: what is read of the files that GuideLLM 0.8.1 and AIPerf 0.13.0 wrote (excerpts of a run)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.others import TOOLS, Job, Told

GUIDELLM = {
    "benchmarks": [
        {
            "metrics": {
                "time_to_first_token_ms": {"successful": {"percentiles": {"p50": 32.19, "p95": 73.3, "p99": 73.3}}},
                "inter_token_latency_ms": {"successful": {"percentiles": {"p50": 20.0, "p95": 20.47, "p99": 20.47}}},
            }
        }
    ]
}
AIPERF = {
    "time_to_first_token": {"unit": "ms", "avg": 69.28, "p50": 26.83, "p99": 179.0},
    "inter_token_latency": {"unit": "ms", "p50": 20.0, "p99": 20.31},
    "inter_chunk_latency": {"unit": "ms", "p50": 19.77, "p99": 63.44},
}


@pytest.mark.parametrize(
    ("tool", "file", "written", "ttft", "itl"),
    [
        ("guidellm", "out.json", GUIDELLM, (32.19, 73.3), (20.0, 20.47)),
        ("aiperf", "profile_export_aiperf.json", AIPERF, (26.83, 179.0), (19.77, 63.44)),
    ],
)  # fmt: skip
def test_what_a_tool_wrote_is_read(
    tmp_path: Path, tool: str, file: str, written: object, ttft: tuple[float, float], itl: tuple[float, float]
) -> None:
    (tmp_path / file).write_text(json.dumps(written))
    assert TOOLS[tool].read(Job("http://127.0.0.1:1", 4, tmp_path, "/tokenizer")) == Told(ttft, itl)


@pytest.mark.parametrize("tool", ["loadproof", "vllm", "guidellm", "aiperf"])
def test_each_is_asked_for_the_same_load(tmp_path: Path, tool: str) -> None:
    line = " ".join(TOOLS[tool].command("PROGRAM", Job("http://127.0.0.1:1", 4, tmp_path, "/tokenizer")))
    assert "PROGRAM" in line
    assert "http://127.0.0.1:1" in line
    for number in ("4", "12", "16", "100"):
        assert number in line.replace("=", " ").replace(",", " ").split()
