"""Bad input and bad luck: each request ends with its class, within its limits, in bounded memory."""

from __future__ import annotations

import asyncio
import itertools
import resource
import ssl
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest
from fakes.raw_server import Requests, Script, reset, serving

from orchestrator.clock import now_ns
from orchestrator.load.http1 import ResponseParser
from orchestrator.load.transport import RequestLimits, StampingTransport
from orchestrator.load.wire import Sender
from orchestrator.records import Prompt, Request, RequestRecord
from stacks.openai import ChatWire

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b'data: {"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
LAST = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":3}}\n\n'
PEM = Path(__file__).parents[1] / "data" / "tls.pem"
LIMITS = RequestLimits(connect_s=5, first_byte_s=5, idle_s=5, total_s=5)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


WHOLE = HEAD + chunk(EVENT) * 3 + chunk(LAST) + b"0\r\n\r\n"


def sending(*pieces: bytes, end: str = "") -> Script:
    """Sends the pieces, each on its own, then closes, resets or leaves it open."""

    async def script(writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)
        if end == "close":
            writer.close()
        elif end == "reset":
            reset(writer)

    return script


def request(seq: int) -> Request:
    return Request(seq=seq, prompt_tokens=1, output_tokens=3, prompt_seed=seq)


def sender(url: str, limits: RequestLimits = LIMITS, transport: httpx.AsyncBaseTransport | None = None) -> Sender:
    return Sender(
        base_url=url, wire=ChatWire(), model="m", prompt=lambda _: Prompt(text="x"), limits=limits, transport=transport
    )


async def ask(sending: Sender, count: int = 1) -> list[RequestRecord]:
    return [await sending.send(request(n), seq=n, phase="measured", due_ns=now_ns()) for n in range(count)]


def asked(script: Script, count: int = 1, limits: RequestLimits = LIMITS) -> tuple[list[RequestRecord], Requests]:
    async def main() -> tuple[list[RequestRecord], Requests]:
        async with serving(script) as (url, seen), sender(url, limits) as sending:
            return await ask(sending, count), seen

    return asyncio.run(main())


def kind(record: RequestRecord) -> str | None:
    return record.failure.kind if record.failure is not None else None


SSE_IN_LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(EVENT * 3 + LAST) + EVENT * 3 + LAST


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (sending(WHOLE), None),
        (sending(*[WHOLE[at : at + 3] for at in range(0, len(WHOLE), 3)]), None),
        (sending(b"HTTP/1.1 100 Continue\r\n\r\n", WHOLE), None),
        (sending(SSE_IN_LENGTH), None),
        (sending(b"HTTP/1.1 200 OK\r\n\r\n" + EVENT * 3 + LAST, end="close"), None),
        (sending(WHOLE.replace(EVENT, b": ping\r\n\r\n" + EVENT, 0), end="close"), None),
        (sending(end="close"), "reset"),
        (sending(end="reset"), "reset"),
        (sending(HEAD[:20], end="close"), "truncated"),
        (sending(HEAD, chunk(EVENT), end="close"), "truncated"),
        (sending(HEAD, chunk(EVENT)[:30], end="close"), "truncated"),
        (sending(HEAD, chunk(EVENT), chunk(EVENT)[:30], end="reset"), "reset"),
        (sending(SSE_IN_LENGTH[:-9], end="close"), "truncated"),
        (sending(HEAD, b"5\r\nhello, much longer\r\n", end="close"), "protocol"),
        (sending(HEAD, chunk(EVENT), b"-5\r\nhello\r\n", end="close"), "protocol"),
        (sending(HEAD, chunk(EVENT), b"fffffffffffffffffffff\r\n", end="close"), "protocol"),
        (sending(HEAD, chunk(b"data: \xff\xfe\xff\n\n"), b"0\r\n\r\n"), "protocol"),
        (sending(HEAD, chunk(b"\x00" * 5000), b"0\r\n\r\n"), "truncated"),
        (sending(b"SSH-2.0-OpenSSH_9.6\r\n"), "protocol"),
        (sending(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 100_000), "protocol"),
        (sending(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 1_000_000), "protocol"),
        (sending(b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy"), "status"),
        (sending(b"HTTP/1.1 204 Nothing\r\n\r\n"), "status"),
        (sending(HEAD, chunk(b'data: {"error": "full"}\n\n'), b"0\r\n\r\n"), "error_in_stream"),
    ],
)
def test_each_ends_in_its_class_and_the_next_request_is_sent(script: Script, expected: str | None) -> None:
    records, seen = asked(script, 2)
    assert [kind(record) for record in records] == [expected] * 2
    assert len(seen) >= 2


def dribble(data: bytes, gap_s: float) -> Script:
    async def script(writer: asyncio.StreamWriter) -> None:
        for at in range(len(data)):
            writer.write(data[at : at + 1])
            await asyncio.sleep(gap_s)

    return script


