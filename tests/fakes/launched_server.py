"""A server to be launched: small, stdlib only, and able to misbehave in every way that a launcher must survive.

Runs as a process and, copied into an image, as a container. It is no measure of anything; for load there is
`openai_server`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKENS = [
    {"choices": [{"text": " a", "finish_reason": None}]},
    {"choices": [{"text": " b", "finish_reason": "length"}]},
]
SLEEP_FOR_EVER = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.pause()"


def sse(*events: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"


ANSWERS = {
    "ok": (200, sse(*TOKENS)),
    "500": (500, b'{"error": {"message": "the card is on fire"}}'),
    "400": (400, b'{"error": {"message": "no such dialect"}}'),
    "401": (401, b'{"error": {"message": "no key"}}'),
    "error": (200, sse({"error": {"message": "KV cache is full"}})),
    "empty": (200, sse()),
    "garbage": (200, b"\xff\xfe<html>busy</html>"),
    "huge": (200, b"x" * 3_000_000),
}


class Answers(BaseHTTPRequestHandler):
    options: argparse.Namespace
    born: float
    authorization: str | None = None

    def log_message(self, *_: object) -> None: ...

    def reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path == "/health":
            ready = time.monotonic() - self.born >= self.options.ready_after
            self.reply(200 if ready else 503, b"ok" if ready else b"loading")
        elif self.path == "/v1/models":
            self.reply(200, json.dumps({"data": [{"id": self.options.model}]}).encode())
        elif self.path == "/version":
            self.reply(200, b'{"version": "9.8.7"}')
        elif self.path == "/die":
            print("the engine has died of grief", flush=True)
            os._exit(self.options.exit_code)
        elif self.path == "/eat":
            threading.Thread(target=eat, daemon=True).start()
            self.reply(200, b"ok")
        else:
            self.reply(404, b"")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.options.key and self.headers.get("authorization") != f"Bearer {self.options.key}":
            self.reply(401, f"not {self.headers.get('authorization')}".encode())
            return
        self.reply(*ANSWERS[self.options.answer])


def eat() -> None:
    """Take memory until somebody minds."""
    held = []
    while True:
        held.append(bytearray(os.urandom(1024)) * 4096)


def spawn(kind: str) -> None:
    """A child that ends by no gentle means; `apart`: in a session of its own, its parent dead."""
    child = [sys.executable, "-c", SLEEP_FOR_EVER]
    if kind == "near":
        started = subprocess.Popen(child)
    else:
        between = f"import subprocess; print(subprocess.Popen({child!r}, start_new_session=True).pid)"
        subprocess.run([sys.executable, "-c", between], check=True)
        return
    print(started.pid, flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default="fake-model")
    parser.add_argument("--ready-after", type=float, default=0.0)
    parser.add_argument("--die-after", type=float)
    parser.add_argument("--exit-code", type=int, default=3)
    parser.add_argument("--say", action="append", default=[])
    parser.add_argument("--spawn", choices=["near", "apart"])
    parser.add_argument("--deaf", action="store_true", help="mind no SIGTERM")
    parser.add_argument("--never-listen", action="store_true")
    parser.add_argument("--print-env", action="store_true")
    parser.add_argument("--answer", choices=sorted(ANSWERS), default="ok")
    parser.add_argument("--key")
    return parser.parse_args()


def die(code: int) -> None:
    print("the engine has died of grief", flush=True)
    os._exit(code)


def main() -> None:
    options = parse()
    signal.signal(signal.SIGTERM, signal.SIG_IGN if options.deaf else lambda *_: os._exit(0))
    for line in options.say:
        print(line, flush=True)
    if options.print_env:
        print(dict(os.environ), flush=True)
    if options.spawn:
        spawn(options.spawn)
    if options.die_after is not None:
        timer = threading.Timer(options.die_after, die, [options.exit_code])
        timer.daemon = True
        timer.start()
    if options.never_listen:
        threading.Event().wait()
    Answers.options, Answers.born = options, time.monotonic()
    try:
        server = ThreadingHTTPServer((options.host, options.port), Answers)
    except OSError as error:
        sys.exit(f"cannot bind: {error}")
    print(f"listening on {options.host}:{options.port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
