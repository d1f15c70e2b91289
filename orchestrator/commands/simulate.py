"""`loadproof simulate`: a card that is not there behind the API of a stack, for plans, tests and trials."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from typing import Any

import click

from orchestrator.errors import HostError
from stacks.memory.cards import GIB, card_with_memory, find_card
from stacks.memory.formats import find_kv_format, find_weight_format
from stacks.memory.models import find_model
from stacks.memory.setup import Setup
from stacks.simulated.card import simulated_card
from stacks.simulated.engine import NOISE
from stacks.simulated.faults import Faults, parse_fault
from stacks.simulated.server import SimulatedServer
from stacks.simulated.startup import out_of_memory, startup

STACKS = ("vllm", "tgi", "sglang", "llamacpp")


@click.command("simulate", context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
@click.option("--stack", type=click.Choice(STACKS), default="vllm", show_default=True)
@click.option("--model", help="Model of the table, e.g. meta-llama/Llama-3.1-8B-Instruct.", required=True)
@click.option("--card", help="Card of the table, e.g. RTX-4090-24GB.", required=True)
@click.option("--weights", "--quantization", "--quantize", default="fp16", metavar="FORMAT", show_default=True)
@click.option("--kv-dtype", "--kv-cache-dtype", "-ctk", default="auto", show_default=True)
@click.option("--max-model-len", "--context-length", "--max-total-tokens", "-c", type=int, metavar="N")
@click.option("--max-num-seqs", "--max-running-requests", "--max-batch-size", "-np", type=int, metavar="N")
@click.option(
    "--max-num-batched-tokens", "--chunked-prefill-size", "--max-batch-prefill-tokens", "-ub", type=int, metavar="N"
)
@click.option("--gpu-memory-utilization", "--mem-fraction-static", "--cuda-memory-fraction", type=float, metavar="F")
@click.option("--max-concurrent-requests", type=click.IntRange(min=1), metavar="N", help="More are answered 429 (TGI).")
@click.option("--served-model-name", "--alias", "--model-path", "--model-id", help="Name that requests carry.")
@click.option("--host", "--hostname", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 = any free one.")
@click.option("--speed", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True, metavar="X")
@click.option("--noise", type=click.FloatRange(0, 1), default=NOISE, help="Deviation of a step's time.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--unified-kv", "-kvu", is_flag=True, help="llama.cpp: one cache for all slots.")
@click.option("--fault", "faults", multiple=True, metavar="NAME[=N]", help="Make something go wrong; may be repeated.")
@click.pass_context
def simulate(ctx: click.Context, /, **given: Any) -> None:
    """Serve a simulated card over HTTP: the stack's API, /metrics, /health and start-up log, at a roofline's times.

    Flags of the real stack are understood or passed over, so that a plan's `command` may name this one.

    \b
    loadproof simulate --stack vllm --model meta-llama/Llama-3.1-8B-Instruct --card RTX-4090-24GB --port 8000
    """
    faults = _faults(given["faults"])
    setup = _setup(given, faults)
    card = simulated_card(setup, admitted=given["max_concurrent_requests"])
    told = startup(card.bill)
    refusal = out_of_memory(setup.stack) if faults.oom_at_start else told.refusal
    for line in (*told.lines, *([refusal] if refusal else [])):
        click.echo(line, err=True)
    if refusal is not None:
        sys.exit(1)
    served = given["served_model_name"] or next((a for a in ctx.args if "/" in a and not a.startswith("-")), None)
    slowdown = faults.slowdown if faults.throttle != 1 or faults.slow_death_s is not None else None
    engine = card.engine(given["seed"], noise=given["noise"], slowdown=slowdown)
    server = SimulatedServer(
        setup.stack,
        served or given["model"],
        engine,
        held_bytes=told.held_bytes,
        speed=given["speed"],
        faults=faults,
    )
    asyncio.run(_serve(server, given["host"], given["port"]))


def _faults(texts: tuple[str, ...]) -> Faults:
    fields: dict[str, Any] = {}
    for text in texts:
        try:
            fields.update(parse_fault(text))
        except ValueError as error:
            raise click.UsageError(str(error)) from error
    return Faults(**fields)


def _setup(given: dict[str, Any], faults: Faults) -> Setup:
    weights = find_weight_format(given["weights"])
    kv_dtype = given["kv_dtype"]
    card = find_card(given["card"])
    if faults.neighbour_gib:
        card = card_with_memory(card.id, card.usable_bytes - round(faults.neighbour_gib * GIB))
    return Setup(
        model=find_model(given["model"]),
        weights=weights,
        kv=find_kv_format(kv_dtype, weights),
        card=card,
        stack=given["stack"],
        max_model_len=given["max_model_len"],
        max_num_seqs=given["max_num_seqs"],
        max_num_batched_tokens=given["max_num_batched_tokens"],
        memory_fraction=given["gpu_memory_utilization"],
        unified_kv=given["unified_kv"] or given["stack"] != "llamacpp",
    )


async def _serve(server: SimulatedServer, host: str, port: int) -> None:
    task = asyncio.current_task()
    assert task is not None
    if os.name == "posix":
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        try:
            await server.serve(host, port)
        except OSError as error:
            raise HostError(
                f"{host}:{port} cannot be listened on: {error.strerror or error}.", "Give another --host, or --port 0."
            ) from error
