"""A streaming server that knows what it sent and when: the truth that a client's clock is held against.

    python -m benchmarks.truth_server --truth FILE --cpu N [--tokens-per-s R]

Answers every POST with a chat stream of `max_tokens` events, one every 1 / `x-tokens-per-s` seconds (R, if the client
sends no such header), and every GET with the list of its one model. Just before and
just after the system call that sends an event it reads CLOCK_MONOTONIC; the arrival lies between the two, because the
loopback delivers within the call. On SIGTERM it writes a JSON line per answer: `id`, `before_ns`, `after_ns`, and
when each event was due. One thread and one epoll, standard library only, so that it is never the limit.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import select
import signal
import socket
import time
from array import array
from collections import deque
from collections.abc import Mapping
from pathlib import Path

now_ns = time.monotonic_ns

USUAL_TOKENS = 16
"""Of an answer to a request that names no number."""
MODELS = b'{"object":"list","data":[{"id":"truth","object":"model","owned_by":"loadproof"}]}'
LISTED = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(MODELS) + MODELS
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_CHUNK = (
    '{"id":"chatcmpl-5f1c0b6e9a8d4c27","object":"chat.completion.chunk","created":1764109392,"model":"truth",'
    '"choices":[{"index":0,"delta":{"content":" token"},"logprobs":null,"finish_reason":null}]}'
)
TEXTS = (
    "The", " card", " holds", " forty", " users", ",", " and", " breaks", " at", " fifty", ".", "\n", "\n", "What",
    ' "fits', '"', " is", " not", " what", " serves", ":", " the", " KV", " cache", " of", " long", " prompts",
    " fills", " a", " naïve", " plan", "…",
)  # fmt: skip
"""Of the tokens, one after another: of various lengths, some of them escaped or beyond ASCII."""


def chunk(data: bytes) -> bytes:
    """A piece of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(data: Mapping[str, object]) -> bytes:
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


def text_event(text: str) -> bytes:
    """A token, as the chunk of the body that servers send of it."""
    data = json.loads(_CHUNK)
    data["choices"][0]["delta"]["content"] = text
    return chunk(event(data))


EVENTS = tuple(map(text_event, TEXTS))


def ending(tokens: int) -> bytes:
    """The last token with its finish reason, the usage record, [DONE] and the end of the body."""
    last = json.loads(_CHUNK)
    last["choices"][0]["finish_reason"] = "length"
    usage = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": tokens}}
    return chunk(event(last)) + chunk(event(usage)) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


class Stream:
    """One answer on its way."""

    __slots__ = ("after", "before", "connection", "due_ns", "first_due_ns", "id", "left", "period_ns", "tokens")

    def __init__(self, connection: Connection, request_id: str, tokens: int, period_ns: int) -> None:
        self.connection = connection
        self.id = request_id
        self.tokens = self.left = tokens
        self.period_ns = period_ns
        self.due_ns = self.first_due_ns = now_ns() + period_ns
        self.before = array("q")
        self.after = array("q")

    def send_next(self) -> None:
        """Send the next event and note when; its successor is due a period after this one *was due*."""
        data = EVENTS[self.left % len(EVENTS)] if self.left > 1 else ending(self.tokens)
        if self.left == self.tokens:
            data = HEAD + data
        self.before.append(now_ns())
        self.connection.send(data)
        self.after.append(now_ns())
        self.left -= 1
        self.due_ns += self.period_ns


