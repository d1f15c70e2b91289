"""`loadproof load`: one level of load on any endpoint, for people and for scripts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec

from orchestrator.clock import NS_PER_S, now_ns
from orchestrator.commands.load_level import (
    APIS,
    DEFAULT_REQUESTS,
    DEFAULT_SESSIONS,
    DEFAULT_THINK,
    DEFAULT_TURNS,
    Level,
    Options,
    check,
    level_of,
    wire_of,
)
from orchestrator.commands.loop import run_loop
from orchestrator.errors import HostError, StackError
from orchestrator.host import raise_file_limit
from orchestrator.load.engine import MOST_IN_FLIGHT, Load, Target, open_engine
from orchestrator.load.proxies import proxy_for, without_password
from orchestrator.load.transport import RequestLimits
from orchestrator.records import Failure, LevelRun, RequestRecord, Slo
from workloads.text import PromptMaker

_LIVE_S = 0.5


class Loaded(NamedTuple):
    """A level that was run: its records in the order of their ends."""

    run: LevelRun
    records: list[RequestRecord]


def _slo(_ctx: click.Context, _param: click.Parameter, text: str) -> Slo:
    limits: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = (piece.strip() for piece in part.partition("="))
        try:
            limits[f"{name}_ms"] = limit = float(number)
        except ValueError:
            limit = 0.0
        if name not in ("ttft", "tpot", "gap", "e2e") or not 0 < limit < float("inf"):
            raise click.BadParameter(f"{part!r} is no limit; write e.g. ttft=1000,tpot=50 (ms; also gap and e2e).")
    return Slo(**{"ttft_ms": None, "tpot_ms": None, **limits})  # type: ignore[arg-type]


@click.command("load")
@click.argument("url")
@click.option("--api", type=click.Choice(APIS), default="chat", show_default=True, help="Dialect of the endpoint.")
@click.option("--model", help="Name that the requests carry (chat and completions).")
@click.option("--concurrency", type=click.IntRange(1), metavar="N", help="Closed loop: users; default 1.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), metavar="R", help="Open loop: requests per second.")
@click.option("--arrivals", metavar="LAW", help="With --rate: poisson (default), constant or gamma:CV.")
@click.option("--requests", type=click.IntRange(1), metavar="N", help=f"Requests to send; default {DEFAULT_REQUESTS}.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), metavar="S", help="Instead: send for so long.")
@click.option("--prompt-tokens", metavar="N|LAW", help="Prompt length, e.g. 512 or lognormal:900:1200; default 128.")
@click.option("--output-tokens", metavar="N|LAW", help="Output length; default 64.")
@click.option("--preset", metavar="NAME", help="Instead: lengths of a public trace, e.g. azure-conv-2023.")
@click.option("--trace", metavar="FILE", help="Instead: lengths of a trace of your own (CSV, JSON Lines ...).")
@click.option(
    "--sessions-rate",
    type=click.FloatRange(0, min_open=True),
    metavar="R",
    help="Conversations of several turns: so many begin a second.",
)
@click.option("--sessions", type=click.IntRange(1), metavar="N", help=f"Conversations; default {DEFAULT_SESSIONS}.")
@click.option("--turns", metavar="N|LAW", help=f"Turns of a conversation; default {DEFAULT_TURNS}, or the trace's.")
@click.option("--ramp", type=click.FloatRange(0), default=0.0, metavar="S", help="Admit the users over S seconds.")
@click.option(
    "--think",
    metavar="S|LAW",
    help=f"Pause of a user after an answer; of conversations {DEFAULT_THINK}, or the trace's.",
)
@click.option("--slo", callback=_slo, default="ttft=1000,tpot=50", show_default=True, help="Limits of goodput, ms.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed asks the same in the same order.")
@click.option("--ignore-eos", is_flag=True, help="Force the output length (vLLM, SGLang, llama.cpp ...).")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=600.0, show_default=True, metavar="S")
@click.option("--api-key-env", metavar="NAME", help="Environment variable that holds the key; never the key itself.")
@click.option("--unix-socket", metavar="PATH", help="Connect to this socket; the URL names the host alone.")
@click.option("--proxy", metavar="URL", help="HTTP proxy, or none; default: as HTTP_PROXY and NO_PROXY say.")
@click.option("--insecure", is_flag=True, help="Do not check the server's certificate.")
@click.option("--workers", type=click.IntRange(1, 256), metavar="N", help="Load processes; default: as many as needed.")
@click.option("--records", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.jsonl", help="A line each.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object in place of the table.")
def load(slo: Slo, records: Path | None, as_json: bool, arrivals: str | None, **given: Any) -> None:
    """Load the endpoint at URL with one level, and tell how fast it answers.

    \b
    loadproof load http://127.0.0.1:8000 --model llama --concurrency 16 --requests 200
    loadproof load http://127.0.0.1:8000 --model llama --rate 5 --arrivals gamma:2 --seconds 60
    loadproof load http://127.0.0.1:8000 --model llama --sessions-rate 0.5 --turns uniform:2:8 --think 10
    """
    options = Options(arrivals=arrivals or "poisson", **given)
    check(options, arrivals_given=arrivals is not None)
    level = level_of(options)
    with _lines(records) as keep:
        loaded = run_loop(_run(options, level, keep, live=sys.stderr.isatty() and not as_json))
    from orchestrator.commands.load_screen import facts, screen

    if as_json:
        click.echo(msgspec.json.encode(facts(loaded.run, loaded.records, slo)))
    else:
        screen(loaded.run, loaded.records, slo)
    if loaded.run.cut == _INTERRUPTED:
        raise click.exceptions.Exit(130)
    if failures := [r.failure for r in loaded.records if r.failure is not None]:
        _refuse_if_all_failed(failures, len(loaded.records))


def _refuse_if_all_failed(failures: Sequence[Failure], requests: int) -> None:
    """What a script must not take for a measurement."""
    if len(failures) < requests:
        return
    (kind, detail), number = Counter((f.kind, f.detail) for f in failures).most_common(1)[0]
    raise StackError(
        f"None of the {requests} requests was answered; {number} failed like this: {kind} ({detail or 'no detail'}).",
        "Check the URL, --api and --model.",
        failure_class=kind,
    )


# --- the load ---------------------------------------------------------------------------------------------------

_INTERRUPTED = "interrupted"


async def _run(options: Options, level: Level, keep: Callable[[RequestRecord], None], *, live: bool) -> Loaded:
    """Run the level; Ctrl-C ends it, and what was measured until then is told."""
    key = os.environ[options.api_key_env] if options.api_key_env else None
    records: list[RequestRecord] = []

    def on_record(record: RequestRecord) -> None:
        records.append(record)
        keep(record)

    raise_file_limit(max(level.spec.concurrency, MOST_IN_FLIGHT if level.due else 0) + 256)
    target = Target(
        base_url=options.url.rstrip("/").removesuffix("/v1"),
        wire=wire_of(options),
        model=options.model or "",
        prompts=PromptMaker(form="text"),
        headers={"authorization": f"Bearer {key}"} if key else {},
        limits=RequestLimits(total_s=options.timeout),
        verify=not options.insecure,
        unix_socket=options.unix_socket,
        proxy=None if options.unix_socket else proxy_for(options.url, options.proxy),
    )
    if target.proxy is not None:
        told = without_password(target.proxy)
        click.echo(f"Through the proxy {told}: stamps are taken after the read, not by the kernel.", err=True)
    async with open_engine(target) as engine:
        with _abort_on_interrupt() as abort, _telling(records, workers=level.spec.workers, live=live):
            load = Load(level.spec, level.requests, level.other, level.due)
            run = await engine.run(load, on_record=on_record, abort=abort)
    return Loaded(run, records)


@contextlib.contextmanager
def _abort_on_interrupt() -> Iterator[asyncio.Future[str]]:
    """A future that is done at the first Ctrl-C; the second one interrupts as usual."""
    loop = asyncio.get_running_loop()
    abort: asyncio.Future[str] = loop.create_future()
    if sys.platform == "win32":
        yield abort
        return

    def interrupt() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        abort.set_result(_INTERRUPTED)

    loop.add_signal_handler(signal.SIGINT, interrupt)
    try:
        yield abort
    finally:
        loop.remove_signal_handler(signal.SIGINT)


@contextlib.contextmanager
def _telling(records: list[RequestRecord], *, workers: int, live: bool) -> Iterator[None]:
    """A line on stderr that is written over while the level runs."""
    if not live:
        yield
        return
    started_ns = now_ns()
    by = f"{workers} processes, " if workers > 1 else ""

    async def tell() -> None:
        while True:
            await asyncio.sleep(_LIVE_S)
            passed_s = (now_ns() - started_ns) / NS_PER_S
            tokens = sum(len(record.token_ns) for record in records)
            failed = sum(record.failure is not None for record in records)
            line = (
                f"{passed_s:6.1f} s  {by}{len(records)} ended, {failed} failed, {tokens / passed_s:,.0f} token events/s"
            )
            click.echo(f"\r{line:<70}", nl=False, err=True)

    task = asyncio.get_running_loop().create_task(tell())
    try:
        yield
    finally:
        task.cancel()
        click.echo("\r" + " " * 70 + "\r", nl=False, err=True)


@contextlib.contextmanager
def _lines(path: Path | None) -> Iterator[Callable[[RequestRecord], None]]:
    """Writes records to a file, a line each with every field, as they come."""
    if path is None:
        yield lambda _: None
        return
    try:
        file = path.open("wb")
    except OSError as error:
        raise HostError(f"{path} cannot be written: {error.strerror}.", "Give another file to --records.") from error
    encode = msgspec.json.Encoder().encode

    def write(record: RequestRecord) -> None:
        file.write(encode(msgspec.structs.asdict(record)) + b"\n")

    with file:
        yield write
