"""What answers say: recorded streams of every stack, odd streams, and the same result however the bytes were cut."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import pytest
from fakes import samples
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.load.answer import Answer, spread_counts
from orchestrator.load.http1 import ResponseParser
from orchestrator.load.shape import Shape
from stacks.base import Wire
from stacks.llamacpp import CompletionWire
from stacks.openai import ChatWire, CompletionsWire
from stacks.tgi import GenerateStreamWire

WIRES = {wire.path: wire() for wire in (ChatWire, CompletionsWire, CompletionWire)}

STREAMS = samples.streams()
RECORDED: dict[str, tuple[int, int | None, int | None, str | None, str | None]] = {
    "llamacpp-cached-prompt": (4, 5, 4, "length", None),
    "llamacpp-chat": (8, 37, 8, "length", None),
    "llamacpp-completions": (8, 5, 8, "length", None),
    "llamacpp-kv-full-after-tokens": (1, None, None, None, "error_in_stream"),
    "llamacpp-kv-full-no-token": (0, None, None, None, "error_in_stream"),
    "llamacpp-native": (4, 5, 4, "length", None),
    "llamacpp-too-long": (0, None, None, None, "status"),
    "sglang-chat": (7, 37, 8, "stop", None),
    "sglang-continuous-usage": (4, 5, 4, "length", None),
    "sglang-overload-in-200": (0, 0, 0, None, "error_in_stream"),
    "sglang-token-ids": (8, 5, 8, "length", None),
    "transformers-chat": (7, 37, 8, "length", None),
    "transformers-chat-role-19s-early": (7, 37, 8, "length", None),
    "transformers-completions": (8, 5, 8, "length", None),
    "transformers-exact-length": (12, 5, 12, "length", None),
    "vllm-cached-prompt": (2, 300, 2, "length", None),
    "vllm-chat": (7, 37, 8, "stop", None),
    "vllm-chat-no-usage": (20, None, None, "length", None),
    "vllm-completions": (8, 5, 8, "length", None),
    "vllm-overload-in-200": (0, None, None, None, "error_in_stream"),
    "vllm-token-ids": (4, 5, 4, "length", None),
}
"""Token events, prompt tokens, output tokens, finish, failure."""


def read(wire: Wire, reads: Iterable[bytes], status: int = 200, take_every: int = 1) -> Answer:
    """The answer whose body came in these reads, at the times 1, 2, 3 ...; read in pieces of several reads."""
    answer = Answer(wire)
    answer.status = status
    for number, data in enumerate(reads, start=1):
        answer.arrivals.body += data
        answer.arrivals.stamp(len(data), number)
        if number % take_every == 0:
            answer._take(answer.arrivals.take())
    answer.close(whole=True)
    return answer


def cut(data: bytes, edges: Iterable[int]) -> list[bytes]:
    places = sorted({0, len(data), *(edge for edge in edges if 0 < edge < len(data))})
    return [data[a:b] for a, b in itertools.pairwise(places)]


# --- recorded streams -------------------------------------------------------------------------------------------


def told(recorded: samples.Answer, reads: Iterable[bytes], **options: int) -> tuple[Any, ...]:
    answer = read(WIRES[recorded.path], reads, recorded.status, **options)
    facts, failure = answer.facts(), answer.failure(0, forces_length=False)
    events = len(facts["token_ns"])
    return events, facts["in_tokens"], facts["out_tokens"], facts["finish"], failure.kind if failure else None


@pytest.mark.parametrize("name", RECORDED)
def test_what_real_servers_said(name: str) -> None:
    recorded = STREAMS[name]
    assert told(recorded, [recorded.body]) == RECORDED[name]


@pytest.mark.parametrize("name", RECORDED)
def test_byte_by_byte_they_said_the_same(name: str) -> None:
    recorded = STREAMS[name]
    assert told(recorded, cut(recorded.body, range(len(recorded.body)))) == RECORDED[name]


@pytest.mark.parametrize("name", RECORDED)
def test_over_crlf_they_said_the_same(name: str) -> None:
    recorded = STREAMS[name]
    body = recorded.body.replace(b"\n", b"\r\n")
    assert told(recorded, cut(body, range(0, len(body), 7)), take_every=3) == RECORDED[name]


def test_every_recording_is_looked_at() -> None:
    assert STREAMS.keys() - RECORDED.keys() == {"sglang-native"}, "a dialect of its own, which loadproof does not speak"


# --- made streams -----------------------------------------------------------------------------------------------


def event(choice: dict[str, Any] | None, **more: Any) -> bytes:
    data = {"object": "chat.completion.chunk", "choices": [] if choice is None else [{"index": 0, **choice}], **more}
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def text(content: Any, **more: Any) -> bytes:
    return event({"delta": {"content": content}, "finish_reason": None, **more})


ROLE = event({"delta": {"role": "assistant", "content": ""}, "finish_reason": None})
TEXT = text("a")
REASONING = event({"delta": {"reasoning_content": "hm", "content": None}})
FINISH = event({"delta": {}, "finish_reason": "stop"})
USAGE = event(
    None, usage={"prompt_tokens": 3, "completion_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 2}}
)
DONE = b"data: [DONE]\n\n"
KINDS = {
    "text": TEXT, "other text": text(" b"), "newline": text("\n"), "quote": text('"'), "role": ROLE,
    "empty": text(""), "null": text(None), "reasoning": REASONING, "finish": FINISH,
    "usage": USAGE, "done": DONE, "comment": b": ping\n\n", "retry": b"retry: 3\nid: 7\n\n",
    "two lines": b'data: {"choices":[{"delta":\ndata: {"content":"x"}}]}\n\n', "crlf": TEXT.replace(b"\n", b"\r\n"),
    "ids": text("a", token_ids=[1, 2]), "long": text("x" * 3000), "unicode": text("é\u2028\n\n"),
    "running usage": event({"delta": {"content": "a"}}, usage={"prompt_tokens": 3, "completion_tokens": 1}),
    "no space": TEXT.replace(b"data: ", b"data:"),
    "two choices": b'data: {"choices":[{"delta":{"content":"a"}},{"delta":{"content":"b"}}]}\n\n',
    "odd": b'data: {"choices": 5}\n\n', "list": b"data: []\n\n",
    "object": b'data: {"object": 7, "choices": [{"text": "t"}]}\n\n', "garbage": b"data: {garbage\n\n",
    "error": b'data: {"error": "no", "choices": [{"delta": {"content": "a"}}]}\n\n',
}  # fmt: skip


class OneByOne(ChatWire):
    """The same dialect without its fast ways."""

    def read(self, data: bytes) -> Any:
        return self.delta(msgspec.json.decode(data))

    def count_texts(self, events: bytes) -> int | None:
        return None


class EventByEvent(ChatWire):
    """The same dialect, never asked about many events at once."""

    def count_texts(self, events: bytes) -> int | None:
        return None


class OneByOneCompletions(CompletionsWire):
    read = OneByOne.read

    def count_texts(self, events: bytes) -> int | None:
        return None


@settings(deadline=None)
@given(
    kinds=st.lists(st.one_of(st.just("text"), st.sampled_from(list(KINDS))), max_size=60),
    cuts=st.sets(st.integers(min_value=1, max_value=9000), max_size=30),
    take_every=st.integers(min_value=1, max_value=40),
    aligned=st.booleans(),
)
def test_many_events_at_once_mean_the_same_as_one_by_one(
    kinds: Sequence[str], cuts: set[int], take_every: int, aligned: bool
) -> None:
    events = [KINDS[kind] for kind in kinds]
    body = b"".join(events)
    reads = events if aligned else cut(body, cuts)
    fast = read(ChatWire(), reads, take_every=take_every)
    slow = read(OneByOne(), reads)
    assert fast.facts() == slow.facts()
    assert fast.failure(9, forces_length=True) == slow.failure(9, forces_length=True)


INSIDE = (
    b"a", b" the", b"", b"\\n",
    b"\\\\", b'\\"', b"\\u00e9", b"\\ud83d\\ude00", b"\\ud83d", b"\\", b"\\x", b"\\u12", b'"',
    b"\n", b"\x1f", b"\xc3\xa9", b"\xc3", b"\xa9", b'","finish_reason":"stop","x":"', b"\r", b"\r\n", b"}", b"\n\n",
    b"\xe2\x80\xa8", b'a"},"finish_reason":null}]}\n\ndata: {"choices":[{"delta":{"content":"',
)  # fmt: skip
"""What a server may put between the quotes of a text, right or wrong."""


@settings(deadline=None)
@given(
    inside=st.lists(st.one_of(st.sampled_from(INSIDE[:4]), st.sampled_from(INSIDE)), max_size=60),
    field=st.sampled_from([b"content", b"id", b"role", b"finish_reason", b"error", b"reasoning_content"]),
    take_every=st.integers(min_value=1, max_value=40),
)
def test_events_that_differ_in_one_string_mean_the_same_as_one_by_one(
    inside: list[bytes], field: bytes, take_every: int
) -> None:
    whole = b'data: {"object":"chat.completion.chunk","choices":[{"delta":{"content":"hi","x":"y"}}],"id":"1"}\n\n'
    head = whole[: whole.index(b'"content":"hi"')] + b'"%b":"' % field
    tail = whole[whole.index(b'"hi"') + 3 :] if field == b"content" else b'","content":"hi"}}],"id":"1"}\n\n'
    reads = [ROLE, *(head + text + tail for text in inside), FINISH, DONE]
    fast, slow = read(ChatWire(), reads, take_every=take_every), read(EventByEvent(), reads)
    assert fast.facts() == slow.facts()
    assert fast.failure(9, forces_length=False) == slow.failure(9, forces_length=False)


def test_the_texts_of_a_usual_stream_are_told_at_one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two events are read to learn what the others look like, whatever they say."""
    asked: list[int | None] = []

    class Watched(ChatWire):
        def count_texts(self, events: bytes) -> int | None:
            asked.append(super().count_texts(events))
            return asked[-1]

    words = ["The", "The", " card", "\n", ' "holds"', " é", " \\", "!"] * 50
    answer = read(Watched(), [ROLE, *map(text, words), FINISH, USAGE, DONE], take_every=1000)
    assert len(answer.token_ns) == len(words)
    assert [count for count in asked if count] == [2]


