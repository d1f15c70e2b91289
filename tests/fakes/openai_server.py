"""A completions server that knows the truth: when it sent which token, and how many users it holds.

Up to `--capacity` requests at a time it is fast; a request that arrives when more are under way is slow, in its first
token and in all others. So its breaking point is exact. Runs as a program of its own (standard library only), as a
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

FAST = (0.02, 0.004)
SLOW = (0.5, 0.1)
"""Seconds to the first token, and between two."""


class FakeEngine:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.running = 0
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
            mode = headers.get(b"x-fake-mode", self.options.mode.encode()).decode()
            return await self.complete(json.loads(body), mode, headers, writer)
        self.answer_get(path.decode(), writer)
        await writer.drain()
        return True

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
        self.running += 1
        try:
            return await self.stream(asked, mode, headers, writer)
        finally:
            self.running -= 1

    async def stream(self, asked: dict[str, Any], mode: str, headers: dict[bytes, bytes], writer: Any) -> bool:
        first_s, gap_s = FAST if self.running <= self.options.capacity else SLOW
        total = int(asked["max_tokens"])
        prompt = asked["prompt"]
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        truth = []
        for number in range(total):
            await asyncio.sleep(gap_s if number else first_s)
            if number == total // 2 and mode != "ok":
                return await self.misbehave(mode, writer)
            last = number == total - 1
            choice = {"index": 0, "text": " x", "finish_reason": "length" if last else None}
            event: dict[str, Any] = {"choices": [choice]}
            if last:
                self.running -= 1  # before the client can know: its next request must not meet this one
                event["usage"] = {"prompt_tokens": len(prompt), "completion_tokens": total}
            truth.append(time.monotonic_ns())
            self.sent += 1
            chunk(writer, b"data: " + json.dumps(event).encode() + b"\n\n")
            await writer.drain()
        self.running += 1
        chunk(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        self.tell(headers[b"x-request-id"].decode(), truth)
        return True

    def tell(self, request_id: str, sent_ns: list[int]) -> None:
        if self.options.truth:
            with Path(self.options.truth).open("a") as file:
                file.write(json.dumps({"id": request_id, "sent_ns": sent_ns}) + "\n")

    async def misbehave(self, mode: str, writer: Any) -> bool:
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
    parser.add_argument("--mode", default="ok")
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
