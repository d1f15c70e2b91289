"""What our transport does not speak: proxies go by httpx's own, with stamps that say so; HTTP/2 alone is refused."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fakes.proxy import proxying
from fakes.raw_server import Script, serving

from orchestrator.cli import main
from orchestrator.clock import now_ns
from orchestrator.errors import HostError
from orchestrator.load.engine import Load, Target, open_engine
from orchestrator.load.proxies import proxy_for, without_password
from orchestrator.load.wire import RequestLimits
from orchestrator.records import LevelSpec, Request, RequestRecord
from stacks.openai import ChatWire
from workloads.text import PromptMaker

EVENT = b'data: {"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
LAST = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n'
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(EVENT * 2 + LAST) + EVENT * 2 + LAST
PEM = Path(__file__).parents[1] / "data" / "tls.pem"


async def whole(writer: asyncio.StreamWriter) -> None:
    writer.write(WHOLE)
    await writer.drain()


async def never(writer: asyncio.StreamWriter) -> None:
    writer.write(WHOLE[:-20])
    await writer.drain()


def target(url: str, proxy: str | None, total_s: float = 10.0) -> Target:
    limits = RequestLimits(total_s=total_s)
    return Target(
        base_url=url, wire=ChatWire(), model="m", prompts=PromptMaker(form="text"), limits=limits, verify=False,
        proxy=proxy,
    )  # fmt: skip


def request(seq: int) -> Request:
    return Request(seq=seq, prompt_tokens=3, output_tokens=2, prompt_seed=seq)


async def sent(through: Target, count: int = 3) -> list[RequestRecord]:
    async with through.sender() as sender:
        return [await sender.send(request(n), seq=n, phase="measured", due_ns=now_ns()) for n in range(count)]


@contextlib.asynccontextmanager
async def behind(script: Script, *, tls: bool = False) -> AsyncIterator[tuple[str, str, list[bytes]]]:
    """URL of a server, URL of a proxy that reaches it, and what the proxy was asked."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(PEM)
    async with serving(script, tls=context if tls else None) as (url, _), proxying(to=url) as (proxy, seen):
        yield url, proxy, seen


@pytest.mark.parametrize("tls", [False, True])
def test_requests_go_through_a_proxy_and_their_stamps_say_so(tls: bool) -> None:
    async def body() -> None:
        async with behind(whole, tls=tls) as (url, proxy, seen):
            records = await sent(target(url, proxy))
            assert [r.failure for r in records] == [None] * 3
            assert [(r.stamp, r.out_tokens, len(r.token_ns)) for r in records] == [("user", 2, 2)] * 3
            assert all(r.sent_ns < (r.first_ns or 0) <= r.end_ns for r in records)
            place = url.removeprefix("https://")
            line = f"CONNECT {place} HTTP/1.1" if tls else f"POST {url}/v1/chat/completions HTTP/1.1"
            assert set(seen) == {line.encode()}

    asyncio.run(body())


def test_a_level_of_two_processes_goes_through_a_proxy() -> None:
    spec = LevelSpec(
        concurrency=4, purpose="load", seed=1, requests=20, min_seconds=0, max_seconds=60, ramp_seconds=0,
        warmup_generations=0, warmup_seconds=0, filler_seconds=0, deadline_seconds=30, workers=2,
    )  # fmt: skip

    async def body() -> None:
        records: list[RequestRecord] = []
        async with behind(whole) as (url, proxy, seen), open_engine(target(url, proxy)) as engine:
            load = Load(spec, map(request, range(1000)), map(request, range(1000)))
            run = await engine.run(load, on_record=records.append)
        measured = [r for r in records if r.phase == "measured"]
        assert (run.cut, len(measured), run.health.kernel_share) == (None, 20, 0.0)
        assert {r.failure for r in records} == {None}
        assert len(seen) >= 2

    asyncio.run(body())


def test_failures_on_the_way_have_their_class() -> None:
    async def body() -> None:
        async with serving(whole) as (url, _):
            [nobody] = await sent(target(url, "http://127.0.0.1:9"), 1)
            assert (nobody.failure and nobody.failure.kind, nobody.stamp) == ("connect", "user")
            async with proxying(refuses=b"HTTP/1.1 407 Proxy Authentication Required") as (proxy, _):
                [refused] = await sent(target(url, proxy), 1)
                assert refused.failure is not None
                assert (refused.failure.kind, refused.failure.status) == ("status", 407)
                [tunnel] = await sent(target(url.replace("http:", "https:"), proxy), 1)
                assert tunnel.failure is not None
                assert tunnel.failure.kind == "connect"
                assert "407" in tunnel.failure.detail
        async with behind(never) as (url, proxy, _):
            [late] = await sent(target(url, proxy, total_s=0.5), 1)
            assert late.failure is not None
            assert (late.failure.kind, late.failure.detail) == ("timeout", "no end within 0.5 s")

    asyncio.run(body())


