"""`loadproof load` against a server that knows the truth: what is sent, what is told, what is refused."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli import main

SERVER = Path(__file__).parents[1] / "fakes" / "openai_server.py"
LEAST_FIELDS = {
    "seq", "request_id", "due_ns", "sent_ns", "first_ns", "last_ns", "end_ns", "in_tokens", "out_tokens",
    "tokens_from", "finish", "failure", "stamp", "token_ns",
}  # fmt: skip


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """(URL, file of the truth) of a fake server."""
    truth = tmp_path / "truth.jsonl"
    command = [sys.executable, str(SERVER), "--truth", str(truth)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().split()[-1]}", truth
        process.terminate()


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int | str | None, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["load", *arguments])
    out, err = capsys.readouterr()
    return ended.value.code, out, err


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


LOAD = ("--api", "completions", "--model", "m", "--output-tokens", "5")


@pytest.mark.parametrize(
    "mode", ["--concurrency 4", "--rate 200", "--rate 100 --arrivals constant", "--concurrency 4 --workers 2"]
)
def test_as_many_requests_are_sent_as_are_asked_for_and_all_are_told(
    server: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    url, truth = server
    file = tmp_path / "records.jsonl"
    code, out, _ = told(capsys, url, *LOAD, *mode.split(), "--requests", "23", "--records", str(file), "--json")
    found = json.loads(out)
    records = lines(file)
    sent = {entry["id"]: entry["sent_ns"] for entry in lines(truth)}
    assert (code, found["requests"], found["failures"], len(records), len(sent)) == (0, 23, {}, 23, 23)
    assert sorted(record["seq"] for record in records) == list(range(23))
    for record in records:
        assert record.keys() >= LEAST_FIELDS
        assert len(record["token_ns"]) == len(sent[record["request_id"]]) == 5
        assert record["due_ns"] <= record["sent_ns"] < record["first_ns"] <= record["last_ns"] <= record["end_ns"]
    for name in ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms"):
        assert 0 < found[name]["p50"] <= found[name]["p95"] <= found[name]["p99"]
        assert found[name]["mean"] > 0
    assert found["ttft_ms"]["n"] == 23
    span_s = (max(r["end_ns"] for r in records) - min(r["sent_ns"] for r in records)) / 1e9
    assert found["output_tokens_per_s"] == pytest.approx(23 * 5 / span_s)
    assert {"stamp", "kernel_share", "cpu_s", "loop_lag_ms_p99", "valid", "why"} <= found["client"].keys()


def test_conversations_are_sent_turn_by_turn(
    server: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, _ = server
    found, records = [], []
    for workers in ("1", "2"):
        file = tmp_path / f"records-{workers}.jsonl"
        options = ("--sessions-rate", "20", "--turns", "uniform:1:3", "--think", "0.01", "--sessions", "9")
        code, out, _ = told(
            capsys,
            url,
            *LOAD,
            "--prompt-tokens",
            "20",
            *options,
            "--workers",
            workers,
            "--records",
            str(file),
            "--json",
        )
        assert code == 0
        found.append(json.loads(out))
        records.append(lines(file))
    for told_, sent in zip(found, records, strict=True):
        assert (told_["requests"], told_["sessions"], told_["failures"]) == (len(sent), 9, {})
        assert 9 < len(sent) < 27
        for session in {r["session"] for r in sent}:
            turns = sorted((r for r in sent if r["session"] == session), key=lambda r: r["turn"])
            assert [r["turn"] for r in turns] == list(range(len(turns)))
            assert [r["asked_in"] for r in turns] == [20 + 25 * turn for turn in range(len(turns))]
            assert all(b["due_ns"] - a["end_ns"] == 10_000_000 for a, b in itertools.pairwise(turns))
            assert all(r["sent_ns"] >= r["due_ns"] for r in turns)
    asked = [sorted((r["session"], r["turn"], r["asked_in"], r["asked_out"]) for r in sent) for sent in records]
    assert asked[0] == asked[1]
    assert found[1]["client"]["workers"] == 2


def test_a_trace_of_ones_own(server: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """BurstGPT's form: two conversations, of two turns and of one."""
    trace = tmp_path / "trace.csv"
    rows = ["0,a,10,5", "0.05,b,7,5", "0.1,a,30,5"]
    trace.write_text("\n".join(["Timestamp,Session ID,Request tokens,Response tokens", *rows]) + "\n")
    file = tmp_path / "records.jsonl"
    options = ("--model", "m", "--api", "completions", "--trace", str(trace), "--records", str(file), "--json")
    code, out, _ = told(capsys, server[0], *options, "--sessions-rate", "50", "--sessions", "4")
    assert (code, json.loads(out)["requests"], json.loads(out)["sessions"]) == (0, 6, 4)
    by_session: dict[str, list[int]] = {}
    for record in sorted(lines(file), key=lambda r: (r["session"], r["turn"])):
        by_session.setdefault(record["session"], []).append(record["asked_in"])
    assert sorted(by_session.values()) == [[7], [7], [10, 30], [10, 30]]
    code, out, _ = told(capsys, server[0], *options, "--requests", "6")
    assert code == 0
    assert {r["asked_in"] for r in lines(file)} == {7, 10, 30}


