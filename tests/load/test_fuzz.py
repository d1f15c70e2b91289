"""Recorded streams, damaged at random, through the whole reading path: no crash, times in order, bounded."""

from __future__ import annotations

import random

import pytest
from fakes import samples

from orchestrator.load.answer import Answer
from orchestrator.load.http1 import ProtocolError, ResponseParser
from stacks.base import Wire
from stacks.llamacpp import CompletionWire
from stacks.openai import ChatWire, CompletionsWire
from stacks.tgi import GenerateStreamWire

STREAMS = list(samples.streams().values())
WIRES: tuple[Wire, ...] = (ChatWire(), CompletionsWire(), CompletionWire(), GenerateStreamWire())
HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
SPLINTERS = (
    b"\n\n", b"\r\n", b"data: ", b"0\r\n\r\n", b"\x00", b"}", b"[", b"\xff", b'"', b"1e999", b"null", b"\xef\xbb\xbf",
)  # fmt: skip


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, cut out, put in or doubled."""
    broken = bytearray(data)
    for _ in range(rng.choice([0, 1, 1, 2, 5, 20])):
        at, kind = rng.randrange(len(broken) + 1), rng.random()
        if kind < 0.4:
            broken[at : at + 1] = rng.randbytes(1)
        elif kind < 0.6:
            del broken[at : at + rng.randrange(1, 40)]
        elif kind < 0.8:
            broken[at:at] = rng.choice(SPLINTERS)
        else:
            start = rng.randrange(len(broken) + 1)
            broken[at:at] = broken[start : start + rng.randrange(200)]
    return bytes(broken)


def cut(data: bytes, sizes: list[int], rng: random.Random) -> list[bytes]:
    pieces, at = [], 0
    while at < len(data):
        size = rng.choice(sizes)
        pieces.append(data[at : at + size])
        at += size
    return pieces


@pytest.mark.parametrize("seed", range(400))
def test_damage_is_told_and_never_crashes(seed: int) -> None:
    rng = random.Random(seed)
    body = damaged(rng.choice(STREAMS).body, rng)
    raw = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in cut(body, [1, 7, 100, 300, 1000], rng)) + b"0\r\n\r\n"
    if rng.random() < 0.3:
        raw = damaged(raw, rng)
    parser, answer, whole = ResponseParser(max_body_bytes=10**6), Answer(rng.choice(WIRES)), False
    answer.status, answer.arrivals = 200, parser.arrivals
    try:
        parser.feed(HEAD, [len(HEAD)], [1])
        for at_ns, data in enumerate(cut(raw, [1, 50, 300, 5000], rng), start=2):
            parser.feed(data, [len(data)], [at_ns])
            if rng.random() < 0.05:
                answer._take(parser.arrivals.take())
        whole = parser.end_of_stream()
    except ProtocolError:
        whole = False
    answer.close(whole=whole)
    facts = answer.facts()
    assert list(facts["token_ns"]) == sorted(facts["token_ns"])
    answer.failure(3, forces_length=True)
