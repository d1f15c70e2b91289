"""Real processes: they come up, are proved ours, and are gone afterwards, whatever happened."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import uuid
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec
import pytest
from fakes.dying import is_running, marked
from fakes.stacks import SERVER, FakeStack

from orchestrator.errors import HostError, StackError
from orchestrator.launch import process, tree
from orchestrator.launch.server import Owner, Server, open_server
from orchestrator.launch.tree import read_environment
from orchestrator.records import ServerRecord
from stacks.base import Deployment, LaunchSpec

T = TypeVar("T")


@pytest.fixture(autouse=True)
def _short_last_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "LAST_CHANCE_S", 0.2)


def deployment(*args: str, **settings: Any) -> Deployment:
    return Deployment(name="fake-1", stack="fake", model="fake-model", launch="process", args=args, **settings)


@asynccontextmanager
async def opened(
    directory: Path, *args: str, records: list[ServerRecord] | None = None, run: str | None = None, **settings: Any
) -> AsyncIterator[Server]:
    seen: list[ServerRecord] = []
    async with open_server(
        FakeStack(),
        deployment(*args, **settings),
        directory=directory,
        owner=Owner.current(run or f"run-{uuid.uuid4().hex}", "cell-1"),
        on_starting=(records if records is not None else seen).append,
    ) as server:
        yield server


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def start_and_fail(directory: Path, *args: str, **settings: Any) -> StackError:
    async def go() -> None:
        async with opened(directory, *args, **settings):
            pytest.fail("it came up")

    with pytest.raises(StackError) as caught:
        run(go())
    return caught.value


async def get(server: Server, path: str) -> None:
    async with httpx.AsyncClient(base_url=server.base_url, trust_env=False) as client:
        try:
            await client.get(path)
        except httpx.HTTPError:
            return


# --- it comes up --------------------------------------------------------------------------------------------------


def test_a_process_is_started_proved_ready_and_gone_afterwards(tmp_path: Path) -> None:
    records: list[ServerRecord] = []

    async def go() -> tuple[ServerRecord, tuple[int, ...], dict[str, float]]:
        async with opened(tmp_path, "--say", "KV pool 4096 tokens", records=records) as server:
            pids = await asyncio.to_thread(server.pids)
            assert is_running(pids[0])
            assert os.getsid(pids[0]) == pids[0]
            return server.record, pids, server.usage()

    record, pids, usage = run(go())
    assert len(records) == 2
    assert records[0].pid is None
    assert records[0].argv[:2] == (sys.executable, str(SERVER))
    assert (records[1].pid, records[1].pid_started) == (record.pid, record.pid_started)
    assert record.pid == pids[0]
    assert (record.version, record.model_listed, record.facts) == ("9.8.7", "fake-model", {"kv_tokens": 4096.0})
    assert record.ready_s is not None
    assert record.ready_s > 0
    assert usage == {}
    assert not any(map(is_running, pids))
    assert "KV pool 4096 tokens" in (tmp_path / "server.log").read_text()
    assert not (tmp_path / "reaper.log").exists()


def test_the_environment_is_what_the_plan_says_and_no_secret_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "hf_Very-Secret-1")
    monkeypatch.setenv("VLLM_USE_V1", "0")
    records: list[ServerRecord] = []

    async def go() -> dict[str, str]:
        async with opened(
            tmp_path, "--print-env", records=records, secrets=("MY_TOKEN",), env={"A": "b"}, gpus=("0", "GPU-x")
        ) as server:
            return read_environment(server.pids()[0])

    environment = run(go())
    assert environment["MY_TOKEN"] == "hf_Very-Secret-1"
    assert environment["A"] == "b"
    assert environment["CUDA_VISIBLE_DEVICES"] == "0,GPU-x"
    assert environment["SPT_NOENV"] == "1"
    assert "VLLM_USE_V1" not in environment
    log = (tmp_path / "server.log").read_text()
    assert "'MY_TOKEN': '[MY_TOKEN]'" in log
    assert "Very-Secret" not in log + repr(records)
    assert [record.secret_env for record in records] == [("MY_TOKEN",)] * 2


def test_two_owners_at_once_do_not_touch_each_other(tmp_path: Path) -> None:
    async def go() -> None:
        first, second = tmp_path / "1", tmp_path / "2"
        first.mkdir()
        second.mkdir()
        async with opened(second) as survivor:
            async with opened(first) as passing:
                assert passing.base_url != survivor.base_url
                assert set(passing.pids()).isdisjoint(survivor.pids())
            assert len(survivor.pids()) == 1
            async with httpx.AsyncClient(base_url=survivor.base_url, trust_env=False) as client:
                assert (await client.get("/health")).status_code == 200

    run(go())


# --- it does not come up ------------------------------------------------------------------------------------------


def test_a_server_that_dies_at_the_start_is_a_result_at_once(tmp_path: Path) -> None:
    error = start_and_fail(
        tmp_path, "--say", "x: CUDA out of memory. Tried to allocate", "--ready-after", "99", "--die-after", "0.1"
    )
    assert error.failure_class == "oom-weights"
    assert "exited with code 3" in error.message
    assert error.remedy == "Take a bigger card."
    assert "the engine has died of grief" in error.evidence


def test_an_unknown_cause_names_the_log(tmp_path: Path) -> None:
    error = start_and_fail(tmp_path, "--ready-after", "99", "--die-after", "0.1", "--exit-code", "7")
    assert error.failure_class == "server died"
    assert "exited with code 7" in error.message
    assert str(tmp_path / "server.log") in error.remedy


def test_a_start_time_out_tells_what_was_lacking(tmp_path: Path) -> None:
    run_id = f"run-{uuid.uuid4().hex}"
    error = start_and_fail(tmp_path, "--ready-after", "99", start_timeout_s=1.0, run=run_id)
    assert error.failure_class == "start-timeout"
    assert "/health answers 503: loading" in error.message
    assert any("listening on" in line for line in error.evidence)
    assert marked(run_id) == []


def test_a_server_that_never_listens_says_so(tmp_path: Path) -> None:
    error = start_and_fail(tmp_path, "--never-listen", start_timeout_s=0.6)
    assert "nothing listens on port" in error.message


@pytest.mark.parametrize(
    ("answer", "failure_class", "said"),
    [
        ("500", "completion-failed", "the card is on fire"),
        ("400", "request-refused", "no such dialect"),
        ("error", "completion-failed", "KV cache is full"),
        ("empty", "completion-failed", "no token"),
        ("garbage", "completion-failed", "<html>busy</html>"),
        ("huge", "completion-failed", "no token"),
    ],
)
def test_a_server_that_answers_wrongly_is_a_result(tmp_path: Path, answer: str, failure_class: str, said: str) -> None:
    error = start_and_fail(tmp_path, "--answer", answer)
    assert error.failure_class == failure_class
    assert said in error.message
    assert len(error.message) < 600


def test_another_model_is_refused(tmp_path: Path) -> None:
    error = start_and_fail(tmp_path, "--model", "other-model")
    assert error.failure_class == "wrong-model"
    assert "lists other-model, and not the model fake-model" in error.message


def test_a_port_that_was_taken_meanwhile_is_the_machine_s_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        monkeypatch.setattr(process, "free_port", lambda: port)
        with pytest.raises(HostError, match=f"Port {port} was free a moment ago"):
            run(opened(tmp_path).__aenter__())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"command": ("no-such-server",)}, "no-such-server is not on this machine"),
        ({"secrets": ("NOT_SET_ANYWHERE",)}, "NOT_SET_ANYWHERE"),
        ({"memory_limit_bytes": 1 << 30}, "memory_limit"),
    ],
)
def test_what_the_machine_lacks_is_told_before_anything_is_started(
    tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    records: list[ServerRecord] = []
    with pytest.raises(HostError, match=said):
        run(opened(tmp_path, records=records, **settings).__aenter__())
    assert records == []


def test_a_model_file_that_does_not_exist(tmp_path: Path) -> None:
    wanted = Deployment(name="d", stack="fake", model=str(tmp_path / "x.gguf"), launch="process")
    owner = Owner.current("r", "c")
    opening = open_server(FakeStack(), wanted, directory=tmp_path, owner=owner, on_starting=lambda _: None)
    with pytest.raises(HostError, match=r"x\.gguf does not exist"):
        run(opening.__aenter__())


# --- it ends ------------------------------------------------------------------------------------------------------


def test_death_under_load_is_noticed(tmp_path: Path) -> None:
    async def go() -> None:
        async with opened(tmp_path) as server:
            died = asyncio.ensure_future(server.died())
            await get(server, "/die")
            failure = await asyncio.wait_for(died, 10)
            assert failure == await server.died()
            assert failure.exit_code == 3
            assert failure.failure_class == "server died"
            assert failure.evidence[-1] == "the engine has died of grief"

    run(go())


def test_a_death_by_signal_is_named(tmp_path: Path) -> None:
    async def go() -> None:
        async with opened(tmp_path) as server:
            os.kill(server.pids()[0], signal.SIGKILL)
            failure = await asyncio.wait_for(server.died(), 10)
            assert failure.exit_code == -9
            assert "was killed by SIGKILL" in failure.message
            assert failure.oom_killed is False
            assert failure.evidence[0].startswith("/proc/vmstat: oom_kill")

    run(go())


def test_nobody_died_when_we_stopped_it(tmp_path: Path) -> None:
    async def go() -> bool:
        async with opened(tmp_path) as server:
            died = asyncio.ensure_future(server.died())
            await asyncio.sleep(0)
        done = died.done()
        died.cancel()
        return done

    assert run(go()) is False


@pytest.mark.parametrize("kind", ["near", "apart"])
def test_children_go_too_even_those_that_left_the_group(tmp_path: Path, kind: str) -> None:
    async def go() -> tuple[int, ...]:
        async with opened(tmp_path, "--spawn", kind) as server:
            pids = await asyncio.to_thread(server.pids)
            assert len(pids) == 2
            assert (os.getsid(pids[1]) == pids[0]) is (kind == "near")
            return pids

    pids = run(go())
    assert not any(map(is_running, pids))


def test_a_server_that_minds_no_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = FakeStack.launch

    def impatient(*args: Any) -> LaunchSpec:
        return msgspec.structs.replace(spec(*args), stop_timeout_s=0.2)

    monkeypatch.setattr(FakeStack, "launch", impatient)

    async def go() -> int:
        async with opened(tmp_path, "--deaf") as server:
            return server.pids()[0]

    assert not is_running(run(go()))


class _OopsError(Exception):
    pass


@pytest.mark.parametrize("blow", ["exception", "cancel", "cancel twice"])
def test_it_is_gone_after_an_exception_and_after_ctrl_c(tmp_path: Path, blow: str) -> None:
    seen: list[int] = []

    async def serve(up: asyncio.Event) -> None:
        async with opened(tmp_path, "--spawn", "apart") as server:
            seen.extend(server.pids())
            up.set()
            if blow == "exception":
                raise _OopsError
            await asyncio.Event().wait()

    async def go() -> None:
        up = asyncio.Event()
        task = asyncio.ensure_future(serve(up))
        await up.wait()
        if blow != "exception":
            task.cancel()
        if blow == "cancel twice":
            await asyncio.sleep(0.01)
            task.cancel()
        await task

    with pytest.raises(_OopsError if blow == "exception" else asyncio.CancelledError):
        run(go())
    assert len(seen) == 2
    assert not any(map(is_running, seen))


def test_ctrl_c_during_the_start_leaves_nothing(tmp_path: Path) -> None:
    run_id = f"run-{uuid.uuid4().hex}"

    async def go() -> None:
        started = asyncio.Event()
        opening = open_server(
            FakeStack(),
            deployment("--ready-after", "99"),
            directory=tmp_path,
            owner=Owner.current(run_id, "c"),
            on_starting=lambda record: started.set() if record.pid else None,
        )
        task = asyncio.ensure_future(opening.__aenter__())
        await started.wait()
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        run(go())
    assert marked(run_id) == []


def test_a_journal_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    run_id = f"run-{uuid.uuid4().hex}"
    calls: list[ServerRecord] = []

    def full_disk(record: ServerRecord) -> None:
        calls.append(record)
        if record.pid is not None:
            raise HostError("The disk is full.")

    opening = open_server(
        FakeStack(),
        deployment(),
        directory=tmp_path,
        owner=Owner.current(run_id, "c"),
        on_starting=full_disk,
    )
    with pytest.raises(HostError, match="disk is full"):
        run(opening.__aenter__())
    assert len(calls) == 2
    assert marked(run_id) == []
