"""The machine before a server, the server while it grows and when it is ready, and the machine after it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec
import pytest

from orchestrator.errors import StackError
from orchestrator.launch.running import Server
from orchestrator.life import attending, log_facts
from orchestrator.records import Sample, ServerFailure, ServerRecord
from stacks.base import Deployment
from stacks.catalog import stack

LLAMACPP = stack("llamacpp")
DEPLOYMENT = Deployment(name="a", stack="llamacpp", model="m.gguf", launch="process")
WEIGHTS = b"load_tensors:   CPU_Mapped model buffer size =    92.10 MiB\n"
KV = b"llama_kv_cache:        CPU KV buffer size =    45.00 MiB\n"


class GrowingServer(Server):
    """Ourselves, with a log that grows."""

    def __init__(self, log: Path) -> None:
        self.record = ServerRecord(deployment="a", stack="llamacpp", launch="process", base_url="http://127.0.0.1:1")
        self.base_url = self.record.base_url
        self.log_path = log

    def pids(self) -> tuple[int, ...]:
        return (os.getpid(),)

    async def died(self) -> ServerFailure:
        raise AssertionError("nobody asks")


def read(path: Path) -> list[Sample]:
    return [msgspec.json.decode(line, type=Sample) for line in path.read_bytes().splitlines()]


def test_a_life_is_looked_at_before_during_and_after(tmp_path: Path) -> None:
    samples, log = tmp_path / "samples.jsonl", tmp_path / "server.log"
    log.write_bytes(WEIGHTS)

    async def live() -> None:
        async with attending(LLAMACPP, DEPLOYMENT, samples) as life:
            before = read(samples)
            assert {sample.source for sample in before} == {"host"}
            server = GrowingServer(log)
            life.grows(server)
            await asyncio.sleep(0.2)
            await life.is_ready(server)
            assert {sample.source for sample in read(samples)} == {"host", "tree", "log"}
            await life.look(server)
            count = len(read(samples))
        after = read(samples)[count:]
        assert {sample.source for sample in after} == {"host"}

    asyncio.run(live())
    told = [sample.values for sample in read(samples) if sample.source == "log"]
    assert told[0]["weights_bytes"] == pytest.approx(92.1 * 2**20)


def test_the_death_of_a_server_is_not_hidden_by_the_last_look(tmp_path: Path) -> None:
    async def live() -> None:
        async with attending(LLAMACPP, DEPLOYMENT, tmp_path / "samples.jsonl") as life:
            life.grows(GrowingServer(tmp_path / "never-written.log"))
            raise StackError("It died.", failure_class="server died")

    with pytest.raises(StackError, match="It died"):
        asyncio.run(live())
    assert {sample.source for sample in read(tmp_path / "samples.jsonl")} >= {"host"}


def test_a_log_tells_what_is_new_and_nothing_twice(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_bytes(WEIGHTS)
    told = log_facts(LLAMACPP, log)
    assert set(told()) == {"weights_bytes", "gpu_layers"}
    assert told() == {}
    log.write_bytes(WEIGHTS + KV)
    assert told()["kv_bytes"] == 45.0 * 2**20