@pytest.mark.parametrize(
    ("script", "limits", "which"),
    [
        (dribble(WHOLE, 0.02), RequestLimits(idle_s=5, total_s=0.3), "no end within 0.3 s"),
        (sending(HEAD, chunk(EVENT)), RequestLimits(idle_s=0.2), "nothing more within 0.2 s"),
        (sending(), RequestLimits(first_byte_s=0.2), "no answer within 0.2 s"),
        (sending(HEAD[:30]), RequestLimits(idle_s=0.2), "nothing more within 0.2 s"),
    ],
)
def test_time_runs_out_and_the_record_says_which(script: Script, limits: RequestLimits, which: str) -> None:
    (record,), _ = asked(script, limits=limits)
    assert record.failure is not None
    assert (record.failure.kind, record.failure.detail) == ("timeout", which)


def test_tokens_before_the_end_are_kept() -> None:
    (record,), _ = asked(sending(HEAD, chunk(EVENT), chunk(EVENT), end="reset"))
    assert (kind(record), len(record.token_ns)) == ("reset", 2)


def test_tokens_before_a_fault_in_the_same_read_are_kept_with_their_time() -> None:
    (record,), _ = asked(sending(HEAD, chunk(EVENT) + chunk(EVENT) + b"zz\r\n"))
    assert (kind(record), len(record.token_ns)) == ("protocol", 2)


