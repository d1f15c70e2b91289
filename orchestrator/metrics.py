"""Every number, defined once, for the search and for the report. METHOD.md says the same in prose.

One request (times are integer ns of the monotonic clock, as stamped on arrival):

* TTFT = first token - sent; E2E = last token - sent; the ``_due`` twins start at *due* instead.
* TPOT = (last token - first token) / (output tokens - 1); undefined for one output token, whose limit counts as met.
* ITL: an event of j tokens after a gap g gives j values g/j. The largest gap is the longest g.
* Output tokens come from the server's usage record or from token ids, never from counting events.
* A failed request has no such value and counts as +inf in every percentile.
* Good = not failed, and every limit of the SLO kept.

A level: the steady window (t_a, t_b] runs from the issue of the first measured request to the issue of the last one.
Rates are what happened inside it, over all phases, divided by its length. Percentiles are nearest rank over all
measured requests.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from orchestrator.clock import NS_PER_MS, NS_PER_S, milliseconds, seconds
from orchestrator.records import LevelRun, LevelStats, Percentiles, RequestRecord, Sample, Slo

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Limit = Literal["failure", "ttft", "tpot", "gap", "e2e"]

INF = math.inf


# --- one request ------------------------------------------------------------------------------------------------


def ttft_ns(r: RequestRecord) -> int | None:
    """First token - sent. None if the request failed."""
    return None if r.failure is not None or r.first_ns is None else r.first_ns - r.sent_ns


def e2e_ns(r: RequestRecord) -> int | None:
    """Last token - sent. None if the request failed."""
    return None if r.failure is not None or r.last_ns is None else r.last_ns - r.sent_ns


def ttft_due_ns(r: RequestRecord) -> int | None:
    """First token - due: what a caller waited, a late send included. None if the request failed."""
    return None if r.failure is not None or r.first_ns is None else r.first_ns - r.due_ns


def e2e_due_ns(r: RequestRecord) -> int | None:
    """Last token - due. None if the request failed."""
    return None if r.failure is not None or r.last_ns is None else r.last_ns - r.due_ns


def tpot_ns(r: RequestRecord) -> float | None:
    """(Last - first token) / (output tokens - 1). None if failed, if the count is not known, or for one token."""
    if r.failure is not None or r.first_ns is None or r.last_ns is None or r.out_tokens is None or r.out_tokens < 2:
        return None
    return (r.last_ns - r.first_ns) / (r.out_tokens - 1)


def itl_ns(r: RequestRecord) -> list[float]:
    """Inter-token latencies: j values g/j for an event of j tokens after a gap g. Empty if the request failed."""
    if r.failure is not None:
        return []
    counts = r.token_counts or (1,) * len(r.token_ns)
    gaps = (after - before for before, after in itertools.pairwise(r.token_ns))
    return [gap / count for gap, count in zip(gaps, counts[1:], strict=True) for _ in range(count)]


def largest_gap_ns(r: RequestRecord) -> int | None:
    """Longest time between two successive token events; 0 for a single one. None if the request failed."""
    if r.failure is not None or not r.token_ns:
        return None
    if r.largest_gap_ns is not None:
        return r.largest_gap_ns
    return max((after - before for before, after in itertools.pairwise(r.token_ns)), default=0)


def broken_limits(r: RequestRecord, slo: Slo, *, from_due: bool = False) -> tuple[Limit, ...]:
    """What of the SLO a request broke, in the order failure, ttft, tpot, gap, e2e; empty = good.

    `from_due` judges the schedule-based twins (open loop). A value that cannot be told breaks its limit: a request is
    good only if that was seen. A TPOT that is undefined because there is one output token is kept.
    """
    if r.failure is not None:
        return ("failure",)
    tpot = 0.0 if r.out_tokens is not None and r.out_tokens < 2 else tpot_ns(r)
    values: tuple[tuple[Limit, float | None, float | None], ...] = (
        ("ttft", slo.ttft_ms, ttft_due_ns(r) if from_due else ttft_ns(r)),
        ("tpot", slo.tpot_ms, tpot),
        ("gap", slo.gap_ms, None if slo.gap_ms is None else largest_gap_ns(r)),
        ("e2e", slo.e2e_ms, e2e_due_ns(r) if from_due else e2e_ns(r)),
    )
    return tuple(
        name for name, limit_ms, ns in values if limit_ms is not None and (ns is None or ns > limit_ms * NS_PER_MS)
    )


def is_good(r: RequestRecord, slo: Slo, *, from_due: bool = False) -> bool:
    """Not failed, and every limit of the SLO kept."""
    return not broken_limits(r, slo, from_due=from_due)


def slo_use(r: RequestRecord, slo: Slo, *, from_due: bool = False) -> float:
    """What a request used of its tightest limit, 1 = all of it; +inf if it failed or a value cannot be told."""
    if r.failure is not None:
        return INF
    tpot = 0.0 if r.out_tokens is not None and r.out_tokens < 2 else tpot_ns(r)
    values: tuple[tuple[float | None, float | None], ...] = (
        (slo.ttft_ms, ttft_due_ns(r) if from_due else ttft_ns(r)),
        (slo.tpot_ms, tpot),
        (slo.gap_ms, None if slo.gap_ms is None else largest_gap_ns(r)),
        (slo.e2e_ms, e2e_due_ns(r) if from_due else e2e_ns(r)),
    )
    shares = (INF if ns is None else ns / (limit_ms * NS_PER_MS) for limit_ms, ns in values if limit_ms is not None)
    return max(shares, default=0.0)


# --- many requests ----------------------------------------------------------------------------------------------


def percentile(sorted_values: Sequence[float] | Floats, basis_points: int) -> float:
    """Nearest rank: the value at rank ceil(b * n / 10000), in integer arithmetic. Never interpolates; may be +inf."""
    n = len(sorted_values)
    if n == 0 or not 0 < basis_points <= 10_000:
        raise ValueError(f"no percentile of {basis_points} basis points over {n} values")
    return float(sorted_values[-(-basis_points * n // 10_000) - 1])


def percentiles(values: Sequence[float] | Floats, times: Ints | None = None) -> Percentiles:
    """Summary of values in any order, failures as +inf. A percentile (as `percentile` defines it) that falls on a
    failure has no value.

    `times`: how often each value occurred; None = once each.
    """
    found = np.asarray(values, np.float64)
    order = np.argsort(found, kind="stable")
    ordered = found[order]
    counts = np.ones(len(ordered), np.int64) if times is None else times[order]
    until = np.cumsum(counts)
    n = int(until[-1]) if len(until) else 0
    if not n:
        return Percentiles()
    ranks = [-(-points * n // 10_000) for points in (5000, 9000, 9500, 9900)]
    p50, p90, p95, p99 = (_finite(float(value)) for value in ordered[np.searchsorted(until, ranks)])
    finite = slice(int(np.searchsorted(ordered, INF)))
    n_finite = int(counts[finite].sum())
    mean = float((ordered[finite] * counts[finite]).sum() / n_finite) if n_finite else None
    return Percentiles(p50=p50, p90=p90, p95=p95, p99=p99, mean=mean, n=n, n_finite=n_finite)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class TokenEvents(NamedTuple):
    """The token events of many requests, one after another."""

    at_ns: Ints
    request: Ints
    """Index of the request that an event belongs to."""
    tokens: Ints
    """Tokens in the event, as the stream tells it."""

    @classmethod
    def of(cls, records: Sequence[RequestRecord]) -> TokenEvents:
        events = np.array([len(r.token_ns) for r in records], np.int64)
        total = int(events.sum())
        return cls(
            at_ns=np.fromiter(itertools.chain.from_iterable(r.token_ns for r in records), np.int64, total),
            request=np.repeat(np.arange(len(records)), events),
            tokens=_event_tokens(records, total),
        )

    def of_requests(self, keep: Sequence[bool]) -> TokenEvents:
        """The events of some of the requests, which are numbered anew."""
        kept = np.asarray(keep, np.bool_)
        inside = kept[self.request]
        return TokenEvents(self.at_ns[inside], (np.cumsum(kept) - 1)[self.request[inside]], self.tokens[inside])

    def inter_token_ms(self) -> tuple[Floats, Ints]:
        """ITL of all requests, in ms (see `itl_ns`): a value for each event, and how many tokens it is of."""
        follows = self.request[1:] == self.request[:-1]
        tokens = self.tokens[1:][follows]
        return np.diff(self.at_ns)[follows] / np.maximum(tokens, 1) / NS_PER_MS, tokens


def _event_tokens(records: Sequence[RequestRecord], total: int) -> Ints:
    """Tokens of each event; one each where the stream tells no counts, which is nearly always."""
    if not any(r.token_counts for r in records):
        return np.ones(total, np.int64)
    counts = (r.token_counts or itertools.repeat(1, len(r.token_ns)) for r in records)
    return np.fromiter(itertools.chain.from_iterable(counts), np.int64, total)


def _inter_token(records: Sequence[RequestRecord], events: TokenEvents) -> Percentiles:
    """ITL in ms over all measured requests; a failed one counts +inf for every token gap that was asked of it."""
    measured = [r.phase == "measured" for r in records]
    missing = sum(
        max(1, r.asked_out - 1) for r, counts in zip(records, measured, strict=True) if counts and r.failure is not None
    )
    succeeded = [counts and r.failure is None for r, counts in zip(records, measured, strict=True)]
    values, tokens = events.of_requests(succeeded).inter_token_ms()
    return percentiles(np.append(values, INF), np.append(tokens, missing))


def ttft_values_ms(measured: Sequence[RequestRecord], *, from_due: bool = False) -> list[float]:
    """TTFT of every request in the order given, failures as +inf."""
    return _all_ms(ttft_due_ns(r) if from_due else ttft_ns(r) for r in measured)


def tpot_values_ms(measured: Sequence[RequestRecord]) -> list[float]:
    """TPOT of those that have one: one-token answers are left out, failures and unknown token counts are +inf."""
    defined = (r for r in measured if r.failure is not None or r.out_tokens is None or r.out_tokens > 1)
    return [INF if ns is None else ns / NS_PER_MS for ns in map(tpot_ns, defined)]


def _all_ms(values_ns: Iterable[int | None]) -> list[float]:
    return [INF if ns is None else milliseconds(ns) for ns in values_ns]


# --- the steady window ------------------------------------------------------------------------------------------

Window = tuple[int, int]
"""(t_a, t_b] in ns."""


def steady_window(run: LevelRun) -> Window | None:
    """From the issue of the first measured request to the issue of the last; None if there is no such interval."""
    start, end = run.window_start_ns, run.window_end_ns
    return (start, end) if start is not None and end is not None and end > start else None


class Arrivals(NamedTuple):
    """Output tokens as they arrived."""

    at_ns: Ints
    tokens: Floats

    def within(self, window: Window) -> Arrivals:
        inside = (self.at_ns > window[0]) & (self.at_ns <= window[1])
        return Arrivals(self.at_ns[inside], self.tokens[inside])


def output_arrivals(
    records: Sequence[RequestRecord], window: Window, events: TokenEvents | None = None
) -> Arrivals | None:
    """Arrivals of output tokens inside the window, failed requests left out. `events` are those of the records, if
    they are at hand.

    Where the events' own counts do not add up to the server's count, each event stands for its share of that count.
    None if a request that finished with tokens in the window has no token count.
    """
    counted = [r.failure is None and bool(r.token_ns) and _overlaps(r, window) for r in records]
    done = [r for r, counts in zip(records, counted, strict=True) if counts]
    if any(r.out_tokens is None for r in done):
        return None
    events = TokenEvents.of(done) if events is None else events.of_requests(counted)
    told = np.bincount(events.request, weights=events.tokens, minlength=len(done))
    scale = np.array([r.out_tokens for r in done], np.float64) / np.maximum(told, 1)
    return Arrivals(events.at_ns, events.tokens * scale[events.request]).within(window)


def output_tokens_in(
    records: Sequence[RequestRecord], window: Window, events: TokenEvents | None = None
) -> float | None:
    """Output tokens that arrived in the window; None where a count is missing (see `output_arrivals`)."""
    arrivals = output_arrivals(records, window, events)
    return None if arrivals is None else float(arrivals.tokens.sum())


def _overlaps(r: RequestRecord, window: Window) -> bool:
    return r.sent_ns <= window[1] and r.end_ns > window[0]


def prompt_tokens_in(records: Sequence[RequestRecord], window: Window) -> int | None:
    """Prompt tokens of the requests whose first token arrived in the window; None if one has no count."""
    counts = [r.in_tokens for r in records if r.failure is None and r.first_ns is not None and _in(r.first_ns, window)]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def mean_in_flight_audit(records: Sequence[RequestRecord], window: Window) -> float:
    """The mean in-flight as the records tell it: sum of their overlaps with the window, over its length."""
    start, end = window
    overlap = sum(max(0, min(r.end_ns, end) - max(r.sent_ns, start)) for r in records)
    return overlap / (end - start)


def in_flight_quantile(records: Sequence[RequestRecord], window: Window, share: float) -> float:
    """The number of requests in flight that was not exceeded in this share of the window's time."""
    start, end = window
    steps = [(max(r.sent_ns, start), 1) for r in records if r.sent_ns < end and r.end_ns > start]
    steps += [(r.end_ns, -1) for r in records if start < r.end_ns < end and r.sent_ns < end]
    steps.sort()
    at = np.array([start, *(at for at, _ in steps), end], np.int64)
    count = np.concatenate([[0], np.cumsum([step for _, step in steps], dtype=np.int64)])
    order = np.argsort(count, kind="stable")
    passed = np.cumsum(np.diff(at)[order])
    return float(count[order][int(np.searchsorted(passed, share * passed[-1]))])


