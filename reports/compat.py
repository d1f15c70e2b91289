"""The same level in the words of other tools: what vLLM bench, GuideLLM and AIPerf would print for its measured set.

METHOD.md, "The same word elsewhere", has the definitions beside ours. All three leave failed requests out and divide by
the time from the first issue to the last end; so their figures look better than ours where requests failed, and their
throughput lower where the set is short.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from orchestrator.clock import NS_PER_MS, NS_PER_S
from orchestrator.metrics import Floats, TokenEvents
from orchestrator.records import RequestRecord


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Mean and percentiles of the requests that succeeded; None if none did."""

    mean: float | None = None
    p50: float | None = None
    p99: float | None = None


class VllmBench(msgspec.Struct, frozen=True, kw_only=True):
    """`vllm bench serve`. Percentiles are interpolated; ITL is a value for each chunk, whatever it holds."""

    duration_s: float | None
    completed: int
    request_throughput: float | None
    output_throughput: float | None
    total_token_throughput: float | None
    ttft_ms: Spread
    tpot_ms: Spread
    """(last chunk - first) / (output tokens - 1); one-token answers left out."""
    itl_ms: Spread
    e2el_ms: Spread


class GuideLlm(msgspec.Struct, frozen=True, kw_only=True):
    """GuideLLM. Percentiles are values that occurred."""

    ttft_ms: Spread
    tpot_ms: Spread
    """(last token - start) / output tokens: the first token's time is in it."""
    itl_ms: Spread
    """(last - first token) / (output tokens - 1): a value for each request, which we call TPOT."""
    request_latency_ms: Spread
    """To the end of the response, not to its last token."""
    output_tokens_per_s: float | None


class AiPerf(msgspec.Struct, frozen=True, kw_only=True):
    """AIPerf. Percentiles are interpolated."""

    ttft_ms: Spread
    itl_ms: Spread
    """(last - first token) / (output tokens - 1): a value for each request, which we call TPOT."""
    inter_chunk_ms: Spread
    request_latency_ms: Spread
    """To the last response with content."""
    output_tokens_per_s: float | None
    output_tokens_per_s_per_user: Spread
    """1 / ITL of each request."""


class Compat(msgspec.Struct, frozen=True, kw_only=True):
    """One level in the definitions of other tools."""

    vllm_bench: VllmBench
    guidellm: GuideLlm
    aiperf: AiPerf


class Successes(NamedTuple):
    """The measured requests that succeeded, as columns; NaN where a value is not known."""

    duration_s: float | None
    """First issue to last end of the measured set."""
    ttft_ms: Floats
    last_ms: Floats
    """Sent to last token."""
    end_ms: Floats
    """Sent to the end of the response."""
    in_tokens: Floats
    out_tokens: Floats
    gaps_ms: Floats
    """Between successive chunks of one request."""

    @classmethod
    def of(cls, records: Sequence[RequestRecord], events: TokenEvents | None = None) -> Successes:
        """From the records of all phases; `events` are their token events, if those are at hand."""
        measured = [r for r in records if r.phase == "measured"]
        succeeded = [
            r.phase == "measured" and r.failure is None and None not in (r.first_ns, r.last_ns) for r in records
        ]
        done = [r for r, counts in zip(records, succeeded, strict=True) if counts]
        span = max(r.end_ns for r in measured) - min(r.sent_ns for r in measured) if measured else 0
        events = (TokenEvents.of(records) if events is None else events).of_requests(succeeded)
        within = events.request[1:] == events.request[:-1]
        return cls(
            duration_s=span / NS_PER_S if span > 0 else None,
            ttft_ms=_column([(r.first_ns or 0) - r.sent_ns for r in done]) / NS_PER_MS,
            last_ms=_column([(r.last_ns or 0) - r.sent_ns for r in done]) / NS_PER_MS,
            end_ms=_column([r.end_ns - r.sent_ns for r in done]) / NS_PER_MS,
            in_tokens=_column([math.nan if r.in_tokens is None else r.in_tokens for r in done]),
            out_tokens=_column([math.nan if r.out_tokens is None else r.out_tokens for r in done]),
            gaps_ms=np.diff(events.at_ns)[within] / NS_PER_MS,
        )

    def per_s(self, total: float | None) -> float | None:
        """A total over the duration of the measured set."""
        return None if total is None or self.duration_s is None else total / self.duration_s

    def tpot_ms(self) -> Floats:
        """(Last - first token) / (output tokens - 1), of answers of two tokens and more."""
        several = self.out_tokens > 1
        return (self.last_ms - self.ttft_ms)[several] / (self.out_tokens[several] - 1)


def _column(values: Sequence[float]) -> Floats:
    return np.array(values, np.float64)


def _total(values: Floats) -> float | None:
    """The sum, if every value is known."""
    return None if np.isnan(values).any() else float(values.sum())


def spread(values: Floats, *, occurred: bool = False) -> Spread:
    """Mean, p50 and p99; interpolated, or else values that occurred."""
    known = values[np.isfinite(values)]
    if not len(known):
        return Spread()
    p50, p99 = np.percentile(known, [50, 99], method="inverted_cdf" if occurred else "linear")
    return Spread(mean=float(known.mean()), p50=float(p50), p99=float(p99))


def compat(records: Sequence[RequestRecord], events: TokenEvents | None = None) -> Compat:
    """A level's measured requests in the definitions of other tools; `events`: those of the records, if at hand."""
    done = Successes.of(records, events)
    output, prompt, tpot = _total(done.out_tokens), _total(done.in_tokens), done.tpot_ms()
    both = None if output is None or prompt is None else output + prompt
    some = done.out_tokens > 0
    return Compat(
        vllm_bench=VllmBench(
            duration_s=done.duration_s,
            completed=len(done.ttft_ms),
            request_throughput=done.per_s(len(done.ttft_ms)),
            output_throughput=done.per_s(output),
            total_token_throughput=done.per_s(both),
            ttft_ms=spread(done.ttft_ms),
            tpot_ms=spread(tpot),
            itl_ms=spread(done.gaps_ms),
            e2el_ms=spread(done.last_ms),
        ),
        guidellm=GuideLlm(
            ttft_ms=spread(done.ttft_ms, occurred=True),
            tpot_ms=spread(done.last_ms[some] / done.out_tokens[some], occurred=True),
            itl_ms=spread(tpot, occurred=True),
            request_latency_ms=spread(done.end_ms, occurred=True),
            output_tokens_per_s=done.per_s(output),
        ),
        aiperf=AiPerf(
            ttft_ms=spread(done.ttft_ms),
            itl_ms=spread(tpot),
            inter_chunk_ms=spread(done.gaps_ms),
            request_latency_ms=spread(done.last_ms),
            output_tokens_per_s=done.per_s(output),
            output_tokens_per_s_per_user=spread(1000 / tpot[tpot > 0]),
        ),
    )
