"""Durations and sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.plan.quantities import bytes_of, in_unit_of, seconds_of


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("2m", 120),
        ("1.5h", 5400),
        ("500ms", 0.5),
        (" 2 min ", 120),
        ("10 sec", 10),
        (".5s", 0.5),
        ("0s", 0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert seconds_of(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GiB", 8 * 2**30), ("8g", 8 * 2**30), ("8GB", 8 * 10**9), ("512MiB", 512 * 2**20), ("4k", 4096),
        ("1TiB", 2**40),        ("100b", 100), ("1.5 GiB", 3 * 2**29), ("2MB", 2_000_000),
    ],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "5", "5 parsecs", "-5s", "s", "1e3s", "1..5s", "5s5", "\u0665s", "9" * 400 + "s"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a duration is"):
        seconds_of(text)
    with pytest.raises(ValueError, match="a size is"):
        bytes_of(text)


@given(st.text(max_size=20))
def test_no_text_does_worse_than_a_value_error(text: str) -> None:
    for parse in (seconds_of, bytes_of):
        try:
            assert parse(text) >= 0
        except ValueError:
            continue


def test_the_key_says_the_unit() -> None:
    assert in_unit_of("max_seconds", "2m") == 120
    assert in_unit_of("start_timeout_s", "2m") == 120
    assert in_unit_of("ttft_ms", "2s") == 2000
    assert in_unit_of("shm_bytes", "1k") == 1024
    assert in_unit_of("minutes", "2h") == 120
    assert in_unit_of("name", "2h") == "2h"
    assert in_unit_of("max_seconds", 7) == 7
