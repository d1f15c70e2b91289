"""`loadproof size`: what it says, what it writes, and how it refuses."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner, Result

from orchestrator.cli import main
from orchestrator.commands import size as size_module
from orchestrator.commands.size import size
from orchestrator.watch.gpu import GpuInfo

CORPUS = Path(__file__).parent / "data" / "memory-corpus.jsonl"
LLAMA = ("--model", "meta-llama/Llama-3.1-8B-Instruct")
CARD = ("--card", "RTX-4090", "--max-model-len", "8192")


@pytest.fixture(autouse=True)
def _no_card_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(size_module, "list_gpus", lambda: ())


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(size, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def told(*arguments: str) -> str:
    """Output as one line: the screen breaks its lines where they are full."""
    return " ".join(run(*arguments).output.split())


def facts(*arguments: str) -> dict[str, Any]:
    decoded = json.loads(run(*arguments, "--json").output)
    assert isinstance(decoded, dict)
    return decoded


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(["size", *arguments])
    assert caught.value.code == 2
    return capsys.readouterr().err


# --- one deployment ---------------------------------------------------------------------------------------------


def test_one_screen_answers_the_question() -> None:
    output = run(*LLAMA, *CARD, "--weights", "awq").output
    assert len(output.splitlines()) <= 40
    assert max(map(len, output.splitlines())) <= 100
    words = " ".join(output.split())
    for part in ("weights", "KV cache", "activation peak", "runtime context", "CUDA graphs", "margin"):
        assert part in words
    assert "It starts" in words
    assert "KV runs out at" in words
    assert "AWQ 4-bit frees 9.59 GiB of weights" in words
    assert "It does not change KV bytes per token (131,072)" in words


def test_the_bar_is_the_card() -> None:
    line = next(line for line in run(*LLAMA, *CARD).output.splitlines() if line.startswith("|"))
    cells = line[1 : line.rindex("|")]
    assert len(cells) == 60
    assert cells.count("█") == round(14.99 / 23.52 * 60)


def test_json_holds_what_the_screen_shows() -> None:
    found = facts(
        *LLAMA,
        *CARD,
        "--stack",
        "vllm@0.19",
        "--gpu-memory-utilization",
        "0.9",
        "--prompt-tokens",
        "857",
        "--output-tokens",
        "652",
    )
    assert found["setup"]["version"] == "0.19.0"
    assert found["setup"]["card_total_gib"] == 23.52
    assert found["kv"]["tokens"] == pytest.approx(41_408, rel=0.01)  # a measured start
    assert found["requests"]["mean"] == pytest.approx(found["kv"]["blocks"] / (1183 / 16 + 0.5), rel=0.01)
    assert found["items"]["KV cache"]["low_gib"] < found["items"]["KV cache"]["gib"]
    assert found["times"]["decode_s"] > 0
    assert found["starts"] == "yes"


def test_defaults_are_said() -> None:
    found = facts(*LLAMA, "--card", "H100")
    assert found["workload"] == "azure-conv-2023"
    assert found["setup"]["version"] == "0.33.0"
    assert (found["setup"]["max_model_len"], found["setup"]["max_num_seqs"]) == (131072, 1024)


def test_a_concurrency_is_what_the_times_are_for() -> None:
    few, many = (facts(*LLAMA, *CARD, "--concurrency", count)["times"] for count in ("1", "20"))
    assert (few["concurrency"], many["concurrency"]) == (1, 20)
    assert few["decode_s"] < many["decode_s"]


def test_lengths_are_cut_to_the_longest_request() -> None:
    assert facts(*LLAMA, "--card", "H100", "--max-model-len", "2048")["cut_share"] > 0.1
    assert "cut to the longest request" in told(*LLAMA, "--card", "H100", "--max-model-len", "2048")


def test_the_card_of_this_machine_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = GpuInfo(index=0, uuid="GPU-1", name="NVIDIA L40S", memory_total_bytes=48 * 10**9)
    monkeypatch.setattr(size_module, "list_gpus", lambda: (gpu,))
    assert facts(*LLAMA)["setup"]["card"] == "L40S-48GB"
    odd = GpuInfo(index=0, uuid="GPU-1", name="Prototype X", memory_total_bytes=30 * 2**30)
    monkeypatch.setattr(size_module, "list_gpus", lambda: (odd,))
    assert facts(*LLAMA)["setup"]["card_total_gib"] == 30


def test_a_card_by_its_memory_alone() -> None:
    found = facts(*LLAMA, "--card-memory", "40", "--max-model-len", "4096")
    assert found["setup"]["card_total_gib"] == 40
    assert found["times"] is None


def test_a_marketing_size_gives_bounds() -> None:
    assert (
        "only the card's marketing size is known" in told(*LLAMA, "--card", "24 GB", "--max-model-len", "4096").lower()
    )


# --- formats side by side, what fits ----------------------------------------------------------------------------


def test_formats_side_by_side() -> None:
    words = told(*LLAMA, *CARD, "--compare", "fp16,fp8,awq")
    assert "16-bit fp8 awq-int4" in words
    assert "FP8 frees 6.50 GiB" in words
    assert "AWQ 4-bit frees 9.59 GiB" in words
    found = facts(*LLAMA, *CARD, "--compare", "fp16,fp8,awq")
    tokens = [entry["kv"]["tokens"] for entry in found["formats"]]
    assert tokens == sorted(tokens)
    assert len({entry["times"]["concurrency"] for entry in found["formats"]}) == 1


def test_three_formats_on_a_24_gb_card_are_one_screen_that_ends_in_what_4_bit_buys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    more = ("--compare", "fp16,fp8,awq", "--workload", "azure-conv-2023")
    shown = run(*LLAMA, "--card", "RTX-4090-24GB", *more).output.splitlines()
    assert len(shown) <= 24
    assert max(map(len, shown)) <= 80
    rows = {line[:30].strip(): line[30:].split() for line in shown}
    assert rows["starts at 131,072 tokens"] == ["no", "no", "no"]
    assert rows["longest --max-model-len"] == rows["KV tokens"]
    end = " ".join(" ".join(shown).partition("AWQ 4-bit frees")[2].split())
    assert re.match(r"[\d.]+ GiB of weights: [\d,]+ more KV tokens, \d+ more concurrent requests of your lengths", end)
    assert "It does not change KV bytes per token (131,072)" in end
    assert end.endswith("gain nothing.")


def test_what_fits_lists_cards_and_the_largest_settings() -> None:
    found = facts(*LLAMA, *CARD, "--weights", "awq", "--what-fits", "--concurrency", "50")
    assert found["max_model_len"] > 8192
    assert found["max_num_seqs"] > 50
    assert any(card["card"] == "T4-16GB" and card["gpus"] == 2 for card in found["cards"])
    words = told(*LLAMA, *CARD, "--weights", "awq", "--what-fits", "--concurrency", "50")
    assert "Cards that surely hold it" in words
    assert "--max-num-seqs" in words


# --- models from elsewhere --------------------------------------------------------------------------------------

CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 512,
    "vocab_size": 1000,
    "max_position_embeddings": 4096,
    "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128},
}


def test_a_directory_is_a_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    found = facts("--model", str(tmp_path), "--card", "L4")
    assert found["setup"]["weights"] == "awq-int4"
    assert found["setup"]["max_model_len"] == 4096


class _Hub(BaseHTTPRequestHandler):
    seen: ClassVar[list[tuple[str, str | None]]] = []
    body: ClassVar[bytes] = b""
    status: ClassVar[int] = 200

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers.get("authorization")))
        self.send_response(self.status)
        self.send_header("content-length", str(len(self.body)))
        self.end_headers()
        try:
            self.wfile.write(self.body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def log_message(self, *args: object) -> None:
        """Tests are quiet."""


@contextmanager
def hub(body: bytes, status: int = 200) -> Iterator[str]:
    _Hub.seen, _Hub.body, _Hub.status = [], body, status
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_hub_id_is_asked_for_its_config(monkeypatch: pytest.MonkeyPatch) -> None:
    with hub(json.dumps(CONFIG).encode()) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        result = run("--model", "somebody/tiny-thing", "--card", "L4", "--json")
    assert _Hub.seen == [("/somebody/tiny-thing/resolve/main/config.json", "Bearer hf_secret")]
    assert json.loads(result.output)["setup"]["model"] == "somebody/tiny-thing"
    assert "hf_secret" not in result.output


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [(b"no", 404, "hub was asked too"), (b"{", 200, "not JSON"), (b" " * (5 * 2**20), 200, "larger than")],
)
def test_a_hub_that_does_not_answer_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], body: bytes, status: int, words: str
) -> None:
    with hub(body, status) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        assert words in refusal(capsys, "--model", "somebody/tiny-thing", "--card", "L4")


# --- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--card", "H100"), "--model is missing"),
        (LLAMA, "--card is missing"),
        ((*LLAMA, "--card", "H101"), "--card-memory"),
        (("--model", "nothing-like-it", "--card", "H100"), "Or give a config.json"),
        ((*LLAMA, "--card", "H100", "--weights", "awqq"), "Nearest: awq"),
        ((*LLAMA, "--card", "H100", "--weights", "nf4"), "before 0.28.0"),
        ((*LLAMA, "--card", "H100", "--stack", "vlm"), "Nearest: vllm"),
        ((*LLAMA, "--card", "H100", "--stack", "vllm@new"), "not a version"),
        ((*LLAMA, "--card", "H100", "--gpus", "3"), "do not divide over 3"),
        ((*LLAMA, "--card", "H100", "--workload", "azure"), "azure-conv-2023"),
        ((*LLAMA, "--card", "H100", "--prompt-tokens", "5"), "belong together"),
        ((*LLAMA, "--card", "H100", "--prompt-tokens", "5", "--output-tokens", "0"), "must be positive"),
        ((*LLAMA, "--card", "H100", "--workload", "fixed-1k1k", "--prompt-tokens", "5"), "exclude each other"),
        ((*LLAMA, "--card", "H100", "--concurrency", "-1"), "must be positive"),
        ((*LLAMA, "--card", "H100", "--compare", " , "), "--compare needs formats"),
        ((*LLAMA, "--card", "H100", "--kv-dtype", "q8_0"), "no q8_0 KV"),
        (("--batch", "/nowhere/rows.jsonl"), "cannot be read"),
    ],
)
def test_each_refusal_is_a_sentence_with_its_remedy(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    told_ = refusal(capsys, *arguments)
    assert words in told_
    assert "Traceback" not in told_


# --- many rows --------------------------------------------------------------------------------------------------


def test_batch_gives_a_line_for_every_row() -> None:
    lines = [json.loads(line) for line in run("--batch", str(CORPUS)).output.splitlines()]
    ids = [json.loads(line)["row_id"] for line in CORPUS.read_text().splitlines()]
    assert [line["row_id"] for line in lines] == ids
    predicted = [line for line in lines if "error" not in line]
    assert len(predicted) >= 118
    for line in predicted:
        assert {"weights_gib", "kv_tokens", "kv_bytes_per_token", "kv_gib", "activation_gib", "graphs_gib"} <= set(line)
        assert {"context_gib", "interval"} <= set(line)
        low, high = line["interval"]["weights_gib"]
        assert low <= line["weights_gib"] <= high
        if line["kv_tokens"] is not None:
            low, high = line["interval"]["kv_tokens"]
            assert low <= line["kv_tokens"] <= high
    assert all(line["error"] for line in lines if "error" in line)


def test_a_bad_row_does_not_stop_the_others(tmp_path: Path) -> None:
    good = {"row_id": "good", "model": "Qwen/Qwen3-8B", "card_id": "L4-24GB", "stack_version": "0.19.0"}
    path = tmp_path / "rows.jsonl"
    rows = [
        "{",
        json.dumps({"model": 3}),
        json.dumps(good | {"row_id": "tp", "tp": 3}),
        "",
        json.dumps(good),
        "x" * 70_000,
    ]
    path.write_text("\n".join(rows))
    lines = [json.loads(line) for line in run("--batch", str(path)).output.splitlines()]
    assert [line["row_id"] for line in lines] == ["line 1", "line 2", "tp", "good", "line 6"]
    assert "do not divide over 3" in lines[2]["error"]
    assert lines[3]["kv_tokens"] is not None
    assert "longer than" in lines[4]["error"]


def test_batch_reads_standard_input() -> None:
    row = {"row_id": "piped", "model": "Qwen/Qwen3-8B", "card_id": "L4-24GB"}
    result = CliRunner().invoke(size, ["--batch", "-"], input=json.dumps(row))
    assert json.loads(result.output)["row_id"] == "piped"
