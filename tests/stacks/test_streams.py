"""What the recorded answers of real servers mean; and what each stack is asked for in its own dialect."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest
from fakes import samples

from orchestrator.load.sse import SseParser
from orchestrator.records import Prompt
from stacks.base import Delta, Deployment, LaunchKind, Wire
from stacks.catalog import BUILT_IN, stack
from stacks.openai import PLAIN


class Meaning(NamedTuple):
    """An answer as a whole."""

    status: int
    texts: int = 0
    """Events that carry text; the first of them is the first token, whatever came before it."""
    listed: int | None = None
    """Tokens that the events list."""
    finish: str | None = None
    prompt: int | None = None
    output: int | None = None
    cached: int | None = None
    error: str = ""


MEANINGS = {
    "vllm/stream-completions.txt": Meaning(200, 8, None, "length", 5, 8),
    "vllm/stream-token-ids.txt": Meaning(200, 4, 4, "length", 5, 4),
    "vllm/stream-chat.txt": Meaning(200, 7, None, "stop", 37, 8),
    "vllm/stream-chat-no-usage.txt": Meaning(200, 20, None, "length"),
    "vllm/stream-cached-prompt.txt": Meaning(200, 2, None, "length", 300, 2),  # 256 hits, of which it says nothing
    "vllm/stream-overload-in-200.txt": Meaning(200, error="The engine is currently busy"),
    "vllm/error-overload-503.txt": Meaning(503, error="The engine is currently busy"),
    "vllm/error-max-tokens.txt": Meaning(400, error="max_tokens=5000 cannot be greater"),
    "vllm/error-prompt-too-long.txt": Meaning(400, error="This model's maximum context length is 2048"),
    "vllm/error-unknown-model.txt": Meaning(404, error="The model `nope` does not exist"),
    "vllm/reply-extra-field-ignored.txt": Meaning(200, 1, None, "length", 1, 5),
    "vllm/reply-output-clamped.txt": Meaning(200, 1, None, "length", 2000, 48),  # 100 were asked for
    "vllm/reply-models.txt": Meaning(200),
    "sglang/stream-token-ids.txt": Meaning(200, 8, None, "length", 5, 8),
    "sglang/stream-continuous-usage.txt": Meaning(200, 4, 4, "length", 5, 4),
    "sglang/stream-chat.txt": Meaning(200, 7, None, "stop", 37, 8),
    "sglang/stream-overload-in-200.txt": Meaning(200, 0, None, None, 0, 0, error="The request queue is full."),
    "sglang/stream-native.txt": Meaning(200),  # a dialect that we do not speak: nothing is read into it
    "sglang/error-overload-503.txt": Meaning(503, error="The request queue is full."),
    "sglang/error-prompt-too-long.txt": Meaning(400, error="The input (2100 tokens) is longer"),
    "sglang/error-prompt-plus-output.txt": Meaning(400, error="Requested token count exceeds"),
    "sglang/reply-unknown-model-accepted.txt": Meaning(200, 1, None, "length", 1, 5),
    "sglang/reply-warming-up-503.txt": Meaning(503),
    "llamacpp/stream-completions.txt": Meaning(200, 8, None, "length", 5, 8, 0),
    "llamacpp/stream-cached-prompt.txt": Meaning(200, 4, None, "length", 5, 4, 4),
    "llamacpp/stream-chat.txt": Meaning(200, 8, None, "length", 37, 8, 0),
    "llamacpp/stream-native.txt": Meaning(200, 4, 4, "length", 5, 4, 0),
    "llamacpp/stream-kv-full-after-tokens.txt": Meaning(200, 1, error="Context size has been exceeded."),
    "llamacpp/stream-kv-full-no-token.txt": Meaning(200, error="Context size has been exceeded."),
    "llamacpp/stream-too-long.txt": Meaning(400, error="request (2100 tokens) exceeds"),
    "llamacpp/reply-loading-503.txt": Meaning(503, error="Loading model"),
    "llamacpp/reply-models.txt": Meaning(200),
    "transformers/stream-completions.txt": Meaning(200, 8, None, "length", 5, 8),
    "transformers/stream-exact-length.txt": Meaning(200, 12, None, "length", 5, 12),
    "transformers/stream-chat.txt": Meaning(200, 7, None, "length", 37, 8),
    "transformers/stream-chat-role-19s-early.txt": Meaning(200, 7, None, "length", 37, 8),
    "transformers/error-token-ids.txt": Meaning(400, error="prompt must be a string."),
    "transformers/error-unknown-fields.txt": Meaning(422, error="Unexpected fields in the request"),
    "transformers/error-model-name.txt": Meaning(400, error="Server is pinned to"),
}
ROLE_FIRST = ("vllm", "sglang", "llamacpp", "transformers")


def wire_of(name: str) -> Wire:
    """The dialect of a recording: by the path of its request, else the stack's preferred one."""
    spoken = BUILT_IN[name.partition("/")[0]].wires
    head = samples.text(name).split()
    path = head[2].rstrip(",") if head[1] == "POST" else ""
    return next((wire for wire in spoken if wire.path == path), spoken[0])()


def deltas(wire: Wire, body: bytes) -> list[Delta]:
    parser = SseParser()
    pieces = [event.data for event in (*parser.feed(body), *parser.close(whole=True))] or [body]
    return [wire.delta(json.loads(piece)) for piece in pieces if piece.startswith(b"{")]


