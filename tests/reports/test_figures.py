import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.figures import (
    NONE,
    change,
    clean,
    count,
    duration,
    latency,
    limit,
    money,
    percent,
    significant,
    size,
    target,
    with_units,
)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, NONE),
        (float("inf"), NONE),
        (float("nan"), NONE),
        (0, "0"),
        (0.0123456, "0.0123"),
        (1.005, "1.00"),
        (9.996, "10.0"),
        (99.96, "100"),
        (999.6, "1,000"),
        (1234.5, "1,234"),
        (1234567, "1,234,567"),
        (-12.34, "-12.3"),
    ],
)
def test_three_significant_digits(value: float | None, shown: str) -> None:
    assert significant(value) == shown


@given(st.floats(min_value=1e-3, max_value=1e12))
def test_a_shown_number_is_close_and_has_no_exponent(value: float) -> None:
    shown = significant(value)
    assert re.fullmatch(r"[\d,]+(\.\d+)?", shown)
    assert float(shown.replace(",", "")) == pytest.approx(value, rel=0.0051)


@pytest.mark.parametrize(
    ("share", "shown"),
    [
        (None, NONE),
        (0, "0 %"),
        (1, "100 %"),
        (0.95, "95.0 %"),
        (0.99999, "> 99.9 %"),
        (0.0001, "< 0.1 %"),
        (0.001, "0.1 %"),
    ],
)
def test_a_share_is_all_or_nothing_only_where_it_is(share: float | None, shown: str) -> None:
    assert percent(share) == shown


def test_units() -> None:
    assert latency(412.4) == "412 ms"
    assert latency(12_345) == "12.3 s"
    assert size(93 * 2**20) == "93.0 MiB"
    assert size(21.5 * 2**30) == "21.5 GiB"
    assert size(-30 * 2**20) == "-30.0 MiB"
    assert duration(9.4) == "9.40 s"
    assert duration(187) == "3 min 7 s"
    assert duration(3720) == "1 h 2 min"
    assert count(16384.0) == "16,384"
    assert [latency(None), size(None), duration(None), count(None)] == [NONE] * 4


def test_a_change_is_signed_and_none_is_zero() -> None:
    assert change(36, 100) == "\u221264 %"
    assert change(154, 100) == "+54 %"
    assert change(100.1, 100) == "0 %"


@given(st.text(st.characters(exclude_categories=()), max_size=300))
def test_clean_text_can_be_written_and_holds_no_control_character(text: str) -> None:
    shown = clean(text)
    shown.encode("utf-8")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)
    assert len(shown) == len(text)


def test_long_text_is_cut_and_the_cut_is_counted() -> None:
    shown = clean("x" * 100_000, 50)
    assert shown == "x" * 50 + " \u2026 (99,950 characters left out)"


@pytest.mark.parametrize(
    ("ms", "shown"),
    [(None, NONE), (40.0, "40 ms"), (1500, "1,500 ms"), (62.5, "62.5 ms"), (0.25, "0.25 ms"), (30_000, "30 s")],
)
def test_a_limit_is_shown_as_it_was_asked(ms: float | None, shown: str) -> None:
    assert limit(ms) == shown


def test_a_target_is_shown_as_it_was_asked() -> None:
    assert [target(share) for share in (0.95, 0.999, 0.001, 1)] == ["95 %", "99.9 %", "0.1 %", "100 %"]


def test_money_has_its_currency() -> None:
    assert [money(amount, "EUR") for amount in (0.4217, 12.0, None)] == ["0.422 EUR", "12.0 EUR", NONE]


def test_a_number_and_its_unit_stay_on_one_line() -> None:
    told = with_units("TTFT 771 ms against 803 ms (-4 %), 95.0% of 3 users; 4 minutes, 2 millions")
    assert told.replace("\u00a0", "_") == "TTFT 771_ms against 803_ms (-4_%), 95.0_% of 3_users; 4 minutes, 2 millions"
