"""What a plan may ask of each release, what is refused with the nearest word, and what an unknown release is worth."""

from __future__ import annotations

from typing import Any

import pytest

from stacks.base import Deployment, Setting
from stacks.catalog import BUILT_IN, stack
from stacks.command import options
from stacks.settings import Values, image_tag, release
from stacks.sheet import DataSheet

SHEETS = [name for name, kind in BUILT_IN.items() if issubclass(kind, DataSheet)]


def deployment(name: str, **settings: Any) -> Deployment:
    return Deployment(**{"name": "d", "stack": name, "model": "org/m", **settings})


def problems(name: str, **settings: Any) -> list[Setting]:
    return stack(name).problems(deployment(name, **settings))


def values(name: str, number: str) -> set[str]:
    sheet = stack(name)
    assert isinstance(sheet, DataSheet)
    return set(sheet.quantizations.at(release(number)))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("v0.33.0", (0, 33, 0)),
        ("0.6.6.post1", (0, 6, 6)),
        ("0.5.19-cu129", (0, 5, 19)),
        ("0.32.0+cpu", (0, 32, 0)),
        ("1.4", (1, 4, 0)),
        ("1.3.0rc1", (1, 3, 0)),
        ("latest", None),
        ("server-cuda-b4711", None),
        ("", None),
        (None, None),
    ],
)
def test_a_release(text: str | None, number: tuple[int, int, int] | None) -> None:
    assert release(text) == number


@pytest.mark.parametrize(
    ("image", "tag"),
    [
        ("vllm/vllm-openai:v0.33.0", "v0.33.0"),
        ("localhost:5000/vllm/vllm-openai", None),
        ("localhost:5000/vllm:v1@sha256:" + "0" * 64, "v1"),
        ("vllm@sha256:" + "0" * 64, None),
        (None, None),
    ],
)
def test_a_tag(image: str | None, tag: str | None) -> None:
    assert image_tag(image) == tag


def test_vllm_s_formats_release_by_release() -> None:
    newest = (
        "awq auto_awq fp8 fbgemm_fp8 fp_quant modelopt modelopt_fp4 modelopt_mxfp8 modelopt_mixed auto_gptq gptq "
        "gptq_marlin awq_marlin humming compressed-tensors experts_int8 quark moe_wna16 torchao inc mxfp4 "
        "gpt_oss_mxfp4 deepseek_v4_fp8 online fp8_per_tensor fp8_per_block fp8_per_channel "
        "int8_per_channel_weight_only nvfp4_per_token mxfp8"
    )
    assert values("vllm", "0.33.0") == values("vllm", "0.28.0") == set(newest.split())
    assert values("vllm", "0.27.1") - values("vllm", "0.28.0") == {"bitsandbytes"}
    assert "gguf" in values("vllm", "0.23.0") - values("vllm", "0.24.0")
    assert values("vllm", "0.6.6") >= {"aqlm", "marlin", "hqq", "bitsandbytes"}
    assert values("vllm", "0.13.0") - values("vllm", "0.11.0") == {"fp_quant", "cpu_gptq", "cpu_awq"}


def test_sglang_s_formats_release_by_release() -> None:
    assert values("sglang", "0.5.15") - values("sglang", "0.5.23") == {"marlin", "qoq"}
    assert "mxfp8" in values("sglang", "0.5.9") - values("sglang", "0.5.3")


@pytest.mark.parametrize("name", SHEETS)
def test_what_quantizes_on_load_is_a_value_of_some_release(name: str) -> None:
    sheet = stack(name)
    assert isinstance(sheet, DataSheet)
    everything = {value for _, row in sheet.quantizations.rows for value in row}
    assert set(sheet.on_load) <= everything
    assert set(sheet.refused) <= set(Deployment.__struct_fields__)


def test_on_load_or_from_a_checkpoint_is_told_before_the_start() -> None:
    def told(**settings: Any) -> str:
        return " ".join(stack("vllm").notes(deployment("vllm", context_tokens=64, **settings)))

    assert "mxfp4 quantizes a 16-bit checkpoint while it loads" in told(quantization="mxfp4")
    assert "mxfp4 needs a checkpoint that is quantized already" in told(quantization="mxfp4", version="0.27.1")
    assert "awq needs a checkpoint" in told(quantization="awq")
    assert "experts only" in told(quantization="int8_per_channel_weight_only")


