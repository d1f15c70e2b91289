"""What `loadproof size` shows: a bill, formats side by side, what fits; and the same facts as plain values for JSON."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from stacks.memory.bill import Bill, Pool
from stacks.memory.cards import GIB
from stacks.memory.intervals import Spread
from stacks.memory.sentences import (
    gain_sentence,
    gib,
    margin_sentence,
    point_sentence,
    quantization_sentence,
    requests_sentence,
    start_sentence,
    step_sentence,
)
from stacks.memory.setup import Setup
from stacks.memory.sizing import Fit, LengthFit, Sizing

_WIDTH, _NARROW = 100, 80
_BAR = 60
_COLOURS = {
    "weights": "blue",
    "KV cache": "green",
    "activation peak": "yellow",
    "runtime context": "magenta",
    "CUDA graphs": "cyan",
    "margin": "white",
}
_SIGNS = {
    "weights": "█",
    "KV cache": "▓",
    "activation peak": "▒",
    "runtime context": "#",
    "CUDA graphs": "+",
    "margin": "·",
}


def _console() -> Console:
    """As wide as the terminal, and no wider than reads well."""
    return Console(width=min(_WIDTH, max(_NARROW, shutil.get_terminal_size((_WIDTH, 24)).columns)), highlight=False)


def _say(console: Console, *sentences: str | None) -> None:
    for sentence in sentences:
        if sentence:
            console.print(Text(sentence))


# --- plain values -----------------------------------------------------------------------------------------------


def _spread_facts(spread: Spread) -> dict[str, float]:
    return {
        "gib": round(spread.value / GIB, 4),
        "low_gib": round(spread.low / GIB, 4),
        "high_gib": round(spread.high / GIB, 4),
    }


def _finite(value: float) -> float | None:
    return None if value == float("inf") else round(value, 6)


def _setup_facts(result: Bill) -> dict[str, Any]:
    setup, limits = result.setup, result.limits
    return {
        "model": setup.model.name,
        "stack": setup.stack,
        "version": str(setup.version) if setup.version else None,
        "card": (setup.card.id or setup.card.name) if setup.card else None,
        "card_total_gib": round(setup.card.usable_gib, 4) if setup.card else None,
        "gpus": setup.tensor,
        "pipeline": setup.pipeline,
        "weights": setup.weights.name,
        "kv": setup.kv.name,
        "memory_fraction": limits.fraction,
        "max_model_len": limits.max_model_len,
        "max_num_seqs": limits.seqs,
        "max_num_batched_tokens": limits.batched_tokens,
    }


def sizing_facts(sizing: Sizing) -> dict[str, Any]:
    """Everything the screen shows, as values. Absent parts are null."""
    result, requests, steady = sizing.bill, sizing.requests, sizing.steady
    pool = result.pool
    return {
        "setup": _setup_facts(result),
        "items": {item.name: _spread_facts(item.spread) for item in result.items},
        "interval_class": result.pool_class.name,
        "starts": result.starts,
        "need_gib": round(result.need_bytes / GIB, 4),
        "longest_tokens": result.longest_tokens,
        "kv": {
            "tokens": pool.held.tokens,
            "tokens_low": pool.tokens_low,
            "tokens_high": pool.tokens_high,
            "blocks": pool.held.blocks,
            "bytes_per_token": round(pool.held.bytes_per_token, 3),
            "max_concurrency": round(pool.held.max_concurrency, 3),
        }
        if pool
        else None,
        "lengths": {
            "prompt_mean": round(sizing.lengths.prompt, 3),
            "output_mean": round(sizing.lengths.output, 3),
            "held_tokens": round(sizing.lengths.held, 3),
        },
        "requests": {
            "mean": round(requests.mean, 3),
            "low": round(requests.low, 3),
            "high": round(requests.high, 3),
            "safe_99": round(requests.safe, 3),
            "limit": requests.limit.name,
            "limit_requests": round(requests.limit.requests, 3),
        }
        if requests
        else None,
        "times": {
            "concurrency": round(sizing.concurrency, 3),
            "decode_s": _finite(steady.decode_s),
            "prefill_s": _finite(steady.prefill_s),
            "tpot_s": _finite(steady.tpot_s),
            "requests_per_s": _finite(steady.requests_per_s),
        }
        if steady
        else None,
        "reason": result.no_pool,
    }


# --- the screen -------------------------------------------------------------------------------------------------


def bar(result: Bill, width: int = _BAR) -> Text:
    """The card as one bar, item by item. Graphs that the engine does not charge lie in the margin's part."""
    items = [item for item in result.items if item.spread.value > 0]
    total = result.total_bytes or sum(item.spread.value for item in items)
    text = Text("|")
    used = 0
    for item in items:
        cells = min(round(item.spread.value / total * width), width - used)
        text.append(_SIGNS.get(item.name, "?") * cells, style=_COLOURS.get(item.name, "white"))
        used += cells
    text.append(" " * (width - used) + f"| {gib(total)}")
    return text


