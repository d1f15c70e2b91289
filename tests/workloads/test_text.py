"""Prompts: right length, never the same twice, from a safe part of the vocabulary."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from orchestrator.records import Request
from workloads.presets import preset
from workloads.text import WORDS, PromptMaker, plain_ids


def request(prompt_tokens: int, prompt_seed: int = 1) -> Request:
    return Request(seq=0, prompt_tokens=prompt_tokens, output_tokens=1, prompt_seed=prompt_seed)


def test_token_ids_have_the_demanded_count_and_stay_in_the_plain_range() -> None:
    prompt = PromptMaker("token_ids", vocab_size=49_152).prompt(request(20_000))
    assert prompt.token_ids is not None
    assert prompt.text is None
    assert len(prompt.token_ids) == 20_000
    assert 1_000 <= min(prompt.token_ids) < 1_100
    assert 44_100 < max(prompt.token_ids) < 44_236


def test_the_range_avoids_the_special_places_of_known_vocabularies() -> None:
    assert plain_ids(None) == (1_000, 28_800)
    assert plain_ids(128_256)[1] < 128_000  # Llama 3: specials from 128,000
    assert plain_ids(151_936)[1] < 151_643  # Qwen
    assert plain_ids(262_144)[1] < 255_999  # Gemma
    assert plain_ids(131_072)[0] >= 1_000  # Mistral Tekken: 1,000 specials in front
    assert plain_ids(100) == (25, 90)
    with pytest.raises(ValueError, match="too small"):
        plain_ids(5)


def test_text_is_made_of_words_that_are_all_different() -> None:
    assert len(WORDS) == len(set(WORDS.tolist())) == 531
    assert all(re.fullmatch("[a-z]{2,11}", word) for word in WORDS.tolist())


def test_text_has_the_words_that_make_the_demanded_tokens() -> None:
    for per_word, overhead, words in ((1.0, 0, 300), (1.0, 20, 280), (1.25, 0, 240), (1.25, 25, 220)):
        maker = PromptMaker("text", tokens_per_word=per_word, overhead_tokens=overhead)
        prompt = maker.prompt(request(300))
        assert prompt.text is not None
        assert prompt.token_ids is None
        assert len(prompt.text.split(" ")) == words


def test_a_prompt_has_at_least_one_word() -> None:
    assert PromptMaker("text", overhead_tokens=50).prompt(request(10)).text in WORDS.tolist()
    assert len(PromptMaker("token_ids", overhead_tokens=50).prompt(request(10)).token_ids or ()) == 1
    with pytest.raises(ValueError, match="positive"):
        PromptMaker("text", tokens_per_word=0)


@pytest.mark.parametrize("form", ["text", "token_ids"])
def test_no_two_prompts_of_a_run_share_a_block(form: str) -> None:
    """A prefix cache works in blocks of 16 tokens or more: the first 8 must already differ."""
    maker = PromptMaker("text" if form == "text" else "token_ids", vocab_size=50_000)
    starts = set()
    requests = [r for seed in range(4) for r in preset("fixed-1k1k").draw(seed, 500)]
    for each in requests:
        prompt = maker.prompt(each)
        content = prompt.token_ids if prompt.text is None else tuple(prompt.text.split(" "))
        assert content is not None
        assert len(content) == 1024
        starts.add(content[:8])
    assert len(starts) == len(requests) == 2000


def test_the_same_request_gives_the_same_prompt_and_words_do_not_repeat_in_order() -> None:
    maker = PromptMaker("text")
    text = maker.prompt(request(1000)).text
    assert text == maker.prompt(request(1000)).text
    assert text != maker.prompt(request(1000, 2)).text
    assert text is not None
    assert len(set(pairwise(text.split(" ")))) > 990
