"""One answer made of any bytes, read as the load engine reads it: what must hold whatever a server sends."""

from __future__ import annotations

from typing import Any

from orchestrator.load.answer import Answer
from orchestrator.load.http1 import ProtocolError, ResponseParser
from stacks.base import Wire
from stacks.llamacpp import CompletionWire
from stacks.openai import ChatWire, CompletionsWire
from stacks.tgi import GenerateStreamWire

WIRES: tuple[Wire, ...] = (ChatWire(), CompletionsWire(), CompletionWire(), GenerateStreamWire())
MAX_BODY_BYTES = 100_000


def read(data: bytes) -> None:
    """First byte: the dialect; second: length of the pieces; third: whether the answer is taken as it comes, and how
    many pieces were read before they are parsed together.

    Nothing but `ProtocolError` may come out. Token times are in order and are times at which something came. However
    the bytes are cut, they mean the same.
    """
    if len(data) < 3:
        return
    wire, size, eager = WIRES[data[0] % len(WIRES)], 1 + data[1], bool(data[2] % 2)
    cut = _read(wire, data[3:], size, together=1 + data[2] // 2 % 16, eager=eager)
    at_once = _read(wire, data[3:], len(data), together=1, eager=False)
    assert cut == at_once, (cut, at_once)


def _pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def _read(wire: Wire, data: bytes, size: int, *, together: int, eager: bool) -> tuple[Any, ...]:
    parser, answer, fault = ResponseParser(max_body_bytes=MAX_BODY_BYTES), Answer(wire), False
    answer.arrivals = parser.arrivals
    whole = False
    seen = 0
    pieces = _pieces(data, size)
    try:
        for first in range(0, len(pieces), together):
            read = pieces[first : first + together]
            seen = first + len(read)
            parser.feed(b"".join(read), list(map(len, read)), range(first + 1, seen + 1))
            answer.status = parser.status
            if eager and parser.head_done and len(parser.arrivals.body) > 64:
                answer._take(parser.arrivals.take())
        whole = parser.end_of_stream()
    except ProtocolError:
        fault = True
    answer.status = parser.status
    answer.close(whole=whole)
    facts = answer.facts()
    times = list(facts["token_ns"])
    assert times == sorted(times)
    assert all(0 < at <= seen for at in times)
    assert len(parser.arrivals.body) <= MAX_BODY_BYTES + len(data)
    failure = answer.failure(3, forces_length=True)
    if fault:
        return (parser.status,)  # how far a broken answer was read may depend on how it came
    told = {name: facts[name] for name in ("finish", "in_tokens", "out_tokens", "cached_tokens", "reasoning_tokens")}
    return parser.status, parser.done, len(times), told, failure
