"""Requests over real sockets to a server that knows the truth, in health and in every kind of misbehaviour."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.clock import now_ns
from orchestrator.load.closed import run_closed
from orchestrator.load.supply import Drawn
from orchestrator.load.wire import RequestLimits, Sender
from orchestrator.records import LevelRun, LevelSpec, Request, RequestRecord
from stacks.base import Deployment
from stacks.catalog import stack
from workloads.text import PromptMaker

SERVER = Path(__file__).parents[1] / "fakes" / "openai_server.py"
CLOCKS_NS = 5_000
"""How far apart the two looks at the clocks may lie (METHOD.md)."""
WIRE = stack("llamacpp").wire(Deployment(name="d", stack="llamacpp", model="m"))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """(URL, file of the truth) of a fake server."""
    truth = tmp_path / "truth.jsonl"
    command = [sys.executable, str(SERVER), "--truth", str(truth)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = process.stdout.readline().split()[-1]
        yield f"http://127.0.0.1:{port}", truth
        process.terminate()


def request(seq: int, output_tokens: int = 8) -> Request:
    return Request(seq=seq, prompt_tokens=5, output_tokens=output_tokens, prompt_seed=seq)


def sender(url: str, mode: str = "ok", **limits: float) -> Sender:
    maker = PromptMaker(form="token_ids", vocab_size=1000)
    given = RequestLimits(**limits)
    return Sender(
        base_url=url, wire=WIRE, model="fake", prompt=maker.prompt, headers={"x-fake-mode": mode}, limits=given
    )


async def send_all(url: str, count: int, mode: str = "ok", **limits: float) -> list[RequestRecord]:
    async with sender(url, mode, **limits) as sending:
        calls = (sending.send(request(n), seq=n, phase="measured", due_ns=now_ns()) for n in range(count))
        return list(await asyncio.gather(*calls))


def test_tokens_are_counted_and_stamped_after_they_were_sent(server: tuple[str, Path]) -> None:
    url, truth_file = server
    records = asyncio.run(send_all(url, 20))
    assert len(records) == 20
    truth = {entry["id"]: entry["sent_ns"] for entry in map(json.loads, truth_file.read_text().splitlines())}
    for record in records:
        assert record.failure is None
        assert (record.out_tokens, record.in_tokens, record.finish) == (8, 5, "length")
        assert record.tokens_from == "usage"
        assert len(record.token_ns) == 8
        sent = truth[record.request_id]
        assert all(arrived - left >= -CLOCKS_NS for arrived, left in zip(record.token_ns, sent, strict=True))
        assert record.sent_ns < record.token_ns[0] <= record.token_ns[-1] <= record.end_ns


@pytest.mark.skipif(sys.platform != "linux", reason="kernel receive times are Linux's")
def test_on_linux_the_stamps_come_from_the_kernel(server: tuple[str, Path]) -> None:
    stamps = [record.stamp for record in asyncio.run(send_all(server[0], 10))]
    assert stamps.count("kernel") >= 8, "a read whose look at the clocks was disturbed has none"


@pytest.mark.parametrize(
    ("mode", "kind", "detail"),
    [
        ("500", "status", "the card is on fire"),
        ("error", "error_in_stream", "KV cache is full"),
        ("garbage", "protocol", "not JSON"),
        ("half", "truncated", "before the answer was complete"),
        ("bad-chunk", "protocol", "chunk size"),
        ("rst", "reset", "reset"),
        ("stall", "timeout", "nothing more within"),
        ("hang", "timeout", "no answer within"),
    ],
)
def test_each_misbehaviour_ends_in_its_class(server: tuple[str, Path], mode: str, kind: str, detail: str) -> None:
    (record,) = asyncio.run(send_all(server[0], 1, mode, first_byte_s=0.4, idle_s=0.4))
    assert record.failure is not None
    assert (record.failure.kind, detail in record.failure.detail) == (kind, True)


def test_nobody_listening_is_refused() -> None:
    (record,) = asyncio.run(send_all("http://127.0.0.1:9", 1))
    assert record.failure is not None
    assert record.failure.kind == "refused"


# --- a level ----------------------------------------------------------------------------------------------------


def level(**changes: float) -> LevelSpec:
    settings: dict[str, float] = {
        "concurrency": 4, "requests": 30, "min_seconds": 0.0, "max_seconds": 30.0, "ramp_seconds": 0.1,
        "warmup_generations": 2, "warmup_seconds": 0.0, "filler_seconds": 5.0, "deadline_seconds": 10.0,
    }  # fmt: skip
    return LevelSpec(purpose="load", seed=1, **{**settings, **changes})  # type: ignore[arg-type]


async def run_level(url: str, spec: LevelSpec, **options: object) -> tuple[LevelRun, list[RequestRecord]]:
    records: list[RequestRecord] = []
    async with sender(url) as sending:
        run = await run_closed(
            spec,
            measured=Drawn(map(request, itertools.count())),
            other=Drawn(map(request, itertools.count(10_000))),
            send=sending.send,
            prepare=sending.prepare,
            on_record=records.append,
            **options,  # type: ignore[arg-type]
        )
    return run, records


def test_a_level_measures_what_it_was_asked_after_its_warm_up(server: tuple[str, Path]) -> None:
    run, records = asyncio.run(run_level(server[0], level()))
    phases = [record.phase for record in sorted(records, key=lambda r: r.seq)]
    assert phases.count("measured") == 30
    assert phases.count("ramp") + phases.count("warmup") >= 8
    assert phases.index("measured") >= 8
    assert phases[-1] in ("filler", "measured")
    assert [r.seq for r in sorted(records, key=lambda r: r.seq)] == list(range(len(records)))
    assert run.cut is None
    window = [r for r in records if r.phase == "measured"]
    assert run.window_start_ns is not None
    assert run.window_end_ns is not None
    assert abs(run.window_start_ns - min(r.sent_ns for r in window)) < 5_000_000
    assert run.in_flight_integral_s > 3.5 * (run.window_end_ns - run.window_start_ns) / 1e9


def test_a_hopeless_level_ends_early_and_says_why(server: tuple[str, Path]) -> None:
    run, records = asyncio.run(run_level(server[0], level(requests=500), stop_early=lambda *_: "decided"))
    assert run.cut == "decided"
    assert 1 <= sum(record.phase == "measured" for record in records) < 100


def test_a_dead_server_ends_the_level_at_once_with_what_was_in_flight(server: tuple[str, Path]) -> None:
    async def scenario() -> tuple[LevelRun, list[RequestRecord]]:
        abort: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.3, abort.set_result, "the server died")
        return await run_level(server[0], level(requests=10_000), abort=abort)

    run, records = asyncio.run(scenario())
    assert run.cut == "the server died"
    assert sum(r.failure is not None and r.failure.kind == "cancelled" for r in records) == 4
