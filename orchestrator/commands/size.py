"""`loadproof size`: the memory bill before a card is rented, and what it holds of a workload."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import httpx
import msgspec

from orchestrator.commands.size_screen import compare_table, fit_tables, screen, sizing_facts
from orchestrator.errors import LoadproofError
from orchestrator.watch.gpu import list_gpus
from stacks.memory.cards import GIB, Card, SizeClass, card_of_size, card_with_memory, find_card
from stacks.memory.checkpoint import FoundModel, read_config, read_model
from stacks.memory.concurrency import Pairs
from stacks.memory.deployed import known_model, weights_of
from stacks.memory.formats import (
    WeightFormat,
    check_support,
    find_kv_format,
    find_weight_format,
    is_online,
    refine_format,
)
from stacks.memory.models import NonsenseError, UnknownFactError, nearest
from stacks.memory.rows import Row, predict_row
from stacks.memory.setup import Setup, check_setup
from stacks.memory.sizing import compare_sizes, fitting_cards, fitting_lengths, with_weights
from stacks.memory.sizing import size as size_up
from stacks.memory.versions import Version, newest_known, parse_version
from workloads.presets import names, preset
from workloads.workload import Workload, clamp_pairs

STACKS = ("vllm", "sglang", "tgi", "llamacpp", "transformers", "lmdeploy", "trtllm")
DEFAULT_WORKLOAD = "azure-conv-2023"
_MOST_ROW_BYTES = 64 * 1024
_MOST_REPLY_BYTES = 4 * 2**20
_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")


class _Options(msgspec.Struct, frozen=True, kw_only=True):
    """The command's options, as given."""

    model: str | None
    card: str | None
    card_memory: float | None
    gpus: int
    pipeline: int
    stack: str
    weights: str | None
    kv_dtype: str
    max_model_len: int | None
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    gpu_memory_utilization: float | None
    kv_cache_memory_bytes: int | None
    enforce_eager: bool
    workload: str | None
    prompt_tokens: int | None
    output_tokens: int | None
    concurrency: float | None


@click.command()
@click.option("--model", help="Hub id, config.json, directory of a checkpoint, or GGUF file.")
@click.option("--card", help="Card, e.g. RTX-4090-24GB or H100; default: the first card of this machine.")
@click.option(
    "--card-memory",
    type=click.FloatRange(min=0, min_open=True),
    metavar="GIB",
    help="Total memory as the runtime reports it.",
)
@click.option("--gpus", type=int, default=1, show_default=True, help="Cards that share the model (tensor parallel).")
@click.option("--pipeline", type=int, default=1, show_default=True, help="Pipeline parallel size.")
@click.option("--stack", default="vllm", show_default=True, metavar="NAME[@VERSION]", help=", ".join(STACKS))
@click.option(
    "--weights", metavar="FORMAT", help="fp16, fp8, int8, awq, gptq, bnb-nf4, ...; default: the checkpoint's."
)
@click.option("--kv-dtype", default="auto", show_default=True, help="auto, fp8, and in llama.cpp q8_0, q4_0, ...")
@click.option("--max-model-len", type=int, metavar="N", help="Longest request; default: the model's own.")
@click.option("--max-num-seqs", type=int, metavar="N", help="Running requests; slots in llama.cpp.")
@click.option("--max-num-batched-tokens", type=int, metavar="N", help="Tokens of a batch.")
@click.option("--gpu-memory-utilization", type=float, metavar="F", help="The stack's memory fraction.")
@click.option("--kv-cache-memory-bytes", type=int, metavar="N", help="A pinned pool, in place of a fraction.")
@click.option("--enforce-eager", is_flag=True, help="No CUDA graphs.")
@click.option("--workload", metavar="PRESET", help=f"Lengths of requests; default: {DEFAULT_WORKLOAD}.")
@click.option("--prompt-tokens", type=int, metavar="N", help="With --output-tokens, in place of a preset.")
@click.option("--output-tokens", type=int, metavar="N")
@click.option("--concurrency", type=float, metavar="C", help="Running requests to predict times for, and to fit.")
@click.option("--compare", metavar="A,B,...", help="Weight formats side by side.")
@click.option("--what-fits", is_flag=True, help="Largest lengths and caps here, and the cards that hold it.")
@click.option("--batch", type=click.Path(path_type=Path), metavar="FILE", help="Rows of starts, one prediction a line.")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
def size(compare: str | None, what_fits: bool, batch: Path | None, as_json: bool, **given: Any) -> None:
    """Predict the memory bill before a card is rented: weights, KV, margin, and what your lengths get out of it.

    \b
    loadproof size --model meta-llama/Llama-3.1-8B-Instruct --card RTX-4090 --compare fp16,fp8,awq
    """
    if batch is not None:
        for line in predict_rows(batch):
            click.echo(line)
        return
    options = _Options(**given)
    setup = make_setup(options)
    lengths = make_lengths(options, setup)
    if compare is not None:
        _tell_comparison(setup, lengths, compare.split(","), options.concurrency, as_json)
    elif what_fits:
        _tell_fits(setup, lengths, options.concurrency, as_json)
    else:
        _tell_sizing(setup, lengths, options.concurrency, as_json)