def meaning(status: int, found: list[Delta]) -> Meaning:
    def last(name: str) -> Any:
        return next((value for delta in reversed(found) if (value := getattr(delta, name)) is not None), None)

    listed = [delta.tokens for delta in found if delta.tokens]
    return Meaning(
        status,
        sum(delta.text for delta in found),
        sum(listed) if listed else None,
        last("finish"),
        last("in_tokens"),
        last("out_tokens"),
        last("cached_tokens"),
        last("error") or "",
    )


@pytest.mark.parametrize("name", MEANINGS)
def test_a_recorded_answer(name: str) -> None:
    answer, expected = samples.answer(name), MEANINGS[name]
    found = meaning(answer.status, deltas(wire_of(name), answer.body))
    assert found._replace(error="") == expected._replace(error="")
    assert found.error.startswith(expected.error)
    assert bool(found.error) == bool(expected.error)


def test_no_recording_is_left_out() -> None:
    others = ("metrics", "formats")
    recorded = {name for kind in BUILT_IN for name in samples.names(kind, "*.txt")}
    assert {name for name in recorded if not name.partition("/")[2].startswith(others)} == set(MEANINGS)


@pytest.mark.parametrize("name", ROLE_FIRST)
def test_the_role_that_comes_first_is_no_token(name: str) -> None:
    first = deltas(wire_of(f"{name}/stream-chat.txt"), samples.answer(f"{name}/stream-chat.txt").body)[0]
    assert first == Delta()


def test_tgi_s_shapes() -> None:
    parts = samples.sections("tgi/formats-stream.txt")

    def read(heading: str, api: str) -> Meaning:
        content = "\n".join(next(part for name, part in parts.items() if name.startswith(heading)))
        wire = next(wire for wire in BUILT_IN["tgi"].wires if wire.name == api)()
        return meaning(200, deltas(wire, content.encode()))

    assert read("POST /generate_stream", "generate") == Meaning(200, 2, 2, "length", 5, 2)
    assert read("the same endpoint", "generate") == Meaning(200, error="Model is overloaded")
    assert read("POST /v1/chat/completions", "chat") == Meaning(200, error="Model is overloaded")
    assert read("not streaming", "generate") == Meaning(200, error="Model is overloaded")


# --- what is asked for --------------------------------------------------------------------------------------------

TEXT = Prompt(text="x y z")
IDS = Prompt(token_ids=(1, 2, 3))
EXACT = {"max_tokens": 7, "temperature": 0, "ignore_eos": True}
USAGE = {"stream_options": {"include_usage": True}}
CONFIG = '{"min_new_tokens": 7, "max_new_tokens": 7, "do_sample": false}'
OPTIONS: dict[str, dict[str, Any]] = {
    "vllm": {**EXACT, "min_tokens": 7, **USAGE},
    "sglang": {**EXACT, "min_tokens": 7, **USAGE},
    "trtllm": {**EXACT, "min_tokens": 7, **USAGE},
    "lmdeploy": {**EXACT, "min_new_tokens": 7, **USAGE},
    "llamacpp": {**EXACT, "cache_prompt": False, **USAGE},
    "transformers": {"generation_config": CONFIG},
    "tgi": {"max_tokens": 7, "temperature": 0, **USAGE},
    "external": {"max_tokens": 7, "temperature": 0, **USAGE},
}


def asked(name: str, api: str = "auto", launch: LaunchKind = "process") -> Wire:
    return stack(name).wire(Deployment(name="d", stack=name, model="m", launch=launch, api=api))


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_options_of_a_request(name: str) -> None:
    chat = asked(name, "chat").body(TEXT, 7, "m")
    assert chat == {"model": "m", "messages": [{"role": "user", "content": "x y z"}], "stream": True} | OPTIONS[name]
    wire = asked(name, "completions")
    assert wire.body(TEXT, 7, "m") == {"model": "m", "prompt": "x y z", "stream": True} | OPTIONS[name]
    if wire.takes_token_ids:
        assert wire.body(IDS, 7, "m")["prompt"] == [1, 2, 3]
    else:
        with pytest.raises(ValueError, match="text, not token ids"):
            wire.body(IDS, 7, "m")


def test_native_requests() -> None:
    assert asked("tgi").body(TEXT, 7, "m") == {
        "inputs": "x y z",
        "parameters": {"max_new_tokens": 7, "do_sample": False, "details": True},
        "stream": True,
    }
    assert asked("llamacpp", "completion").body(IDS, 7, "m") == {
        "prompt": [1, 2, 3],
        "n_predict": 7,
        "temperature": 0,
        "ignore_eos": True,
        "cache_prompt": False,
        "stream": True,
    }


@pytest.mark.parametrize("name", ["vllm", "sglang"])
def test_a_prefix_cache_that_is_not_ours_to_switch_off_is_salted(name: str) -> None:
    bodies = [asked(name, launch="external").body(prompt, 7, "m") for prompt in (TEXT, TEXT, Prompt(text="other"))]
    salts = [body["cache_salt"] for body in bodies]
    assert salts[0] == salts[1] != salts[2]
    assert "cache_salt" not in asked(name).body(TEXT, 7, "m")


@pytest.mark.parametrize("name", BUILT_IN)
def test_what_is_said_of_a_stack_is_what_its_requests_do(name: str) -> None:
    capabilities = stack(name).capabilities
    wire = asked(name)
    assert wire.takes_token_ids == capabilities.token_ids
    assert wire.forces_length == (capabilities.exact_length != "none")
    assert (asked(name, "chat").forces_length) == (OPTIONS[name] != OPTIONS["external"])


def test_an_api_that_a_stack_does_not_speak() -> None:
    with pytest.raises(ValueError, match="does not speak"):
        asked("vllm", "generate")
    assert PLAIN.length == "none"
