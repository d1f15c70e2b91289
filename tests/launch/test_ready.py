"""What an answer means, and servers that are not ours."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fakes.stacks import SERVER, FakeStack
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import HostError, StackError
from orchestrator.launch.external import root_url
from orchestrator.launch.listener import free_port
from orchestrator.launch.ready import Ready, completed, listed_models, reported_version, stream_events
from orchestrator.launch.server import Owner, open_server
from orchestrator.records import ServerRecord
from stacks.base import Deployment
from stacks.catalog import stack

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["data", "models", "id"]), inner),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("document", "names"),
    [
        ({"object": "list", "data": [{"id": "a"}, {"id": "b"}]}, ["a", "b"]),
        ({"models": [{"name": "a", "model": "a"}], "data": [{"id": "a"}]}, ["a"]),
        ({"model_id": "meta/x", "version": "3.3.7"}, ["meta/x"]),
        ({"data": []}, []),
        ([], []),
    ],
)
def test_lists_of_models(document: Any, names: list[str]) -> None:
    assert listed_models(document) == names


@given(JSON)
def test_no_shape_of_an_answer_breaks_the_proof(document: Any) -> None:
    assert all(listed_models(document))
    assert reported_version(document) is None or isinstance(document, dict)


@given(st.binary(max_size=200))
def test_garbage_has_no_events_or_json_ones(body: bytes) -> None:
    assert isinstance(stream_events(body), list)


def test_events_are_read_and_the_end_mark_is_none() -> None:
    assert stream_events(b': ping\ndata: {"a": 1}\r\n\r\ndata:{"b": 2}\n\ndata: [DONE]\n') == [{"a": 1}, {"b": 2}]


@pytest.mark.parametrize("url", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"])
def test_the_root_of_an_openai_url(url: str) -> None:
    assert root_url(url) == "http://h:1"


DEPLOYMENT = Deployment(name="d", stack="vllm", model="m", quantization="fp8", gpus=("0",))


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        (
            "vllm",
            "WARNING Your GPU does not have native support for FP8 computation but FP8 quantization is being used. "
            "Weight-only FP8 compression will be used leveraging the Marlin kernel.",
            "computes in 16 bit though fp8 was asked for",
        ),
        ("llamacpp", "load_tensors: offloaded 12/33 layers to GPU", "Only 12 of 33 layers are on the card"),
        ("llamacpp", "load_tensors:   CPU_Mapped model buffer size =    88.00 MiB", "no layer is on it"),
    ],
)
def test_another_way_of_computing_than_was_asked_for_is_a_fact_of_the_record(name: str, line: str, said: str) -> None:
    record = ServerRecord(deployment="d", stack=name, launch="process", base_url="http://h")
    log = [line, "load_tensors:    CUDA0 model buffer size =  4096.00 MiB"] if "offloaded" in line else [line]
    facts = completed(record, Ready(1.5, None, "m"), stack(name), DEPLOYMENT, log).facts
    assert said in str(facts["path_note"])
    asked = msgspec.structs.replace(DEPLOYMENT, gpus=(), quantization=None)
    whole = [text.replace("12/33", "33/33") for text in log if "Marlin" not in text]
    assert "path_note" not in completed(record, Ready(1.5, None, "m"), stack(name), asked, whole).facts


def test_a_release_that_the_stack_does_not_know_is_a_fact_of_the_record() -> None:
    record = ServerRecord(deployment="d", stack="vllm", launch="process", base_url="http://h")
    log = ["Initializing a V1 LLM engine (v0.31.0) with config: x"]
    told = completed(record, Ready(1.5, "99.0.0", "m"), stack("vllm"), DEPLOYMENT, log)
    assert (told.version, told.ready_s, told.model_listed) == ("99.0.0", 1.5, "m")
    assert "vLLM 99.0.0 lies outside" in str(told.facts["version_note"])
    known = completed(record, Ready(1.5, None, "m"), stack("vllm"), DEPLOYMENT, log)
    assert (known.version, known.facts) == ("0.31.0", {"version": "0.31.0"})


# --- external -----------------------------------------------------------------------------------------------------


@contextmanager
def stranger(*arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server that somebody else started."""
    port = free_port()
    command = [sys.executable, str(SERVER), "--port", str(port), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as popen:
        try:
            assert popen.stdout is not None
            assert popen.stdout.readline().startswith("listening")
            yield f"http://127.0.0.1:{port}/v1", popen
        finally:
            popen.kill()


def measure(directory: Path, records: list[ServerRecord], **settings: Any) -> ServerRecord:
    async def go() -> ServerRecord:
        async with open_server(
            FakeStack(),
            Deployment(name="d", stack="fake", model="fake-model", launch="external", **settings),
            directory=directory,
            owner=Owner.current("r", "c"),
            on_starting=records.append,
        ) as server:
            assert server.pids() == ()
            assert server.usage() == {}
            assert server.log_path is None
            died = asyncio.ensure_future(server.died())
            await asyncio.sleep(0)
            assert not died.done()
            died.cancel()
            return server.record

    return asyncio.run(go())


def test_an_external_server_is_proved_and_never_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "sk-secret-key")
    records: list[ServerRecord] = []
    with stranger("--key", "sk-secret-key") as (url, popen):
        record = measure(tmp_path, records, url=url, secrets=("KEY",))
        assert popen.poll() is None
    assert len(records) == 1
    assert (record.launch, record.base_url, record.version) == ("external", url.removesuffix("/v1"), "9.8.7")
    assert record.pid is None
    assert "sk-secret" not in repr(records)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_key_is_told_and_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "sk-wrong-key")
    with stranger("--key", "sk-secret-key") as (url, _), pytest.raises(StackError) as caught:
        measure(tmp_path, [], url=url, secrets=("KEY",))
    assert caught.value.failure_class == "unauthorized"
    assert "not Bearer [KEY]" in caught.value.message


def test_an_endpoint_that_is_not_there(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(StackError) as caught:
        measure(tmp_path, [], url=url, start_timeout_s=0.3)
    assert caught.value.failure_class == "start-timeout"
    assert "/health cannot be reached" in caught.value.message


def test_an_external_deployment_without_a_url(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="no url"):
        measure(tmp_path, [])