# --- what is asked ----------------------------------------------------------------------------------------------


class Lengths(NamedTuple):
    """Length pairs, and a name for them."""

    pairs: Pairs
    title: str
    cut_share: float
    """Share of the pairs that max_model_len cuts."""


def _stack(text: str) -> tuple[str, Version | None]:
    name, _, version = text.partition("@")
    name = name.strip().lower().replace("llama.cpp", "llamacpp")
    if name not in STACKS:
        raise UnknownFactError(f"Nothing is known of the stack {name!r}.", f"Nearest: {nearest(name, STACKS)}.")
    if version:
        return name, parse_version(version)
    known = newest_known(name)
    return name, known if known > Version(0) else None


def _fetch_config(hub_id: str) -> FoundModel:
    """The config.json of a hub id. The token goes into the header and nowhere else."""
    base = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    token = os.environ.get("HF_TOKEN")
    headers = {"authorization": f"Bearer {token}"} if token else {}
    body = b""
    with (
        httpx.Client(timeout=10, follow_redirects=True, headers=headers) as client,
        client.stream("GET", f"{base}/{hub_id}/resolve/main/config.json") as reply,
    ):
        reply.raise_for_status()
        for chunk in reply.iter_bytes():
            body += chunk
            if len(body) > _MOST_REPLY_BYTES:
                raise NonsenseError(f"The hub's config.json of {hub_id} is larger than {_MOST_REPLY_BYTES:,} bytes.")
    return read_config(body, hub_id)


def _find_model(name: str | None) -> FoundModel:
    if name is None:
        raise click.UsageError("--model is missing: a hub id, a config.json, a directory or a GGUF file.")
    if Path(name).exists():
        return read_model(Path(name))
    try:
        return known_model(name)
    except UnknownFactError as unknown:
        otherwise = f"{unknown.remedy} Or give a config.json, a directory that holds one, or a GGUF file."
        if not _HUB_ID.match(name):
            raise UnknownFactError(unknown.message, otherwise) from unknown
        try:
            return _fetch_config(name)
        except httpx.HTTPError as error:
            told = f"{otherwise} (The hub was asked too: {type(error).__name__}.)"
            raise UnknownFactError(unknown.message, told) from error


class _FoundCard(NamedTuple):
    card: Card | None
    low_gib: float | None = None
    high_gib: float | None = None
    measured: bool = False


def _card_of_table(name: str) -> Card:
    try:
        return find_card(name)
    except UnknownFactError as error:
        by_hand = "Or give its memory by hand, as the runtime reports it: --card-memory GIB."
        raise UnknownFactError(error.message, f"{error.remedy} {by_hand}") from error


def _find_card(options: _Options, stack: str) -> _FoundCard:
    if options.card_memory is not None:
        name = options.card or "card"
        return _FoundCard(card_with_memory(name, round(options.card_memory * GIB)), measured=True)
    if options.card is not None:
        sized: SizeClass | None = card_of_size(options.card)
        return _FoundCard(*sized) if sized else _FoundCard(_card_of_table(options.card))
    here = [gpu for gpu in list_gpus() if gpu.memory_total_bytes]
    if here:
        try:
            return _FoundCard(find_card(here[0].name))
        except UnknownFactError:
            return _FoundCard(card_with_memory(here[0].name, here[0].memory_total_bytes or 0), measured=True)
    if stack == "llamacpp" or options.kv_cache_memory_bytes:
        return _FoundCard(None)
    raise click.UsageError("--card is missing and this machine has none: name one, e.g. --card RTX-4090-24GB.")


def make_setup(options: _Options) -> Setup:
    """The setup that the options describe. Raises `LoadproofError` with the remedy for what is not known."""
    stack, version = _stack(options.stack)
    found = _find_model(options.model)
    card = _find_card(options, stack)
    weights = weights_of(found, options.weights)
    kv = find_kv_format(options.kv_dtype, weights)
    check_support(weights, kv, stack, version)
    own_bytes = found.weight_bytes if options.weights is None or weights.name == found.weight_format else None
    setup = Setup(
        model=found.model,
        weights=weights,
        kv=kv,
        card=card.card,
        card_low_gib=card.low_gib,
        card_high_gib=card.high_gib,
        total_is_measured=card.measured,
        stack=stack,
        version=version,
        checkpoint=options.model or "",
        online=is_online(options.weights),
        weight_bytes=own_bytes,
        tensor=options.gpus,
        pipeline=options.pipeline,
        memory_fraction=options.gpu_memory_utilization,
        max_model_len=options.max_model_len,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
        eager=options.enforce_eager,
        kv_cache_bytes=options.kv_cache_memory_bytes,
    )
    double = stack == "vllm" and setup.engine == "V0"
    refined = refine_format(weights, options.weights, scales_kept_double=double)
    return check_setup(msgspec.structs.replace(setup, weights=refined))


