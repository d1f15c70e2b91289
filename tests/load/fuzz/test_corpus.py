"""What the fuzzer found once, read again."""

from __future__ import annotations

from pathlib import Path

import one_answer
import pytest

CORPUS = sorted((Path(__file__).parent / "corpus").iterdir())


@pytest.mark.parametrize("case", CORPUS, ids=[case.name for case in CORPUS])
def test_found_cases_stay_mended(case: Path) -> None:
    data = case.read_bytes()
    assert len(data) > 3
    one_answer.read(data)
