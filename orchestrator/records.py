"""What crosses a room or lands on disk: immutable records and their JSON codec.

Times are integer nanoseconds of CLOCK_MONOTONIC. Sizes are bytes. An absent value is ``None``: "not reported", never 0.
Readers ignore unknown keys (msgspec's default) and refuse a newer `SCHEMA`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import msgspec

SCHEMA = 1
"""Version of the run directory's format. Raised when an old reader would misread a new file."""


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of every record: made once, never changed."""


# --- what is asked ----------------------------------------------------------------------------------------------


class Request(Record, frozen=True, kw_only=True):
    """One request to be sent: a whole (prompt, output) pair of a workload, not yet a prompt."""

    seq: int
    """Position in its list, from 0."""
    prompt_tokens: int
    output_tokens: int
    prompt_seed: int
    """Seeds the prompt's content, so that no two requests of a run share a prefix."""
    clamped: bool = False
    """The pair was cut to the context limit."""
    offset_s: float | None = None
    """Open loop: seconds after the start at which it is due."""
    session: str | None = None
    """The conversation that it belongs to."""
    turn: int = 0
    """Its place in the conversation, from 0."""
    think_s: float = 0.0
    """Due so long after the answer to the turn before."""
    later: tuple[Request, ...] = ()
    """Of a first turn: the turns after it."""


class Prompt(Record, frozen=True, kw_only=True):
    """The content of a request: token ids where the stack takes them, else text."""

    text: str | None = None
    token_ids: tuple[int, ...] | None = None


class Slo(Record, frozen=True, kw_only=True):
    """What a request must keep to be good, and what share must be good. Limits in ms; None = not limited."""

    ttft_ms: float | None = 1000.0
    tpot_ms: float | None = 50.0
    gap_ms: float | None = None
    e2e_ms: float | None = None
    attainment: float = 0.95
    """Target share of good requests among the offered ones."""
    error_budget: float = 0.001
    """Largest share of failed requests."""


# --- what one request did ---------------------------------------------------------------------------------------

FailureKind = Literal[
    "connect",
    "refused",
    "reset",
    "tls",
    "status",
    "timeout",
    "error_in_stream",
    "truncated",
    "short_output",
    "protocol",
    "cancelled",
    "dropped",
]


class Failure(Record, frozen=True, kw_only=True):
    """Why a request failed. A failed request is data, not an exception."""

    kind: FailureKind
    detail: str = ""
    """At most 300 characters: an excerpt of the body, which limit ran out, ..."""
    status: int | None = None


Phase = Literal["ramp", "warmup", "measured", "filler"]
Stamp = Literal["kernel", "user"]


class RequestRecord(Record, frozen=True, kw_only=True, gc=False):
    """One finished request. Every other number is derived from these (see `orchestrator.metrics`)."""

    seq: int
    """Issue order within the level, from 0, over all phases."""
    request_id: str
    phase: Phase
    due_ns: int
    sent_ns: int
    end_ns: int
    """When the outcome was known: end of the body, or the failure."""
    asked_in: int
    asked_out: int
    first_byte_ns: int | None = None
    first_ns: int | None = None
    """Arrival of the first event with non-empty text, reasoning text or token ids."""
    first_answer_ns: int | None = None
    """Arrival of the first event with answer (not reasoning) tokens, where that differs from `first_ns`."""
    last_ns: int | None = None
    in_tokens: int | None = None
    out_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    tokens_from: Literal["usage", "token_ids", "none"] = "none"
    finish: str | None = None
    failure: Failure | None = None
    stamp: Stamp = "user"
    clamped: bool = False
    user: int | None = None
    session: str | None = None
    turn: int = 0
    token_ns: tuple[int, ...] = ()
    """Arrival of every token event (an event may carry several tokens)."""
    token_counts: tuple[int, ...] = ()
    """Tokens in each event of `token_ns`; empty = one each."""
    largest_gap_ns: int | None = None
    """Longest time between two token events, where `token_ns` does not hold them all (`orchestrator.folded`)."""


# --- a level ----------------------------------------------------------------------------------------------------

Purpose = Literal[
    "baseline",
    "sentinel",
    "ladder",
    "bracket",
    "bisect",
    "confirm",
    "confirm-break",
    "load",
    "prefill",
    "rate",
    "confirm-rate",
    "replay",
    "recovery",
    "soak",
    "pair",
]