def _workload(options: _Options) -> Workload | None:
    by_hand = options.prompt_tokens is not None or options.output_tokens is not None
    if by_hand and options.workload is not None:
        raise click.UsageError("--workload and --prompt-tokens/--output-tokens exclude each other.")
    if by_hand:
        if options.prompt_tokens is None or options.output_tokens is None:
            raise click.UsageError("--prompt-tokens and --output-tokens belong together.")
        return None
    name = options.workload or DEFAULT_WORKLOAD
    if name not in names():
        raise UnknownFactError(
            f"There is no workload preset {name!r}.", f"Nearest: {nearest(name, names())}. All: {', '.join(names())}."
        )
    return preset(name)


def make_lengths(options: _Options, setup: Setup) -> Lengths:
    """The length pairs that are asked for, cut to the longest request where there is one."""
    workload = _workload(options)
    if workload is None:
        prompt, output = options.prompt_tokens or 0, options.output_tokens or 0
        if prompt < 1 or output < 1:
            raise NonsenseError(
                f"A request of {prompt} prompt and {output} output tokens cannot be: both must be positive."
            )
        return Lengths(((prompt, output),), f"{prompt:,} tokens in, {output:,} out", 0.0)
    pairs, cut = clamp_pairs(workload.pairs, setup.max_model_len)
    return Lengths([(int(row[0]), int(row[1])) for row in pairs], workload.name, float(cut.mean()))


# --- what is told -----------------------------------------------------------------------------------------------


def _tell(facts: object) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(facts), indent=2).decode())


def _tell_sizing(setup: Setup, lengths: Lengths, concurrency: float | None, as_json: bool) -> None:
    sizing = size_up(setup, lengths.pairs, concurrency)
    if as_json:
        _tell({**sizing_facts(sizing), "workload": lengths.title, "cut_share": lengths.cut_share})
        return
    other = None
    if setup.weights.bits < 16:
        plain = with_weights(setup, find_weight_format("16-bit"))
        other = size_up(plain, lengths.pairs, concurrency)
    screen(sizing, lengths.title, lengths.cut_share, plain=other)


def _formats_of(setup: Setup, asked: Sequence[str]) -> Iterator[WeightFormat]:
    for name in asked:
        weights = find_weight_format(name)
        check_support(weights, setup.kv, setup.stack, setup.version)
        yield refine_format(weights, name, scales_kept_double=setup.stack == "vllm" and setup.engine == "V0")


def _tell_comparison(
    setup: Setup, lengths: Lengths, asked: Sequence[str], concurrency: float | None, as_json: bool
) -> None:
    formats = list(_formats_of(setup, [name for name in asked if name.strip()]))
    if not formats:
        raise click.UsageError("--compare needs formats, e.g. --compare fp16,fp8,awq.")
    setups = [with_weights(setup, weights) for weights in formats]
    sizings = compare_sizes(setups, lengths.pairs, concurrency)
    if as_json:
        facts = [sizing_facts(sizing) for sizing in sizings]
        _tell({"workload": lengths.title, "cut_share": lengths.cut_share, "formats": facts})
        return
    compare_table(sizings, lengths.title, lengths.cut_share)


def _tell_fits(setup: Setup, lengths: Lengths, concurrency: float | None, as_json: bool) -> None:
    here = fitting_lengths(setup, lengths.pairs) if setup.card is not None else None
    cards = fitting_cards(setup, lengths.pairs, concurrency)
    if as_json:
        _tell(
            {
                "max_model_len": here.max_model_len if here else None,
                "max_num_seqs": here.max_num_seqs if here else None,
                "cards": [
                    {
                        "card": fit.card.id,
                        "gpus": fit.sizing.bill.setup.tensor if fit.sizing else None,
                        "price_usd_per_hour": fit.price_usd_per_hour,
                        **({"sizing": sizing_facts(fit.sizing)} if fit.sizing else {}),
                    }
                    for fit in cards
                ],
            }
        )
        return
    fit_tables(setup, here, cards, lengths.title, concurrency)


# --- many rows --------------------------------------------------------------------------------------------------


def _predict_line(number: int, line: bytes) -> bytes:
    """One row's prediction as JSON; a row that cannot be predicted gets the reason."""
    row_id = f"line {number}"
    try:
        if len(line) > _MOST_ROW_BYTES:
            raise NonsenseError(f"The row is longer than {_MOST_ROW_BYTES:,} bytes.")
        row = msgspec.json.decode(line, type=Row)
        row_id = row.row_id
        return msgspec.json.encode(predict_row(row))
    except (LoadproofError, msgspec.MsgspecError) as error:
        return msgspec.json.encode({"row_id": row_id, "error": str(error)})


def predict_rows(path: Path) -> Iterator[str]:
    """A line of JSON for every row of the file (``-``: standard input)."""
    try:
        with sys.stdin.buffer if str(path) == "-" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _predict_line(number, line).decode()
    except OSError as error:
        raise NonsenseError(f"{path} cannot be read: {error.strerror}.", "Give a file of JSON lines.") from error