def test_a_key_that_differs_is_no_text() -> None:
    one, other = (
        b'data: {"choices":[{"delta":{"content":"a"},"%b":null}]}\n\n' % key for key in (b"x", b"finish_reason")
    )
    assert Shape.of(one, other) is None
    assert Shape.of(one, one) is None
    shape = Shape.of(one, one.replace(b'"a"', b'"b"'))
    assert shape is not None
    assert shape.lengths(one * 3 + other + one) == [len(one)] * 3
    assert shape.lengths(one * 3 + one[:-1]) == [len(one)] * 3


@settings(deadline=None)
@given(cuts=st.sets(st.integers(min_value=1, max_value=9000), max_size=30), take_every=st.integers(1, 40))
def test_completions_too(cuts: set[int], take_every: int) -> None:
    one = (
        b'data: {"object":"text_completion","choices":[{"index":0,"text":" x","finish_reason":null}],"usage":null}\n\n'
    )
    odd = one.replace(b'" x"', b'""')
    reads = cut(one * 20 + odd + one * 20, cuts)
    fast, slow = read(CompletionsWire(), reads, take_every=take_every), read(OneByOneCompletions(), reads)
    assert fast.facts() == slow.facts()
    assert len(fast.token_ns) == 40


def test_tokens_carry_the_time_of_the_read_that_completed_them() -> None:
    """Three events in one read, one event in three reads, and half an event with the end of another."""
    reads = [TEXT * 3, TEXT[:10], TEXT[10:20], TEXT[20:] + TEXT[:30], TEXT[30:]]
    assert list(read(ChatWire(), reads).token_ns) == [1, 1, 1, 4, 5]
    assert list(read(ChatWire(), reads, take_every=5).token_ns) == [1, 1, 1, 4, 5]