def _title(result: Bill, title: str, cut_share: float, *, weights: bool = True) -> str:
    setup, limits = result.setup, result.limits
    card = "card not known" if setup.card is None else f"{setup.card.name} ({setup.card.usable_gib:.2f} GiB usable)"
    ranks = f"{setup.tensor} x " if setup.tensor > 1 else ""
    version = f" {setup.version}" if setup.version else ""
    of_weights = f", {setup.weights.title} weights" if weights else ""
    cut = f" ({cut_share:.0%} of them cut to the longest request)" if cut_share else ""
    return (
        f"{setup.model.name}{of_weights}, {setup.kv.name} KV, on {ranks}{card}\n"
        f"{setup.stack}{version}, fraction {limits.fraction:g}, longest request {limits.max_model_len:,} tokens, "
        f"{limits.seqs:,} running at most; lengths: {title}{cut}"
    )


def _item_table(result: Bill) -> Table:
    ranks = result.setup.tensor * result.setup.pipeline
    table = Table(
        title=f"Memory bill{' of one card' if ranks > 1 else ''}", title_justify="left", box=None, pad_edge=False
    )
    table.add_column("", width=1)
    table.add_column("item")
    table.add_column("GiB", justify="right")
    table.add_column("90 % interval", justify="right")
    table.add_column("", overflow="fold", style="dim")
    for item in result.items:
        spread = item.spread
        table.add_row(
            Text(_SIGNS.get(item.name, ""), style=_COLOURS.get(item.name, "white")),
            item.name,
            f"{spread.value / GIB:,.2f}",
            f"{spread.low / GIB:,.2f} to {spread.high / GIB:,.2f}",
            item.why,
        )
    return table


def _token_sentence(result: Bill) -> str | None:
    pool = result.pool
    if pool is None or pool.bytes.value <= 0:
        return None
    return (
        f"KV cache: {pool.held.tokens:,} tokens ({pool.tokens_low:,} to {pool.tokens_high:,}) "
        f"at {pool.held.bytes_per_token:,.0f} bytes per token and card."
    )


def screen(sizing: Sizing, title: str, cut_share: float, *, plain: Sizing | None = None) -> None:
    """The whole answer on one screen. `plain`: the same deployment with 16-bit weights, where these are smaller."""
    console, result = _console(), sizing.bill
    _say(console, _title(result, title, cut_share), "")
    console.print(_item_table(result))
    console.print(bar(result))
    _say(
        console,
        "",
        start_sentence(sizing),
        _token_sentence(result),
        requests_sentence(sizing),
        step_sentence(sizing),
        margin_sentence(sizing),
        point_sentence(sizing),
        quantization_sentence(plain, sizing) if plain is not None else None,
        f"Not predicted: {result.no_pool}" if result.no_pool else None,
    )