def in_flight_at(records: Sequence[RequestRecord], times_ns: Ints) -> Ints:
    """The number of requests in flight at each of these times."""
    sent, ended = (np.sort(np.array([getattr(r, name) for r in records], np.int64)) for name in ("sent_ns", "end_ns"))
    return np.searchsorted(sent, times_ns, side="right") - np.searchsorted(ended, times_ns, side="right")


class Flow(NamedTuple):
    """How an open level went on."""

    in_flight: tuple[float, ...]
    """Mean in each of so many equal parts of the window."""
    completed_per_arrival: float


def flow(records: Sequence[RequestRecord], window: Window, parts: int) -> Flow:
    """In-flight over the window, and how many requests ended inside it for each that was due inside it."""
    edges = np.linspace(window[0], window[1], parts + 1).astype(np.int64).tolist()
    due = sum(_in(r.due_ns, window) for r in records)
    ended = sum(r.failure is None and _in(r.end_ns, window) for r in records)
    means = tuple(mean_in_flight_audit(records, part) for part in itertools.pairwise(edges))
    return Flow(means, ended / due if due else 1.0)


def _in(at_ns: int, window: Window) -> bool:
    return window[0] < at_ns <= window[1]


# --- samples ----------------------------------------------------------------------------------------------------


class Series(NamedTuple):
    """One value of one source over time."""

    at_ns: Ints
    values: Floats

    @classmethod
    def of(cls, samples: Sequence[Sample], source: str, name: str) -> Series:
        found = sorted((s.at_ns, s.values[name]) for s in samples if s.source == source and name in s.values)
        return cls(np.array([at for at, _ in found], np.int64), np.array([value for _, value in found], np.float64))

    def within(self, window: Window) -> Series:
        inside = (self.at_ns > window[0]) & (self.at_ns <= window[1])
        return Series(self.at_ns[inside], self.values[inside])

    def at(self, times_ns: Sequence[int] | Ints) -> Floats:
        """A counter's reading at these times: the last one before, or the first one of all. Needs one reading."""
        return self.values[np.maximum(np.searchsorted(self.at_ns, times_ns, side="right") - 1, 0)]


