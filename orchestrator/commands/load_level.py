"""What `loadproof load` is asked: options that make sense together, and the level that they mean."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import click
import msgspec

from orchestrator.errors import HostError, LoadproofError
from orchestrator.host import usable_cpus
from orchestrator.load.capacity import USUAL_TOKENS_PER_S, expected, workers_needed
from orchestrator.load.proxies import proxy_for
from orchestrator.records import LevelSpec, Request
from stacks.base import Wire
from stacks.openai import ChatWire, Dialect, TextCompletionsWire
from workloads.arrivals import arrivals_named, schedule
from workloads.workload import Workload

APIS = ("chat", "completions", "tgi", "llamacpp")
DEFAULT_REQUESTS = 100
DEFAULT_SESSIONS = 20
DEFAULT_LENGTHS = ("128", "64")
DEFAULT_TURNS, DEFAULT_THINK = "uniform:1:5", "exponential:5"
_DRAW = 1000


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked, as far as the load itself needs it."""

    url: str
    api: str
    model: str | None
    concurrency: int | None
    rate: float | None
    arrivals: str
    requests: int | None
    seconds: float | None
    prompt_tokens: str | None
    output_tokens: str | None
    preset: str | None
    trace: str | None
    sessions_rate: float | None
    sessions: int | None
    turns: str | None
    ramp: float
    think: str | None
    seed: int
    ignore_eos: bool
    api_key_env: str | None
    unix_socket: str | None
    proxy: str | None
    insecure: bool
    timeout: float
    workers: int | None

    @property
    def open_loop(self) -> bool:
        """Times count from when a request was due."""
        return self.rate is not None or self.sessions_rate is not None


def _check_url(text: str) -> None:
    try:
        url = urlsplit(text)
        sound = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:  # a port over 65535, half of an IPv6 address
        sound = False
    if not sound:
        raise click.UsageError(f"{text!r} is no URL of a server: write e.g. http://127.0.0.1:8000.")
    if url.username or url.password:
        raise click.UsageError("The URL holds a key or password: export it and name the variable with --api-key-env.")


def check(options: Options, *, arrivals_given: bool) -> None:
    """Refuse what contradicts itself, in one sentence with the remedy."""
    _check_url(options.url)
    is_open, talks = options.open_loop, options.sessions_rate is not None
    about_lengths = options.prompt_tokens or options.output_tokens
    conflicts = (
        (
            options.concurrency and options.rate,
            "--concurrency (closed loop) and --rate (open loop) exclude each other.",
        ),
        (
            talks and (options.concurrency or options.rate),
            "--sessions-rate is a load of its own: leave --concurrency and --rate away.",
        ),
        (options.requests and options.seconds, "--requests and --seconds exclude each other: give one of them."),
        (talks and options.requests, "A conversation has several requests: give --sessions N, not --requests."),
        (options.sessions and options.seconds, "--sessions and --seconds exclude each other: give one of them."),
        ((options.sessions or options.turns) and not talks, "--sessions and --turns need --sessions-rate R."),
        (arrivals_given and not is_open, "--arrivals belongs to an open loop: give --rate or --sessions-rate too."),
        (is_open and options.ramp, "--ramp belongs to a closed loop, not to a rate."),
        (options.rate and options.think, "--think belongs to a closed loop or to --sessions-rate, not to --rate."),
        (
            (options.preset or options.trace) and about_lengths,
            f"{'--preset' if options.preset else '--trace'} and --prompt-tokens/--output-tokens exclude each other.",
        ),
        (options.preset and options.trace, "--preset and --trace exclude each other."),
        (options.trace and options.turns, "--turns describes turns, and --trace has its own: give one of them."),
        (
            options.api in ("chat", "completions") and not options.model,
            f"--model is missing: the name that the server serves ({options.url.rstrip('/')}/v1/models lists it).",
        ),
        (
            options.api_key_env and not os.environ.get(options.api_key_env),
            f"The environment variable {options.api_key_env} is empty or not set: export the key in it.",
        ),
    )
    for wrong, sentence in conflicts:
        if wrong:
            raise click.UsageError(sentence)
    try:
        proxy_for(options.url, options.proxy)
    except HostError as error:
        raise click.UsageError(f"{error.message} {error.remedy}") from error


class Level(NamedTuple):
    """The level as it will be run."""

    spec: LevelSpec
    due: tuple[int, ...]
    """Open loop: when each request is due, ns after the start."""
    requests: Iterator[Request]
    other: Iterator[Request]
    """Closed loop: requests of the ramp, which are not measured."""


def level_of(options: Options) -> Level:
    """The level that the options ask for; UsageError for laws, presets and traces that are none."""
    try:
        return _talks(options) if options.sessions_rate is not None else _plain(options)
    except LoadproofError as error:
        raise click.UsageError(str(error)) from error
    except ValueError as error:
        raise click.UsageError(f"{error}.") from error