# --- which proxy ------------------------------------------------------------------------------------------------

ENVIRONMENT = {"HTTP_PROXY": "http://plain:1", "https_proxy": "secure:2", "NO_PROXY": "inside.example,10.0.0.7"}


@pytest.mark.parametrize(
    ("url", "asked", "expected"),
    [
        ("http://outside.example/v1", None, "http://plain:1"),
        ("https://outside.example", None, "http://secure:2"),
        ("https://inside.example", None, None),
        ("http://10.0.0.7:8000", None, None),
        ("http://127.0.0.1:8000", None, None),
        ("http://127.8.8.8:8000", None, None),
        ("http://[::1]:8000", None, None),
        ("http://localhost:8000", None, None),
        ("http://outside.example", "none", None),
        ("http://127.0.0.1:8000", "http://mine:3", "http://mine:3"),
        ("http://inside.example", "mine:3", "http://mine:3"),
    ],
)
def test_the_proxy_is_the_asked_one_or_the_environments(
    monkeypatch: pytest.MonkeyPatch, url: str, asked: str | None, expected: str | None
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    assert proxy_for(url, asked) == (expected if asked else None)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    assert proxy_for(url, asked) == expected


def test_what_is_no_http_proxy_is_refused_and_no_password_is_told() -> None:
    with pytest.raises(HostError, match="The proxy socks5://there:1080"):
        proxy_for("http://outside.example", "socks5://me:secret@there:1080")
    assert without_password("http://me:secret@there:3128") == "http://there:3128"


COMMAND = (
    *(sys.executable, "-m", "orchestrator.cli", "load", "http://model.invalid", "--model", "m"),
    *("--requests", "5", "--output-tokens", "2", "--json"),
)


def test_the_command_says_that_it_goes_through_a_proxy() -> None:
    """A host that only the proxy knows, named by the environment."""

    async def body() -> list[bytes]:
        async with serving(whole) as (url, _), proxying(to=url) as (proxy, seen):
            process = await asyncio.create_subprocess_exec(
                *COMMAND, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
                env={"HTTP_PROXY": proxy.replace("//", "//me:secret@"), "PATH": "/usr/bin"},
            )  # fmt: skip
            out, err = await process.communicate()
            found = json.loads(out)
            assert (found["requests"], found["failures"]) == (5, {})
            assert (found["client"]["stamp"], found["client"]["kernel_share"]) == ("user", 0.0)
            assert f"Through the proxy {proxy}" in err.decode()
            assert "secret" not in err.decode()
            return seen

    assert set(asyncio.run(body())) == {b"POST http://model.invalid/v1/chat/completions HTTP/1.1"}


def test_a_proxy_that_is_none_is_refused_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["load", "http://model.invalid", "--model", "m", "--proxy", "socks5://there:1080"])
    assert ended.value.code == 2
    assert "Give http://HOST:PORT with --proxy" in " ".join(capsys.readouterr().err.split())


# --- HTTP/2 -----------------------------------------------------------------------------------------------------

SETTINGS = b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64"
GOAWAY = b"\x00\x00\x08\x07\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01"
NO_APPLICATION_PROTOCOL = b"\x15\x03\x03\x00\x02\x02\x78"
"""The alert of a TLS server that speaks none of the offered protocols."""


def test_a_server_that_speaks_only_http2_is_named() -> None:
    async def settings(writer: asyncio.StreamWriter) -> None:
        writer.write(SETTINGS + GOAWAY)
        writer.close()

    async def alert(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(NO_APPLICATION_PROTOCOL)
        writer.close()

    async def body() -> list[RequestRecord]:
        async with serving(settings) as (url, _):
            records = await sent(target(url, None), 1)
        server = await asyncio.start_server(alert, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            records += await sent(target(f"https://127.0.0.1:{port}", None), 1)
        return records

    for record in asyncio.run(body()):
        assert record.failure is not None
        assert record.failure.kind == "protocol"
        assert record.failure.detail.startswith("the server speaks only HTTP/2, and loadproof HTTP/1.1: put a proxy")
