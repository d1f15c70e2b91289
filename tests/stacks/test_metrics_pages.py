"""The metrics pages of real servers: exact values; and no number where a name is not known."""

from __future__ import annotations

import re
from typing import Any

import pytest
from fakes import samples

from stacks.catalog import BUILT_IN, stack
from stacks.sheet import DataSheet

VLLM = {"running": 0.0, "waiting": 0.0, "kv_use": 0.0, "preemptions_total": 0.0, "rejected_total": 0.0}
RECORDED: dict[str, dict[str, Any]] = {
    "vllm/metrics.txt": VLLM
    | {
        "prompt_tokens_total": 4548.0,
        "output_tokens_total": 2900.0,
        "cached_tokens_total": 0.0,
        "kv_tokens": 46_592.0,
    },
    "vllm/metrics-prefix-hits.txt": VLLM
    | {
        "prompt_tokens_total": 2681.0,
        "output_tokens_total": 97.0,
        "cached_tokens_total": 256.0,
        "kv_tokens": 46_592.0,
    },
    "vllm/metrics-preemption-midway.txt": VLLM
    | {
        "running": 6.0,
        "waiting": 10.0,
        "kv_use": 18 / 19,
        "prompt_tokens_total": 1542.0,
        "output_tokens_total": 1869.0,
        "cached_tokens_total": 0.0,
        "kv_tokens": 2560.0,
    },
    "vllm/metrics-preemption-end.txt": VLLM
    | {
        "preemptions_total": 17.0,
        "prompt_tokens_total": 1542.0,
        "output_tokens_total": 4800.0,
        "cached_tokens_total": 0.0,
        "kv_tokens": 2560.0,
    },
    "sglang/metrics.txt": {
        "running": 8.0,
        "waiting": 0.0,
        "kv_use": 0.05,
        "preemptions_total": 0.0,
        "prompt_tokens_total": 59.0,
        "output_tokens_total": 37.0,
        "cached_tokens_total": 10.0,
        "kv_tokens": 16_384.0,
        "kv_used_tokens": 754.0,
    },
    "sglang/metrics-small-pool.txt": {
        "running": 2.0,
        "waiting": 8.0,
        "kv_use": 0.48,
        "preemptions_total": 0.0,
        "prompt_tokens_total": 6.0,
        "output_tokens_total": 8.0,
        "cached_tokens_total": 0.0,
        "kv_tokens": 1200.0,
        "kv_used_tokens": 572.0,
    },
    "sglang/metrics-stale-gauges.txt": {
        "running": 0.0,
        "waiting": 0.0,
        "kv_use": 0.0,
        "preemptions_total": 0.0,
        "prompt_tokens_total": 2554.0,
        "output_tokens_total": 828.0,
        "cached_tokens_total": 17.0,
        "kv_tokens": 16_384.0,
        "kv_used_tokens": 0.0,
    },
    "llamacpp/metrics.txt": {
        "running": 4.0,
        "waiting": 4.0,
        "prompt_tokens_total": 121.0,  # with the cached ones, which its own counter leaves out
        "output_tokens_total": 47.0,
        "cached_tokens_total": 28.0,
    },
    "transformers/metrics.txt": {},  # a 404: there are none
}
SPELLINGS: tuple[tuple[str, str, dict[str, float]], ...] = (
    # The same thing under the names of other releases, made after their documentation.
    ("vllm", 'vllm:gpu_cache_usage_perc{engine="0"} 0.25', {"kv_use": 0.25}),
    (
        "vllm",
        'vllm:kv_cache_usage_perc{engine="0"} 0.5\nvllm:gpu_cache_usage_perc{engine="0"} 0.5',
        {"kv_use": 0.5},
    ),
    (
        "vllm",
        'vllm:cache_config_info{block_size="16",num_gpu_blocks="1000",engine="0"} 1.0',
        {"kv_tokens": 16_000.0},
    ),
    ("vllm", 'vllm:cache_config_info{block_size="16",num_gpu_blocks="None"} 1.0', {}),
    ("vllm", "vllm:gpu_prefix_cache_hits_total 3.0", {"cached_tokens_total": 3.0}),
    ("vllm", "vllm:num_requests_running_created 1.7e9", {}),
    ("vllm", 'vllm:num_requests_running{engine="0"} 3\nvllm:num_requests_running{engine="1"} 4', {"running": 7.0}),
    ("vllm", 'vllm:kv_cache_usage_perc{engine="0"} 0.3\nvllm:kv_cache_usage_perc{engine="1"} 0.9', {"kv_use": 0.9}),
    ("vllm", "vllm:num_requests_running NaN", {}),
    (
        "tgi",
        "tgi_batch_current_size 3\ntgi_queue_size 2\ntgi_batch_current_max_tokens 500\n"
        "tgi_batch_max_total_tokens 2000\ntgi_request_input_length_sum 70\ntgi_request_generated_tokens_sum 40",
        {
            "running": 3.0,
            "waiting": 2.0,
            "kv_use": 0.25,
            "kv_tokens": 2000.0,
            "prompt_tokens_total": 70.0,
            "output_tokens_total": 40.0,
        },
    ),
    ("tgi", "tgi_batch_current_max_tokens 500", {}),
    ("sglang", 'sglang:num_running_reqs{tp_rank="0"} 3\nsglang:num_running_reqs{tp_rank="1"} 3', {"running": 3.0}),
    ("sglang", 'sglang:num_running_reqs{dp_rank="0"} 3\nsglang:num_running_reqs{dp_rank="1"} 4', {"running": 7.0}),
    # 0.5.3 has the gauge of retractions and not yet the counter: absent is unknown there.
    ("sglang", "sglang:num_retracted_reqs 0", {}),
    ("sglang", "sglang:max_total_num_tokens 100", {"kv_tokens": 100.0}),
    ("sglang", "sglang:max_total_num_tokens 9\nsglang:num_retracted_reqs 0", {"kv_tokens": 9, "preemptions_total": 0}),
    (
        "sglang",
        "sglang:max_total_num_tokens 100\nsglang:num_retracted_reqs 0\nsglang:num_retracted_requests_total 4",
        {"kv_tokens": 100.0, "preemptions_total": 4.0},
    ),
    ("llamacpp", "llamacpp:kv_cache_usage_ratio 0.5", {"kv_use": 0.5}),
    ("llamacpp", "llamacpp:prompt_tokens_total 9", {"prompt_tokens_total": 9.0}),
    (
        "trtllm",
        "trtllm_num_requests_running 2\ntrtllm_kv_cache_utilization 0.1",
        {"running": 2.0, "kv_use": 0.1},
    ),
    ("trtllm", "num_requests_waiting 5\nprompt_tokens_total 7", {"waiting": 5.0, "prompt_tokens_total": 7.0}),
    (
        "lmdeploy",
        "lmdeploy:num_requests_running 1\nlmdeploy:gpu_cache_usage_perc 0.2\nlmdeploy:cached_tokens_total 3",
        {"running": 1.0, "kv_use": 0.2, "cached_tokens_total": 3.0},
    ),
)


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_page(name: str) -> None:
    found = stack(name.partition("/")[0]).metric_values(samples.text(name))
    assert found == pytest.approx(RECORDED[name])