def test_people_get_a_table(server: tuple[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = told(capsys, server[0], *LOAD, "--concurrency", "3", "--seconds", "0.5")
    assert code == 0
    assert all(word in out for word in ("TTFT", "TPOT", "ITL", "E2E", "p99", "n too small", "tokens/s", "failed: none"))


def test_the_same_seed_asks_the_same(
    server: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []
    for seed in ("1", "1", "2"):
        file = tmp_path / "records.jsonl"
        lengths = ("--prompt-tokens", "uniform:5:50", "--output-tokens", "uniform:1:6")
        told(
            capsys, server[0], *LOAD[:4], *lengths, "--requests", "20", "--seed", seed, "--records", str(file), "--json"
        )
        asked.append([(r["asked_in"], r["asked_out"]) for r in lines(file)])
    assert asked[0] == asked[1] != asked[2]


def test_failures_are_told_by_class(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = told(capsys, "http://127.0.0.1:9", *LOAD, "--requests", "3", "--json")
    found = json.loads(out)
    assert (code, found["requests"], found["failures"]) == (4, 3, {"refused": 3})
    assert "None of the 3 requests was answered; 3 failed like this: refused (127.0.0.1:9 refused" in err
    assert found["ttft_ms"]["p50"] is None
    _, out, _ = told(capsys, "http://127.0.0.1:9", *LOAD, "--requests", "3")
    assert "First failure: refused: 127.0.0.1:9 refused the connection" in out


URL = "http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("ftp://x", *LOAD), "write e.g. http://127.0.0.1:8000"),
        (("nonsense",), "write e.g. http://127.0.0.1:8000"),
        (("http://127.0.0.1:99999", *LOAD), "write e.g. http://127.0.0.1:8000"),
        (("http://[::1", *LOAD), "write e.g. http://127.0.0.1:8000"),
        (("http://me:secret@host", *LOAD), "name the variable with --api-key-env"),
        ((URL,), "--model is missing"),
        ((URL, *LOAD, "--rate", "1", "--concurrency", "1"), "exclude each other"),
        ((URL, *LOAD, "--requests", "1", "--seconds", "1"), "exclude each other"),
        ((URL, *LOAD, "--preset", "fixed-1k1k"), "exclude each other"),
        ((URL, "--model", "m", "--preset", "nonesuch"), "the presets are"),
        ((URL, *LOAD, "--arrivals", "poisson"), "give --rate or --sessions-rate too"),
        ((URL, *LOAD, "--sessions-rate", "1", "--rate", "1"), "leave --concurrency and --rate away"),
        ((URL, *LOAD, "--sessions-rate", "1", "--requests", "9"), "give --sessions N"),
        ((URL, *LOAD, "--turns", "3"), "need --sessions-rate"),
        ((URL, *LOAD, "--sessions-rate", "1", "--think", "long"), "exponential:8"),
        ((URL, *LOAD, "--sessions-rate", "1", "--turns", "0"), "lognormal:MEAN:STD"),
        ((URL, *LOAD, "--sessions-rate", "1", "--ramp", "1"), "closed loop"),
        ((URL, *LOAD, "--think", "exponential:5"), "needs --sessions-rate"),
        ((URL, *LOAD, "--trace", "x.csv"), "exclude each other"),
        ((URL, "--model", "m", "--trace", "/no/such/file"), "does not exist"),
        ((URL, *LOAD, "--workers", "0"), "--workers"),
        ((URL, *LOAD, "--rate", "1", "--arrivals", "gamma"), "gamma:CV"),
        ((URL, *LOAD, "--rate", "1", "--think", "1"), "closed loop"),
        ((URL, *LOAD, "--rate", "0.001", "--seconds", "0.1"), "ask for more"),
        ((URL, *LOAD, "--prompt-tokens", "many"), "lognormal:MEAN:STD"),
        ((URL, *LOAD, "--slo", "ttft=fast"), "ttft=1000,tpot=50"),
        ((URL, *LOAD, "--slo", "speed=1"), "ttft=1000,tpot=50"),
        ((URL, *LOAD, "--api-key-env", "NO_SUCH_KEY"), "export the key"),
        ((URL, *LOAD, "--concurrency", "0"), "--concurrency"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], sentence: str
) -> None:
    code, out, err = told(capsys, *arguments)
    assert (code, out) == (2, "")
    assert sentence in " ".join(err.split())
    assert "Traceback" not in err


def test_records_that_cannot_be_written_stop_it_before_it_starts(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = told(capsys, URL, *LOAD, "--records", "/no/such/folder/file")
    assert code == 3
    assert "cannot be written" in err


def test_only_what_is_needed_is_imported() -> None:
    """Start to first request within 0.7 s: none of the heavy libraries is loaded by the command itself."""
    program = "import sys, orchestrator.commands.load; print([n for n in sys.argv[1:] if n in sys.modules])"
    heavy = ["scipy", "docker", "pynvml", "prometheus_client", "jinja2", "reports", "orchestrator.plan"]
    found = subprocess.run([sys.executable, "-c", program, *heavy], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
