"""The simulated card over real HTTP: one engine whose virtual clock is tied to the machine's.

Each step is computed when it begins and its tokens are sent when it ends, `speed` times as fast as the model says. If
this machine cannot keep up, steps end late, and `lag_s` says by how much.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from stacks.simulated.engine import Engine, Sequence
from stacks.simulated.faults import Faults
from stacks.simulated.pages import (
    PATHS,
    Dialect,
    error_event,
    last_events,
    metrics_page,
    small_page,
    token_event,
)
from stacks.simulated.startup import out_of_memory

_MOST_HEADER_BYTES = 64 * 1024
_EXIT_CRASH = 139


class _Stream:
    """One answer under way."""

    __slots__ = ("done", "failed", "sent", "sequence", "token", "writer")

    def __init__(self, writer: asyncio.StreamWriter, dialect: Dialect) -> None:
        self.writer = writer
        self.token = chunk(token_event(dialect))
        self.sent = 0
        self.failed = False
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sequence: Sequence | None = None

    def end(self, *, failed: bool = False) -> None:
        self.failed = failed
        if not self.done.done():
            self.done.set_result(None)


class SimulatedServer:
    """An engine behind the API of its stack."""

    def __init__(
        self,
        stack: str,
        model: str,
        engine: Engine,
        *,
        held_bytes: float = 0.0,
        speed: float = 1.0,
        faults: Faults | None = None,
    ) -> None:
        """`held_bytes`: what the card holds while it serves."""
        self.stack, self.model, self.engine, self.speed = stack, model, engine, speed
        self.held_bytes = held_bytes
        self.faults = faults or Faults()
        self.lag_s = 0.0
        self._streams: set[_Stream] = set()
        self._work = asyncio.Event()
        self._requests = 0
        self._die: Callable[[int], NoReturn] = os._exit

    async def serve(self, host: str, port: int) -> None:
        """Until cancelled. Prints where it listens."""
        server = await asyncio.start_server(self._connection, host, port, limit=1 << 26)
        name, bound = server.sockets[0].getsockname()[:2]
        print(f"Simulated {self.stack} is listening on http://{name}:{bound}", file=sys.stderr, flush=True)  # noqa: T201
        async with server, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._steps())
            tasks.create_task(server.serve_forever())

    # --- time ---------------------------------------------------------------------------------------------------

    async def _steps(self) -> None:
        loop, engine = asyncio.get_running_loop(), self.engine
        zero_s = loop.time()
        while True:
            if engine.idle:
                self._work.clear()
                await self._work.wait()
            now_s = (loop.time() - zero_s) * self.speed
            if engine.now_s < now_s and not self._streams_begun():
                engine.now_s = now_s  # it was idle meanwhile
            self._fail_if_asked()
            if self._hangs():
                await asyncio.Event().wait()
            ended, failed = engine.advance(most_steps=1)
            left_s = zero_s + engine.now_s / self.speed - loop.time()
            self.lag_s = max(0.0, -left_s)
            await asyncio.sleep(max(0.0, left_s))
            self._deliver(ended, failed)

    def _streams_begun(self) -> bool:
        return self.engine.running > 0

    def _deliver(self, ended: list[Sequence], failed: list[Sequence]) -> None:
        """What the step that just ended made."""
        for stream in tuple(self._streams):
            self._send_tokens(stream)
        for sequence in (*ended, *failed):
            assert isinstance(sequence.tag, _Stream)
            sequence.tag.end(failed=sequence in failed)

    def _send_tokens(self, stream: _Stream) -> None:
        sequence = stream.sequence
        if sequence is None or stream.done.done():
            return
        if stream.writer.transport.is_closing():
            self.engine.cancel(sequence)
            stream.end(failed=True)
            return
        made = self.engine.made(sequence)
        if made > stream.sent:
            stream.writer.write(stream.token * (made - stream.sent))
            stream.sent = made

    # --- faults -------------------------------------------------------------------------------------------------

    def _fail_if_asked(self) -> None:
        made, faults = self.engine.counters.output_tokens, self.faults
        if faults.oom_after_tokens is not None and made >= faults.oom_after_tokens:
            print(out_of_memory(self.stack), file=sys.stderr, flush=True)  # noqa: T201
            self._die(1)
        if faults.crash_after_tokens is not None and made >= faults.crash_after_tokens:
            self._die(_EXIT_CRASH)

    def _hangs(self) -> bool:
        after = self.faults.hang_after_tokens
        return after is not None and self.engine.counters.output_tokens >= after

    # --- HTTP ---------------------------------------------------------------------------------------------------

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._request(reader, writer):
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            return  # the client is gone; its sequence is cancelled at the next step
        finally:
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        method, path, headers = parse_head(head)
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        path = path.partition("?")[0]
        if method == "POST" and path in PATHS:
            await self._complete(PATHS[path], body, writer)
        elif path == "/metrics":
            answer(writer, 200, metrics_page(self.stack, self.engine, self.held_bytes), "text/plain")
        else:
            page = small_page(self.stack, path, self.model)
            answer(writer, 404 if page is None else 200, page or b'{"error": "not found"}')
        return headers.get("connection", "").lower() != "close"

    async def _complete(self, dialect: Dialect, body: bytes, writer: asyncio.StreamWriter) -> None:
        self._requests += 1
        try:
            prompt_tokens, output_tokens = asked(json.loads(body), dialect)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            answer(writer, 400, json.dumps({"error": {"message": f"bad request: {error}"}}).encode())
            return
        refusal = self._refusal(prompt_tokens, output_tokens)
        if refusal is not None:
            status, words = refusal
            answer(writer, status, json.dumps({"error": {"message": words, "code": status}}).encode())
            return
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        stream = _Stream(writer, dialect)
        number = self._requests
        stream.sequence = self.engine.submit(prompt_tokens, output_tokens, stream)
        self._streams.add(stream)
        self._work.set()
        try:
            await stream.done
        finally:
            self._streams.discard(stream)
        broken = self.faults.error_every is not None and number % self.faults.error_every == 0
        end = error_event(self.stack) if stream.failed or broken else last_events(dialect, prompt_tokens, output_tokens)
        writer.write(chunk(end) + b"0\r\n\r\n")

    def _refusal(self, prompt_tokens: int, output_tokens: int) -> tuple[int, str] | None:
        every = self.faults.refuse_every
        if every is not None and self._requests % every == 0:
            return self.faults.refuse_status, "the server is overloaded"
        why = self.engine.refuses(prompt_tokens, output_tokens)
        if why is None:
            return None
        if why == "too long":
            return 400, f"prompt and output exceed the context of {self.engine.limits.request_tokens} tokens"
        return 429, "Model is overloaded"


def parse_head(head: bytes) -> tuple[str, str, dict[str, str]]:
    """Method, path and headers (names in lower case) of a request's head."""
    lines = head[:_MOST_HEADER_BYTES].decode("latin-1").split("\r\n")
    method, path, _ = lines[0].split(" ", 2)
    pairs = (line.partition(":") for line in lines[1:] if line)
    return method, path, {name.strip().lower(): value.strip() for name, _, value in pairs}


def asked(document: Any, dialect: Dialect) -> tuple[int, int]:
    """(prompt tokens, output tokens) of a body. A word of text counts as one token."""
    if dialect == "generate":
        return _count(document["inputs"]), int(document["parameters"]["max_new_tokens"])
    if dialect == "chat":
        text = " ".join(str(message["content"]) for message in document["messages"])
        return _count(text), int(document["max_tokens"])
    name = "n_predict" if dialect == "completion" else "max_tokens"
    return _count(document["prompt"]), int(document[name])


def _count(prompt: Any) -> int:
    return max(1, len(prompt) if isinstance(prompt, list) else len(str(prompt).split()))


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def answer(writer: asyncio.StreamWriter, status: int, body: bytes, kind: str = "application/json") -> None:
    head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
