"""The response parser: any split of the bytes gives the same body; what is not HTTP is refused, bounded."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.load.http1 import MAX_HEAD_BYTES, ProtocolError, ResponseParser
from orchestrator.load.sse import SseParser

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;x=1\r\n world\r\n0\r\n\r\n"
LENGTH = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nhello world"


def parse(pieces: list[bytes]) -> ResponseParser:
    parser = ResponseParser(max_body_bytes=1000)
    for number, piece in enumerate(pieces):
        parser.feed(piece, [len(piece)], [number])
    return parser


@settings(deadline=None)
@given(data=st.sampled_from([CHUNKED, LENGTH]), cuts=st.sets(st.integers(min_value=1, max_value=90)))
def test_any_split_gives_the_same_body(data: bytes, cuts: set[int]) -> None:
    edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    parser = parse([data[a:b] for a, b in itertools.pairwise(edges)])
    assert parser.done
    assert parser.keep_alive
    assert bytes(parser.arrivals.body) == b"hello world"
    assert parser.arrivals.ends[-1] == 11
    assert list(parser.arrivals.stamps) == sorted(parser.arrivals.stamps)


@settings(deadline=None)
@given(data=st.binary(max_size=300))
def test_noise_is_refused_or_waits_and_never_crashes(data: bytes) -> None:
    try:
        parse([data])
        parse([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", data, data]).end_of_stream()
    except ProtocolError:
        pass


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + b"x" * 5000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 300 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * (MAX_HEAD_BYTES + 1),
    ],
)
def test_what_breaks_the_rules_or_the_bounds_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse([data])


def test_bytes_behind_the_answer_spoil_the_connection() -> None:
    parser = parse([LENGTH + b"HTTP/1.1 200 OK\r\n"])
    assert parser.done
    assert not parser.keep_alive


def test_without_a_length_the_close_ends_the_body() -> None:
    parser = parse([b"HTTP/1.1 200 OK\r\n\r\nabc"])
    assert not parser.done
    assert parser.end_of_stream()
    assert not parser.keep_alive


EVENTS = b'\xef\xbb\xbf: ping\r\ndata: {"a":1}\r\n\r\nevent: x\ndata: one\ndata: two\n\ndata:[DONE]\n\ndata: cut'


@settings(deadline=None)
@given(cuts=st.sets(st.integers(min_value=1, max_value=len(EVENTS) - 1)))
def test_any_split_gives_the_same_events(cuts: set[int]) -> None:
    edges = [0, *sorted(cuts), len(EVENTS)]
    parser = SseParser()
    events = [event for a, b in itertools.pairwise(edges) for event in parser.feed(EVENTS[a:b])]
    assert [event.data for event in events] == [b'{"a":1}', b"one\ntwo", b"[DONE]"]
    assert [EVENTS[: event.end][-2:] for event in events] == [b"\r\n", b"o\n", b"]\n"]
    assert parser.close(whole=False) == []
