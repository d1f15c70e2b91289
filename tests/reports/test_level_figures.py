"""What is derived of a level beside its statistics: intervals, other tools' words, its course, its traffic."""

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
from fakes.run_directory import FakeCell, asked_cell, build_run

import reports.certainty
import reports.course
from orchestrator.clock import NS_PER_MS, NS_PER_S
from orchestrator.judge.bounds import Estimate
from orchestrator.judge.search import SearchRules
from orchestrator.metrics import output_arrivals
from orchestrator.records import ClientHealth, Failure, LevelRun, LevelSpec, RequestRecord, Sample, Slo
from reports.certainty import Certainty
from reports.compat import Spread, compat, spread
from reports.course import Course
from reports.result import result
from reports.run import read_run
from reports.traffic import EDGES, Counted, lengths, traffic
from workloads.presets import preset

MS = NS_PER_MS


def record(
    seq: int, *, sent_ms: int = 0, ttft_ms: int = 100, gaps_ms: tuple[int, ...] = (10, 10, 10), failed: bool = False
) -> RequestRecord:
    """A request with one token an event; its response ends 5 ms after its last token."""
    at = [(sent_ms + ttft_ms) * MS]
    for gap in gaps_ms:
        at.append(at[-1] + gap * MS)
    made = RequestRecord(
        seq=seq,
        request_id=f"r{seq}",
        phase="measured",
        due_ns=sent_ms * MS,
        sent_ns=sent_ms * MS,
        end_ns=at[-1] + 5 * MS,
        asked_in=50,
        asked_out=len(at),
        first_ns=at[0],
        last_ns=at[-1],
        in_tokens=51,
        out_tokens=len(at),
        tokens_from="usage",
        finish="length",
        token_ns=tuple(at),
    )
    lost = {"failure": Failure(kind="reset"), "first_ns": None, "last_ns": None, "token_ns": (), "out_tokens": None}
    return msgspec.structs.replace(made, **lost) if failed else made


def level_run(start_ms: int, end_ms: int, ended_ms: int) -> LevelRun:
    return LevelRun(
        spec=LevelSpec(
            concurrency=2,
            purpose="bracket",
            seed=1,
            requests=10,
            min_seconds=0,
            max_seconds=60,
            ramp_seconds=0,
            warmup_generations=0,
            warmup_seconds=0,
            filler_seconds=1,
            deadline_seconds=60,
        ),
        started_ns=0,
        window_start_ns=start_ms * MS,
        window_end_ns=end_ms * MS,
        ended_ns=ended_ms * MS,
        in_flight_integral_s=1.0,
        health=ClientHealth(loop_lag_ms_p99=0, send_lag_ms_p99=0, cpu_s=0, wall_s=1, kernel_share=1),
    )


def certainty(run: LevelRun, records: list[RequestRecord], slo: Slo) -> Certainty:
    return reports.certainty.certainty(run, records, slo, output_arrivals(records, (run.started_ns, run.ended_ns)))


def course(run: LevelRun, records: list[RequestRecord], samples: list[Sample]) -> Course:
    return reports.course.course(run, records, samples, output_arrivals(records, (run.started_ns, run.ended_ns)))


def test_the_same_requests_in_the_words_of_other_tools() -> None:
    """Two requests by hand: TTFT 100 and 200 ms, gaps of 10 and of 40 ms, and a failure that others leave out."""
    records = [
        record(0),
        record(1, sent_ms=100, ttft_ms=200, gaps_ms=(40, 40, 40)),
        record(2, sent_ms=100, failed=True),
    ]
    found = compat(records)
    vllm, guidellm, aiperf = found.vllm_bench, found.guidellm, found.aiperf
    assert (vllm.duration_s, vllm.completed) == (0.425, 2)
    assert msgspec.structs.astuple(vllm.ttft_ms) == pytest.approx((150.0, 150.0, 199.0))
    assert msgspec.structs.astuple(vllm.tpot_ms) == pytest.approx((25.0, 25.0, 39.7))
    assert vllm.itl_ms.mean == 25.0
    assert vllm.e2el_ms.mean == pytest.approx((130 + 320) / 2)
    assert vllm.output_throughput == pytest.approx(8 / 0.425)
    assert vllm.total_token_throughput == pytest.approx((8 + 102) / 0.425)
    assert guidellm.tpot_ms.mean == pytest.approx((130 / 4 + 320 / 4) / 2), "the first token's time is in it"
    assert guidellm.itl_ms == Spread(mean=25.0, p50=10.0, p99=40.0), "values that occurred"
    assert guidellm.request_latency_ms.mean == pytest.approx((135 + 325) / 2), "to the end of the response"
    assert aiperf.itl_ms.mean == 25.0
    assert aiperf.inter_chunk_ms == vllm.itl_ms
    assert aiperf.output_tokens_per_s_per_user.mean == pytest.approx((100 + 25) / 2)


def test_nothing_that_succeeded_has_no_figures() -> None:
    found = compat([record(0, failed=True)])
    assert found.vllm_bench.completed == 0
    assert found.vllm_bench.ttft_ms == found.guidellm.tpot_ms == Spread()
    assert compat([]).vllm_bench.duration_s is None
    assert spread(np.array([math.nan, 3.0])) == Spread(mean=3.0, p50=3.0, p99=3.0)


