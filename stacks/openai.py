"""The OpenAI wire format as the stacks speak it: chat and completions, with each stack's own dialect of options.

Every answer is untrusted: what an event means is read without trusting its shape, and an odd shape means nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

import msgspec

from orchestrator.records import Prompt
from stacks.base import Delta, Wire

MAX_ERROR_CHARACTERS = 300
MAX_COUNT = 2**53


class Dialect(msgspec.Struct, frozen=True, kw_only=True):
    """What a stack takes beside the fields that all take. The defaults suit an endpoint of which nothing is known."""

    length: Literal["ignore_eos", "config_string", "none"] = "none"
    """How an exact output length is demanded: the field ``ignore_eos``, transformers' JSON string, or not at all."""
    min_tokens_field: str | None = None
    """Name of the field for the least number of output tokens."""
    usage: bool = True
    """``stream_options.include_usage``: totals at the end of the stream."""
    running_usage: bool = False
    """``stream_options.continuous_usage_stats``: totals so far in every event."""
    salted: bool = False
    """``cache_salt``, a different one for each prompt: for a server whose prefix cache we cannot switch off."""
    fields: Mapping[str, Any] = {}
    """Sent as they are, e.g. ``{"cache_prompt": False}``."""

    def options(self, prompt: Prompt, output_tokens: int) -> dict[str, Any]:
        """The part of a body that differs from stack to stack. Greedy always."""
        if self.length == "config_string":
            exact = {"min_new_tokens": output_tokens, "max_new_tokens": output_tokens, "do_sample": False}
            return {"generation_config": json.dumps(exact), **self.fields}
        options: dict[str, Any] = {"max_tokens": output_tokens, "temperature": 0}
        if self.length == "ignore_eos":
            options["ignore_eos"] = True
        if self.min_tokens_field is not None:
            options[self.min_tokens_field] = output_tokens
        if self.usage:
            running = {"continuous_usage_stats": True} if self.running_usage else {}
            options["stream_options"] = {"include_usage": True, **running}
        if self.salted:
            options["cache_salt"] = salt(prompt)
        return {**options, **self.fields}


PLAIN = Dialect()


def salt(prompt: Prompt) -> str:
    """The same for the same prompt and different for every other, so that not even a shared template is a cache hit."""
    content = prompt.text if prompt.text is not None else ",".join(map(str, prompt.token_ids or ()))
    return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


# An event that is a piece of text and nothing else, as a type: decoding it checks it, many at once.


class _PlainText(msgspec.Struct, gc=False):
    text: Annotated[str, msgspec.Meta(min_length=1)]
    delta: None = None
    finish_reason: None = None
    token_ids: None = None


class _PlainContent(msgspec.Struct, gc=False):
    content: Annotated[str, msgspec.Meta(min_length=1)]
    reasoning: None = None
    reasoning_content: None = None
    tool_calls: None = None


class _PlainDelta(msgspec.Struct, gc=False):
    delta: _PlainContent
    text: None = None
    finish_reason: None = None
    token_ids: None = None


_AChoice = TypeVar("_AChoice")


class _Plain(msgspec.Struct, Generic[_AChoice], gc=False):
    choices: tuple[_AChoice]
    object: Literal["chat.completion.chunk", "text_completion"]
    error: None = None
    detail: None = None
    usage: None = None
    timings: None = None


class OpenAIWire(Wire):
    """What chat and completions have in common."""

    texts: ClassVar[msgspec.json.Decoder[list[Any]]]
    """Reads a list of events if each is a piece of text and nothing else."""

    def count_texts(self, events: bytes) -> int | None:
        try:
            return len(self.texts.decode(events))
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None

    def __init__(self, dialect: Dialect = PLAIN) -> None:
        self.dialect = dialect
        self.forces_length = dialect.length != "none"

    def delta(self, event: Any) -> Delta:
        return openai_delta(event)

    def read(self, data: bytes) -> Delta:
        try:
            event = _decode_event(data)
        except msgspec.ValidationError:
            return self.delta(msgspec.json.decode(data))
        return _plain_delta(event) or self.delta(msgspec.json.decode(data))


class ChatWire(OpenAIWire):
    """``/v1/chat/completions``: one user message of text."""

    name: ClassVar[str] = "chat"
    path: ClassVar[str] = "/v1/chat/completions"
    texts: ClassVar[msgspec.json.Decoder[list[Any]]] = msgspec.json.Decoder(list[_Plain[_PlainDelta]])

    def body(self, prompt: Prompt, output_tokens: int, model: str) -> dict[str, Any]:
        if prompt.text is None:
            raise ValueError("The chat dialect takes text, not token ids.")
        messages = [{"role": "user", "content": prompt.text}]
        return {"model": model, "messages": messages, "stream": True, **self.dialect.options(prompt, output_tokens)}


class CompletionsWire(OpenAIWire):
    """``/v1/completions`` with token ids as prompt, or text."""

    name: ClassVar[str] = "completions"
    path: ClassVar[str] = "/v1/completions"
    takes_token_ids: ClassVar[bool] = True
    texts: ClassVar[msgspec.json.Decoder[list[Any]]] = msgspec.json.Decoder(list[_Plain[_PlainText]])

    def body(self, prompt: Prompt, output_tokens: int, model: str) -> dict[str, Any]:
        content: str | list[int] = list(prompt.token_ids) if prompt.token_ids is not None else prompt.text or ""
        return {"model": model, "prompt": content, "stream": True, **self.dialect.options(prompt, output_tokens)}


