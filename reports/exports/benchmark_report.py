"""A level as a Benchmark Report v0.2 of the llm-d project.

The standard has no place for failures as +inf, verdicts or intervals: percentiles that fall on a failure are left out,
and what loadproof adds stands under ``results.observability.loadproof``, where the schema allows further keys.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from typing import Any

import msgspec

from orchestrator.records import Percentiles, ServerRecord
from reports.levels import LevelResult
from reports.result import CellResult, Result
from reports.traffic import Lengths

VERSION = "0.2"


def benchmark_report(result: Result, cell: CellResult, level: LevelResult) -> dict[str, Any]:
    """The report of one level; its stage is its position in the order of measuring, from 0."""
    name = f"{result.run_id}/{cell.asked.cell}/{level.level}"
    simulated = ["SIMULATED"] if cell.hardware == "simulated" else []
    return {
        "version": VERSION,
        "run": {
            "uid": str(uuid.uuid5(uuid.NAMESPACE_URL, f"loadproof:{name}")),
            "eid": str(uuid.uuid5(uuid.NAMESPACE_URL, f"loadproof:{result.run_id}")),
            "time": {"duration": f"PT{level.ended_s - level.started_s:.3f}S"},
            "description": " ".join([*simulated, f"{cell.asked.model} [{name}]"]),
            "keywords": ["loadproof", *simulated, cell.asked.deployment, cell.asked.workload],
        },
        "scenario": {"stack": [_component(result, cell)], "load": _load(result, cell, level)},
        "results": {
            "request_performance": {"aggregate": _aggregate(level)},
            "observability": {"loadproof": _ours(level)},
        },
    }


def _component(result: Result, cell: CellResult) -> dict[str, Any]:
    asked = cell.asked
    server = cell.servers[-1] if cell.servers else None
    cards = len(asked.gpus)
    return {
        "metadata": {"label": asked.deployment, "cfg_id": _hash(msgspec.to_builtins(asked))},
        "standardized": {
            "kind": "inference_engine",
            "tool": asked.stack,
            "tool_version": (server.version if server else None) or "not reported",
            "role": "replica",
            "replicas": 1,
            "model": {"name": asked.model},
            "accelerator": {
                "model": _accelerator(result.host) if cards else "none",
                "count": cards,
                "parallelism": {"tp": max(1, cards)},
            },
        },
        "native": _native(server),
    }


def _accelerator(host: Mapping[str, object]) -> str:
    return next((str(value) for name, value in sorted(host.items()) if name.startswith("gpu")), "not known")


def _native(server: ServerRecord | None) -> dict[str, Any]:
    if server is None:
        return {}
    return {"args": {str(i): part for i, part in enumerate(server.argv)}, "envars": dict(server.env)}


def _load(result: Result, cell: CellResult, level: LevelResult) -> dict[str, Any]:
    traffic = cell.traffic
    output = _sequence(traffic.output_asked) if cell.asked.lengths_forced else None
    return {
        "metadata": {"cfg_id": level.workload_sha256, "description": cell.asked.workload_title or cell.asked.workload},
        "standardized": {
            "tool": "loadproof",
            "tool_version": result.loadproof_version,
            "parallelism": level.health.workers,
            "source": "random",
            "stage": level.level,
            "input_seq_len": _sequence(traffic.prompt_asked) or {"distribution": "other", "value": 0},
            "concurrency": level.concurrency,
            **({"output_seq_len": output} if output else {}),
        },
        "native": {"args": {"overrides": list(result.overrides)}, "config": {"plan_sha256": result.plan_sha256}},
    }


def _sequence(found: Lengths | None) -> dict[str, Any] | None:
    """Mean length of the cell's requests, and whether it is a constant."""
    if found is None:
        return None
    fixed = found.quantiles[0] == found.longest
    return {"distribution": "fixed" if fixed else "other", "value": found.mean, "max": found.longest}


def _aggregate(level: LevelResult) -> dict[str, Any]:
    stats = level.stats
    requests: dict[str, Any] = {"total": stats.offered, "failures": stats.failed, "incomplete": level.undrained}
    for key, mean in (("input_length", stats.mean_in_tokens), ("output_length", stats.mean_out_tokens)):
        if mean is not None:
            requests[key] = {"units": "count", "mean": mean}
    latency = {
        "time_to_first_token": _statistics(stats.ttft_ms, "ms"),
        "time_per_output_token": _statistics(stats.tpot_ms, "ms/token"),
        "inter_token_latency": _statistics(stats.itl_ms, "ms/token"),
        "request_latency": _statistics(stats.e2e_ms, "ms"),
    }
    rates = {
        "input_token_rate": (stats.prompt_tokens_per_s, "tokens/s"),
        "output_token_rate": (stats.output_tokens_per_s, "tokens/s"),
        "request_rate": (stats.requests_per_s, "queries/s"),
    }
    return {
        "requests": requests,
        "latency": {name: found for name, found in latency.items() if found is not None},
        "throughput": {name: {"units": unit, "mean": v} for name, (v, unit) in rates.items() if v is not None},
    }


def _statistics(found: Percentiles, units: str) -> dict[str, Any] | None:
    """None where nothing succeeded: the standard asks for a mean."""
    if found.mean is None:
        return None
    ranks = {rank: getattr(found, rank) for rank in ("p50", "p90", "p95", "p99")}
    return {"units": units, "mean": found.mean, **{k: v for k, v in ranks.items() if v is not None}}


def _ours(level: LevelResult) -> dict[str, Any]:
    return {
        "purpose": level.purpose,
        "seed": level.seed,
        "attainment": level.stats.attainment,
        "certainty": msgspec.to_builtins(level.certainty),
        "verdict": msgspec.to_builtins(level.verdict),
        "percentiles": "nearest rank, failed requests as +inf",
    }


def _hash(value: object) -> str:
    return hashlib.sha256(msgspec.json.encode(value, order="sorted")).hexdigest()