def counter_difference(samples: Sequence[Sample], name: str, window: Window) -> float | None:
    """Growth of an engine's counter over the window; None if it was not read twice or was reset meanwhile."""
    series = Series.of(samples, "engine", name)
    if len(series.values) < 2:
        return None
    before, after = series.at(window)
    return float(after - before) if after >= before else None


MEMORY_SOURCES = (
    ("engine", "memory_used_bytes", "memory of the simulated card, as it reports"),
    ("gpu:", "memory_ours_bytes", "GPU memory of the server's processes"),
    ("gpu:", "memory_used_bytes", "GPU memory in use on the card"),
    ("container", "memory_used_bytes", "memory of the container"),
    ("tree", "pss_bytes", "PSS of the process tree"),
    ("tree", "rss_bytes", "RSS of the process tree"),
)
"""Where a server's memory is read, the best first: source, value, words for the report."""


def memory_peak(samples: Sequence[Sample]) -> tuple[int, str] | None:
    """Largest memory in bytes and where it was read; several cards are added up, each at its own peak."""
    for prefix, name, words in MEMORY_SOURCES:
        peaks: dict[str, float] = {}
        for sample in samples:
            if sample.source.startswith(prefix) and name in sample.values:
                peaks[sample.source] = max(peaks.get(sample.source, 0.0), sample.values[name])
        if total := round(sum(peaks.values())):
            return total, words
    return None