class TextCompletionsWire(CompletionsWire):
    """``/v1/completions`` of a stack that takes no token ids."""

    takes_token_ids: ClassVar[bool] = False

    def body(self, prompt: Prompt, output_tokens: int, model: str) -> dict[str, Any]:
        if prompt.text is None:
            raise ValueError("This server's completions take text, not token ids.")
        return super().body(prompt, output_tokens, model)


# --- the meaning of an event ------------------------------------------------------------------------------------


class _Text(msgspec.Struct):
    """`delta` of a chat chunk."""

    content: Any = None
    reasoning: Any = None
    reasoning_content: Any = None
    tool_calls: Any = None


class _Choice(msgspec.Struct):
    delta: _Text | None = None
    text: Any = None
    finish_reason: Any = None
    token_ids: Any = None


class _Event(msgspec.Struct):
    """A chunk, as far as a meaning is known. Decoding it costs a third of building all of its dictionaries."""

    choices: list[_Choice] = []
    error: Any = None
    object: Any = None
    detail: Any = None
    usage: Any = None
    timings: Any = None


_decode_event = msgspec.json.Decoder(_Event).decode
_TEXT, _REASONING, _NOTHING = Delta(text=True), Delta(reasoning=True), Delta()


def _plain_delta(event: _Event) -> Delta | None:
    """Meaning of the usual chunk, a piece of text and nothing else; None if there is more in it."""
    if event.error or event.detail or event.usage or event.timings or len(event.choices) != 1:
        return None
    choice = event.choices[0]
    if choice.finish_reason is not None or choice.token_ids is not None or event.object == "error":
        return None
    text = choice.delta
    if text is None:
        return _TEXT if _filled(choice.text) else _NOTHING
    if _filled(text.content) or _filled(choice.text) or _filled(text.tool_calls):
        return None if text.reasoning or text.reasoning_content else _TEXT
    return _REASONING if _filled(text.reasoning) or _filled(text.reasoning_content) else _NOTHING


def openai_delta(event: Any) -> Delta:
    """Meaning of a chat or completions chunk. A role alone and an empty text are no tokens; `tokens` is known only
    where the event lists token ids; `in_tokens` and `out_tokens` are totals so far, of the usage record if any."""
    if not isinstance(event, dict):
        return Delta()
    if error := error_text(event):
        return Delta(error=error)
    pieces = [_piece(choice) for choice in _dicts(event.get("choices"))]
    usage, timings = _dict(event.get("usage")), _dict(event.get("timings"))
    cached = count(_dict(usage.get("prompt_tokens_details")).get("cached_tokens"))
    reasoning = count(_dict(usage.get("completion_tokens_details")).get("reasoning_tokens"))
    ids = [piece.tokens for piece in pieces if piece.tokens is not None]
    return Delta(
        text=any(piece.text for piece in pieces),
        reasoning=any(piece.reasoning for piece in pieces),
        tokens=sum(ids) if ids else None,
        finish=next((piece.finish for piece in pieces if piece.finish), None),
        in_tokens=count(usage.get("prompt_tokens")),
        out_tokens=count(usage.get("completion_tokens")),
        cached_tokens=cached if cached is not None else count(timings.get("cache_n")),
        reasoning_tokens=reasoning if reasoning is not None else count(usage.get("reasoning_tokens")),
    )


def _piece(choice: dict[str, Any]) -> Delta:
    delta = _dict(choice.get("delta"))
    ids = choice.get("token_ids")
    tokens = len(ids) if isinstance(ids, list) else None
    finish = choice.get("finish_reason")
    reasoning = _filled(delta.get("reasoning")) or _filled(delta.get("reasoning_content"))
    text = _filled(choice.get("text")) or _filled(delta.get("content")) or _filled(delta.get("tool_calls"))
    return Delta(
        text=text or (bool(tokens) and not reasoning),
        reasoning=reasoning,
        tokens=tokens,
        finish=finish if isinstance(finish, str) and finish else None,
    )


def error_text(event: Mapping[str, Any]) -> str | None:
    """The error of a body or an event in any of the four shapes that servers use, bounded; None if it is none.

    ``{"error": {"message", "code"}}``, ``{"object": "error", "message"}``, ``{"error": "text"}``, ``{"detail": ...}``.
    """
    error = event.get("error")
    if error:
        return _bounded(_dict(error).get("message") or error)
    if event.get("object") == "error":
        return _bounded(event.get("message") or "error without a message")
    if event.get("detail") and "choices" not in event:
        return _bounded(event["detail"])
    return None


def count(value: Any) -> int | None:
    """A token count, or None for whatever is none."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_COUNT:
        return value
    return None


def _bounded(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text[:MAX_ERROR_CHARACTERS]


def _filled(value: Any) -> bool:
    return isinstance(value, (str, list)) and bool(value)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    return (item for item in value if isinstance(item, dict)) if isinstance(value, list) else iter(())
