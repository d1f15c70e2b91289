"""Loaders of JSON traces: Mooncake, Qwen-Bailian, RAGPulse, vLLM's custom form, ShareGPT, and named keys."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from workloads.csv_rows import named_layout
from workloads.rows import Row, TraceError, time_value, token_count

WEEK_S = 604_800.0
_RAG_PARTS = frozenset({"sys_prompt", "passages_ids", "history", "web_search", "user_input"})

CountTokens = Callable[[str], int]


def estimate_tokens(text: str) -> int:
    """Tokens of a text by rule of thumb: four ASCII characters make one, any other character is one."""
    ascii_count = sum(character.isascii() for character in text)
    return -(-ascii_count // 4) + len(text) - ascii_count


def json_line_rows(
    lines: Iterable[str], name: str, count_tokens: CountTokens, default_output_tokens: int | None
) -> tuple[str, Iterator[Row]]:
    """Name of the format, and its rows."""
    records = _records(lines, name)
    first = next(records, None)
    if first is None:
        raise TraceError(f"{name} is empty.")
    all_records = itertools.chain([first], records)
    keys = first[1].keys()
    if {"timestamp", "input_length", "output_length", "hash_ids"} <= keys:
        return _block_trace(first[1], all_records)
    if "prompt" in keys and not ({"prompt_tokens", "input_tokens"} & keys):
        return "vLLM custom prompts", _prompts(all_records, count_tokens, default_output_tokens)
    layout = named_layout(list(keys), name)
    return layout.name, (layout.row(record, where) for where, record in all_records)


Record = tuple[str, dict[str, Any]]
"""Where it stands, and the decoded object."""


def _records(lines: Iterable[str], name: str) -> Iterator[Record]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield f"{name}: line {number}", msgspec.json.decode(line, type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError) as error:
            raise TraceError(f"{name}: line {number} is not a JSON object ({error}).") from error


def _block_trace(first: Mapping[str, Any], records: Iterator[Record]) -> tuple[str, Iterator[Row]]:
    """The three traces that publish prefix blocks: they differ in the unit of time and in what their ids mean."""
    if {"chat_id", "parent_chat_id"} <= first.keys():
        return "Qwen-Bailian", _bailian(records)
    if (isinstance(first["hash_ids"], dict) and first["hash_ids"].keys() >= _RAG_PARTS) or first.keys() >= _RAG_PARTS:
        return "RAGPulse", _ragpulse(records)
    return "Mooncake", _mooncake(records)


def _lengths(record: Mapping[str, Any], where: str) -> tuple[int, int]:
    return token_count(record.get("input_length"), where), token_count(record.get("output_length"), where)


def _ids(record: Mapping[str, Any], where: str) -> tuple[int, ...]:
    try:
        return msgspec.convert(record.get("hash_ids"), tuple[int, ...])
    except msgspec.ValidationError as error:
        raise TraceError(f"{where}: hash_ids is not a list of whole numbers.") from error


def _mooncake(records: Iterator[Record]) -> Iterator[Row]:
    """Times in ms; ids of 512-token blocks, already chained."""
    for where, record in records:
        stamp = time_value(record.get("timestamp"), where) / 1000
        yield Row(*_lengths(record, where), stamp, None, _ids(record, where))


def _bailian(records: Iterator[Record]) -> Iterator[Row]:
    """Times in s; ids of 16-token blocks, each alone: chained here, so that an id stands for all before it too."""
    chained: dict[tuple[int, int], int] = {}
    roots: dict[str, str] = {}
    for where, record in records:
        blocks: list[int] = []
        for block in _ids(record, where):
            blocks.append(chained.setdefault((blocks[-1] if blocks else -1, block), len(chained)))
        chat, parent = str(record.get("chat_id")), str(record.get("parent_chat_id"))
        session = roots[chat] = roots.get(parent, chat)
        yield Row(*_lengths(record, where), time_value(record.get("timestamp"), where), session, tuple(blocks))


def _ragpulse(records: Iterator[Record]) -> Iterator[Row]:
    """Times are strings of seconds and restart with the second week; components are not a chain, so no blocks."""
    offset = previous = 0.0
    for where, record in records:
        stamp = time_value(record.get("timestamp"), where)
        if stamp < previous - WEEK_S / 2:
            offset += WEEK_S
        previous = stamp
        yield Row(*_lengths(record, where), stamp + offset, str(record.get("session_id")))


def _prompts(records: Iterator[Record], count_tokens: CountTokens, default: int | None) -> Iterator[Row]:
    for where, record in records:
        prompt, asked = record.get("prompt"), record.get("output_tokens", default)
        if not isinstance(prompt, str):
            raise TraceError(f"{where}: the prompt is not a text.")
        if asked is None:
            raise TraceError(
                f"{where} has no output_tokens, and no default length is given.",
                'Add "output_tokens" to every line, or give output_tokens beside the trace.',
            )
        yield Row(count_tokens(prompt), token_count(asked, where))


class _Turn(msgspec.Struct):
    """One turn of a ShareGPT conversation."""

    speaker: str = msgspec.field(name="from", default="")
    value: str = ""


class _Conversation(msgspec.Struct):
    conversations: list[_Turn] = []


def sharegpt_rows(data: bytes, name: str, count_tokens: CountTokens) -> Iterator[Row]:
    """The first human turn of each conversation and the answer that follows it; without both: zero output."""
    try:
        entries = msgspec.json.decode(data, type=list[_Conversation])
    except (msgspec.DecodeError, RecursionError) as error:
        raise TraceError(
            f"{name} starts like a JSON list but is not a list of conversations ({error}).",
            'Each entry needs "conversations": [{"from": ..., "value": ...}, ...].',
        ) from error
    for entry in entries:
        yield _first_exchange(entry.conversations, count_tokens)


def _first_exchange(turns: list[_Turn], count_tokens: CountTokens) -> Row:
    asked = next((i for i, turn in enumerate(turns) if turn.speaker in ("human", "user")), None)
    if asked is None or asked + 1 >= len(turns):
        return Row(count_tokens(turns[asked].value) if asked is not None else 0, 0)
    return Row(count_tokens(turns[asked].value), count_tokens(turns[asked + 1].value))