class _Engine(NamedTuple):
    """What the engine said of itself over the window."""

    preemptions: float | None
    kv_use_mean: float | None
    kv_use_max: float | None
    running_mean: float | None
    running_max: float | None
    waiting_mean: float | None


def _engine(samples: Sequence[Sample], window: Window | None) -> _Engine:
    if window is None:
        return _Engine(None, None, None, None, None, None)
    kv, running, waiting = (
        Series.of(samples, "engine", name).within(window).values for name in ("kv_use", "running", "waiting")
    )
    return _Engine(
        preemptions=counter_difference(samples, "preemptions_total", window),
        kv_use_mean=_mean(kv),
        kv_use_max=float(kv.max()) if len(kv) else None,
        running_mean=_mean(running),
        running_max=float(running.max()) if len(running) else None,
        waiting_mean=_mean(waiting),
    )


# --- a level ----------------------------------------------------------------------------------------------------


def measured_records(records: Sequence[RequestRecord]) -> list[RequestRecord]:
    """The measured requests in issue order."""
    return sorted((r for r in records if r.phase == "measured"), key=lambda r: r.seq)


class _Rates(NamedTuple):
    """What happened inside the window, over all phases, per second."""

    output_tokens: float | None
    prompt_tokens: float | None
    requests: float | None
    good: float | None


