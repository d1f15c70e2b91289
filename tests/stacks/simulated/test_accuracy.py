"""What every report says of the simulated card's errors is what the benchmark finds."""

from __future__ import annotations

from benchmarks.simulated import accuracy
from stacks.simulated.accuracy import ACCURACY, SENTENCE


def test_the_stated_errors_are_those_of_the_benchmark() -> None:
    found = accuracy()
    assert found.rows >= 19
    assert found == ACCURACY


def test_the_sentence_states_them() -> None:
    assert SENTENCE.startswith("SIMULATED")
    for share in ACCURACY[2:]:
        assert f"{share:.0%}" in SENTENCE
