"""A completions server that knows the truth: when it sent which token, and how many users it holds.

Up to `--capacity` requests at a time it is quick; a request that has seen more under way is slow, in its first token
and in all others. So its breaking point is exact. Runs as a program of its own (standard library only), as a
stand-in for llama-server: it takes that program's flags and ignores those that mean nothing here.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import struct
import time
from pathlib import Path
from typing import Any

FIRST_S = (0.02, 0.5)
GAP_S = (0.004, 0.1)
"""To the first token, and between two: up to the capacity, and beyond it."""


class FakeEngine:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.under_way: set[object] = set()
        self.crowded_ns = 0
        """When there were last more under way than the capacity."""
        self.sent = 0
        self.answered = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self.one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        method, path, _ = head.split(b" ", 2)
        headers = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:] if b": " in line)
        body = await reader.readexactly(int(headers.get(b"content-length", b"0")))
        if method == b"POST":
            mode = headers.get(b"x-fake-mode", b"").decode() or self.mode()
            return await self.complete(json.loads(body), mode, headers, writer)
        self.answer_get(path.decode(), writer)
        await writer.drain()
        return True

    @property
    def running(self) -> int:
        return len(self.under_way)

    def admit(self, one: object) -> None:
        self.under_way.add(one)
        self.note_crowd()

    def release(self, one: object) -> None:
        """At the latest when it ends; again is nothing."""
        self.note_crowd()
        self.under_way.discard(one)

    def note_crowd(self) -> None:
        if self.running > self.options.capacity:
            self.crowded_ns = time.monotonic_ns()

    def crowded_since(self, then_ns: int) -> bool:
        return self.running > self.options.capacity or self.crowded_ns >= then_ns

    def mode(self) -> str:
        """How the next request is treated, where it does not say itself."""
        return self.options.mode if self.answered >= self.options.mode_after else "ok"

    def answer_get(self, path: str, writer: asyncio.StreamWriter) -> None:
        if path == "/metrics":
            text = f"llamacpp:requests_processing {self.running}\nllamacpp:requests_deferred 0\n"
            text += f"llamacpp:tokens_predicted_total {self.sent}\n"
            write(writer, 200, text.encode())
        elif path in ("/health", "/healthz", "/props"):
            write(writer, 200, b'{"status": "ok"}')
        elif path == "/version" and self.options.version:
            write(writer, 200, json.dumps({"version": self.options.version}).encode())
        elif path == "/v1/models":
            write(writer, 200, json.dumps({"data": [{"id": self.options.alias}]}).encode())
        else:
            write(writer, 404, b"{}")

    async def complete(self, asked: dict[str, Any], mode: str, headers: dict[bytes, bytes], writer: Any) -> bool:
        self.answered += 1
        if self.options.exit_after and self.answered > self.options.exit_after:
            os._exit(9)
        if mode == "500":
            write(writer, 500, b'{"error": {"message": "the card is on fire"}}')
            await writer.drain()
            return True
        if mode == "hang":
            await asyncio.sleep(3600)
        self.admit(asked_as := object())
        if self.options.refuse and self.running > self.options.capacity:
            mode = "error"
        try:
            return await self.stream(asked, asked_as, mode, headers, writer)
        finally:
            self.release(asked_as)

    async def stream(
        self, asked: dict[str, Any], asked_as: object, mode: str, headers: dict[bytes, bytes], writer: Any
    ) -> bool:
        began_ns = time.monotonic_ns()
        total = int(asked["max_tokens"])
        prompt = asked["prompt"]
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        truth = []
        for number in range(total):
            quick_s, slow_s = self.options.gap if number else self.options.first
            await asyncio.sleep(quick_s)
            if self.crowded_since(began_ns):
                await asyncio.sleep(slow_s - quick_s)
            if number == total // 2 and mode != "ok":
                return await self.misbehave(mode, asked_as, writer)
            last = number == total - 1
            choice = {"index": 0, "text": " x", "finish_reason": "length" if last else None}
            event: dict[str, Any] = {"choices": [choice]}
            if last:
                self.release(asked_as)  # before the client can know: its next request must not meet this one
                event["usage"] = {"prompt_tokens": len(prompt), "completion_tokens": total}
            truth.append(time.monotonic_ns())
            self.sent += 1
            chunk(writer, b"data: " + json.dumps(event).encode() + b"\n\n")
            await writer.drain()
        chunk(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        self.tell(headers[b"x-request-id"].decode(), truth)
        return True

    def tell(self, request_id: str, sent_ns: list[int]) -> None:
        if self.options.truth:
            with Path(self.options.truth).open("a") as file:
                file.write(json.dumps({"id": request_id, "sent_ns": sent_ns}) + "\n")

    async def misbehave(self, mode: str, asked_as: object, writer: Any) -> bool:
        if mode == "error":
            chunk(writer, b'data: {"error": {"message": "KV cache is full", "code": 500}}\n\n')
            writer.write(b"0\r\n\r\n")
        elif mode == "garbage":
            chunk(writer, b"data: {not json\n\n")
            writer.write(b"0\r\n\r\n")
        elif mode == "bad-chunk":
            writer.write(b"zz\r\nxx\r\n")
        elif mode == "rst":
            at_once = struct.pack("ii", 1, 0)  # linger for 0 s: the close is a reset
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
            writer.transport.abort()
            return False
        elif mode == "stall":
            await writer.drain()
            self.release(asked_as)  # as an engine that has noticed that its client is gone
            await asyncio.sleep(3600)
        await writer.drain()
        return mode in ("error", "garbage")  # "half": the connection just closes


def write(writer: asyncio.StreamWriter, status: int, body: bytes) -> None:
    writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n" % (status, len(body)) + body)


def chunk(writer: Any, data: bytes) -> None:
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))


async def main() -> None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)  # -hf is not -h
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--alias", "--served-model-name", default="fake")
    parser.add_argument("--version", help="what /version tells, as vLLM's does")
    parser.add_argument("--capacity", type=int, default=1_000_000)
    parser.add_argument(
        "--refuse", action="store_true", help="beyond the capacity an error in the stream, not slowness"
    )
    parser.add_argument("--first", nargs=2, type=float, default=FIRST_S, metavar="SECONDS")
    parser.add_argument("--gap", nargs=2, type=float, default=GAP_S, metavar="SECONDS")
    parser.add_argument("--mode", default="ok")
    parser.add_argument("--mode-after", type=int, default=0, metavar="N", help="the first N requests are treated well")
    parser.add_argument("--truth")
    parser.add_argument("--exit-after", type=int, default=0)
    parser.add_argument("--listen", help="HOST:PORT, in one word")
    options, _ = parser.parse_known_args()
    if options.listen:
        options.host, _, port = options.listen.rpartition(":")
        options.port = int(port)
    engine = FakeEngine(options)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, os._exit, 0)
    server = await asyncio.start_server(engine.serve, options.host, options.port)
    print("listening on", server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