def _rates(
    records: Sequence[RequestRecord], events: TokenEvents, window: Window | None, slo: Slo, *, from_due: bool
) -> _Rates:
    if window is None:
        return _Rates(None, None, None, None)
    length_s = seconds(window[1] - window[0])
    completed = [r for r in records if r.failure is None and _in(r.end_ns, window)]
    output, prompt = output_tokens_in(records, window, events), prompt_tokens_in(records, window)
    return _Rates(
        output_tokens=None if output is None else output / length_s,
        prompt_tokens=None if prompt is None else prompt / length_s,
        requests=len(completed) / length_s,
        good=sum(is_good(r, slo, from_due=from_due) for r in completed) / length_s,
    )


def level_stats(
    run: LevelRun,
    records: Sequence[RequestRecord],
    samples: Sequence[Sample],
    slo: Slo,
    *,
    events: TokenEvents | None = None,
) -> LevelStats:
    """Every number of a level from its records (all phases) and the samples taken meanwhile.

    Of an open level the schedule-based twins are judged. `events`: those of the records, if they are at hand.
    """
    from_due = run.spec.is_open
    events = TokenEvents.of(records) if events is None else events
    measured = measured_records(records)
    window = steady_window(run)
    good = sum(is_good(r, slo, from_due=from_due) for r in measured)
    failures = Counter(r.failure.kind for r in measured if r.failure is not None)
    rates = _rates(records, events, window, slo, from_due=from_due)
    engine, memory = _engine(samples, window), memory_peak(samples)
    length_s = 0.0 if window is None else seconds(window[1] - window[0])
    return LevelStats(
        offered=len(measured),
        good=good,
        failed=failures.total(),
        failures=dict(sorted(failures.items())),
        attainment=good / len(measured) if measured else 0.0,
        slo_use=_use_at_target(measured, slo, from_due=from_due),
        ttft_ms=percentiles(ttft_values_ms(measured, from_due=from_due)),
        tpot_ms=percentiles(tpot_values_ms(measured)),
        itl_ms=_inter_token(records, events),
        e2e_ms=percentiles(_all_ms(e2e_due_ns(r) if from_due else e2e_ns(r) for r in measured)),
        window_s=length_s,
        output_tokens_per_s=rates.output_tokens,
        prompt_tokens_per_s=rates.prompt_tokens,
        requests_per_s=rates.requests,
        goodput_per_s=rates.good,
        mean_in_flight=run.in_flight_integral_s / length_s if window else None,
        mean_in_flight_audit=mean_in_flight_audit(records, window) if window else None,
        mean_in_tokens=_mean([r.in_tokens for r in measured if r.in_tokens is not None]),
        mean_out_tokens=_mean([r.out_tokens for r in measured if r.failure is None and r.out_tokens is not None]),
        clamped=sum(r.clamped for r in measured),
        kv_use_p99=_kv_p99(samples, window) if from_due else None,
        in_flight_p95=in_flight_quantile(records, window, 0.95) if window and from_due else None,
        in_flight_sampled=_in_flight_sampled(records, samples, window) if window and from_due else None,
        cached_tokens=_total([r.cached_tokens for r in measured if r.cached_tokens is not None]),
        drain_s=_drain_s(run, records, samples),
        drained_late=_drained_late(run, measured),
        memory_peak_bytes=memory[0] if memory else None,
        memory_source=memory[1] if memory else None,
        **engine._asdict(),
    )


