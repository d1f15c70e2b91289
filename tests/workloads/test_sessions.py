"""Conversations: what their turns ask, and that the same seed asks the same."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from orchestrator.records import Request
from workloads.rows import Row, Rows, TraceError, collect
from workloads.sessions import seconds_law, synthetic_sessions, trace_sessions
from workloads.synthetic import distribution, synthetic
from workloads.text import PromptMaker

LENGTHS = synthetic(prompt="uniform:5:50", output="uniform:1:9", seed=3)


def drawn(seed: int = 1, sessions: int = 40, turns: str = "uniform:1:5", think: str = "exponential:5") -> list[Request]:
    return synthetic_sessions(LENGTHS, distribution(turns), seconds_law(think), seed, sessions)


def turns_of(first: Request) -> list[Request]:
    return [first, *first.later]


def test_a_turn_asks_all_that_came_before_it() -> None:
    talks = [turns_of(first) for first in drawn()]
    assert len(talks) == 40
    assert {len(talk) for talk in talks} == {1, 2, 3, 4, 5}
    for number, talk in enumerate(talks):
        assert {turn.session for turn in talk} == {str(number)}
        assert [turn.turn for turn in talk] == list(range(len(talk)))
        assert len({turn.prompt_seed for turn in talk}) == 1
        assert talk[0].think_s == 0
        assert all(turn.think_s > 0 and not turn.later for turn in talk[1:])
        for before, turn in itertools.pairwise(talk):
            assert 5 <= turn.prompt_tokens - before.prompt_tokens - before.output_tokens <= 50
    assert len({talk[0].prompt_seed for talk in talks}) == 40
    assert [turn.seq for talk in talks for turn in talk] == list(range(sum(map(len, talks))))


@pytest.mark.parametrize("maker", [PromptMaker(form="text"), PromptMaker(form="token_ids", vocab_size=50_000)])
def test_a_prompt_begins_with_the_one_before(maker: PromptMaker) -> None:
    pairs = [pair for first in drawn() for pair in itertools.pairwise(turns_of(first))]
    assert len(pairs) > 40
    for before, after in pairs:
        old, new = maker.prompt(before), maker.prompt(after)
        if old.text is not None and new.text is not None:
            assert new.text.startswith(old.text + " ")
        else:
            assert old.token_ids is not None
            assert new.token_ids is not None
            assert new.token_ids[: len(old.token_ids)] == old.token_ids
            assert len(new.token_ids) == after.prompt_tokens


def test_the_same_seed_asks_the_same() -> None:
    assert drawn(7) == drawn(7) != drawn(8)
    assert {len(turns_of(first)) for first in drawn(turns="3")} == {3}
    assert {turn.think_s for first in drawn(turns="2", think="1.5") for turn in first.later} == {1.5}


@pytest.mark.parametrize(("text", "low", "high"), [("2.5", 2500, 2500), ("0", 1, 1), ("uniform:1:2", 1000, 2000)])
def test_laws_of_seconds(text: str, low: int, high: int) -> None:
    found = seconds_law(text).sample(1, 500)
    assert (found.min(), found.max()) == (pytest.approx(low, abs=4), pytest.approx(high, abs=4))


def test_the_mean_of_a_law_of_seconds_is_its_own() -> None:
    assert float(np.mean(seconds_law("exponential:8").sample(1, 4000))) == pytest.approx(8000, rel=0.02)


@pytest.mark.parametrize("text", ["", "soon", "nan", "uniform:1", "uniform:2:1", "exponential:-1", "1e99"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="exponential:8"):
        seconds_law(text)


def rows(*, timed: bool = True, named: bool = True) -> Rows:
    found = [
        Row(10, 3, 0.0, "a"), Row(7, 2, 1.0, None), Row(30, 4, 12.0, "a"), Row(5, 1, 13.0, "b"), Row(40, 4, 20.0, "a"),
    ]  # fmt: skip
    return collect(
        (row._replace(time_s=row.time_s if timed else None, session=row.session if named else None) for row in found),
        "t",
    )


def test_the_conversations_of_a_trace_come_as_they_are_and_again_with_other_prompts() -> None:
    talks = [turns_of(first) for first in itertools.islice(trace_sessions(rows(), None, 1, "t"), 6)]
    asked = sorted([(turn.prompt_tokens, turn.output_tokens, turn.think_s) for turn in talk] for talk in talks)
    whole = [(10, 3, 0.0), (30, 4, 12.0), (40, 4, 8.0)]
    assert asked == sorted([[(7, 2, 0.0)], [(5, 1, 0.0)], whole] * 2)
    assert len({talk[0].prompt_seed for talk in talks}) == 6
    assert [talk[0].session for talk in talks] == [str(number) for number in range(6)]


def test_a_trace_needs_conversations_and_times_or_a_pause() -> None:
    with pytest.raises(TraceError, match="names no conversations"):
        next(trace_sessions(rows(named=False), None, 1, "t"))
    with pytest.raises(TraceError, match="Say how long a user thinks"):
        next(trace_sessions(rows(timed=False), None, 1, "t"))
    first = next(f for f in itertools.islice(trace_sessions(rows(timed=False), seconds_law("2"), 1, "t"), 3) if f.later)
    assert [turn.think_s for turn in first.later] == [2.0, 2.0]