def _plain(options: Options) -> Level:
    requests = options.requests or (None if options.seconds else DEFAULT_REQUESTS)
    workload = _lengths(options)
    due = _due(options, options.rate, requests) if options.rate is not None else ()
    size = requests or len(due) or _DRAW
    streams = float(options.concurrency or 1)
    if options.rate is not None:  # Little's law, at the usual speed
        streams = options.rate * workload.stats().output_mean / USUAL_TOKENS_PER_S
    spec = msgspec.structs.replace(
        _spec(options, requests or len(due) or 1, streams),
        concurrency=0 if options.rate is not None else options.concurrency or 1,
        rate_per_s=options.rate,
        think_seconds=_pause(options.think),
    )
    return Level(
        spec, due, _draws(workload, options.seed, "measured", size), _draws(workload, options.seed, "ramp", _DRAW)
    )


def _talks(options: Options) -> Level:
    """Conversations that begin at a rate, and whose turns wait for the answer before and a thought."""
    from workloads.sessions import seconds_law, synthetic_sessions, trace_sessions
    from workloads.synthetic import distribution

    assert options.sessions_rate is not None
    number = options.sessions or (None if options.seconds else DEFAULT_SESSIONS)
    due = _due(options, options.sessions_rate, number)
    if options.trace is not None:
        from workloads.traces import read_rows

        path = Path(options.trace)
        think = seconds_law(options.think) if options.think else None
        drawn = list(itertools.islice(trace_sessions(read_rows(path)[1], think, options.seed, path.name), len(due)))
    else:
        turns, think = distribution(options.turns or DEFAULT_TURNS), seconds_law(options.think or DEFAULT_THINK)
        drawn = synthetic_sessions(_lengths(options), turns, think, options.seed, len(due))
    requests = [request for first in drawn for request in (first, *first.later)]
    each_s = sum(request.output_tokens for request in requests) / len(due) / USUAL_TOKENS_PER_S
    spec = msgspec.structs.replace(
        _spec(options, len(requests), options.sessions_rate * each_s),
        rate_per_s=options.sessions_rate * len(requests) / len(due),
        sessions_per_s=options.sessions_rate,
    )
    return Level(spec, due, iter(drawn), iter(()))


def _due(options: Options, rate: float, number: int | None) -> tuple[int, ...]:
    due = schedule(arrivals_named(options.arrivals)(rate, options.seed), requests=number, seconds=options.seconds)
    if not due:
        raise ValueError(f"No request is due in {options.seconds:g} s at {rate:g} a second: ask for more")
    return due


def _spec(options: Options, requests: int, streams: float) -> LevelSpec:
    """What all kinds of load have in common; `streams` are expected at once."""
    return LevelSpec(
        concurrency=0,
        purpose="load",
        seed=options.seed,
        requests=requests,
        min_seconds=options.seconds or 0.0,
        max_seconds=86_400.0,
        ramp_seconds=options.ramp,
        warmup_generations=0,
        warmup_seconds=0.0,
        filler_seconds=0.0,
        deadline_seconds=options.timeout,
        workers=options.workers or workers_needed(expected(streams), usable_cpus()),
    )


def _pause(text: str | None) -> float:
    """A user's pause in a closed loop."""
    try:
        pause = 0.0 if text is None else float(text)
    except ValueError:
        pause = -1.0
    if not 0 <= pause < 86_400:
        raise ValueError(f"{text!r} is no pause of a user: write seconds (a law of them needs --sessions-rate)")
    return pause


def _lengths(options: Options) -> Workload:
    """Where the lengths come from. ValueError for what is not known."""
    if options.preset is not None:
        from workloads.presets import preset

        return preset(options.preset)
    if options.trace is not None:
        from workloads.traces import read_trace

        return read_trace(Path(options.trace))
    from workloads.synthetic import synthetic

    prompt, output = options.prompt_tokens or DEFAULT_LENGTHS[0], options.output_tokens or DEFAULT_LENGTHS[1]
    return synthetic(prompt=prompt, output=output, seed=options.seed)


def _draws(workload: Workload, seed: int, part: str, size: int) -> Iterator[Request]:
    """Stratified draws, one after another, each with a seed of its own: no prompt comes twice."""
    for number in itertools.count():
        digest = hashlib.sha256(f"{seed}/{part}/{number}".encode()).digest()
        yield from workload.draw(int.from_bytes(digest[:6]), size)


def wire_of(options: Options) -> Wire:
    dialect = Dialect(length="ignore_eos" if options.ignore_eos else "none")
    if options.api == "chat":
        return ChatWire(dialect)
    if options.api == "completions":
        return TextCompletionsWire(dialect)
    if options.api == "tgi":
        from stacks.tgi import GenerateStreamWire

        return GenerateStreamWire()
    from stacks.llamacpp import CompletionWire

    return CompletionWire(cache_prompt=options.sessions_rate is not None)  # reuse of prefixes is then under test
