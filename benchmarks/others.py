"""Other load tools beside `loadproof load`, each as its users run it, against the server that knows what it sent.

    python -m benchmarks.others [--tools loadproof,vllm,guidellm] [--streams 16,64] [--tokenizer FOLDER] [--list]

Each tool keeps N streams of 50 tokens/s busy, on one core. What it *says* of TTFT and of the gaps between tokens is
held against what the server did: its own time to the first token, and its own gaps. Nothing of a tool is patched. A
tool that is not installed is named and left out; `--list` says how each is installed and what of it is compared.

The adapters have run with vLLM 0.32.0, GuideLLM 0.8.1 (before 0.8 its command line was another) and AIPerf 0.13.0.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.client import Truth, machine, read_truth

TOKENS = 100
TOKENS_PER_S = 50.0
ROUNDS = 3
"""Answers of each stream."""
PROMPT_TOKENS = 16


class Job(NamedTuple):
    """What a tool is asked to do."""

    url: str
    streams: int
    folder: Path
    """Empty, for its files."""
    tokenizer: str
    """Folder of a tokenizer, for tools that count tokens themselves."""

    @property
    def requests(self) -> int:
        return self.streams * ROUNDS


class Told(NamedTuple):
    """What a tool says, ms: p50 and p99."""

    ttft: tuple[float, float]
    itl: tuple[float, float] | None
    """Gaps between tokens, one value each; None: it does not tell them."""


class Tool(NamedTuple):
    """A load tool, as its users run it."""

    title: str
    program: str
    """Found beside this Python or on PATH, or named by --path."""
    install: str
    compared: str
    command: Callable[[str, Job], list[str]]
    read: Callable[[Job], Told]
    needs_tokenizer: bool = True
    offline: bool = True
    """It finds a tokenizer's folder with the model hub forbidden."""


# --- the adapters -------------------------------------------------------------------------------------------------


def _json(path: Path) -> Any:
    return json.loads(path.read_bytes())


def loadproof_command(program: str, job: Job) -> list[str]:
    lengths = ["--prompt-tokens", str(PROMPT_TOKENS), "--output-tokens", str(TOKENS)]
    load = ["--concurrency", str(job.streams), "--requests", str(job.requests), "--workers", "1"]
    shell = [program, "load", job.url, "--model", "truth", *lengths, *load, "--json"]
    return ["sh", "-c", f'"$@" > {job.folder}/out.json', "sh", *shell]


def loadproof_told(job: Job) -> Told:
    found = _json(job.folder / "out.json")
    ttft, itl = found["ttft_ms"], found["itl_ms"]
    return Told((ttft["p50"], ttft["p99"]), (itl["p50"], itl["p99"]))


def vllm_command(program: str, job: Job) -> list[str]:
    lengths = ["--random-input-len", str(PROMPT_TOKENS), "--random-output-len", str(TOKENS)]
    return [
        *(program, "bench", "serve", "--backend", "openai-chat", "--endpoint", "/v1/chat/completions"),
        *("--base-url", job.url, "--model", "truth", "--tokenizer", job.tokenizer, "--dataset-name", "random"),
        *(*lengths, "--num-prompts", str(job.requests), "--max-concurrency", str(job.streams), "--disable-tqdm"),
        *("--percentile-metrics", "ttft,itl", "--metric-percentiles", "50,99", "--ignore-eos"),
        *("--save-result", "--result-dir", str(job.folder), "--result-filename", "out.json"),
    ]


def vllm_told(job: Job) -> Told:
    found = _json(job.folder / "out.json")
    return Told((found["p50_ttft_ms"], found["p99_ttft_ms"]), (found["p50_itl_ms"], found["p99_itl_ms"]))


def guidellm_command(program: str, job: Job) -> list[str]:
    lengths = f"prompt_tokens={PROMPT_TOKENS},output_tokens={TOKENS}"
    return [
        *(program, "run", "--backend", f"kind=openai_http,target={job.url},model=truth"),
        *("--tokenizer", f"kind=hf_auto,model={job.tokenizer}", "--data", f"kind=synthetic_text,{lengths}"),
        *("--profile", f"kind=concurrent,streams={job.streams}"),
        *("--constraint", f"kind=max_requests,count={job.requests}", "--disable-console"),
        *("--output", f"kind=json,path={job.folder / 'out.json'}"),
    ]


