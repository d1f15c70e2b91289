"""The simulated card over real HTTP: agrees with virtual time, fails as it is told, and has its break found."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orchestrator.clock import now_ns
from orchestrator.judge.bounds import attainment_bounds, per_batch
from orchestrator.load.closed import run_closed
from orchestrator.load.supply import Drawn
from orchestrator.load.wire import RequestLimits, Sender
from orchestrator.metrics import is_good, measured_records
from orchestrator.records import LevelRun, LevelSpec, Request, RequestRecord, Slo
from stacks.base import Deployment
from stacks.catalog import stack as stack_named
from stacks.memory.cards import find_card
from stacks.memory.formats import find_kv_format, find_weight_format
from stacks.memory.models import find_model
from stacks.memory.setup import Setup
from stacks.simulated.card import simulated_card
from stacks.simulated.closed import run_virtual
from workloads.synthetic import synthetic
from workloads.text import PromptMaker

MODEL, CARD = "meta-llama/Llama-3.1-8B-Instruct", "RTX-4090-24GB"
COMMAND = [sys.executable, "-m", "orchestrator.cli", "simulate", "--model", MODEL, "--card", CARD, "--port", "0"]


@contextmanager
def simulated(*options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """(URL, process) of a server that is up."""
    with subprocess.Popen([*COMMAND, *options], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        url = next((line.split()[-1] for line in lines if "is listening on http://1" in line), None)
        assert url is not None, "it did not start"
        try:
            yield url, process
        finally:
            process.terminate()


def sender(url: str, stack: str = "vllm") -> Sender:
    deployment = Deployment(name="d", stack=stack, model=MODEL)
    wire = stack_named(stack).wire(deployment)
    maker = PromptMaker(form="token_ids" if wire.takes_token_ids else "text", vocab_size=1000)
    limits = RequestLimits(total_s=20.0)
    return Sender(base_url=url, wire=wire, model=MODEL, prompt=maker.prompt, headers={}, limits=limits)


async def ask(url: str, count: int, stack: str = "vllm", output: int = 5) -> list[RequestRecord]:
    async with sender(url, stack) as sending:
        requests = [Request(seq=n, prompt_tokens=20, output_tokens=output, prompt_seed=n) for n in range(count)]
        return [await sending.send(r, seq=r.seq, phase="measured", due_ns=now_ns()) for r in requests]


@pytest.mark.parametrize("stack", ["vllm", "tgi", "sglang", "llamacpp"])
def test_every_stacks_dialect_is_spoken(stack: str) -> None:
    with simulated("--stack", stack, "--max-model-len", "4096", "--speed", "10") as (url, _):
        records = asyncio.run(ask(url, 3, stack))
    assert [(r.failure, r.out_tokens) for r in records] == [(None, 5)] * 3
    assert all(len(r.token_ns) >= 5 for r in records)


def test_it_fails_as_it_is_told() -> None:
    with simulated("--max-model-len", "4096", "--speed", "10", "--fault", "error-every=2") as (url, _):
        kinds = [r.failure.kind if r.failure else None for r in asyncio.run(ask(url, 4))]
    assert kinds == [None, "error_in_stream", None, "error_in_stream"]
    with simulated("--max-model-len", "4096", "--fault", "refuse-every=1", "--fault", "refuse-status=503") as (url, _):
        record = asyncio.run(ask(url, 1))[0]
    assert record.failure is not None
    assert record.failure.status == 503


def test_it_runs_out_of_memory_when_it_is_told_and_says_so() -> None:
    with simulated("--max-model-len", "4096", "--speed", "10", "--fault", "oom-after-tokens=8") as (url, process):
        records = asyncio.run(ask(url, 3))
        assert process.wait(10) == 1
        assert process.stderr is not None
        assert stack_named("vllm").find_failure(process.stderr.read().splitlines()) is not None
    assert records[0].failure is None
    assert records[-1].failure is not None


def test_it_refuses_to_start_where_the_bill_says_so() -> None:
    done = subprocess.run([*COMMAND, "--max-model-len", "131072"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    found = stack_named("vllm").find_failure(done.stderr.splitlines())
    assert found is not None
    assert found.failure_class == "ctx-too-long"


# --- two faces of one scheduler ---

SLO = Slo(ttft_ms=1000, tpot_ms=58)
LENGTHS = synthetic(prompt="lognormal:300:200", output="lognormal:30:15", seed=1, name="short")


def level() -> LevelSpec:
    return LevelSpec(
        concurrency=24,
        purpose="load",
        seed=1,
        requests=400,
        min_seconds=0.0,
        max_seconds=120.0,
        ramp_seconds=1.0,
        warmup_generations=2.0,
        warmup_seconds=0.5,
        filler_seconds=10.0,
        deadline_seconds=60.0,
    )


def draws(seed: int) -> Iterator[Request]:
    for number in itertools.count():
        yield from LENGTHS.draw(seed + number, 400)


async def over_http(url: str, spec: LevelSpec) -> tuple[LevelRun, list[RequestRecord]]:
    records: list[RequestRecord] = []
    async with sender(url) as sending:
        run = await run_closed(
            spec,
            measured=Drawn(draws(1)),
            other=Drawn(draws(1000)),
            send=sending.send,
            prepare=sending.prepare,
            on_record=records.append,
        )
    return run, records


@pytest.mark.slow
def test_virtual_time_and_real_http_agree() -> None:
    """The same lists at one level: the attainment over HTTP lies where virtual time says, within both bounds."""
    spec = level()
    with simulated("--max-model-len", "4096") as (url, _):
        _, real = asyncio.run(over_http(url, spec))
    form = find_weight_format("fp16")
    setup = Setup(
        model=find_model(MODEL),
        weights=form,
        kv=find_kv_format("auto", form),
        card=find_card(CARD),
        max_model_len=4096,
    )
    virtual = run_virtual(simulated_card(setup).engine(0), spec, measured=draws(1), other=draws(1000))
    bounds = []
    for records in (real, virtual.records):
        good, m = per_batch([is_good(r, SLO) for r in measured_records(records)])
        bounds.append(attainment_bounds(good, m, 0.01))
    http, model = bounds
    assert 0.05 < model.observed < 0.999, "a level at which nothing or everything is good shows nothing"
    assert http.lower <= model.upper
    assert model.lower <= http.upper


PLAN = """
title = "a simulated card"
seed = 7
[model]
id = "{model}"
context_tokens = 4096
[slo]
ttft_ms = {ttft_ms}
tpot_ms = {ttft_ms}
[[deployment]]
name = "simulated"
stack = "vllm"
launch = "process"
command = {command}
max_concurrency = {running}
[[workload]]
name = "w"
prompt_tokens = 64
output_tokens = {output}
[ramp]
start = 8
max = 64
requests = 30
requests_per_user = 2
min_seconds = 0
max_seconds = 120
ramp_seconds = 0.5
warmup_generations = 1
filler_seconds = 5
confirm = 1
recovery = false
"""
NO_ROOM = """
title = "no room"
[model]
id = "{model}"
context_tokens = 131072
[slo]
ttft_ms = 60000
tpot_ms = 60000
[defaults]
launch = "process"
command = {command}
[[deployment]]
name = "shrinks"
stack = "vllm"
on_no_room = "shrink_context"
[[workload]]
name = "w"
trace = "pairs.csv"
levels = [2]
[ramp]
requests = 20
requests_per_user = 1
min_seconds = 0
max_seconds = 60
ramp_seconds = 0.1
warmup_generations = 0
filler_seconds = 1
confirm = 0
"""


def test_a_start_without_room_is_tried_again_with_the_length_that_fits(tmp_path: Path) -> None:
    command = json.dumps([*COMMAND[:-2], "--speed", "1000"])
    (tmp_path / "plan.toml").write_text(NO_ROOM.format(model=MODEL, command=command))
    pairs = [(64, 8)] * 15 + [(60_000, 8)] * 5
    (tmp_path / "pairs.csv").write_text(
        "\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *(f"2023-11-16 18:15:46,{p},{o}" for p, o in pairs)])
    )
    out = tmp_path / "run"
    run = [sys.executable, "-m", "orchestrator.cli", "run", str(tmp_path / "plan.toml"), "--out", str(out)]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (shrunk,) = json.loads((out / "result.json").read_bytes())["cells"]
    (incident,) = shrunk["incidents"]
    assert incident["failure"]["failure_class"] == "ctx-too-long"
    fits = incident["failure"]["fits_tokens"]
    assert 16_384 < fits < 60_000, "the engine's own estimate"
    assert not incident["ended_cell"]
    assert shrunk["shrunk_to"] == shrunk["servers"][-1]["context_tokens"] == fits
    assert [server["argv"].count(str(fits)) for server in shrunk["servers"]] == [0, 1]
    levels = [level["stats"] for level in shrunk["levels"]]  # measured again where this machine is too busy
    assert {(stats["offered"], stats["clamped"], stats["failed"]) for stats in levels} == {(20, 5, 0)}
    (told,) = [step for step in shrunk["verdict"]["missing"] if "no room" in step]
    assert f"{fits:,} tokens, and {5 * len(levels)} of {20 * len(levels)} requests were cut" in told
    assert f"a context of {fits:,} tokens, not the 131,072 that were asked" in shrunk["verdict"]["sentence"]


RUNNING, OUTPUT, TTFT_MS = 4, 32, 3000
"""Four run at once, the others wait: the break is where the last of them waits for three seconds."""


@pytest.mark.slow
def test_a_run_finds_the_break_of_the_simulated_card(tmp_path: Path) -> None:
    command = json.dumps([sys.executable, "-m", "orchestrator.cli", "simulate", "--model", MODEL, "--card", CARD])
    plan = tmp_path / "plan.toml"
    plan.write_text(PLAN.format(model=MODEL, command=command, running=RUNNING, output=OUTPUT, ttft_ms=TTFT_MS))
    out = tmp_path / "run"
    run = [sys.executable, "-m", "orchestrator.cli", "run", str(plan), "--out", str(out)]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((out / "result.json").read_bytes())
    (cell,) = found["cells"]
    assert found["simulated"]
    assert cell["hardware"] == "simulated"
    assert_its_memory_is_the_simulated_cards(cell)
    verdict = cell["verdict"]
    if "c_ok" not in verdict or "c_bad" not in verdict:
        pytest.skip(f"this machine is too busy to measure: {verdict['missing'][0]}")
    assert verdict["c_ok"] <= true_break() < verdict["c_bad"], verdict
    assert verdict["limiter"] == "the engine's limit on running requests"


def assert_its_memory_is_the_simulated_cards(cell: dict[str, Any]) -> None:
    """Ledger and reconciliation by what the card reports, and not by the memory of the Python process."""
    assert cell["ledger"]["source"] == "memory of the simulated card, as it reports"
    stages = [point["stage"] for point in cell["ledger"]["checkpoints"]]
    assert {"ready", "level", "drained"} <= set(stages)
    assert cell["ledger"]["peak_bytes"] > 20 * 2**30
    lines = {line["name"]: line for line in cell["reconciliation"]["lines"]}
    assert lines["total"]["measured"] == cell["ledger"]["peak_bytes"]
    for name in ("weights", "KV cache", "KV tokens"):
        assert lines[name]["measured"] > 0


def true_break() -> int:
    """Highest level that holds in virtual time."""
    form = find_weight_format("fp16")
    setup = Setup(
        model=find_model(MODEL),
        weights=form,
        kv=find_kv_format("auto", form),
        card=find_card(CARD),
        max_model_len=4096,
        max_num_seqs=RUNNING,
    )
    lengths, slo = synthetic(prompt=64, output=OUTPUT), Slo(ttft_ms=TTFT_MS, tpot_ms=TTFT_MS)

    def holds(c: int) -> bool:
        requests = itertools.cycle(lengths.draw(1, 400))
        level = run_virtual(simulated_card(setup).engine(0), at_concurrency(c), measured=requests, other=requests)
        return sum(is_good(r, slo) for r in measured_records(level.records)) >= slo.attainment * 400

    return max(c for c in range(8, 65) if holds(c))


def at_concurrency(c: int) -> LevelSpec:
    return msgspec.structs.replace(level(), concurrency=c, ramp_seconds=0.5, max_seconds=1e6)
