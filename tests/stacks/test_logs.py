"""What the recorded logs of real servers say, to the last number; and what nobody says stays unsaid."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import samples
from hypothesis import given
from hypothesis import strategies as st

from stacks.catalog import BUILT_IN, stack

GIB = 2**30
MIB = 2**20


def gib(number: float) -> Any:
    return pytest.approx(number * GIB)


def mib(number: float) -> Any:
    return pytest.approx(number * MIB)


VLLM = {"version": "0.32.0", "kv_bytes": gib(1), "kv_tokens": 46_592.0, "context_tokens": 2048.0}
LLAMACPP = {"slots": 4.0, "context_tokens": 2048.0, "kv_unified": "false"}
SGLANG = {
    "kv_bytes": gib(0.36),
    "kv_tokens": 16_384.0,
    "context_tokens": 2048.0,
    "slots": 4096.0,
    "attention": "torch_native",
    "memory_fraction": 0.3,
}
RECORDED: dict[str, dict[str, Any]] = {
    "vllm/startup.log": VLLM | {"load_s": 1.04, "init_s": 200.42},
    "vllm/startup-quiet-machine.log": VLLM | {"load_s": 0.19, "init_s": 62.59},
    "vllm/startup-warm-cache.log": VLLM | {"load_s": 0.3, "init_s": 47.35},
    "vllm/startup-eager.log": VLLM | {"load_s": 0.16, "init_s": 3.37},
    "vllm/startup-fp8-kv.log": VLLM | {"load_s": 0.25, "init_s": 0.46, "kv_tokens": 93_184.0},
    "vllm/startup-w8a8.log": VLLM
    | {"load_s": 0.27, "init_s": 0.57, "kernel": "CPUInt8ScaledMMLinearKernel (CompressedTensorsW8A8Int8)"},
    "vllm/startup-fp8-per-channel.log": VLLM
    | {
        "load_s": 0.91,
        "init_s": 0.53,
        "quantized_on_load_s": 0.69,
        "kernel": "ChannelWiseTorchFP8ScaledMMLinearKernel (Fp8PtpcOnlineLinearMethod)",
    },
    # No kernel line, and no time: nothing was quantized.
    "vllm/startup-int8-on-dense-model.log": VLLM | {"load_s": 0.35, "init_s": 0.53, "quantized_on_load_s": 0.0},
    "vllm/run-overload.log": VLLM | {"load_s": 0.18, "init_s": 1.94},
    # 20 blocks of the 364 that there was room for.
    "vllm/run-preemption.log": VLLM | {"load_s": 0.19, "init_s": 0.04, "kv_tokens": 2560.0, "kv_bytes": gib(20 / 364)},
    "vllm/run-preemption-stop-error.log": {},
    "sglang/startup.log": SGLANG | {"weights_bytes": gib(0.25), "load_s": 0.95, "init_s": 6.46},
    "sglang/startup-quiet-machine.log": SGLANG | {"weights_bytes": gib(0.2), "load_s": 0.23, "init_s": 4.58},
    "sglang/run-overload.log": SGLANG | {"weights_bytes": gib(0.2), "load_s": 0.19, "init_s": 4.96, "slots": 8.0},
    "sglang/run-small-pool.log": SGLANG
    | {
        "weights_bytes": gib(0.21),
        "load_s": 0.14,
        "init_s": 4.53,
        "slots": 600.0,
        "kv_tokens": 1200.0,
        "kv_bytes": gib(0.02),
    },
    "llamacpp/startup.log": LLAMACPP
    | {
        "version": "1-7e4c0a9",
        "weights_bytes": mib(136.4),
        "gpu_layers": 0.0,  # although it prints 31/31 layers
        "kv_bytes": mib(180),
        "kv_tokens": 8192.0,
        "kv_type": "f16",
        "file_type": "Q8_0",
        "compute_bytes": mib(15.51),
        "init_s": 0.472,
    },
    "llamacpp/startup-q8-kv.log": LLAMACPP
    | {
        "weights_bytes": mib(136.4),
        "gpu_layers": 0.0,
        "kv_bytes": mib(95.62),
        "kv_tokens": 8192.0,
        "kv_type": "q8_0",
        "compute_bytes": mib(14.42),
        "init_s": 0.441,
    },
    "llamacpp/startup-old-run.log": LLAMACPP
    | {
        "weights_bytes": mib(92.1),
        "gpu_layers": 0.0,
        "kv_bytes": mib(180),
        "kv_tokens": 8192.0,
        "kv_type": "f16",
        "compute_bytes": mib(15.51),
        "init_s": 5.858,
    },
    "llamacpp/startup-default-verbosity.log": LLAMACPP | {"init_s": 0.386},  # no memory line, and so no memory
    "llamacpp/startup-portable.log": LLAMACPP | {"version": "b0-unknown", "init_s": 0.435},
    "llamacpp/run-kv-full.log": {"slots": 8.0, "context_tokens": 512.0, "kv_unified": "true", "init_s": 0.35},
    "transformers/startup.log": {"continuous_batching": "True"},
    "transformers/startup-no-continuous-batching.log": {"continuous_batching": "False"},
}
CONSTRUCTED: dict[tuple[str, str], dict[str, Any]] = {
    ("vllm", "now (0.28 to 0.33), on a GPU"): {
        "version": "0.33.0",
        "weights_bytes": gib(15.29),  # the larger of two ranks, and their sum
        "kv_bytes": gib(52.11),
        "kv_tokens": 262_144.0,  # the card's, without the host's
        "context_tokens": 40_960.0,
        "fitted_context_tokens": 40_960.0,
        "graphs_bytes": gib(0.71),
        "activation_bytes": gib(1.2),
        "init_s": 50.64,
        "kernel": "MarlinMxFp4LinearKernel (MXFP4 GEMM)",
        "moe_kernel": "FLASHINFER_CUTLASS (NvFp4)",
        "attention": "FLASH_ATTN",
    },
    ("vllm", 'with --kv-cache-memory-bytes: instead of "Available KV cache memory"'): {"kv_bytes": gib(16)},
    ("vllm", "0.11"): {"kv_bytes": gib(16)},
    ("vllm", "0.8 to 0.27"): {
        "weights_bytes": gib(14.9888),
        "kv_tokens": 98_304.0,
        "context_tokens": 4096.0,
        "graphs_bytes": gib(0.61),
        "activation_bytes": gib(1.42),
        "init_s": 12.45,
        "attention": "TRITON_ATTN",
    },
    ("vllm", "the V0 engine"): {
        "weights_bytes": gib(14.9888),
        "kv_bytes": gib(54.88),
        "kv_blocks": 27_000.0,
        "activation_bytes": gib(1.23),
        "attention": "Flash Attention",
    },
    ("tgi", "3.3"): {
        "kv_tokens": 124_912.0,
        "kv_blocks": 124_912.0,
        "block_tokens": 1.0,
        "context_tokens": 32_768.0,
        "prefill_tokens": 4096.0,
        "graph_sizes": "32, 16, 8, 4, 2, 1",
        "prefix_caching": "false",
        "attention": "flashinfer",
        "load_s": 18.0,
    },
    ("tgi", "1.4, text and --json-output"): {"kv_tokens": 133_696.0},
    ("sglang", "0.5.23 on a GPU"): {
        "weights_bytes": gib(8.12),
        "load_s": 3.21,
        "kv_bytes": gib(50.0),  # sized after the graphs: neither the upper bound nor the summary
        "kv_tokens": 400_000.0,
        "graphs_bytes": gib(0.44),
        "slots": 4096.0,
        "context_tokens": 131_072.0,
    },
    ("sglang", "0.4.6 to 0.5.9"): {
        "weights_bytes": gib(14.98),
        "kv_bytes": gib(8.58),  # the last of two passes
        "kv_tokens": 871_371.0,
        "graphs_bytes": gib(2.51),
        "slots": 4097.0,
        "context_tokens": 8192.0,
    },
    ("sglang", "early 2025"): {"kv_bytes": gib(8.46), "graphs_bytes": gib(3.38)},
    ("sglang", "2024"): {"kv_tokens": 1_162_244.0, "slots": 4955.0, "context_tokens": 32_768.0},
    ("llamacpp", "now, on a GPU, -lv 4"): {
        "weights_bytes": mib(4403.49),
        "gpu_layers": 33.0,
        "layers": 33.0,
        "kv_bytes": mib(512),
        "kv_tokens": 4096.0,
        "kv_type": "f16",
        "compute_bytes": mib(560),
        "fit": "cannot meet free memory target of 1024 MiB",
    },
    ("llamacpp", "older"): {
        "weights_bytes": mib(3820.94),
        "kv_bytes": mib(512),
        "kv_tokens": 4096.0,
        "kv_type": "f16",
    },
    ("trtllm", ""): {
        "weights_bytes": gib(16.22),  # inside torch and outside
        "kv_bytes": gib(16.05),  # not the sizing pass
        "kv_tokens": 263_008.0,
        "block_tokens": 32.0,
        "compute_bytes": mib(928.77),
        "context_tokens": 131_072.0,
        "slots": 2048.0,
    },
    ("lmdeploy", ""): {
        "kv_bytes": mib(98_304),
        "kv_blocks": 12_000.0,
        "kv_tokens": 768_000.0,
        "context_tokens": 32_768.0,
        "engine": "turbomind",
        "engine_fallback": "pytorch engine",
    },
    ("transformers", ""): {"kv_room_bytes": mib(60_000), "prefill_tokens": 8192.0},
}


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_log(name: str) -> None:
    found = stack(name.partition("/")[0])
    assert found.log_facts(samples.lines(name)) == RECORDED[name]
    if not name.endswith("kv-full.log"):
        assert found.find_failure(samples.lines(name)) is None, "a healthy start and a normal stop are no failure"


@pytest.mark.parametrize("name", [name for kind in BUILT_IN for name in samples.names(kind, "startup-fail*.log")])
def test_a_failed_start_tells_no_kv_pool_that_never_was(name: str) -> None:
    found = stack(name.partition("/")[0]).log_facts(samples.lines(name))
    assert "kv_tokens" not in found


def test_no_recording_is_left_out() -> None:
    recorded = {name for kind in BUILT_IN for name in samples.names(kind, "*.log")}
    failed = {name for name in recorded if "-fail" in name or name.endswith(("formats.log", "models-500.log"))}
    assert recorded - failed == set(RECORDED)


@pytest.mark.parametrize(("name", "heading"), CONSTRUCTED)
def test_a_line_of_each_known_form(name: str, heading: str) -> None:
    parts = samples.sections(f"{name}/formats.log")
    content = parts[heading] if heading else next(iter(parts.values()))
    found = stack(name).log_facts(content)
    assert {key: value for key, value in found.items() if not key.endswith("_all_ranks")} == CONSTRUCTED[name, heading]


def test_ranks_are_told_apart_and_summed() -> None:
    content = samples.sections("vllm/formats.log")["now (0.28 to 0.33), on a GPU"]
    for order in (content, content[:0:-1]):
        found = stack("vllm").log_facts(order)
        assert (found["weights_bytes"], found["weights_bytes_all_ranks"]) == (gib(15.29), gib(15.27 + 15.29))


def test_only_the_last_of_several_starts_in_one_log_counts() -> None:
    twice = [*samples.lines("vllm/startup-fp8-kv.log"), *samples.lines("vllm/run-preemption.log")]
    assert stack("vllm").log_facts(twice)["kv_tokens"] == 2560.0
    failed_before = [*samples.lines("vllm/startup-fail-ctx-too-long.log"), *samples.lines("vllm/startup-eager.log")]
    assert stack("vllm").find_failure(failed_before) is None


@pytest.mark.parametrize("prefix", ["vllm-1  | ", "\x1b[36m(Worker_TP0 pid=7)\x1b[0m ", "50%|#####     |\r"])
def test_prefixes_colours_and_progress_bars_hide_nothing(prefix: str) -> None:
    name = "vllm/startup-eager.log"
    assert stack("vllm").log_facts([prefix + line for line in samples.lines(name)]) == RECORDED[name]


@pytest.mark.parametrize("name", BUILT_IN)
@given(content=st.lists(st.text(max_size=60), max_size=20))
def test_no_text_breaks_a_reader_or_is_a_fact(name: str, content: list[str]) -> None:
    found = stack(name)
    assert found.log_facts(content) == {}
    assert found.find_failure(content) is None
    assert found.metric_values("\n".join(content)) == {}