def test_role_and_empty_chunks_are_no_tokens_and_reasoning_is() -> None:
    facts = read(ChatWire(), [ROLE, text(""), REASONING, REASONING, TEXT, FINISH, USAGE, DONE]).facts()
    assert (facts["first_ns"], facts["first_answer_ns"], facts["last_ns"]) == (3, 5, 5)
    assert (facts["out_tokens"], facts["reasoning_tokens"], facts["tokens_from"]) == (9, 2, "usage")
    assert facts["token_counts"] == (3, 3, 3)


def test_several_tokens_in_a_chunk_are_spread_by_rule() -> None:
    assert spread_counts(None, 3, 8) == (2, 3, 3)
    assert spread_counts([1, 5, 2], 3, 9) == (1, 5, 2)
    assert spread_counts(None, 3, None) == (1, 1, 1)


def test_tgi_tells_one_token_in_each_event_and_totals_in_the_last() -> None:
    body = (
        b'data:{"index":1,"token":{"id":7042,"text":" Paris"},"generated_text":null,"details":null}\n\n'
        b'data:{"index":2,"token":{"id":30,"text":"."},"details":{"finish_reason":"length","generated_tokens":2,'
        b'"input_length":5}}\n\n'
    )
    facts = read(GenerateStreamWire(), [body]).facts()
    assert (len(facts["token_ns"]), facts["out_tokens"], facts["in_tokens"], facts["finish"]) == (2, 2, 5, "length")
    full = read(GenerateStreamWire(), [b'data:{"error":"Model is overloaded","error_type":"overloaded"}\n\n'])
    failure = full.failure(1, forces_length=False)
    assert failure is not None
    assert failure.kind == "error_in_stream"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", "truncated"),
        (TEXT, "truncated"),
        (b"data: {not json}\n\n" + TEXT + FINISH, "protocol"),
        (b"data: \xff\xfe\n\n" + FINISH, "protocol"),
        (TEXT * 20 + TEXT.replace(b'"a"', b'"\x94"') + FINISH, "protocol"),
        (b"data: " + b"[" * 5000 + b"\n\n" + FINISH, "protocol"),
        (b"data: " + b"x" * (4 * 2**20 + 1), "protocol"),
        (TEXT + b'data: {"error": {"message": "no"}}\n\n', "error_in_stream"),
        (TEXT + FINISH + USAGE, "short_output"),
    ],
)
def test_what_is_no_answer_says_why(body: bytes, kind: str) -> None:
    failure = read(ChatWire(), [body]).failure(5, forces_length=True)
    assert failure is not None
    assert failure.kind == kind


# --- framing ----------------------------------------------------------------------------------------------------


def chunked(pieces: Iterable[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


@settings(deadline=None)
@given(
    pieces=st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=150),
    cuts=st.sets(st.integers(min_value=1, max_value=9000), max_size=40),
)
def test_reads_that_are_framed_together_give_the_same_body_at_the_same_times(
    pieces: list[bytes], cuts: set[int]
) -> None:
    data = chunked(pieces)
    for reads in (cut(data, cuts), [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces] + [b"0\r\n\r\n"]):
        together, apart = ResponseParser(max_body_bytes=10**6), ResponseParser(max_body_bytes=10**6)
        together.feed(HEAD, [len(HEAD)], [1])
        together.feed(b"".join(reads), list(map(len, reads)), range(2, len(reads) + 2))
        for number, piece in enumerate([HEAD, *reads], start=1):
            apart.feed(piece, [len(piece)], [number])
        assert together.done
        assert apart.done
        assert bytes(together.arrivals.body) == bytes(apart.arrivals.body) == b"".join(pieces)
        for end in range(1, len(apart.arrivals.body) + 1):
            assert together.arrivals.time_of(end) == apart.arrivals.time_of(end)
