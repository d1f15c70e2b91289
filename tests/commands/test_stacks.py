"""`loadproof stacks`: the list, one stack in full, one of its releases, and the same as JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner, Result

from orchestrator.cli import loadproof
from stacks.catalog import BUILT_IN


def ran(*arguments: str) -> Result:
    return CliRunner().invoke(loadproof, ["stacks", *arguments])


def facts(*arguments: str) -> dict[str, Any]:
    done = ran(*arguments, "--json")
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.output)
    return found


def test_the_list_names_every_stack_once_with_its_state() -> None:
    done = ran()
    assert done.exit_code == 0
    starts = [line.split()[0] for line in done.output.splitlines() if not line.startswith(" ")]
    assert starts == list(BUILT_IN)
    assert "vLLM, 0.6.6 to 0.33.0; as docker, process, external" in done.output
    assert "TGI is in maintenance mode since 2025-12-11" in done.output
    assert [each["name"] for each in facts()["stacks"]] == list(BUILT_IN)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_page_tells_what_the_json_tells(name: str) -> None:
    done = ran("show", name)
    assert done.exit_code == 0, done.output
    assert max(map(len, done.output.splitlines())) <= 120
    words = " ".join(done.output.split())
    found = facts("show", name)
    assert words.startswith(found["title"])
    for row in (*found["quantizations"], *found["kv_dtypes"]):
        assert row["value"] in words
    for metrics in found["metrics"].values():
        assert ", ".join(metrics) in words
    for failure in (*found["failures"], *found["shared_failures"]):
        assert failure["remedy"] in words
    for row in found["settings"]:
        assert " ".join(row["given_as"]) in words
        assert row["refused"] in words
    for note in found["notes"]:
        assert note in words


def test_flags_are_those_that_a_start_would_use() -> None:
    given = {row["key"]: row["given_as"] for row in facts("show", "vllm")["settings"]}
    assert given["context_tokens"] == ["--max-model-len", "4096"]
    assert given["kv_cache_tokens"] == ["--block-size", "32", "--num-gpu-blocks-override", "2049"]
    assert given["shm_bytes"] == []
    unified = {row["key"]: row["given_as"] for row in facts("show", "llamacpp")["settings"]}
    assert unified["kv_cache_tokens"] == ["-c", "65536", "-kvu"]
    refused = {row["key"]: row["refused"] for row in facts("show", "tgi")["settings"]}
    assert "memory_fraction is the only knob" in refused["kv_cache_bytes"]
    assert refused["context_tokens"] == ""


def test_formats_are_those_of_the_release() -> None:
    def accepted(*arguments: str) -> set[str]:
        rows = facts("show", "vllm", *arguments)["quantizations"]
        return {row["value"] for row in rows if row["accepted"]}

    def on_load(*arguments: str) -> set[str]:
        rows = facts("show", "vllm", *arguments)["quantizations"]
        return {row["value"] for row in rows if row["accepted"] and row["on_load"]}

    assert "bitsandbytes" in accepted("--release", "0.23.0") - accepted()
    assert "fp8_per_channel" in accepted() - accepted("--release", "0.23.0")
    assert "mxfp4" in accepted("--release", "0.27.1")
    assert "mxfp4" in on_load() - on_load("--release", "0.27.1")
    page = ran("show", "vllm", "--release", "0.8.5").output
    assert "Quantizations of vLLM 0.8.5" in page
    assert "bitsandbytes (before 0.28.0)" in " ".join(ran("show", "vllm").output.split())
    refused = {row["key"]: row["refused"] for row in facts("show", "vllm", "--release", "0.8.5")["settings"]}
    assert "from 0.10.2 on" in refused["kv_cache_bytes"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show", "vlm"), 'Nearest: "vllm"'),
        (("show",), "Missing argument 'NAME'"),
        (("show", "vllm", "--release", "newest"), "no version"),
    ],
)
def test_what_there_is_not(arguments: tuple[str, ...], said: str) -> None:
    done = ran(*arguments)
    assert done.exit_code == 2
    assert said in done.output