@pytest.mark.parametrize(
    ("name", "settings", "key", "message", "remedy"),
    [
        ("vllm", {"quantization": "fp9"}, "quantization", "vLLM 0.33.0", 'Nearest: "fp8"'),
        ("vllm", {"quantization": "bitsandbytes"}, "quantization", "Releases before 0.28.0 have it", "Accepted: "),
        ("vllm", {"quantization": "mxfp8", "version": "0.8.5"}, "quantization", "Releases from 0.20.2 have it", "fp8"),
        ("vllm", {"kv_dtype": "fp7"}, "kv_dtype", "fp7", 'Nearest: "fp8"'),
        ("vllm", {"kv_cache_bytes": 2**30, "version": "0.9.0"}, "kv_cache_bytes", "from 0.10.2 on", "memory_fraction"),
        ("vllm", {"api": "generate"}, "api", "generate", "completions"),
        ("vllm", {"context_tokens": 0}, "context_tokens", "below 1", "positive"),
        ("vllm", {"memory_fraction": 1.5}, "memory_fraction", "no share", "up to 1"),
        ("vllm", {"kv_cache_bytes": 1, "kv_cache_tokens": 1}, "kv_cache_tokens", "two sizes", "or kv_cache_bytes"),
        ("vllm", {"mounts": ("here",)}, "mounts", "no mount", "HOST:CONTAINER"),
        ("tgi", {"quantization": "gguf"}, "quantization", "TGI 3.3.7", "Accepted: "),
        ("tgi", {"quantization": "fp8", "dtype": "float16"}, "dtype", "beside quantization", "Leave dtype out"),
        ("tgi", {"served_name": "x"}, "served_name", 'serves this model as "org/m"', "Leave"),
        ("tgi", {"kv_cache_tokens": 9}, "kv_cache_tokens", "no such setting", "memory_fraction is the only knob"),
        ("sglang", {"kv_cache_bytes": 9}, "kv_cache_bytes", "no such setting", "kv_cache_tokens"),
        ("llamacpp", {"model": "m.Q8_0.gguf", "quantization": "Q4_0"}, "quantization", "named Q8_0", "another file"),
        ("llamacpp", {"quantization": "fp8"}, "quantization", "llama.cpp", "Accepted: "),
        ("llamacpp", {"tensor_parallel": 2}, "tensor_parallel", "no such setting", "splits by layer"),
        ("llamacpp", {"revision": "v2"}, "revision", "no such setting", "download the revision"),
        ("trtllm", {"quantization": "fp8"}, "quantization", "TensorRT-LLM", "Accepted: none"),
        ("trtllm", {"kv_dtype": "fp8"}, "kv_dtype", "from a file only", "--config"),
        ("trtllm", {"served_name": "x"}, "served_name", 'serves this model as "m"', "Leave"),
        ("transformers", {"quantization": "awq"}, "quantization", "transformers serve", "bnb-4bit"),
        ("transformers", {"max_concurrency": 8}, "max_concurrency", "no such setting", "kv_cache_tokens bounds it"),
        ("transformers", {"tensor_parallel": 2}, "tensor_parallel", "no such setting", "one device"),
        ("lmdeploy", {"quantization": "hf"}, "quantization", "LMDeploy", "Accepted: awq"),
    ],
)
def test_a_refusal_says_why_and_what_instead(
    name: str, settings: dict[str, Any], key: str, message: str, remedy: str
) -> None:
    (found,) = problems(name, **settings)
    assert found.key == key
    assert message in found.message
    assert remedy in found.remedy


@pytest.mark.parametrize("name", SHEETS)
def test_an_endpoint_that_runs_already_is_not_told_how_to_start(name: str) -> None:
    settings = {"quantization": "whatever", "kv_dtype": "fp99", "dtype": "int3", "kv_cache_bytes": 9, "revision": "x"}
    assert problems(name, launch="external", url="http://h", **settings) == []


@pytest.mark.parametrize("name", [name for name in SHEETS if BUILT_IN[name]().version_note("99.0.0")])
@pytest.mark.parametrize(("version", "known"), [("99.1.0", False), ("0.0.1", False), (None, True), ("main", True)])
def test_a_release_that_is_not_known_is_one_warning(name: str, version: str | None, known: bool) -> None:
    sheet = stack(name)
    note = sheet.version_note(version)
    assert (note is None) == known
    if note is None:
        return
    assert "not reported" in note
    told = sheet.notes(deployment(name, version=version))
    assert told.count(note) == 1
    assert sheet.problems(deployment(name, version=version)) == [], "a newer release is no reason to refuse a plan"


@pytest.mark.parametrize(
    ("version", "known"),
    [("b11549-7e4c0a9", True), ("11549-7e4c0a9", True), ("b12001-0badc0de", False), (None, True), ("master", True)],
)
def test_a_build_of_llama_cpp_that_is_not_known_is_a_warning(version: str | None, known: bool) -> None:
    note = stack("llamacpp").version_note(version)
    assert (note is None) == known
    assert note is None or ("12001" in note and "not reported" in note)


@pytest.mark.parametrize("name", SHEETS)
def test_the_releases_that_are_known_are_no_warning(name: str) -> None:
    sheet = stack(name)
    assert isinstance(sheet, DataSheet)
    for version in sheet.versions or ():
        assert sheet.version_note(version) is None
    assert sheet.version_note(None) is None


@pytest.mark.parametrize(
    ("args", "size", "blocks"),
    [((), "32", "33"), (("--block-size", "64"), "64", "17"), (("--block-size=128",), "128", "9")],
)
def test_a_pool_of_so_many_tokens_in_whatever_blocks_plus_the_one_that_is_never_handed_out(
    args: tuple[str, ...], size: str, blocks: str
) -> None:
    words = options(stack("vllm").launch(deployment("vllm", kv_cache_tokens=1024, args=args), "h", 1).argv)
    assert ("--num-gpu-blocks-override", blocks) in words
    assert [word for word in words if word[0].startswith("--block-size")] == [args or ("--block-size", size)]


def test_values_that_drop_what_was_never_there_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="drops what was not there"):
        Values.growing(("1.0", "a", ""), ("1.1", "", "b"))
    with pytest.raises(ValueError, match="no release"):
        Values.growing(("newest", "a", ""))