def _compared(sizings: Sequence[Sizing]) -> Iterator[tuple[str, list[str]]]:
    """The rows of the comparison: label, and a value for each format."""
    first = sizings[0]
    pools = [sizing.bill.pool for sizing in sizings]
    requests = [sizing.requests for sizing in sizings]
    times = [sizing.steady for sizing in sizings]
    yield "weights, GiB", [f"{s.bill.weights.value / GIB:,.2f}" for s in sizings]
    yield "KV cache, GiB", [f"{p.bytes.value / GIB:,.2f}" if p else "-" for p in pools]
    yield "KV tokens", [f"{p.held.tokens:,}" if p else "-" for p in pools]
    yield "  90 % interval", [_interval(p) if p else "-" for p in pools]
    yield "your requests at once, mean", [f"{r.mean:,.1f}" if r else "-" for r in requests]
    yield "  with 99 % probability", [f"{r.safe:,.1f}" if r else "-" for r in requests]
    if any(r and r.limit.name != "KV cache" for r in requests):
        yield "  what binds first", [r.limit.name if r else "-" for r in requests]
    if any(times):
        yield f"decode step at {first.concurrency:,.0f} running, ms", [_ms(t and t.decode_s, 1) for t in times]
        yield "prefill of a mean prompt, ms", [_ms(t and t.prefill_s, 0) for t in times]
    yield f"starts at {first.bill.limits.max_model_len:,} tokens", [s.bill.starts for s in sizings]
    if any(s.bill.starts != "yes" for s in sizings):
        yield (
            "  longest --max-model-len",
            [f"{s.bill.longest_tokens:,}" if s.bill.pool else "-" for s in sizings],
        )


def _interval(pool: Pool) -> str:
    return f"{pool.tokens_low / 1000:,.1f}k to {pool.tokens_high / 1000:,.1f}k"


def _ms(seconds: float | None, digits: int) -> str:
    return "-" if seconds is None else f"{seconds * 1000:,.{digits}f}"


def compare_table(sizings: Sequence[Sizing], title: str, cut_share: float) -> None:
    """Formats side by side on one screen of 80 x 24: a bar each, and what the smaller ones buy against the first. The
    last one's sentence, which says what it does not buy too, is the end."""
    console, first = _console(), sizings[0]
    _say(console, _title(first.bill, title, cut_share, weights=False))
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for sizing in sizings:
        table.add_column(sizing.bill.setup.weights.name, justify="right")
    for label, values in _compared(sizings):
        table.add_row(label, *values)
    console.print(table)
    for sizing in sizings:
        name = Text(f"{sizing.bill.setup.weights.name:>10} ")
        console.print(name.append_text(bar(sizing.bill, console.width - 24)))
    console.print(Text("  ".join(f"{_SIGNS[name]} {name.split()[-1]}" for name in _SIGNS), style="dim"))
    _say(console, *(start_sentence(sizing) for sizing in sizings if _nothing_left(sizing)))
    _say(console, *(gain_sentence(first, sizing) for sizing in sizings[1:-1]))
    _say(console, *(quantization_sentence(first, sizing) for sizing in sizings[1:][-1:]))


def _nothing_left(sizing: Sizing) -> bool:
    """There is no pool to speak of: why stands in a sentence and not in the table."""
    return sizing.bill.pool is None or sizing.bill.pool.bytes.value <= 0


def fit_tables(
    setup: Setup, here: LengthFit | None, cards: Sequence[Fit], title: str, concurrency: float | None
) -> None:
    """What fits on the card at hand, and which cards hold the deployment."""
    console = _console()
    asked = f", {concurrency:,.0f} running requests" if concurrency is not None else ""
    _say(console, f"{setup.model.name}, {setup.weights.title} weights, {setup.kv.name} KV; lengths: {title}{asked}", "")
    if here is not None and setup.card is not None:
        _say(
            console,
            f"On {setup.tensor} x {setup.card.name}: it surely starts with --max-model-len up to "
            f"{here.max_model_len:,}, and the pool holds {here.max_num_seqs:,} requests of these lengths with 99 % "
            f"probability (--max-num-seqs {here.max_num_seqs}).",
            "",
        )
    table = Table(
        title="Cards that surely hold it (low end of the interval)", title_justify="left", box=None, pad_edge=False
    )
    for name in ("card", "cards", "KV tokens", "requests until full", "USD/h"):
        table.add_column(name, justify="left" if name == "card" else "right")
    for fit in cards:
        if fit.sizing is None or fit.sizing.bill.pool is None or fit.sizing.requests is None:
            continue
        price = fit.price_usd_per_hour
        table.add_row(
            fit.card.id,
            str(fit.sizing.bill.setup.tensor),
            f"{fit.sizing.bill.pool.held.tokens:,}",
            f"{fit.sizing.requests.mean:,.1f}",
            f"{price:,.2f}" if price is not None else "-",
        )
    console.print(table)
    without = [fit.card.id for fit in cards if fit.sizing is None]
    if without:
        _say(console, "", f"Not with up to eight: {', '.join(without)}.")
