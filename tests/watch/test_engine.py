from __future__ import annotations

import gzip
import threading
from http.server import BaseHTTPRequestHandler

import pytest
from fakes.pages import Answer, page, serving

from orchestrator.errors import HostError
from orchestrator.watch import engine
from orchestrator.watch.engine import engine_reader


def lengths(text: str) -> dict[str, float]:
    return {"characters": float(len(text))}


def failure(answer: Answer) -> str:
    with (
        serving(answer) as (url, asked),
        engine_reader(url, "/metrics", lengths) as read,
        pytest.raises(HostError) as caught,
    ):
        read()
    assert len(asked) == 1
    return caught.value.message


@pytest.mark.parametrize(
    ("suffix", "path", "expected"),
    [("", "/metrics", "/metrics"), ("/", "metrics", "/metrics"), ("/prefix/", "/metrics", "/prefix/metrics")],
)
def test_a_page_is_read_plain_and_handed_to_the_stack(suffix: str, path: str, expected: str) -> None:
    with serving(page("vllm:ünï 1\n".encode())) as (url, asked), engine_reader(url + suffix, path, lengths) as read:
        assert read() == {"characters": 11.0}
        assert read() == {"characters": 11.0}
    assert asked == [f"{expected} identity"] * 2


def test_bytes_that_are_no_text_do_no_harm() -> None:
    with serving(page(b"\xff\xfe\x00 1\n")) as (url, _), engine_reader(url, "/metrics", lengths) as read:
        assert read() == {"characters": 6.0}


def test_another_status_is_no_page() -> None:
    assert "answered 501" in failure(page(b"vllm:running 1\n", 501))


def test_a_compressed_page_is_refused() -> None:
    assert "compressed" in failure(page(gzip.compress(b"x" * 10_000), content_encoding="gzip"))


def test_a_page_without_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "TIMEOUT_S", 60.0)
    sent = 0

    def endless(request: BaseHTTPRequestHandler) -> None:
        nonlocal sent
        request.send_response(200)
        request.end_headers()
        try:
            while sent < 20 * engine.MAX_BYTES:
                sent += request.wfile.write(b"x" * 65536)
        except OSError:
            return

    assert "larger than 4 MiB" in failure(endless)
    assert engine.MAX_BYTES < sent < 20 * engine.MAX_BYTES


def test_a_page_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each read is quick enough; the whole is not."""
    monkeypatch.setattr(engine, "TIMEOUT_S", 0.2)
    given_up = threading.Event()

    def dripping(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        try:
            while not given_up.wait(0.01):
                request.wfile.write(b"x\n")
        except OSError:
            return

    assert "took longer than 0.2 s" in failure(dripping)
    given_up.set()


def test_an_engine_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "TIMEOUT_S", 0.1)
    over = threading.Event()

    def silent(request: BaseHTTPRequestHandler) -> None:
        over.wait(30)

    with serving(silent) as (url, asked), engine_reader(url, "/metrics", lengths) as read:
        with pytest.raises(HostError, match="could not be read"):
            read()
        assert len(asked) == 1
        over.set()


def test_a_closed_port_is_told() -> None:
    with serving(page(b"")) as (url, _):
        pass
    with engine_reader(url, "/metrics", lengths) as read, pytest.raises(HostError, match="could not be read"):
        read()


def test_no_proxy_stands_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with serving(page(b"x 1\n")) as (url, _), engine_reader(url, "/metrics", lengths) as read:
        assert read() == {"characters": 4.0}