def _in_flight_sampled(records: Sequence[RequestRecord], samples: Sequence[Sample], window: Window) -> float | None:
    """Mean in flight at the moments at which the engine told what runs."""
    times = Series.of(samples, "engine", "running").within(window).at_ns
    return _mean(in_flight_at(records, times).astype(np.float64))


def _kv_p99(samples: Sequence[Sample], window: Window | None) -> float | None:
    """Nearest rank over the samples; None where the engine does not report it."""
    if window is None:
        return None
    values = Series.of(samples, "engine", "kv_use").within(window).values
    return percentile(np.sort(values), 9900) if len(values) else None


def _use_at_target(measured: Sequence[RequestRecord], slo: Slo, *, from_due: bool) -> float | None:
    """SLO use at the percentile of the target: at most 1 if and only if the observed attainment reaches it."""
    if not measured:
        return None
    used = sorted(slo_use(r, slo, from_due=from_due) for r in measured)
    return _finite(percentile(used, max(1, round(10_000 * slo.attainment))))


def _drain_s(run: LevelRun, records: Sequence[RequestRecord], samples: Sequence[Sample]) -> float | None:
    """None where nothing was sent."""
    if not records:
        return None
    busy = [
        s.at_ns
        for s in samples
        if s.source == "engine" and s.values.get("running", 0.0) + s.values.get("waiting", 0.0) > 0
    ]
    return seconds(max([run.ended_ns, *busy[-1:]]) - max(r.sent_ns for r in records))


def _drained_late(run: LevelRun, measured: Sequence[RequestRecord]) -> int:
    """Measured requests that ended after the fillers' time was over, on a server that was emptying."""
    if run.window_end_ns is None:
        return 0
    held_until = run.window_end_ns + run.spec.filler_seconds * NS_PER_S
    return sum(r.end_ns > held_until for r in measured)


def _mean(values: Sequence[float] | Floats) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _total(values: Sequence[int]) -> int | None:
    return sum(values) if values else None