def test_a_body_without_end_takes_bounded_memory() -> None:
    """100 MB without a newline: an event that long is no event, and a body that long is no answer."""

    async def flood(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        for _ in range(100):
            writer.write(chunk(b"x" * 1_000_000))
            await writer.drain()

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (record,), _ = asked(flood, limits=RequestLimits(total_s=60))
    assert kind(record) == "protocol"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


# --- connections ------------------------------------------------------------------------------------------------


def test_a_connection_carries_one_request_after_another() -> None:
    records, seen = asked(sending(WHOLE), 5)
    assert [kind(record) for record in records] == [None] * 5
    assert (len(seen), seen.connections) == (5, 1)


@pytest.mark.parametrize(
    "answer",
    [
        WHOLE.replace(b"\r\n", b"\r\nConnection: close\r\n", 1),
        WHOLE + b"HTTP/1.1 200 OK\r\n\r\n",
        WHOLE.replace(b"HTTP/1.1", b"HTTP/1.0"),
    ],
    ids=["close", "a second answer", "HTTP/1.0"],
)
def test_a_connection_is_not_used_again_where_it_should_not_be(answer: bytes) -> None:
    records, seen = asked(sending(answer), 3)
    assert [kind(record) for record in records] == [None] * 3
    assert seen.connections == 3


def test_an_answer_that_nobody_asked_for_spoils_the_idle_connection() -> None:
    async def late(writer: asyncio.StreamWriter) -> None:
        writer.write(WHOLE)
        await writer.drain()
        asyncio.get_running_loop().call_later(0.02, writer.write, WHOLE)

    async def main() -> tuple[list[str | None], int]:
        async with serving(late) as (url, seen), sender(url) as sending:
            found = []
            for _ in range(3):
                found += await ask(sending)
                await asyncio.sleep(0.05)
            return [kind(record) for record in found], seen.connections

    assert asyncio.run(main()) == ([None] * 3, 3)


def test_a_request_goes_again_only_if_the_idle_connection_was_closed() -> None:
    """The server closes after each answer without saying so: sometimes only when the next request is on its way."""

    async def main() -> tuple[list[str | None], int]:
        answered = 0

        async def once(writer: asyncio.StreamWriter) -> None:
            nonlocal answered
            if answered % 2 == 1:
                answered += 1
                writer.close()
                return
            answered += 1
            writer.write(WHOLE)
            await writer.drain()

        async with serving(once) as (url, seen), sender(url) as sending:
            return [kind(record) for record in await ask(sending, 3)], len(seen)

    assert asyncio.run(main()) == ([None] * 3, 5)


def test_each_request_carries_its_id_and_the_headers_that_servers_need() -> None:
    (record,), (sent,) = asked(sending(WHOLE))
    head = sent.partition(b"\r\n\r\n")[0].lower().decode()
    assert f"x-request-id: {record.request_id}" in head
    assert "host: 127.0.0.1:" in head
    assert "content-type: application/json" in head


# --- other ways to the server -----------------------------------------------------------------------------------


def server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(PEM)
    return context


def test_encrypted_streams_keep_their_stamps() -> None:
    async def main() -> list[RequestRecord]:
        trusted = ssl.create_default_context(cafile=str(PEM))
        async with (
            serving(sending(HEAD, chunk(EVENT), chunk(EVENT), chunk(EVENT) + chunk(LAST) + b"0\r\n\r\n"),
                    tls=server_context()) as (url, _),
            sender(url, transport=StampingTransport(verify=trusted)) as encrypted,
        ):  # fmt: skip
            return await ask(encrypted, 3)

    records = asyncio.run(main())
    plain, _ = asked(sending(WHOLE))
    assert [kind(record) for record in records] == [None] * 3
    assert {record.stamp for record in records} == {plain[0].stamp}
    for record in records:
        assert record.token_ns[1] - record.token_ns[0] > 5_000_000
        assert record.sent_ns < record.token_ns[0] <= record.end_ns


def test_a_certificate_that_is_not_trusted_is_a_class_of_its_own() -> None:
    async def main() -> list[RequestRecord]:
        async with serving(sending(WHOLE), tls=server_context()) as (url, _), sender(url) as sending_:
            return await ask(sending_)

    (record,) = asyncio.run(main())
    assert kind(record) == "tls"


def test_tls_to_a_server_that_speaks_none() -> None:
    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async def main() -> list[RequestRecord]:
        server = await asyncio.start_server(deaf, "127.0.0.1", 0)
        async with server, sender(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}") as sending_:
            return await ask(sending_)

    (record,) = asyncio.run(main())
    assert kind(record) == "tls"


def test_over_a_unix_socket_the_stamps_are_our_own(tmp_path: Path) -> None:
    path = tmp_path / "server.sock"

    async def main() -> list[RequestRecord]:
        async with (
            serving(sending(WHOLE), unix=path) as (url, _),
            sender(url, transport=StampingTransport(unix_socket=str(path))) as sending_,
        ):
            return await ask(sending_, 2)

    records = asyncio.run(main())
    assert [(kind(record), record.stamp, len(record.token_ns)) for record in records] == [(None, "user", 3)] * 2


def test_over_ipv6() -> None:
    async def main() -> list[RequestRecord]:
        async with serving(sending(WHOLE), host="::1") as (url, _), sender(url) as sending_:
            return await ask(sending_)

    try:
        (record,) = asyncio.run(main())
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    assert kind(record) is None


def test_a_name_with_several_addresses_is_tried_at_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """localhost is often ::1 first, and the server listens on 127.0.0.1 alone."""

    async def main() -> list[RequestRecord]:
        async with serving(sending(WHOLE)) as (url, _), sender(url.replace("127.0.0.1", "localhost")) as sending_:
            loop = asyncio.get_running_loop()
            port = int(url.rpartition(":")[2])
            inet = (2, 1, 6, "")

            async def two(*_: object, **__: object) -> list[object]:
                return [(*inet, ("127.0.0.1", 9)), (*inet, ("127.0.0.1", port))]

            monkeypatch.setattr(loop, "getaddrinfo", two)
            return await ask(sending_, 2)

    assert [kind(record) for record in asyncio.run(main())] == [None] * 2


def test_another_transport_gives_records_with_our_own_stamps() -> None:
    async def main() -> list[RequestRecord]:
        async with (
            serving(sending(HEAD, *[chunk(EVENT)] * 3, chunk(LAST), b"0\r\n\r\n")) as (url, _),
            sender(url, transport=httpx.AsyncHTTPTransport()) as sending_,
        ):
            return await ask(sending_)

    (record,) = asyncio.run(main())
    assert (kind(record), record.stamp, len(record.token_ns)) == (None, "user", 3)
    assert record.token_ns[0] < record.token_ns[1] < record.token_ns[2]


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://no-such-host.invalid"])
def test_nobody_there(url: str) -> None:
    async def main() -> list[RequestRecord]:
        async with sender(url) as sending_:
            return await ask(sending_)

    (record,) = asyncio.run(main())
    assert kind(record) == ("refused" if "127" in url else "connect")


def test_what_breaks_the_reading_of_one_answer_costs_that_answer_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers of one round are read one after another: what goes wrong with the first must not stop the others."""
    feed = ResponseParser.feed

    def broken(self: ResponseParser, data: bytes, sizes: Sequence[int], stamps: Sequence[int]) -> None:
        if b"poison" in data:
            raise RecursionError("too deep")
        feed(self, data, sizes, stamps)

    monkeypatch.setattr(ResponseParser, "feed", broken)
    numbers = itertools.count()

    async def script(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + (b"poison" if next(numbers) == 0 else chunk(EVENT) * 3 + chunk(LAST) + b"0\r\n\r\n"))

    async def main() -> list[RequestRecord]:
        async with serving(script) as (url, _), sender(url) as sending:
            asked = (sending.send(request(n), seq=n, phase="measured", due_ns=now_ns()) for n in range(8))
            return await asyncio.gather(*asked)

    records = asyncio.run(main())
    assert sorted(kind(record) or "" for record in records) == [""] * 7 + ["protocol"]
    (failed,) = [record.failure for record in records if record.failure is not None]
    assert failed.detail == "the answer could not be read: RecursionError: too deep"
