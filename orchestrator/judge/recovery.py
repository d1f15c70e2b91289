"""After the break: does the server serve as it did before, and what did the break leave behind?

The full search ends with a sentinel, which is compared with its first. After a quick one the lowest level that held is
asked for again, with the lengths that it had. Either way the server is the one that broke, or the one that had to be
started in its place.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import msgspec

from orchestrator.judge.level import HANG
from orchestrator.judge.steps import Measure, Outcome, Recovery, Script, SearchRules, Stop, searched

GREW = 0.01
"""Share of its memory by which a server must have grown at the break before anything can be given back."""


def recovery(rules: SearchRules, stop: Stop, history: Sequence[Outcome]) -> Script:
    """The phase. It has something to do only where a search found a break and something held before it."""
    broke = _broke(history)
    if not rules.recovery or rules.levels or stop.c_bad is None or broke is None:
        return stop
    if rules.method == "full":
        before, after = _sentinels(history, broke)
        if before is None or after is None:
            return stop
    else:
        place = min((i for i, o in enumerate(history) if o.holds), key=lambda i: history[i].concurrency, default=None)
        if place is None:
            return stop
        before = history[place]
        after = yield _again(before, history, place)
    return msgspec.structs.replace(stop, recovery=_found(before, history[broke], after, history))


def _broke(history: Sequence[Outcome]) -> int | None:
    """Position of the last level that did not hold."""
    return max((i for i, o in enumerate(history) if searched(o) and o.fails), default=None)


def _sentinels(history: Sequence[Outcome], broke: int) -> tuple[Outcome | None, Outcome | None]:
    """The first sentinel of the last pass of the search, and the one after its break. A pass that ends early by a drift
    ends with a sentinel, so the next one begins with a second in a row."""
    known = [(i, o) for i, o in enumerate(history) if o.purpose == "sentinel" and o.valid]
    if len(known) < 2 or known[-1][0] < broke:
        return None, None
    begins = [o for (i, _), (j, o) in itertools.pairwise(known) if j == i + 1 < broke]
    return (begins or [known[0][1]])[-1], known[-1][1]


def _again(before: Outcome, history: Sequence[Outcome], place: int) -> Measure:
    same = [i for i, o in enumerate(history) if o.concurrency == before.concurrency]
    return Measure(
        concurrency=before.concurrency,
        purpose="recovery",
        replicate=len(same),
        lengths_of=same.index(place),
    )


def _found(before: Outcome, broke: Outcome, after: Outcome, history: Sequence[Outcome]) -> Recovery:
    died = [o.hard_break for o in history if searched(o) and o.hard_break not in (None, HANG)]
    return Recovery(
        broke_at=broke.concurrency,
        died=died[-1] if died else None,
        drain_s=broke.drain_s,
        concurrency=before.concurrency,
        known=after.valid,
        tokens_ratio=_ratio(after.tokens_per_s, before.tokens_per_s),
        tpot_ratio=_ratio(after.tpot_ms, before.tpot_ms),
        memory_before_bytes=before.memory_bytes,
        memory_broken_bytes=broke.memory_bytes,
        memory_after_bytes=after.memory_bytes,
    )


def _ratio(after: float | None, before: float | None) -> float | None:
    return after / before if after and before else None


# --- in words ---------------------------------------------------------------------------------------------------


def recovery_sentence(found: Recovery) -> str:
    """What happened after the break, in one sentence."""
    small = f"{found.concurrency} user{'' if found.concurrency == 1 else 's'}"
    served = f"{_served(found)} ({small}{_figures(found)})"
    if found.died is not None:
        return f"The break ended the server ({found.died}); started again, it {served}."
    told = [f"drained in {found.drain_s:.1f} s"] if found.drain_s is not None else []
    told += [*_memory(found), served]
    return (
        f"After the break at {found.broke_at} users it {', '.join(told[:-1])}{' and ' if told[:-1] else ''}{told[-1]}."
    )


def _served(found: Recovery) -> str:
    if found.slower is None:
        return "was not measured validly again"
    if found.as_before:
        return "served as before"
    return f"served {100 * abs(found.slower):.0f} % {'slower' if found.slower > 0 else 'faster'} than before"


def _figures(found: Recovery) -> str:
    ratios = (("throughput", found.tokens_ratio), ("TPOT", found.tpot_ratio)) if found.known else ()
    told = [f"{name} {100 * (ratio - 1):+.1f} %".replace("-", "\u2212") for name, ratio in ratios if ratio is not None]
    return f": {', '.join(told)}" if told else ""


def _memory(found: Recovery) -> Iterator[str]:
    before, broken, after = found.memory_before_bytes, found.memory_broken_bytes, found.memory_after_bytes
    if before is None or broken is None or after is None:
        return
    grown, back = broken - before, broken - after
    if grown < GREW * broken:
        yield "had not grown in memory"
    elif back < GREW * broken:
        yield f"gave back nothing of the {grown / 2**20:,.0f} MiB by which it had grown"
    else:
        yield f"gave back {100 * min(1.0, back / grown):.0f} % of the {grown / 2**20:,.0f} MiB by which it had grown"


def recovery_gaps(stop: Stop | None) -> Iterator[str]:
    """What stands in the way of signing; a drift that the sentinels found is told as that."""
    found = None if stop is None or stop.drifted else stop.recovery
    if found is not None and found.slower is not None and found.slower > 0 and not found.as_before:
        yield recovery_sentence(found)
