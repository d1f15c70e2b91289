"""How true the simulated card is: its TPOT and throughput against public measurements that tell enough of themselves.

    python -m benchmarks.simulated [ROWS.jsonl]

One card, known lengths, vLLM. Rows of `vllm bench serve` give all requests at once (500 here), those of the ShareGPT
runs 300 at 10 per second, those of a closed loop their concurrency. Nothing is fitted to these rows.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from rich.console import Console
from rich.table import Table

from orchestrator.errors import LoadproofError
from stacks.memory.rows import Row, setup_of_row
from stacks.simulated.accuracy import Accuracy
from stacks.simulated.card import SimulatedCard, simulated_card
from workloads.synthetic import synthetic

CORPUS = Path(__file__).resolve().parent.parent / "tests" / "data" / "perf-corpus.jsonl"
AT_ONCE, SHAREGPT, CLOSED = 500, 300, 40
SHAREGPT_LENGTHS = ("lognormal:857:556", "normal:652:98")
"""By the moments that the source's lengths have."""
FORMATS = {"bf16": "16-bit", "fp16": "16-bit", "fp8": "fp8", "mxfp4": "mxfp4"}


class Figures(NamedTuple):
    tpot_ms: float
    output_tok_s: float
    total_tok_s: float


class Compared(NamedTuple):
    row: dict[str, Any]
    simulated: Figures | None
    refusal: str = ""


def card_of(row: dict[str, Any]) -> SimulatedCard:
    known = {**row, "weight_format": FORMATS.get(row["weight_quantization"], row["weight_quantization"])}
    setup = setup_of_row(msgspec.convert(known, Row, strict=False))
    length = 2 * (row["mean_input_tokens"] + row["mean_output_tokens"]) + 8192
    changed = msgspec.structs.replace(setup, max_model_len=min(int(length), setup.model.max_position or 32768))
    return simulated_card(changed)


def traffic(row: dict[str, Any]) -> Iterator[tuple[float, int, int]]:
    """(arrival in s, prompt tokens, output tokens) of an open run."""
    if "ShareGPT" in row["load"]:
        pairs = synthetic(prompt=SHAREGPT_LENGTHS[0], output=SHAREGPT_LENGTHS[1]).draw(1, SHAREGPT)
        yield from ((r.seq / 10, r.prompt_tokens, r.output_tokens) for r in pairs)
        return
    count = AT_ONCE if row.get("concurrency") is None else CLOSED
    yield from ((0.0, int(row["mean_input_tokens"]), int(row["mean_output_tokens"])) for _ in range(count))


def simulate(row: dict[str, Any]) -> Figures:
    """A run of the row's traffic: mean TPOT over requests, tokens over the whole time."""
    card = card_of(row)
    engine = card.engine(1)
    concurrency = row.get("concurrency")
    arrivals = list(traffic(row))
    waiting = arrivals[::-1]
    tpot, prompt, output = [], 0, 0
    while waiting or not engine.idle:
        in_engine = engine.running + engine.waiting
        while waiting and waiting[-1][0] <= engine.now_s and (concurrency is None or in_engine < concurrency):
            _, prompt_tokens, output_tokens = waiting.pop()
            engine.submit(prompt_tokens, output_tokens)
            in_engine += 1
        ended, _ = engine.advance(waiting[-1][0] if waiting and concurrency is None else math.inf)
        for sequence in ended:
            prompt, output = prompt + sequence.prompt_tokens, output + sequence.output_tokens
            if sequence.output_tokens > 1 and sequence.first_s is not None:
                tpot.append((engine.now_s - sequence.first_s) / (sequence.output_tokens - 1))
    return Figures(1000 * statistics.mean(tpot), output / engine.now_s, (prompt + output) / engine.now_s)


def compare(line: bytes) -> Compared:
    row = msgspec.json.decode(line)
    try:
        return Compared(row, simulate(row))
    except LoadproofError as error:
        return Compared(row, None, str(error))


def errors_of(compared: Compared) -> dict[str, float]:
    """Simulated over measured, less 1, of what the row measured."""
    row, found = compared.row, compared.simulated
    if found is None:
        return {}
    of_output = bool(row.get("output_tok_s"))
    rate = (found.output_tok_s, row["output_tok_s"]) if of_output else (found.total_tok_s, row.get("total_tok_s"))
    values = {"TPOT": (found.tpot_ms, row.get("tpot_mean_ms")), "throughput": rate}
    return {name: ours / theirs - 1 for name, (ours, theirs) in values.items() if theirs}


def accuracy(path: Path = CORPUS) -> Accuracy:
    """What the table says in four figures; `stacks.simulated.accuracy` states it in every report."""
    rows = [compared for line in path.read_bytes().splitlines() if (compared := compare(line)).simulated is not None]
    sizes = {
        name: [abs(errors[name]) for compared in rows if name in (errors := errors_of(compared))]
        for name in ("TPOT", "throughput")
    }
    return Accuracy(
        rows=len(rows),
        models=len({compared.row["model"] for compared in rows}),
        tpot_median=round(statistics.median(sizes["TPOT"]), 2),
        tpot_worst=round(max(sizes["TPOT"]), 2),
        throughput_median=round(statistics.median(sizes["throughput"]), 2),
        throughput_worst=round(max(sizes["throughput"]), 2),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rows", nargs="?", type=Path, default=CORPUS)
    rows = [compare(line) for line in parser.parse_args().rows.read_bytes().splitlines()]
    console = Console(width=140)
    table = Table("row", "model", "card", "load", "TPOT ms", "measured", "error", "tokens/s", "measured", "error")
    for compared in rows:
        row, found, errors = compared.row, compared.simulated, errors_of(compared)
        if found is None:
            table.add_row(row["row_id"], row["model"], row["card_id"], compared.refusal[:40])
            continue
        of_output = bool(row.get("output_tok_s"))
        table.add_row(
            row["row_id"],
            row["model"].rpartition("/")[2],
            row["card_id"],
            f"{row['load'].split(',')[0][:22]} {row['mean_input_tokens']:.0f}/{row['mean_output_tokens']:.0f}",
            f"{found.tpot_ms:.1f}",
            f"{row['tpot_mean_ms']:.1f}" if row.get("tpot_mean_ms") else "",
            f"{errors['TPOT']:+.0%}" if "TPOT" in errors else "",
            f"{found.output_tok_s if of_output else found.total_tok_s:,.0f}",
            f"{row.get('output_tok_s') or row.get('total_tok_s'):,.0f}",
            f"{errors['throughput']:+.0%}" if "throughput" in errors else "",
        )
    console.print(table)
    for name in ("TPOT", "throughput"):
        sizes = [abs(errors[name]) for compared in rows if name in (errors := errors_of(compared))]
        console.print(
            f"{name}: median error {statistics.median(sizes):.0%}, largest {max(sizes):.0%}, {len(sizes)} rows"
        )


if __name__ == "__main__":
    main()
