"""The real llama.cpp server on this CPU, at three formats and contexts: the predicted cache is what it allocates, and
the predicted total is what it holds."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from orchestrator.clock import NS_PER_S, now_ns
from orchestrator.demo import model_folder, models
from orchestrator.launch.listener import free_port
from orchestrator.watch.host import process_use
from stacks.base import Deployment
from stacks.catalog import stack
from stacks.memory.bill import bill, require_pool
from stacks.memory.checkpoint import read_model
from stacks.memory.deployed import setup_of
from stacks.memory.formats import find_kv_format, find_weight_format
from stacks.memory.setup import Setup

KV_BUFFER = re.compile(r"KV buffer size =\s*([\d.]+) MiB")
MODEL_BUFFER = re.compile(r"CPU_Mapped model buffer size =\s*([\d.]+) MiB")
READY = re.compile(r"server is listening|all slots are idle")


def buffers(*arguments: str) -> tuple[float, float]:
    """(KV, mapped model) MiB that a started server logs; it is stopped as soon as it is ready."""
    command = [sys.executable, "-m", "stacks.llamacpp_portable", "--port", "0", "-lv", "4", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    found: dict[re.Pattern[str], float] = {}
    seen = []
    try:
        for line in process.stderr:
            seen.append(line)
            for pattern in (KV_BUFFER, MODEL_BUFFER):
                if match := pattern.search(line):
                    found[pattern] = float(match[1])
            if READY.search(line) or (KV_BUFFER in found and MODEL_BUFFER in found):
                break
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    assert set(found) == {KV_BUFFER, MODEL_BUFFER}, "".join(seen[-20:])
    return found[KV_BUFFER], found[MODEL_BUFFER]


@pytest.mark.llamacpp
@pytest.mark.slow
@pytest.mark.parametrize("unified", [False, True])
@pytest.mark.parametrize(("context", "kv"), [(1024, "f16"), (3000, "q8_0"), (8192, "f16")])
@pytest.mark.parametrize("index", range(3))
def test_predicted_cache_is_allocated_to_the_byte(index: int, context: int, kv: str, unified: bool) -> None:
    path = models(model_folder())[index].path
    found = read_model(path)
    weights = find_weight_format(found.weight_format or "fp16")
    setup = Setup(
        model=found.model,
        weights=weights,
        weight_bytes=found.weight_bytes,
        kv=find_kv_format(kv, weights),
        card=None,
        stack="llamacpp",
        max_model_len=context,
        max_num_seqs=4,
        unified_kv=unified,
    )
    result = bill(setup)
    shared = ["-kvu"] if unified else []
    kv_mib, model_mib = buffers("-m", str(path), "-c", str(context), "-np", "4", "-ctk", kv, "-ctv", kv, *shared)
    assert require_pool(result).bytes.value / 2**20 == pytest.approx(kv_mib, abs=0.006)
    assert result.weights.value / 2**20 == pytest.approx(model_mib, abs=0.02)


# --- what it holds ------------------------------------------------------------------------------------------------

SLOTS = 4
LONG_PROMPT = 560
"""More than one micro batch, so that the compute buffer is filled once."""


class Held(NamedTuple):
    """MiB of one server after a long prompt."""

    predicted: float
    measured: float
    cache_predicted: float
    cache_logged: float

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1


@contextmanager
def served(deployment: Deployment, log: Path) -> Iterator[tuple[int, httpx.Client]]:
    """(pid, client) of a server that is ready and writes to `log`."""
    port = free_port()
    argv = stack("llamacpp").launch(deployment, "127.0.0.1", port).argv
    with log.open("wb") as output:
        process = subprocess.Popen(argv, stderr=output, stdout=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=300, trust_env=False) as client:
            until_ns = now_ns() + 120 * NS_PER_S
            while not is_healthy(client):
                assert process.poll() is None
                assert now_ns() < until_ns
                time.sleep(0.1)
            yield process.pid, client
    finally:
        process.kill()
        process.wait()


def is_healthy(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def held(weights: Path, context: int) -> Held:
    deployment = Deployment(
        name="cpu",
        stack="llamacpp",
        model=str(weights),
        launch="process",
        command=(sys.executable, "-m", "stacks.llamacpp_portable"),
        context_tokens=context,
        max_concurrency=SLOTS,
    )
    result = bill(setup_of(deployment))
    assert result.resident is not None
    log = weights.with_suffix(".log")
    with served(deployment, log) as (pid, client):
        prompt = [100 + (7 * i) % 40_000 for i in range(LONG_PROMPT)]
        client.post("/completion", json={"prompt": prompt, "n_predict": 2}).raise_for_status()
        use = process_use(pid)
    assert use is not None
    assert use.pss_bytes is not None
    logged = KV_BUFFER.search(log.read_text(errors="replace"))
    assert logged is not None
    cache = require_pool(result).bytes.value / 2**20
    return Held(result.resident.value / 2**20, use.pss_bytes / 2**20, cache, float(logged[1]))


@pytest.mark.llamacpp
@pytest.mark.slow
@pytest.mark.parametrize("context", [768, 1024, 2048])
@pytest.mark.parametrize("index", range(3))
def test_what_it_holds_is_predicted_within_five_percent(index: int, context: int, tmp_path: Path) -> None:
    # A file of our own: pages that another server maps too would be counted in part.
    weights = tmp_path / models(model_folder())[index].path.name
    shutil.copyfile(models(model_folder())[index].path, weights)
    found = held(weights, context)
    print(
        f"{weights.name} {context * SLOTS} KV {found.cache_logged} predicted {found.predicted:.1f} "
        f"measured {found.measured:.1f} MiB, {found.error:+.1%}"
    )
    assert found.cache_predicted == pytest.approx(found.cache_logged, abs=0.006)
    assert abs(found.error) < 0.05