def guidellm_told(job: Job) -> Told:
    metrics = _json(job.folder / "out.json")["benchmarks"][0]["metrics"]
    ttft, itl = (
        metrics[name]["successful"]["percentiles"] for name in ("time_to_first_token_ms", "inter_token_latency_ms")
    )
    return Told((ttft["p50"], ttft["p99"]), (itl["p50"], itl["p99"]))


def aiperf_command(program: str, job: Job) -> list[str]:
    return [
        *(program, "profile", "--url", job.url, "--model", "truth", "--endpoint-type", "chat", "--streaming"),
        *("--concurrency", str(job.streams), "--request-count", str(job.requests), "--tokenizer", job.tokenizer),
        *("--synthetic-input-tokens-mean", str(PROMPT_TOKENS), "--output-tokens-mean", str(TOKENS)),
        *("--artifact-dir", str(job.folder), "--ui", "none"),
    ]


def aiperf_told(job: Job) -> Told:
    found = _json(next(job.folder.rglob("profile_export_aiperf.json")))
    ttft = found["time_to_first_token"]
    gaps: Mapping[str, float] | None = found.get("inter_chunk_latency")
    return Told((ttft["p50"], ttft["p99"]), (gaps["p50"], gaps["p99"]) if gaps else None)


TOOLS = {
    "loadproof": Tool(
        "loadproof load", "loadproof", "this project", "TTFT; gaps between tokens", loadproof_command, loadproof_told,
        needs_tokenizer=False,
    ),
    "vllm": Tool(
        "vllm bench serve", "vllm", "pip install vllm", "TTFT; ITL (gaps between chunks)", vllm_command, vllm_told
    ),
    "guidellm": Tool(
        "GuideLLM", "guidellm", "pip install 'guidellm>=0.8'", "TTFT; its ITL is one value a request, our TPOT",
        guidellm_command, guidellm_told,
    ),
    "aiperf": Tool(
        "AIPerf", "aiperf", "pip install aiperf", "TTFT; inter chunk latency", aiperf_command, aiperf_told,
        offline=False,  # 0.13.0 takes a folder for a name on the hub then
    ),
}  # fmt: skip


# --- running them -------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """One tool at one load, beside the truth of the same answers."""

    tool: str
    streams: int
    told: Told
    true_ttft: tuple[float, float]
    true_itl: tuple[float, float]
    cpu_s: float
    """Of the tool and its children, its start included."""
    wall_s: float


def measure(tool: Tool, program: str, streams: int, tokenizer: str, cpus: tuple[int, int]) -> Row | str:
    """Run a tool at a load against a fresh server; what went wrong, if it did."""
    with tempfile.TemporaryDirectory() as name:
        truth_file, folder = Path(name) / "truth.jsonl", Path(name) / "tool"
        folder.mkdir()
        command = [sys.executable, "-m", "benchmarks.truth_server", "--truth", str(truth_file), "--cpu", str(cpus[0])]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            job = Job(f"http://127.0.0.1:{int(server.stdout.readline())}", streams, folder, tokenizer)
            before, started = _children_cpu_s(), time.monotonic()
            try:
                wrong = _run(tool.command(program, job), cpus[1], offline=tool.offline)
                cpu_s, wall_s = _children_cpu_s() - before, time.monotonic() - started  # the server runs still
            finally:
                server.terminate()
        if wrong is None and not truth_file.exists():
            wrong = "the server broke, see above"
        return wrong or score(tool, job, cpu_s, wall_s, list(read_truth(truth_file)))


