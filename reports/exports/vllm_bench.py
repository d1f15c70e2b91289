"""A level as the file that `vllm bench serve --save-result --save-detailed` writes: scripts for it go on working.

The figures are the measured requests in vLLM's definitions (`reports.compat`): failures left out, percentiles
interpolated, throughput over first issue to last end. Keys that loadproof has nothing for keep vLLM's neutral value.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from orchestrator.clock import NS_PER_S
from orchestrator.metrics import Floats, TokenEvents, is_good, measured_records
from orchestrator.records import RequestRecord, Slo
from reports.compat import Successes
from reports.levels import LevelResult
from reports.result import CellResult, Result


def vllm_bench(
    result: Result, cell: CellResult, level: LevelResult, records: Sequence[RequestRecord]
) -> dict[str, Any]:
    """The result file of one level; `records` are its records of all phases."""
    measured = measured_records(records)
    done = Successes.of(measured)
    figures = level.compat.vllm_bench
    ok = [r for r in measured if r.failure is None and r.first_ns is not None and r.last_ns is not None]
    seconds = figures.duration_s or 0.0
    good = sum(is_good(r, result.slo) for r in measured)
    return {
        "date": result.wall_time[:19].translate(str.maketrans("T", "-", "-:")),
        "endpoint_type": "openai",
        "backend": "openai",
        "label": cell.asked.cell,
        "model_id": cell.asked.model,
        "tokenizer_id": cell.asked.model,
        "num_prompts": len(measured),
        "request_rate": "inf",
        "burstiness": 1.0,
        "max_concurrency": level.concurrency,
        "duration": seconds,
        "completed": figures.completed,
        "failed": len(measured) - figures.completed,
        "total_input_tokens": _whole(done.in_tokens),
        "total_output_tokens": _whole(done.out_tokens),
        "request_throughput": figures.request_throughput or 0.0,
        "request_goodput": good / seconds if seconds and _is_judged(result.slo) else None,
        "output_throughput": figures.output_throughput or 0.0,
        "total_token_throughput": figures.total_token_throughput or 0.0,
        "input_lens": [r.asked_in if r.in_tokens is None else r.in_tokens for r in measured],
        "output_lens": [(r.out_tokens or 0) if r.failure is None else 0 for r in measured],
        "ttfts": [((r.first_ns or r.sent_ns) - r.sent_ns) / NS_PER_S if r.failure is None else 0.0 for r in measured],
        "itls": [
            [(after - before) / NS_PER_S for before, after in pairwise(r.token_ns)] if r.failure is None else []
            for r in measured
        ],
        "start_times": [r.sent_ns / NS_PER_S for r in measured],
        "generated_texts": ["" for _ in measured],
        "errors": ["" if r.failure is None else f"{r.failure.kind}: {r.failure.detail}" for r in measured],
        "max_output_tokens_per_s": _most_tokens_in_a_second(ok),
        "max_concurrent_requests": _most_at_once(ok),
        **_summary("ttft", done.ttft_ms),
        **_summary("tpot", done.tpot_ms()),
        **_summary("itl", done.gaps_ms),
        **_summary("e2el", done.last_ms),
    }


def _is_judged(slo: Slo) -> bool:
    return any(limit is not None for limit in (slo.ttft_ms, slo.tpot_ms, slo.e2e_ms))


def _whole(values: Floats) -> int:
    return int(np.nansum(values))


def _summary(name: str, values: Floats) -> dict[str, float]:
    """vLLM's five keys of a metric; 0 where nothing succeeded, as there."""
    known = values if len(values) else np.zeros(1)
    return {
        f"mean_{name}_ms": float(known.mean()),
        f"median_{name}_ms": float(np.median(known)),
        f"std_{name}_ms": float(known.std()),
        f"p99_{name}_ms": float(np.percentile(known, 99)),
    }


def _most_tokens_in_a_second(ok: Sequence[RequestRecord]) -> float:
    """Most chunks in one second of the clock that starts with the first request, as vLLM counts tokens."""
    if not ok:
        return 0.0
    since = TokenEvents.of(ok).at_ns - min(r.sent_ns for r in ok)
    return float(np.bincount(since // NS_PER_S).max()) if len(since) else 0.0


def _most_at_once(ok: Sequence[RequestRecord]) -> int:
    """Most successful requests between sending and last token at one moment."""
    steps = sorted([(r.sent_ns, 1) for r in ok] + [(r.last_ns or r.sent_ns, -1) for r in ok])
    return int(np.cumsum([step for _, step in steps]).max()) if steps else 0
