"""Conversations: turns that grow one prompt. Each is a `Request` that carries its later turns.

The prompt of a turn begins with that of the turn before (all turns of a conversation have one `prompt_seed`), and then
holds the answer's length and the new question's in text of its own. What a server really answered is not sent back:
requests must not depend on a server, or no two of them could be compared. So a prefix cache can hit all that was asked
in the turn before, and not what was answered.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from orchestrator.records import Request
from workloads.rows import Rows, TraceError
from workloads.streams import distinct_words, permutation
from workloads.synthetic import Distribution, distribution
from workloads.workload import Workload

MS = 1000


class Turn(NamedTuple):
    """One turn as it is demanded: the whole prompt, history and all."""

    prompt_tokens: int
    output_tokens: int
    think_s: float
    """From the answer before to this question; of a first turn 0."""


def seconds_law(text: str) -> Distribution:
    """A law of seconds in the forms of a law of lengths (``2.5``, ``uniform:1:10``, ``exponential:8``). Its samples are
    whole milliseconds, at least 1. Raises ValueError with the forms."""
    kind, *numbers = text.strip().split(":")
    try:
        if not numbers:
            return distribution(max(1, round(float(kind) * MS)))
        return distribution(":".join([kind, *(f"{float(number) * MS:.12g}" for number in numbers)]))
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{text[:60]!r} is no time; write 2.5, uniform:1:10, exponential:8 (seconds) ...") from error


def synthetic_sessions(
    lengths: Workload, turns: Distribution, think: Distribution, seed: int, sessions: int
) -> list[Request]:
    """So many conversations, as first turns. A pair of `lengths` is a turn's new tokens and its answer's; one
    stratified draw over the turns of all."""
    counts = turns.sample(seed, sessions, "turns").tolist()
    total = sum(counts)
    pairs = iter(lengths.draw(seed, total))
    thoughts = iter((think.sample(seed, total, "think") / MS).tolist())
    return _numbered(
        [list(_growing(itertools.islice(pairs, count), thoughts)) for count in counts], distinct_words(seed, sessions)
    )


def _growing(pairs: Iterable[Request], thoughts: Iterator[float]) -> Iterator[Turn]:
    history = 0
    for pair in pairs:
        think_s = next(thoughts)
        yield Turn(history + pair.prompt_tokens, pair.output_tokens, think_s if history else 0.0)
        history += pair.prompt_tokens + pair.output_tokens


def trace_sessions(rows: Rows, think: Distribution | None, seed: int, name: str) -> Iterator[Request]:
    """The conversations of a trace in a seeded order, over and over again, each time with prompts of their own.

    Prompts are as long as the trace says. A turn is due as long after the answer before it as the trace has between the
    two requests (which holds the answer's own time, so conversations last longer than there), or `think`. Raises
    TraceError where the trace names no conversations, or no times and no `think` is given.
    """
    if rows.sessions is None:
        raise TraceError(f"{name} names no conversations.", "Leave --sessions-rate away, or describe turns by --turns.")
    if rows.times_s is None and think is None:
        raise TraceError(f"{name} has no times between the turns.", "Say how long a user thinks: --think S.")
    talks = _talks(rows)
    for number in itertools.count():
        again = f"again/{number}"
        order = permutation(seed, len(talks), again)
        if think is not None:
            thoughts = iter((think.sample(seed, sum(map(len, talks)), again) / MS).tolist())
            turns = [[turn._replace(think_s=next(thoughts)) for turn in talks[place]] for place in order]
        else:
            turns = [talks[place] for place in order]
        words = distinct_words(seed + number, len(talks))
        yield from _numbered(turns, words, number * len(talks))


def _talks(rows: Rows) -> list[list[Turn]]:
    """A row without a conversation is one of its own."""
    found: dict[object, list[Turn]] = {}
    last: dict[object, float] = {}
    assert rows.sessions is not None
    for place, (session, (prompt, output)) in enumerate(zip(rows.sessions, rows.pairs.tolist(), strict=True)):
        key: object = place if session is None else session
        at_s = 0.0 if rows.times_s is None else float(rows.times_s[place])
        found.setdefault(key, []).append(Turn(prompt, output, at_s - last.get(key, at_s)))
        last[key] = at_s
    return list(found.values())


def _numbered(talks: Sequence[Sequence[Turn]], words: Iterable[int], first: int = 0) -> list[Request]:
    """Conversations as first turns with the others behind them. `seq` counts the turns of all."""
    seqs = itertools.count()
    requests = []
    for number, (talk, word) in enumerate(zip(talks, words, strict=True), start=first):
        turns = [
            Request(
                seq=next(seqs),
                prompt_tokens=turn.prompt_tokens,
                output_tokens=turn.output_tokens,
                prompt_seed=int(word),
                session=str(number),
                turn=place,
                think_s=turn.think_s if place else 0.0,
            )
            for place, turn in enumerate(talk)
        ]
        requests.append(msgspec.structs.replace(turns[0], later=tuple(turns[1:])))
    return requests
