"""A workload: whole (prompt, output) length pairs of a service, and the draw of a request list from them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from orchestrator.records import Request
from workloads.strata import Pairs
from workloads.streams import distinct_words, permutation, uniforms

SMALLEST_CONTEXT_TOKENS = 16


@dataclass(frozen=True, kw_only=True)
class Arrivals:
    """When the requests of the source came, in bins of equal length. Lists are empty where the source does not say."""

    span_s: float
    rate_per_s: float
    bin_s: float
    requests_per_bin: tuple[float, ...] = ()
    prompt_tokens_per_bin: tuple[float, ...] = ()
    output_tokens_per_bin: tuple[float, ...] = ()
    note: str = ""


class LengthStats(NamedTuple):
    """What a workload asks for, in tokens."""

    pairs: int
    prompt_mean: float
    output_mean: float
    prompt_max: int
    output_max: int
    output_median: float
    kv_held_tokens: float
    """KV held by an average running request, E[p*o + o*o/2] / E[o]; not mean(p) + mean(o)/2."""
    clamped_share: float
    """Share of the pairs that the context limit cuts."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Workload:
    """Length pairs of equal weight in snake order (`workloads.strata`), with their origin."""

    name: str
    title: str
    pairs: Pairs
    source: str
    licence: str = ""
    attribution: str = ""
    notes: tuple[str, ...] = ()
    arrivals: Arrivals | None = None
    source_max: tuple[int, int] | None = None
    """Longest prompt and longest output of the source, where the pairs average them away."""
    excluded: Mapping[str, int] = field(default_factory=dict)
    """Rows of the source that are not used, by reason."""
    signable: bool = True
    """False: constants for comparison with published results; no service looks like that."""

    def __post_init__(self) -> None:
        if self.pairs.ndim != 2 or self.pairs.shape[1] != 2 or not len(self.pairs):
            raise ValueError(f"workload {self.name}: pairs have the shape {self.pairs.shape}, not (n, 2)")
        if int(self.pairs.min()) < 1:
            raise ValueError(f"workload {self.name}: a pair has fewer than 1 token on a side")
        self.pairs.setflags(write=False)

    def draw(self, seed: int, n: int, context_tokens: int | None = None) -> list[Request]:
        """`n` requests in one stratified draw over the whole list, shuffled once; the same seed gives the same list.

        index_j = floor((j + u_j) * M / n) with independent u_j: every pair has the expected count n/M.
        Pairs over `context_tokens` are cut as `clamp_pairs` says and marked.
        """
        if n < 1:
            raise ValueError(f"a draw needs at least 1 request, not {n}")
        size = len(self.pairs)
        places = np.floor((np.arange(n) + uniforms(seed, n, "draw")) * (size / n)).astype(np.int64)
        chosen = self.pairs[np.minimum(places, size - 1)][permutation(seed, n, "shuffle")]
        cut, clamped = clamp_pairs(chosen, context_tokens)
        rows = zip(cut.tolist(), clamped.tolist(), distinct_words(seed, n).tolist(), strict=True)
        return [
            Request(seq=seq, prompt_tokens=prompt, output_tokens=output, prompt_seed=word, clamped=was_cut)
            for seq, ((prompt, output), was_cut, word) in enumerate(rows)
        ]

    def stats(self, context_tokens: int | None = None) -> LengthStats:
        """Means and maxima of the pairs as they are asked under a context limit (None = no limit)."""
        cut, clamped = clamp_pairs(self.pairs, context_tokens)
        prompt, output = cut[:, 0].astype(np.float64), cut[:, 1].astype(np.float64)
        return LengthStats(
            pairs=len(cut),
            prompt_mean=float(prompt.mean()),
            output_mean=float(output.mean()),
            prompt_max=int(cut[:, 0].max()),
            output_max=int(cut[:, 1].max()),
            output_median=float(np.median(output)),
            kv_held_tokens=float((prompt * output + output**2 / 2).mean() / output.mean()),
            clamped_share=float(clamped.mean()),
        )

    def scaled(self, prompt_scale: float = 1.0, output_scale: float = 1.0) -> Workload:
        """The same pairs with both sides multiplied, rounded, and at least 1 token."""
        if prompt_scale == output_scale == 1.0:
            return self
        scale = (prompt_scale, output_scale)
        pairs = np.maximum(1, np.rint(self.pairs * np.array(scale))).astype(np.int64)
        arrivals = self.arrivals and dataclasses.replace(
            self.arrivals,
            prompt_tokens_per_bin=tuple(value * prompt_scale for value in self.arrivals.prompt_tokens_per_bin),
            output_tokens_per_bin=tuple(value * output_scale for value in self.arrivals.output_tokens_per_bin),
        )
        longest = self.source_max and (
            max(1, round(self.source_max[0] * prompt_scale)),
            max(1, round(self.source_max[1] * output_scale)),
        )
        note = f"Lengths are scaled: prompts by {prompt_scale:g}, outputs by {output_scale:g}."
        return dataclasses.replace(self, pairs=pairs, arrivals=arrivals, source_max=longest, notes=(*self.notes, note))

    def sha256(self) -> str:
        """Hash of the pairs in their order: two workloads with the same hash ask the same."""
        return hashlib.sha256(self.pairs.astype("<i8").tobytes()).hexdigest()


def template_reserve_tokens(context_tokens: int) -> int:
    """Tokens kept free for what the server adds to a prompt (chat template, BOS): 1/32 of the context, at most 64."""
    return min(64, context_tokens // 32)


def clamp_pairs(pairs: Pairs, context_tokens: int | None) -> tuple[Pairs, NDArray[np.bool_]]:
    """The pairs as they fit a context, and which of them were cut.

    Room = context - `template_reserve_tokens`. A pair with prompt + output > room is cut as little as possible: the
    output to what the prompt leaves, but never below half of the room for that; then the prompt to what the output
    leaves. So a long prompt loses prompt and keeps its answer, and no request is dropped. Pairs that fit stay as they
    are.
    """
    if context_tokens is None:
        return pairs, np.zeros(len(pairs), dtype=np.bool_)
    if context_tokens < SMALLEST_CONTEXT_TOKENS:
        raise ValueError(f"a context of {context_tokens} tokens is too small (at least {SMALLEST_CONTEXT_TOKENS})")
    room = context_tokens - template_reserve_tokens(context_tokens)
    over = pairs.sum(axis=1) > room
    output = np.where(over, np.minimum(pairs[:, 1], np.maximum(room // 2, room - pairs[:, 0])), pairs[:, 1])
    prompt = np.minimum(pairs[:, 0], room - output)
    return np.column_stack((prompt, output)), over


def requests_sha256(requests: Sequence[Request]) -> str:
    """Hash of what a list demands: a line `seq prompt output prompt_seed` per request."""
    digest = hashlib.sha256()
    for r in requests:
        digest.update(f"{r.seq} {r.prompt_tokens} {r.output_tokens} {r.prompt_seed}\n".encode())
    return digest.hexdigest()