def test_intervals_hold_their_value_and_tell_what_they_rest_on() -> None:
    records = [record(i, sent_ms=20 * i, ttft_ms=100 + i % 37) for i in range(400)]
    found = certainty(level_run(0, 20 * 399, 9000), records, Slo(ttft_ms=130.0, tpot_ms=50.0))
    share, ttft, rate = found.attainment, found.ttft_p95_ms, found.output_tokens_per_s
    assert share.lower is not None
    assert share.upper is not None
    assert share.value is not None
    assert 0 < share.lower < share.value < share.upper < 1
    assert share.n_eff is not None
    assert 50 < share.n_eff < 400
    assert ttft.value == 134.0
    assert ttft.lower is not None
    assert ttft.lower <= 134.0
    assert rate.value == pytest.approx(4 * 50, rel=0.02), "50 requests a second of 4 tokens"
    assert rate.lower is not None
    assert rate.upper is not None
    assert rate.lower < 200 < rate.upper


def test_too_few_requests_have_no_interval_and_failures_no_value() -> None:
    few = certainty(level_run(0, 0, 100), [record(0)], Slo())
    assert (few.attainment, few.ttft_p95_ms, few.output_tokens_per_s) == (Estimate(), Estimate(), Estimate())
    lost = certainty(level_run(0, 100, 200), [record(i, failed=i % 2 == 0) for i in range(40)], Slo())
    assert lost.ttft_p95_ms.value is None
    assert lost.attainment.value == 0.5


def test_the_course_of_a_level() -> None:
    records = [record(i, sent_ms=100 * i, ttft_ms=200, failed=i == 7) for i in range(40)]
    samples = [
        Sample(at_ns=s * NS_PER_S, source=source, values=values)
        for s in range(4)
        for source, values in (
            ("gpu:a", {"memory_used_bytes": 5e9, "power_w": 200.0, "throttle_sw_thermal": float(s == 2)}),
            ("gpu:b", {"memory_used_bytes": 4e9, "power_w": 100.0, "throttle_sw_thermal": 0.0}),
            ("engine", {"kv_use": 0.5, "waiting": 1.0}),
        )
    ]
    found = course(level_run(500, 3900, 4400), records, samples)
    assert (found.length_s, found.window_s) == (4.4, (0.5, 3.9))
    assert found.in_flight[20] == pytest.approx(2.35, rel=0.03), "235 ms each, one every 100 ms"
    assert found.output_tokens_per_s[20] == pytest.approx(40, rel=0.3)
    assert found.ttft_ms[0] == (0.0, 200.0)
    assert found.failed_s == (0.935,)
    assert found.memory_bytes[0] == (0.0, 5e9)
    assert [value for _, value in found.gauges["power_w"]] == [300.0] * 4
    assert [value for _, value in found.gauges["throttled"]] == [0.0, 0.0, 1.0, 0.0]
    assert found.gauges["kv_use"][-1] == (3.0, 0.5)


def test_a_course_is_small_however_long_the_level_was() -> None:
    records = [record(i, sent_ms=i, failed=i % 2 == 0) for i in range(5000)]
    samples = [Sample(at_ns=s * NS_PER_S, source="engine", values={"kv_use": 0.1}) for s in range(1000)]
    found = course(level_run(0, 5000, 6000), records, samples)
    assert len(msgspec.json.encode(found)) < 10_000


def test_traffic_stands_beside_the_preset_that_was_asked() -> None:
    chat = preset("azure-conv-2023")
    counted = Counted()
    counted.add([record(0), record(1, failed=True)])
    found = traffic(counted, asked_cell("a", "w", workload_title=chat.title, context_tokens=None))
    assert found.prompt_asked is not None
    assert found.output_served is not None
    assert (found.requests, found.prompt_asked.mean, found.output_served.n) == (2, 50.0, 1)
    assert found.preset == "azure-conv-2023"
    assert found.preset_prompt is not None
    assert found.preset_prompt.mean == pytest.approx(chat.stats().prompt_mean, abs=0.01)
    assert traffic(Counted(), asked_cell("a", "w")).preset is None


def test_lengths_are_counted_in_half_octaves() -> None:
    found = lengths([1, 2, 3, 4, 1000])
    assert found is not None
    assert (found.n, found.longest, found.quantiles[2]) == (5, 1000, 3)
    assert sum(found.counts) == 5
    assert found.counts[0] == 1
    at = next(i for i, edge in enumerate(EDGES) if edge > 1000) - 1
    assert found.counts[at] == 1
    assert lengths([]) is None


def test_energy_is_power_over_throughput_of_the_steady_window(tmp_path: Path) -> None:
    cell = FakeCell(asked_cell("a", "w"), rules=SearchRules(levels=(4,)), source="gpu:a", power_w=250.0)
    (level,) = result(read_run(build_run(tmp_path / "run", [cell]))).cells[0].levels
    assert level.power_w == 250.0
    assert level.stats.output_tokens_per_s
    assert level.energy_j_per_output_token == pytest.approx(250 / level.stats.output_tokens_per_s)
    assert level.tokens_from == ("usage",)