def test_no_recording_is_left_out() -> None:
    assert {name for kind in BUILT_IN for name in samples.names(kind, "metrics*.txt")} == set(RECORDED)


@pytest.mark.parametrize(("name", "text", "values"), SPELLINGS)
def test_names_of_other_releases(name: str, text: str, values: dict[str, float]) -> None:
    assert stack(name).metric_values(text) == values


@pytest.mark.parametrize("name", [name for name, values in RECORDED.items() if values])
def test_a_name_that_a_newer_release_has_changed_is_not_reported_and_never_zero(name: str) -> None:
    sheet = stack(name.partition("/")[0])
    page, before = samples.text(name), RECORDED[name]
    assert sheet.metric_values(re.sub(r"(?m)^(\w+:)", r"\1new_", page)) == {}
    assert isinstance(sheet, DataSheet)
    for metric in [metric for metrics in sheet.metrics.values() for metric in metrics]:
        found = sheet.metric_values(re.sub(rf"(?m)^{metric.name}\b", "renamed", page))
        for key, value in found.items():
            # Another source of the same thing may step in; one that is close is another reading, and no zero.
            assert value == pytest.approx(before[key]) or value > 0, (metric.name, key)


@pytest.mark.parametrize("name", [name for name, values in RECORDED.items() if values])
def test_a_page_that_is_cut_anywhere_gives_true_values_or_none(name: str) -> None:
    sheet, page = stack(name.partition("/")[0]), samples.text(name)
    whole = sheet.metric_values(page)
    for end in range(0, len(page), 4999):
        cut = page[: page.rfind("\n", 0, end) + 1]
        found = sheet.metric_values(cut)
        assert found.keys() <= whole.keys()