def _run(command: list[str], cpu: int, *, offline: bool) -> str | None:
    """Run it on one core; the end of what it said, if it failed."""
    pinned = [sys.executable, "-c", _PIN, str(cpu), *command]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"} | ({"HF_HUB_OFFLINE": "1"} if offline else {})
    try:
        done = subprocess.run(pinned, capture_output=True, text=True, timeout=600, check=False, env=environment)
    except subprocess.TimeoutExpired:
        return "did not end within 10 min"
    if done.returncode == 0:
        return None
    return f"exit code {done.returncode}: {' '.join((done.stderr or done.stdout).split())[-300:]}"


_PIN = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])}); os.execvp(sys.argv[2], sys.argv[2:])"


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def score(tool: Tool, job: Job, cpu_s: float, wall_s: float, truths: list[Truth]) -> Row:
    """What the tool said beside what the server did for the last answers that were asked for (a tool may try first)."""
    answers = sorted((truth for truth in truths if len(truth.before_ns) > 1), key=lambda truth: truth.first_due_ns)
    answers = answers[-job.requests :]
    ttft = [truth.before_ns[0] - (truth.first_due_ns - truth.period_ns) for truth in answers]
    gaps = np.concatenate([np.diff(truth.before_ns) for truth in answers])
    return Row(tool.title, job.streams, tool.read(job), _points(np.array(ttft)), _points(gaps), cpu_s, wall_s)


def _points(values_ns: Any) -> tuple[float, float]:
    p50, p99 = np.percentile(values_ns, [50, 99], method="inverted_cdf") / 1e6
    return float(p50), float(p99)


def table(rows: list[Row]) -> Table:
    shown = Table(title=f"What tools say beside what was sent, {TOKENS_PER_S:g} tokens/s (ms: p50 / p99)")
    for name in ("streams", "tool", "TTFT said", "TTFT sent", "gap said", "gap sent", "CPU s", "wall s"):
        shown.add_column(name, justify="left" if name == "tool" else "right", no_wrap=True)
    for row in rows:
        said, gaps = row.told
        shown.add_row(
            str(row.streams),
            row.tool,
            f"{said[0]:.2f} / {said[1]:.2f}",
            f"{row.true_ttft[0]:.2f} / {row.true_ttft[1]:.2f}",
            f"{gaps[0]:.2f} / {gaps[1]:.2f}" if gaps else "-",
            f"{row.true_itl[0]:.2f} / {row.true_itl[1]:.2f}",
            f"{row.cpu_s:.1f}",
            f"{row.wall_s:.0f}",
        )
    return shown


def listed() -> Iterator[str]:
    for name, tool in TOOLS.items():
        yield f"{name:10} {tool.install}; compared: {tool.compared}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tools", default=",".join(TOOLS), help="default: %(default)s")
    parser.add_argument("--streams", default="16,64", help="default: %(default)s")
    parser.add_argument("--tokenizer", default="", help="folder of a tokenizer (tokenizer.json), for other tools")
    parser.add_argument("--path", action="append", default=[], metavar="TOOL=FILE", help="a tool that is not on PATH")
    parser.add_argument("--list", action="store_true", help="how each tool is installed, and what is compared")
    options = parser.parse_args()
    console = Console(width=160)
    if options.list:
        console.print("\n".join(listed()))
        return
    paths = dict(entry.split("=", 1) for entry in options.path)
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        sys.exit("Two cores are needed: one for the server, one for the tool.")
    search = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    rows: list[Row] = []
    for streams in map(int, options.streams.split(",")):
        for name in options.tools.split(","):
            tool = TOOLS[name]
            found = paths.get(name) or shutil.which(tool.program, path=search)
            if found is None or (tool.needs_tokenizer and not options.tokenizer):
                lacking = "is not installed" if found is None else "needs --tokenizer FOLDER"
                console.print(f"{tool.title} {lacking} ({tool.install})")
                continue
            row = measure(tool, found, streams, options.tokenizer, (cpus[0], cpus[-1]))
            if isinstance(row, str):
                console.print(f"{tool.title} at {streams} streams failed: {row}")
            else:
                rows.append(row)
    console.print(table(rows))
    console.print(machine())


if __name__ == "__main__":
    main()
