"""Every form of trace, recognised by what it holds; exclusions counted; anything unclear refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workloads.rows import Rows, TraceError
from workloads.traces import read_rows, read_trace

SAMPLES = Path(__file__).parents[1] / "data" / "traces"


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def json_lines(folder: Path, records: list[dict[str, Any]]) -> Path:
    return written(folder, "trace.jsonl", "".join(f"{json.dumps(record)}\n" for record in records))


def pairs_of(path: Path) -> list[tuple[int, ...]]:
    return [tuple(pair) for pair in read_rows(path)[1].pairs.tolist()]


# --- the samples: facts counted independently ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "layout", "sums", "first", "last", "span_s"),
    [
        (
            "azure-2023-conv-sample.csv",
            "Azure LLM inference trace",
            [2209565, 529807],
            [374, 44],
            [424, 96],
            424.259457,
        ),
        (
            "azure-2023-code-sample.csv",
            "Azure LLM inference trace",
            [3973157, 59024],
            [4808, 10],
            [1697, 36],
            853.079347,
        ),
        ("mooncake-2025-sample.jsonl", "Mooncake", [27441774, 704602], [6758, 500], None, 669.0),
    ],
)
def test_a_sample_reads_as_counted(
    file: str, layout: str, sums: list[int], first: list[int], last: list[int] | None, span_s: float
) -> None:
    found, rows = read_rows(SAMPLES / file)
    assert found == layout
    assert len(rows.pairs) == 2000
    assert rows.pairs.sum(axis=0).tolist() == sums
    assert rows.pairs[0].tolist() == first
    assert last is None or rows.pairs[-1].tolist() == last
    assert rows.times_s is not None
    assert rows.times_s[0] == 0
    assert rows.times_s[-1] == pytest.approx(span_s, abs=1e-6)
    assert (np.diff(rows.times_s) >= 0).all()
    assert rows.excluded == {}


def tokens_hit(rows: Rows, block_tokens: int) -> int:
    """Prompt tokens that an infinite prefix cache would have: leading blocks seen before, the last one cut."""
    seen: set[int] = set()
    hit = 0
    assert rows.blocks is not None
    for (prompt, _), blocks in zip(rows.pairs.tolist(), rows.blocks, strict=True):
        assert blocks is not None
        known = next((i for i, block in enumerate(blocks) if block not in seen), len(blocks))
        hit += min(prompt, known * block_tokens)
        seen.update(blocks)
    return hit


def test_mooncake_blocks_are_the_sources() -> None:
    _, rows = read_rows(SAMPLES / "mooncake-2025-sample.jsonl")
    assert rows.blocks is not None
    ids = [block for blocks in rows.blocks for block in blocks or ()]
    assert (len(ids), len(set(ids))) == (54_559, 38_788)
    assert rows.times_s is not None
    assert len(set(rows.times_s.tolist())) == 224
    assert tokens_hit(rows, 512) == 8_070_959


def test_a_trace_becomes_a_workload() -> None:
    workload = read_trace(SAMPLES / "azure-2023-conv-sample.csv")
    assert workload.name == "azure-2023-conv-sample"
    assert workload.pairs.shape == (2000, 2)
    assert workload.pairs.sum(axis=0).tolist() == [2209565, 529807]
    assert workload.arrivals is not None
    assert workload.arrivals.bin_s == 60
    assert len(workload.arrivals.requests_per_bin) == 7  # 424 s: seven whole minutes, the part of one left out
    assert workload.arrivals.rate_per_s == pytest.approx(2000 / 424.259457)
    assert len(workload.draw(1, 500)) == 500
    assert read_trace(SAMPLES / "mooncake-2025-sample.jsonl").notes[0].startswith("The source's clock ticks every 3 s")


# --- CSV ----------------------------------------------------------------------------------------------------------


def test_azure_takes_offsets_and_sorts(tmp_path: Path) -> None:
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
        "2024-05-10 00:00:09.930000+00:00,20,2\r\n"
        "2024-05-10 02:00:01.5+02:00,10,1"
    )
    _, rows = read_rows(written(tmp_path, "a.csv", text))
    assert rows.pairs.tolist() == [[10, 1], [20, 2]]
    assert rows.times_s is not None
    assert rows.times_s.tolist() == pytest.approx([0, 8.43])


def test_burstgpt_is_read_by_name_and_failures_are_counted(tmp_path: Path) -> None:
    old = (
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,Conversation log\n"
    )
    new = (
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,7,1.5,GPT-4,472,18,490,API log\n"
        "6,7,1.5,GPT-4,100,0,100,API log\n"
        "7,8,1.5,GPT-4,0,3,3,API log\n"
        "9,9,1.5,GPT-4,10,3,13,API log\n"
    )
    assert pairs_of(written(tmp_path, "1.csv", old)) == [(472, 18)]
    layout, rows = read_rows(written(tmp_path, "3.csv", new))
    assert layout == "BurstGPT"
    assert rows.pairs.tolist() == [[472, 18], [10, 3]]
    assert rows.sessions == ("7", "9")
    assert rows.excluded == {"zero output tokens": 1, "zero prompt tokens": 1}
    notes = read_trace(tmp_path / "3.csv").notes
    assert notes == ("Rows excluded: 1 with zero output tokens, 1 with zero prompt tokens.",)


def test_vidur_has_no_times(tmp_path: Path) -> None:
    layout, rows = read_rows(written(tmp_path, "v.csv", "num_prefill_tokens,num_decode_tokens\n2730,167\n300.0,5\n"))
    assert layout == "Vidur length trace"
    assert rows.pairs.tolist() == [[2730, 167], [300, 5]]
    assert rows.times_s is None
    assert read_trace(tmp_path / "v.csv").arrivals is None


@pytest.mark.parametrize(
    "prompt", ["prompt_tokens", "input_tokens", "input_length", "input_toks", "num_prefill_tokens"]
)
@pytest.mark.parametrize("output", ["output_tokens", "output_length", "output_toks", "num_decode_tokens"])
def test_named_columns_in_any_order(tmp_path: Path, prompt: str, output: str) -> None:
    text = f"\ufeffwho,{output},timestamp_ms,session_id,{prompt}\nx,3,2500,s1,7\ny,4,500,,8\n"
    _, rows = read_rows(written(tmp_path, "g.csv", text))
    assert rows.pairs.tolist() == [[8, 4], [7, 3]]
    assert rows.times_s is not None
    assert rows.times_s.tolist() == [0, 2]
    assert rows.sessions == (None, "s1")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "t.csv is empty"),
        ("prompt_tokens,output_tokens\n", "no request that can be replayed: it is empty"),
        ("prompt_tokens,output_tokens\n5,0\n0,5\n", "1 with zero output tokens, 1 with zero prompt tokens"),
        ("a,b\n1,2\n", "no prompt length; its columns are a, b"),
        ("prompt_tokens,b\n1,2\n", "no output length; its columns are prompt_tokens, b"),
        (
            "prompt_tokens,input_tokens,output_tokens\n1,2,3\n",
            r"2 columns for the prompt length \(prompt_tokens, input",
        ),
        ("prompt_tokens,prompt_tokens,output_tokens\n1,2,3\n", "names a column twice"),
        ("prompt_tokens,output_tokens,timestamp_s,timestamp_ms\n1,2,3,4\n", "two time columns"),
        ("prompt_tokens,output_tokens\n5,6\n7\n", "line 3 has 1 cells, the header has 2"),
        ("prompt_tokens,output_tokens\n5,-6\n", "line 2: '-6' is not a number of tokens"),
        ("prompt_tokens,output_tokens\n5,6.5\n", "'6.5' is not a number of tokens"),
        ("prompt_tokens,output_tokens\n5,1e99\n", "'1e99' is not a number of tokens"),
        ("prompt_tokens,output_tokens\nnan,6\n", "'nan' is not a number of tokens"),
        ("prompt_tokens,output_tokens,timestamp_s\n5,6,inf\n", "'inf' is not a time"),
        ('prompt_tokens,output_tokens\n5,"6\n', "this is not CSV"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,5,6\n", "'yesterday' is not a date and time"),
        ("TIMESTAMP,NumImages,ContextTokens,GeneratedTokens\n2025-01-01,1,5,6\n", "requests with images"),
    ],
)
def test_unclear_csv_is_refused_in_a_sentence(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(TraceError, match=said) as caught:
        read_trace(written(tmp_path, "t.csv", text))
    assert caught.value.exit_code == 2
    assert "t.csv" in str(caught.value)


# --- JSON ---------------------------------------------------------------------------------------------------------


def test_bailian_blocks_are_chained_and_turns_joined(tmp_path: Path) -> None:
    base = {"type": "text", "input_length": 32, "output_length": 5}
    records = [
        {**base, "chat_id": 1, "parent_chat_id": -1, "turn": 1, "timestamp": 10.5, "hash_ids": [1, 2]},
        {**base, "chat_id": 2, "parent_chat_id": 1, "turn": 2, "timestamp": 11.5, "hash_ids": [1, 2, 3]},
        {**base, "chat_id": 3, "parent_chat_id": -1, "turn": 1, "timestamp": 12.5, "hash_ids": [2, 2]},
    ]
    layout, rows = read_rows(json_lines(tmp_path, records))
    assert layout == "Qwen-Bailian"
    assert rows.times_s is not None
    assert rows.times_s.tolist() == [0, 1, 2]
    assert rows.sessions == ("1", "1", "3")
    assert rows.blocks is not None
    first, second, third = rows.blocks
    assert first is not None
    assert second is not None
    assert third is not None
    assert second[:2] == first
    assert not set(third) & (set(first) | set(second))  # the same ids behind other blocks are other prompts
    assert tokens_hit(rows, 16) == 32


def test_ragpulse_weeks_follow_each_other(tmp_path: Path) -> None:
    parts = {"sys_prompt": [1], "passages_ids": [2], "history": [], "web_search": [], "user_input": [3]}
    stamps = ["0", "3.5", "604000", "1", "600000"]
    records = [
        {"timestamp": t, "input_length": 3000 + i, "output_length": 9, "hash_ids": parts, "session_id": f"s{i}"}
        for i, t in enumerate(stamps)
    ]
    layout, rows = read_rows(json_lines(tmp_path, records))
    assert layout == "RAGPulse"
    assert rows.times_s is not None
    assert rows.times_s.tolist() == [0, 3.5, 604000, 604801, 1204800]
    assert rows.pairs[:, 0].tolist() == [3000, 3001, 3002, 3003, 3004]
    assert rows.blocks is None


def test_vllm_prompts_need_a_length(tmp_path: Path) -> None:
    path = json_lines(tmp_path, [{"prompt": "a" * 40, "output_tokens": 7}, {"prompt": "日本語"}])
    with pytest.raises(TraceError, match="line 2 has no output_tokens"):
        read_trace(path)
    workload = read_trace(path, default_output_tokens=9)
    assert sorted(workload.pairs.tolist()) == [[3, 9], [10, 7]]
    assert any("estimated" in note for note in workload.notes)
    counted = read_trace(path, default_output_tokens=9, count_tokens=len)
    assert sorted(counted.pairs.tolist()) == [[3, 9], [40, 7]]
    assert not any("estimated" in note for note in counted.notes)


def test_sharegpt_takes_the_first_exchange(tmp_path: Path) -> None:
    def turns(*said: tuple[str, str]) -> dict[str, Any]:
        return {"id": "x", "conversations": [{"from": who, "value": what} for who, what in said]}

    entries = [
        turns(("human", "q" * 8), ("gpt", "a" * 40), ("human", "more"), ("gpt", "more")),
        turns(("system", "s"), ("human", "q" * 12), ("gpt", "a" * 4)),
        turns(("gpt", "only an answer")),
        turns(("human", "no answer")),
        {"id": "empty"},
    ]
    path = written(tmp_path, "share.json", json.dumps(entries))
    layout, rows = read_rows(path)
    assert layout == "ShareGPT"
    assert rows.pairs.tolist() == [[2, 10], [3, 1]]
    assert rows.excluded == {"zero prompt tokens": 2, "zero output tokens": 1}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{broken\n", "line 1 is not a JSON object"),
        ('{"prompt_tokens": 1, "output_tokens": 2}\n[1]\n', "line 2 is not a JSON object"),
        ('{"prompt_tokens": "x", "output_tokens": 2}\n', "'x' is not a number of tokens"),
        ('{"prompt_tokens": true, "output_tokens": 2}\n', "'True' is not a number of tokens"),
        ('{"prompt_tokens": 1, "output_tokens": 2}\n{"prompt_tokens": 1}\n', "line 2: 'None' is not a number"),
        ('{"a": 1}\n', "no prompt length; its columns are a"),
        ('{"prompt": 5, "output_tokens": 2}\n', "the prompt is not a text"),
        ('{"timestamp": 0, "input_length": 5, "output_length": 5, "hash_ids": "x"}\n', "hash_ids is not a list"),
        ("[1, 2]", "not a list of conversations"),
        ("[" * 5000, "not a list of conversations"),
        ("{" * 1, "not a JSON object"),
    ],
)
def test_unclear_json_is_refused_in_a_sentence(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(TraceError, match=said):
        read_trace(written(tmp_path, "t.json", text))


# --- folders and files --------------------------------------------------------------------------------------------


def test_servegen_mixes_client_windows_by_their_requests(tmp_path: Path) -> None:
    """Client 1: 3 requests/s in the first window only. Client 2: 1 request/s. Window 2 of client 1 has no requests."""
    written(tmp_path, "chunk-1-trace.csv", "0,3.0,1,Gamma,1,1\n600,3.0,1,Gamma,1,1\n21600,0,,,,\n")
    written(tmp_path, "chunk-2-trace.csv", "0,1.0,1,Weibull,1,1\n600,1.0,1,,,\n")
    laws = {"input_tokens": "{100: 0.5, 200: 0.5}", "output_tokens": "{10: 0.25, 20: 0.75}", "reason_ratio": "{}"}
    other = {"text_tokens": "{7: 1.0}", "output_tokens": "{9: 2.0}"}
    written(tmp_path, "chunk-1-dataset.json", json.dumps({"0": laws, "21600": other}))
    written(tmp_path, "chunk-2-dataset.json", json.dumps({"0": other}))
    layout, rows = read_rows(tmp_path)
    assert layout == "ServeGen"
    assert len(rows.pairs) == 100_000
    of_first = rows.pairs[rows.pairs[:, 0] >= 100]
    assert len(of_first) == 75_000
    assert (of_first[:, 0] == 200).mean() == pytest.approx(0.5, abs=0.01)
    assert (of_first[:, 1] == 20).mean() == pytest.approx(0.75, abs=0.01)
    assert abs(np.corrcoef(of_first[:, 0], of_first[:, 1])[0, 1]) < 0.02  # never one uniform for both sides
    assert set(map(tuple, rows.pairs[rows.pairs[:, 0] < 100].tolist())) == {(7, 9)}
    assert read_trace(tmp_path).notes == (
        "The source publishes marginal laws; prompt and output are independent inside a client's window.",
    )


@pytest.mark.parametrize("law", ["__import__('os').abort()", "{1: }", "[]", "{}", "{'a': 1}", "{5: 0.0}", "(" * 3000])
def test_servegen_laws_are_read_and_never_run(tmp_path: Path, law: str) -> None:
    written(tmp_path, "chunk-1-trace.csv", "0,3.0,1,Gamma,1,1\n")
    written(tmp_path, "chunk-1-dataset.json", json.dumps({"0": {"input_tokens": law, "output_tokens": "{1: 1}"}}))
    with pytest.raises(TraceError, match=r"chunk-1-dataset\.json"):
        read_trace(tmp_path)


def test_what_is_no_trace_is_told(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="does not exist"):
        read_trace(tmp_path / "nothing.csv")
    with pytest.raises(TraceError, match="is no trace"):
        read_trace(tmp_path)
    (tmp_path / "packed.gz").write_bytes(b"\x1f\x8b\x08\x00\xff\xfe")
    with pytest.raises(TraceError, match="not UTF-8 text"):
        read_trace(tmp_path / "packed.gz")


def test_a_line_without_an_end_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workloads.traces.LONGEST_LINE", 1000)
    with pytest.raises(TraceError, match="has a line of over"):
        read_trace(written(tmp_path, "t.csv", "prompt_tokens,output_tokens\n" + "5" * 5000))


@settings(max_examples=150)
@given(st.binary(max_size=300), st.sampled_from([b"", b"{", b"[", b"prompt_tokens,output_tokens\n", b'{"prompt":']))
def test_no_bytes_do_worse_than_a_trace_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, head: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz"
    path.write_bytes(head + data)
    try:
        _, rows = read_rows(path, default_output_tokens=5)
    except TraceError:
        return
    assert rows.pairs.min() >= 1