class Connection:
    """One client's socket. What its buffer does not take is kept and sent first."""

    __slots__ = ("received", "sock", "tokens_per_s", "unsent")

    def __init__(self, sock: socket.socket, tokens_per_s: float) -> None:
        self.sock = sock
        self.tokens_per_s = tokens_per_s
        self.received = b""
        self.unsent = b""

    def send(self, data: bytes) -> None:
        if self.unsent:
            data, self.unsent = self.unsent + data, b""
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self.unsent = data[sent:]

    def request(self, data: bytes) -> Stream | None:
        """The answer to a request, once all of it has come."""
        self.received += data
        head, found, body = self.received.partition(b"\r\n\r\n")
        if not found:
            return None
        lines = (line.partition(b":") for line in head.lower().split(b"\r\n")[1:])
        headers = {name: value.strip() for name, _, value in lines}
        if head.startswith((b"GET", b"HEAD")):
            self.received = body
            self.send(LISTED)
            return None
        length = int(headers[b"content-length"])
        if len(body) < length:
            return None
        self.received = body[length:]
        asked = json.loads(body[:length])
        tokens = asked.get("max_completion_tokens") or asked.get("max_tokens") or USUAL_TOKENS
        rate = float(headers.get(b"x-tokens-per-s", self.tokens_per_s))
        return Stream(self, headers.get(b"x-request-id", b"").decode(), tokens, round(1e9 / rate))


class TruthServer:
    """Serves until it is told to stop."""

    def __init__(self, listener: socket.socket, tokens_per_s: float) -> None:
        self.listener = listener
        self.tokens_per_s = tokens_per_s
        self.poll = select.epoll()
        self.poll.register(listener, select.EPOLLIN)
        self.connections: dict[int, Connection] = {}
        self.lanes: dict[int, deque[Stream]] = {}
        """Streams by period, the one that is due next in front: with one period each new turn comes last."""
        self.streams: list[Stream] = []
        self.stopped = False

    def stop(self, *_: object) -> None:
        self.stopped = True

    def serve(self) -> None:
        while not self.stopped:
            next_ns = min((lane[0].due_ns for lane in self.lanes.values() if lane), default=now_ns() + 100_000_000)
            for fd, _ in self.poll.poll(max(0.0, (next_ns - now_ns()) / 1e9)):
                if fd == self.listener.fileno():
                    self.accept()
                else:
                    self.read(fd)
            self.send_due()

    def send_due(self) -> None:
        """Everything that was due when it began: what falls due meanwhile waits, so that requests are read too."""
        until = now_ns()
        for lane in self.lanes.values():
            while lane and lane[0].due_ns <= until:
                stream = lane.popleft()
                try:
                    stream.send_next()
                except OSError:  # the client has gone: its answer ends here, as far as it came
                    continue
                if stream.left:
                    lane.append(stream)

    def accept(self) -> None:
        sock, _ = self.listener.accept()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connections[sock.fileno()] = Connection(sock, self.tokens_per_s)
        self.poll.register(sock, select.EPOLLIN)

    def read(self, fd: int) -> None:
        connection = self.connections[fd]
        try:
            data = connection.sock.recv(65536)
        except OSError:
            data = b""
        if not data:
            self.poll.unregister(fd)
            del self.connections[fd]
            connection.sock.close()
        elif (stream := connection.request(data)) is not None:
            self.streams.append(stream)
            self.lanes.setdefault(stream.period_ns, deque()).append(stream)

    def tell(self, path: Path) -> None:
        with path.open("w") as file:
            for stream in self.streams:
                truth = {
                    "id": stream.id,
                    "first_due_ns": stream.first_due_ns,
                    "period_ns": stream.period_ns,
                    "before_ns": list(stream.before),
                    "after_ns": list(stream.after),
                }
                file.write(json.dumps(truth) + "\n")


def take_core(cpu: int) -> None:
    """Stay on this core, and in real time where that is permitted, so that what else runs here disturbs less."""
    os.sched_setaffinity(0, {cpu})
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--truth", type=Path, required=True)
    parser.add_argument("--cpu", type=int, required=True)
    parser.add_argument("--tokens-per-s", type=float, default=50.0, help="default: %(default)s")
    options = parser.parse_args()
    take_core(options.cpu)
    gc.disable()
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
        server = TruthServer(listener, options.tokens_per_s)
        signal.signal(signal.SIGTERM, server.stop)
        print(listener.getsockname()[1], flush=True)
        server.serve()
    server.tell(options.truth)


if __name__ == "__main__":
    main()