class LevelSpec(Record, frozen=True, kw_only=True):
    """One closed-loop level, as it will be run (method: ramp, warm-up, measured, filler, drain)."""

    concurrency: int
    """c: virtual users, each with exactly one request in flight."""
    purpose: Purpose
    seed: int
    requests: int
    """N: least number of measured requests; a multiple of 10."""
    min_seconds: float
    """The measured part lasts at least this long (count and time, both)."""
    max_seconds: float
    """From the start of the level; then the measured set is closed and the level is cut."""
    ramp_seconds: float
    """User i starts at i * ramp_seconds / c."""
    warmup_generations: float
    """Discard until this many times c requests have completed ..."""
    warmup_seconds: float
    """... and this long has passed since the end of the ramp."""
    filler_seconds: float
    """Unmeasured requests keep the load up for at most this long after the last measured issue."""
    deadline_seconds: float
    """A request unfinished this long after it was sent has failed (timeout)."""
    lengths_seed: int | None = None
    """Seed of the lengths where they are those of an earlier level; the prompts are its own all the same."""
    think_seconds: float = 0.0
    """A user's pause between an answer and its next request."""
    rate_per_s: float | None = None
    """Open loop: mean rate at which requests are due; `concurrency` is 0 then, and of those due the last `requests` are
    measured."""
    arrivals: str = ""
    """Open loop: how they come: ``poisson``, or what is replayed."""
    drain_seconds: float | None = None
    """Open loop: what is unfinished so long after the last request was due has failed; None = no such limit."""
    sessions_per_s: float | None = None
    """Partly open: mean rate at which conversations begin; `rate_per_s` is then that of their turns."""
    looks: tuple[int, ...] = ()
    """Numbers of measured requests at which S1 is judged by its bounds, the last one N; the first look that decides
    ends the level. Empty = S1 is judged by the observed share of all N."""
    alpha: float = 0.05
    """Error probability of one side that the looks share."""
    workers: int = 1
    """Processes that load."""

    @property
    def is_open(self) -> bool:
        """Requests come when they are due; their times count from then."""
        return self.rate_per_s is not None

    def measured_in_all(self, issued: int, seconds: float) -> int | None:
        """How many requests are measured if the level is not cut, once so many measured ones have been issued and so
        long after the first of them; None = that is still open.

        A closed level goes on for `min_seconds` however many that makes. From then on it closes with the whole ten
        that has been begun (if a whole ten was asked for, so that it cuts into equal batches), if that is enough.
        """
        if self.is_open:
            return self.requests if self.sessions_per_s is None else None
        if seconds < self.min_seconds:
            return None
        step = 1 if self.requests % 10 else 10
        return max(self.requests, -(-issued // step) * step)


StopEarly = Callable[[RequestRecord, int, int | None], str | None]
"""Asked after each measured record, with its place among the measured ones in issue order, from 0, and how many of them
there will be (see `LevelSpec.measured_in_all`): a reason ends the level."""


def never(_record: RequestRecord, _place: int, _of: int | None) -> str | None:
    """A level that ends by its own rules alone."""
    return None


class ClientHealth(Record, frozen=True, kw_only=True):
    """loadproof watching itself during a level."""

    loop_lag_ms_p99: float
    send_lag_ms_p99: float
    cpu_s: float
    """CPU seconds of loadproof's load process(es) during the level."""
    wall_s: float
    kernel_share: float
    """Share of requests whose stamps come from the kernel."""
    read_backlog_ms_p99: float | None = None
    """How long bytes had waited in their socket when they were read; None = not told."""
    workers: int = 1
    """Processes that loaded; lags are those of the worst of them."""
    sent: int = 0
    """Requests that were sent."""
    cores: float | None = None
    """CPUs that loadproof may use on this machine."""
    lost: str | None = None
    """Which worker died or did not answer any more, and how."""


class LevelRun(Record, frozen=True, kw_only=True):
    """What the load engine measured at one level, before anything is judged."""

    spec: LevelSpec
    started_ns: int
    window_start_ns: int | None
    """Issue of the first measured request (t_a); None if none was issued."""
    window_end_ns: int | None
    """Issue of the last measured request (t_b)."""
    ended_ns: int
    in_flight_integral_s: float
    """Integral of the issuing loop's own in-flight counter over (t_a, t_b], request-seconds."""
    health: ClientHealth
    cut: str | None = None
    """Why the level ended early; None if it ran as specified."""
    undrained: int = 0
    """Measured requests still unfinished when the drain ended (they are records of kind timeout or cancelled)."""


class Percentiles(Record, frozen=True, kw_only=True):
    """Nearest-rank percentiles over all offered requests, failures as +inf. None = no value (see `note`)."""

    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    mean: float | None = None
    """Mean of the finite values."""
    n: int = 0
    n_finite: int = 0


class LevelStats(Record, frozen=True, kw_only=True):
    """Every number of a level, made by `orchestrator.metrics.level_stats` from its records."""

    offered: int
    good: int
    failed: int
    failures: dict[str, int] = {}
    """Failed measured requests by failure kind."""
    attainment: float
    slo_use: float | None = None
    """What the request at the target's percentile used of its tightest limit, 1 = all of it; None = more failed."""
    ttft_ms: Percentiles
    tpot_ms: Percentiles
    itl_ms: Percentiles
    e2e_ms: Percentiles
    window_s: float
    output_tokens_per_s: float | None
    """Tokens of every phase with a stamp inside the steady window, over its length."""
    prompt_tokens_per_s: float | None
    requests_per_s: float | None
    goodput_per_s: float | None
    mean_in_flight: float | None
    mean_in_flight_audit: float | None
    """The same from the records: sum of overlaps with the window, over its length."""
    mean_in_tokens: float | None
    mean_out_tokens: float | None
    clamped: int = 0
    cached_tokens: int | None = None
    drain_s: float | None = None
    """From the last request that was sent, of any phase, until nothing was under way by the engine's own count too."""
    drained_late: int = 0
    """Measured requests that finished after the load was no longer held."""
    preemptions: float | None = None
    """Counter difference over the steady window, where the engine reports it."""
    kv_use_mean: float | None = None
    kv_use_max: float | None = None
    running_mean: float | None = None
    running_max: float | None = None
    waiting_mean: float | None = None
    kv_use_p99: float | None = None
    """Of an open level, as the next one."""
    in_flight_p95: float | None = None
    """In-flight that was not exceeded in 95 % of the time of the steady window."""
    in_flight_sampled: float | None = None
    """Of an open level: mean in flight at the moments at which the engine told what runs."""
    memory_peak_bytes: int | None = None
    """Largest memory of the server seen during the level: GPU memory, else container memory, else PSS of its tree."""
    memory_source: str | None = None


CriterionVerdict = Literal["PASS", "FAIL", "UNDECIDED", "not reported"]


class Criterion(Record, frozen=True, kw_only=True):
    """One criterion of a level: its value against its limit, with the bounds that were used."""

    id: str
    """``S1`` ... ``S7`` of METHOD.md, or ``hard`` for a hard break."""
    name: str
    verdict: CriterionVerdict
    value: float | None = None
    limit: float | None = None
    lower: float | None = None
    upper: float | None = None
    binding: bool = True
    """False: a warning or information, which cannot fail the level."""
    note: str = ""


class LevelVerdict(Record, frozen=True, kw_only=True):
    """VALID or INVALID of the measurement; PASS, FAIL or UNDECIDED of the level."""

    valid: bool
    invalid: tuple[str, ...] = ()
    """Reasons I1 to I6, each one sentence with its remedy."""
    flags: tuple[str, ...] = ()
    verdict: Literal["PASS", "FAIL", "UNDECIDED"]
    criteria: tuple[Criterion, ...] = ()
    hard_break: str | None = None
    """Class of the hard break, e.g. ``out of memory``, ``server died``, ``hang``."""
    good_per_batch: tuple[int, ...] = ()
    """Good requests in each of ten equal batches in issue order, of those that S1 was judged by; runs are pooled by
    these. Empty = too few requests."""
    batch: int = 0
    """m: requests of a batch."""


# --- what is watched --------------------------------------------------------------------------------------------


class Sample(Record, frozen=True, kw_only=True, gc=False):
    """Values read from one source at one time. A value that was not reported is absent.

    Sources: ``gpu:<uuid>``, ``host``, ``tree`` (process tree of the server), ``container``, ``engine``, ``client``, and
    ``log`` (what a starting server's log had told of itself by then, under the names of `ServerRecord.facts`).
    Names carry their unit: ``memory_used_bytes``, ``power_w``, ``kv_use`` (0 to 1), ``running``, ``waiting``,
    ``preemptions_total``, ``output_tokens_total``, ``pss_bytes``, ...
    """

    at_ns: int
    source: str
    values: dict[str, float]


class Neighbour(Record, frozen=True, kw_only=True):
    """A process that held memory on a card of ours before we started anything there."""

    gpu: str
    """UUID of the card."""
    pid: int
    name: str = ""
    """As this machine calls the process; empty if it cannot be seen from here."""
    memory_bytes: int | None = None
    """None: the driver does not tell."""


# --- a server ---------------------------------------------------------------------------------------------------


class ServerRecord(Record, frozen=True, kw_only=True):
    """What was started, exactly: enough to repeat it, and to find it again if we die. No secret values."""

    deployment: str
    stack: str
    launch: Literal["docker", "process", "external", "simulated"]
    base_url: str
    """Where it answers; ``simulated:CARD`` for a server in virtual time, which nobody can reach."""
    argv: tuple[str, ...] = ()
    env: dict[str, str] = {}
    secret_env: tuple[str, ...] = ()
    """Names only."""
    context_tokens: int | None = None
    """Longest request that it was told to serve; less than the plan's where the start was shrunk."""
    pid: int | None = None
    pid_started: float | None = None
    """Start time of the pid as the kernel tells it (psutil create_time, s since the epoch): pids are reused."""
    container_id: str | None = None
    image: str | None = None
    image_digest: str | None = None
    version: str | None = None
    """The engine's own version, as it reports it."""
    model_listed: str | None = None
    ready_s: float | None = None
    """Seconds from start to the first completed request."""
    facts: dict[str, float | str] = {}
    """What the engine's log says of itself: weights_bytes, kv_bytes, kv_tokens, graphs_bytes, kernel, ..."""


class ServerFailure(Record, frozen=True, kw_only=True):
    """A server that did not come up, or died. A result."""

    failure_class: str
    message: str
    remedy: str = ""
    evidence: tuple[str, ...] = ()
    exit_code: int | None = None
    oom_killed: bool | None = None
    fits_tokens: int | None = None
    """The context that the server says would fit."""


# --- what was predicted ------------------------------------------------------------------------------------------


class PredictedItem(Record, frozen=True, kw_only=True):
    """A line of the predicted bill, bytes on one card (or of the server, without one), with its 90 % interval."""

    name: str
    value_bytes: int
    low_bytes: int
    high_bytes: int
    why: str = ""


class Predicted(Record, frozen=True, kw_only=True):
    """The memory bill as it was predicted before anything was started (`stacks.memory`), and what it holds of the
    workload."""

    key: str
    """Engine, version, card and number of ranks: what a start of the same key teaches about this one."""
    basis: str
    """How sure the pool is, in words."""
    items: tuple[PredictedItem, ...]
    total: PredictedItem | None = None
    """What the server holds once it has worked; None where a part of it is not modelled."""
    kv_bytes_per_token: float
    kv_tokens: int | None = None
    kv_tokens_low: int | None = None
    kv_tokens_high: int | None = None
    requests: float | None = None
    """Running requests of the workload's lengths that fill the KV pool on average."""
    requests_low: float | None = None
    requests_high: float | None = None
    cap: int | None = None
    """The engine's own cap on running requests (slots, max_num_seqs)."""
    limit: str = ""
    """Which of the two binds first, by name."""


# --- what the plan asked for ------------------------------------------------------------------------------------


class Cost(Record, frozen=True, kw_only=True):
    """What an hour costs, as the plan says it."""

    gpu_hour: float | None = None
    """Of one card."""
    currency: str = "USD"
    hour: dict[str, float] = {}
    """Of a whole deployment, by its name: where it is not its cards times `gpu_hour`."""


class Demand(Record, frozen=True, kw_only=True):
    """What a launch needs; None = it does not say."""

    users: int | None = None
    rate_per_s: float | None = None
    """Mean rate of the expected traffic, requests per second."""


class AskedCell(Record, frozen=True, kw_only=True):
    """One cell as the plan resolved it: what a reader must know without the plan's models, traces and secrets."""

    cell: str
    deployment: str
    workload: str
    stack: str = ""
    launch: str = ""
    model: str = ""
    quantization: str | None = None
    kv_dtype: str = "auto"
    dtype: str = "auto"
    context_tokens: int | None = None
    max_concurrency: int | None = None
    gpus: tuple[str, ...] = ()
    tensor_parallel: int = 1
    card: str = ""
    """The simulated card; "" = a real machine."""
    simulated: bool = False
    """No card was there: times and memory are those of a model of it."""
    workload_title: str = ""
    workload_source: str = ""
    mean_prompt_tokens: float | None = None
    mean_output_tokens: float | None = None
    frontier_prompt_tokens: int | None = None
    """Length of every prompt of a cell on the frontier; None = the cell is not on it."""
    lengths_forced: bool = True
    """The dialect can demand an exact output length."""
    signable: bool = True
    """False: constant lengths, which no service has."""
    search: dict[str, Any] = {}
    """`orchestrator.judge.search.SearchRules` as plain values."""
    notes: tuple[str, ...] = ()
    """What this combination of stack and settings cannot show, one sentence each."""
    predicted: Predicted | None = None
    unpredicted: str = ""
    """Why nothing was predicted, one sentence."""


Side = Literal["a", "b"]


class Turn(Record, frozen=True, kw_only=True):
    """One side of a pair, on a server of its own."""

    pair: int
    """From 1."""
    side: Side


class AskedPairs(Record, frozen=True, kw_only=True):
    """Two cells to be compared in pairs of levels, as the plan says it. The events of all its servers carry `id`."""

    id: str
    a: str
    """Cell."""
    b: str
    order: tuple[Turn, ...]
    """In blocks of two pairs, ABBA or BAAB."""
    concurrency: int | None = None
    """None: the highest that both cells hold."""
    throughput_margin: float
    """Within which two throughputs count as no different; a share."""
    ttft_margin: float
    """The same of p95 TTFT."""


class Asked(Record, frozen=True, kw_only=True):
    """The question of a run, fixed before its first level."""

    title: str = ""
    slo: Slo = Slo()
    cells: tuple[AskedCell, ...] = ()
    comparisons: tuple[AskedPairs, ...] = ()
    budget_minutes: float | None = None
    demand: Demand = Demand()
    cost: Cost = Cost()


# --- the journal ------------------------------------------------------------------------------------------------


class Event(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="event"):
    """One line of journal.jsonl. A thing happened if and only if its line is there."""


class RunOpened(Event, frozen=True, kw_only=True, tag="run-opened"):
    schema: int
    at_ns: int
    run_id: str
    wall_time: str
    """ISO 8601 with offset; the only wall time of a run, with the `at_ns` that stands for the same moment."""
    loadproof_version: str
    plan_sha256: str
    plan_path: str = ""
    """Where the plan lay: relative paths in it start there."""
    overrides: tuple[str, ...] = ()
    host: dict[str, str | float | None] = {}
    asked: Asked | None = None
    pid: int
    pid_started: float
    resumed: bool = False


class CellStarted(Event, frozen=True, kw_only=True, tag="cell-started"):
    at_ns: int
    cell: str
    fingerprint: str
    attempt: int
    neighbours: tuple[Neighbour, ...] = ()
    turn: Turn | None = None
    """Of a comparison: what this server is for."""


class ServerStarting(Event, frozen=True, kw_only=True, tag="server-starting"):
    """Written before anything is started: if we die now, this is how the orphan is found."""

    at_ns: int
    cell: str
    attempt: int
    server: ServerRecord


class ServerReady(Event, frozen=True, kw_only=True, tag="server-ready"):
    at_ns: int
    cell: str
    attempt: int
    server: ServerRecord


class ServerStopped(Event, frozen=True, kw_only=True, tag="server-stopped"):
    at_ns: int
    cell: str
    attempt: int
    failure: ServerFailure | None = None


class LevelStarted(Event, frozen=True, kw_only=True, tag="level-started"):
    at_ns: int
    cell: str
    attempt: int
    level: int
    spec: LevelSpec


class LevelCommitted(Event, frozen=True, kw_only=True, tag="level-committed"):
    """A level is measured: never again. The byte range names its records in the attempt's requests.jsonl."""

    at_ns: int
    cell: str
    attempt: int
    level: int
    run: LevelRun
    stats: LevelStats
    verdict: LevelVerdict
    offset: int
    length: int
    workload_sha256: str
    """Hash of the list of requests that was demanded (seq, prompt tokens, output tokens, prompt seed)."""


class CellFinished(Event, frozen=True, kw_only=True, tag="cell-finished"):
    at_ns: int
    cell: str
    outcome: Literal["measured", "cut", "failed"]
    """``cut``: the time budget ended the search before its last step."""
    failure: ServerFailure | None = None
    note: str = ""


class RunClosed(Event, frozen=True, kw_only=True, tag="run-closed"):
    at_ns: int
    outcome: Literal["complete", "interrupted", "failed"]
    note: str = ""


AnyEvent = (
    RunOpened
    | CellStarted
    | ServerStarting
    | ServerReady
    | ServerStopped
    | LevelStarted
    | LevelCommitted
    | CellFinished
    | RunClosed
)
"""Every journal line, tagged by its key ``event``."""
