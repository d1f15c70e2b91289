"""The simulated engine: continuous batching over a paged KV cache, in virtual time.

Every step gives one token to every decoding sequence, so what happens between two events (a completion, a prefill, an
arrival, a full pool) is known in closed form, and the engine jumps from event to event: the cost of a simulation is
that of its requests, not of its tokens.

What is modelled: first-come admission, a cap on running sequences, a token budget per step, prompts prefilled in
chunks beside the decoding ones or in steps of their own, KV taken block by block, and what an engine does when no block
is left: preempt the youngest and compute it again (vLLM, SGLang), never run into it because a request's whole length is
reserved when it is admitted (TGI), or fail what runs (llama.cpp). Not modelled: prefix caches, several cards talking,
CUDA graph sizes, tokenisation.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from stacks.simulated.timing import StepTimes

NOISE = 0.03
"""Standard deviation of the logarithm of a step's time."""
_NOISE_STEPS = 1 << 15


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """How an engine shares its card."""

    mixed: bool = True
    """Prompts are prefilled in the steps of the decoding sequences; else in steps of their own, which stall those."""
    reserves: bool = False
    """A request is admitted with the blocks of its whole length, so the pool never runs out while it runs."""
    headroom: float = 0.0
    """Share of the running requests' outstanding output for which blocks must be free to admit another one."""
    when_full: Literal["preempt", "fail"] = "preempt"
    """No block for a decoding sequence: the youngest is put back and computed again, or all that run fail."""


POLICIES = {
    "vllm": Policy(),
    "sglang": Policy(mixed=False, headroom=0.3),
    "tgi": Policy(mixed=False, reserves=True),
    "llamacpp": Policy(when_full="fail"),
}


class EngineLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The settings that an engine started with."""

    blocks: int
    """Blocks of the KV pool."""
    block_tokens: int
    sequences: int
    """Most requests that run at once (max_num_seqs, slots)."""
    step_tokens: int
    """Most tokens of a step (max_num_batched_tokens)."""
    request_tokens: int
    """Longest prompt plus output (max_model_len); of a slot in llama.cpp."""
    admitted: int | None = None
    """Most requests in the engine at all; more are refused (TGI's max_concurrent_requests). None = no such limit."""


class Sequence:
    """A request in the engine. Times are seconds of the engine's clock."""

    __slots__ = (
        "blocks",
        "context",
        "decode_class",
        "ends_at_step",
        "first_s",
        "generated",
        "number",
        "output_tokens",
        "prefill_left",
        "prompt_tokens",
        "tag",
    )

    def __init__(self, number: int, prompt_tokens: int, output_tokens: int, tag: object) -> None:
        self.number = number
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.tag = tag
        self.generated = 0
        """Output tokens so far; of a decoding sequence, those it had when its decoding began."""
        self.prefill_left = prompt_tokens
        self.context = 0
        """Tokens with KV in the pool; of a decoding sequence, those it had when its decoding began."""
        self.blocks = 0
        """Blocks held; of a decoding sequence, those it had when its decoding began."""
        self.decode_class = 0
        self.ends_at_step = -1
        """Decode step after which the last token is out; -1 = not decoding."""
        self.first_s: float | None = None


class Counters:
    """What the engine counts since it started."""

    __slots__ = ("failed", "finished", "output_tokens", "preemptions", "prompt_tokens", "steps")

    def __init__(self) -> None:
        self.finished = self.failed = self.preemptions = 0
        self.prompt_tokens = self.output_tokens = self.steps = 0


class Seen(NamedTuple):
    """The gauges while the last step ran: what a page read at that time would say."""

    running: int
    waiting: int
    kv_use: float
    """Share of the pool that is taken (reserved, where the policy reserves)."""


class Engine:
    """One engine on one card. `advance` moves its clock to the next event."""

    def __init__(
        self,
        limits: EngineLimits,
        times: StepTimes,
        policy: Policy,
        *,
        seed: int = 0,
        noise: float = NOISE,
        slowdown: Callable[[float], float] | None = None,
    ) -> None:
        """`slowdown` maps the clock (s) to a factor on the time of a step: throttling, a neighbour."""
        self.limits = limits
        self.times = times
        self.policy = policy
        self.now_s = 0.0
        self.counters = Counters()
        self.seen = Seen(0, 0, 0.0)
        self._slowdown = slowdown
        self._step = 0  # decode steps
        self._free = limits.blocks
        self._waiting: deque[Sequence] = deque()
        self._running: dict[int, Sequence] = {}  # in the order of admission
        self._prefilling: deque[Sequence] = deque()
        self._ends: list[tuple[int, int]] = []  # (ends_at_step, number), lazily cleared
        self._decoding = 0
        self._context = 0  # tokens of the decoding sequences
        self._outstanding = 0  # output tokens that the running sequences still owe
        self._classes = [0] * limits.block_tokens  # decoding sequences by the step at which they need a block
        self._numbers = 0
        self._noise_sums = _noise_sums(seed, noise)

    # --- from outside -------------------------------------------------------------------------------------------

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def made(self, sequence: Sequence) -> int:
        """Output tokens of a sequence so far."""
        if sequence.ends_at_step < 0:
            return sequence.generated
        return sequence.output_tokens - (sequence.ends_at_step - self._step)

    @property
    def idle(self) -> bool:
        return not self._running and not self._waiting

    def refuses(self, prompt_tokens: int, output_tokens: int) -> str | None:
        """Why a request is not taken: ``too long`` or ``overloaded``; None if it is."""
        most = min(self.limits.request_tokens, self.limits.blocks * self.limits.block_tokens)
        if prompt_tokens + output_tokens > most:
            return "too long"
        admitted = self.limits.admitted
        if admitted is not None and len(self._running) + len(self._waiting) >= admitted:
            return "overloaded"
        return None

    def submit(self, prompt_tokens: int, output_tokens: int, tag: object = None) -> Sequence:
        """Queue a request that `refuses` does not refuse, at the present time."""
        self._numbers += 1
        sequence = Sequence(self._numbers, prompt_tokens, output_tokens, tag)
        self._waiting.append(sequence)
        return sequence

    def cancel(self, sequence: Sequence) -> None:
        """Its client is gone."""
        if sequence.number in self._running:
            self._drop(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)

    def advance(self, until_s: float = math.inf, most_steps: int = 1 << 30) -> tuple[list[Sequence], list[Sequence]]:
        """Run to the next event, but no step is begun at or after `until_s`. Returns (ended, failed).

        An event is a completion, a failure, the end of a step with a prefill, `until_s`, or `most_steps` decode steps.
        An idle engine moves its clock to `until_s`, if that is finite.
        """
        if not self._running and not self._waiting:
            self.now_s = max(self.now_s, until_s) if until_s < math.inf else self.now_s
            self.seen = Seen(0, 0, 0.0)
            return [], []
        preempted = self.counters.preemptions
        if self.policy.mixed or not self._prefill_next():
            failed = self._make_room()
            if failed:
                return [], failed
        if self._waiting and (self.counters.preemptions == preempted or not self._running):
            self._admit()
        self.seen = Seen(len(self._running), len(self._waiting), 1 - self._free / self.limits.blocks)
        if self._prefilling:
            return self._prefill_step(), []
        return self._decode_steps(until_s, most_steps), []

    # --- admission ----------------------------------------------------------------------------------------------

    def _prefill_next(self) -> bool:
        """Whether the next step is one of prefills alone."""
        return bool(self._prefilling) or (bool(self._waiting) and self._fits(self._waiting[0]) is not None)

    def _fits(self, sequence: Sequence) -> int | None:
        """Blocks that it is admitted with, if it can be now."""
        if len(self._running) >= self.limits.sequences:
            return None
        block, policy = self.limits.block_tokens, self.policy
        tokens = sequence.prefill_left
        if policy.reserves:
            tokens += sequence.output_tokens - sequence.generated
        needed = -(-tokens // block)
        spare = policy.headroom * self._outstanding / block if self._running else 0.0
        return needed if needed + spare <= self._free else None

    def _admit(self) -> None:
        """First come, first served: nobody overtakes a request that does not fit. As many as a step's tokens take."""
        budget = self.limits.step_tokens - (self._decoding if self.policy.mixed else 0)
        budget -= sum(s.prefill_left for s in self._prefilling)
        while self._waiting and budget > 0:
            head = self._waiting[0]
            blocks = self._fits(head)
            if blocks is None:
                return
            self._waiting.popleft()
            self._free -= blocks
            head.blocks = blocks
            self._running[head.number] = head
            self._prefilling.append(head)
            self._outstanding += head.output_tokens - head.generated
            budget -= head.prefill_left

    # --- the pool -----------------------------------------------------------------------------------------------

    def _make_room(self) -> list[Sequence]:
        """Blocks for the next decode step; preempts until there are enough. What failed instead is returned."""
        if self.policy.reserves:
            return []
        while self._decoding and self._classes[self._step % self.limits.block_tokens] > self._free:
            if self.policy.when_full == "fail":
                failed = list(self._running.values())
                for sequence in failed:
                    self._drop(sequence)
                self.counters.failed += len(failed)
                return failed
            self._preempt(next(reversed(self._running.values())))
        return []

    def _preempt(self, sequence: Sequence) -> None:
        """Its blocks are freed; prompt and output so far are computed again when it is its turn."""
        self._drop(sequence)
        sequence.prefill_left = sequence.prompt_tokens + sequence.generated
        sequence.context = 0
        self._waiting.appendleft(sequence)
        self.counters.preemptions += 1

    def _drop(self, sequence: Sequence) -> None:
        """Out of the batch, with its blocks."""
        del self._running[sequence.number]
        if sequence.ends_at_step < 0:
            self._prefilling.remove(sequence)
            self._free += sequence.blocks
            self._outstanding -= sequence.output_tokens - sequence.generated
            return
        left = sequence.ends_at_step - self._step
        done = sequence.output_tokens - left - sequence.generated
        self._free += self._blocks_after(sequence, done)
        self._context -= sequence.context + done
        self._outstanding -= left
        self._classes[sequence.decode_class] -= 1
        self._decoding -= 1
        sequence.generated += done
        sequence.ends_at_step = -1

    def _blocks_after(self, sequence: Sequence, steps: int) -> int:
        """Blocks that a decoding sequence holds after so many steps."""
        if self.policy.reserves:
            return sequence.blocks
        return max(sequence.blocks, -(-(sequence.context + steps) // self.limits.block_tokens))

    # --- steps --------------------------------------------------------------------------------------------------

    def _prefill_step(self) -> list[Sequence]:
        """One step with prompts in it: chunks in order until the step's tokens are used."""
        times, mixed = self.times, self.policy.mixed
        decoding = self._decoding if mixed else 0
        budget = left = max(1, self.limits.step_tokens - decoding)
        attention = 0
        done: list[Sequence] = []
        while self._prefilling and left > 0:
            head = self._prefilling[0]
            chunk = min(head.prefill_left, left)
            attention += chunk * (head.context + chunk // 2)
            head.context += chunk
            head.prefill_left -= chunk
            left -= chunk
            if head.prefill_left:
                break
            done.append(self._prefilling.popleft())
        tokens = budget - left
        seconds = times.step_s + times.sequence_s * (decoding + len(done)) + times.linear_s(tokens + decoding)
        seconds += times.kv_token_s * (self._context if mixed else 0) + times.attention_s * attention
        self._pass_time(seconds, 1)
        self.counters.prompt_tokens += tokens
        ended = self._take_decode_steps(1) if decoding else []
        for sequence in done:
            if self._first_token(sequence):
                ended.append(sequence)
        return ended

    def _first_token(self, sequence: Sequence) -> bool:
        """The token that a finished prefill gives; true if it was the last one."""
        if sequence.first_s is None:
            sequence.first_s = self.now_s
        sequence.generated += 1
        self._outstanding -= 1
        self.counters.output_tokens += 1
        left = sequence.output_tokens - sequence.generated
        if left == 0:
            del self._running[sequence.number]
            self._free += sequence.blocks
            self.counters.finished += 1
            return True
        sequence.ends_at_step = self._step + left
        sequence.decode_class = (self._step - sequence.context) % self.limits.block_tokens
        self._classes[sequence.decode_class] += 1
        self._decoding += 1
        self._context += sequence.context
        heapq.heappush(self._ends, (sequence.ends_at_step, sequence.number))
        return False

    def _decode_steps(self, until_s: float, most: int) -> list[Sequence]:
        """As many steps of decoding alone as nothing happens in."""
        steps = min(most, self._next_end() - self._step)
        if not self.policy.reserves:
            steps = self._steps_until_admission(self._steps_with_room(steps))
        steps = max(1, steps)
        seconds = self._decode_seconds(steps)
        if self.now_s + seconds > until_s and steps > 1:
            steps = self._steps_until(until_s, steps)
            seconds = self._decode_seconds(steps)
        self.now_s += seconds
        self.counters.steps += steps
        return self._take_decode_steps(steps)

    def _next_end(self) -> int:
        """Decode step of the next completion."""
        ends, running = self._ends, self._running
        while True:
            step, number = ends[0]
            sequence = running.get(number)
            if sequence is not None and sequence.ends_at_step == step:
                return step
            heapq.heappop(ends)

    def _steps_with_room(self, steps: int) -> int:
        """How many of `steps` the free blocks suffice for."""
        block, classes, free = self.limits.block_tokens, self._classes, self._free
        if self._decoding * (steps // block + 1) <= free:
            return steps
        at = self._step
        for count in range(steps):
            free -= classes[(at + count) % block]
            if free < 0:
                return count
        return steps

    def _steps_until_admission(self, steps: int) -> int:
        """How many of `steps` pass until the first in the queue fits: what the running ones still owe, of which a share
        must be free, gets less with every step."""
        if not self.policy.headroom or not self._waiting or len(self._running) >= self.limits.sequences:
            return steps
        block, share, n = self.limits.block_tokens, self.policy.headroom, self._decoding
        needed = -(-self._waiting[0].prefill_left // block)
        free, owed = self._free, self._outstanding
        if needed + share * (owed - n * steps) / block > free:
            return steps
        for count in range(steps):
            free -= self._classes[(self._step + count) % block]
            owed -= n
            if needed + share * owed / block <= free:
                return count + 1
        return steps

    def _steps_until(self, until_s: float, steps: int) -> int:
        """Fewest steps that reach `until_s` (a step that has begun ends)."""
        low, high = 0, steps
        while high - low > 1:
            middle = (low + high) // 2
            if self.now_s + self._decode_seconds(middle) < until_s:
                low = middle
            else:
                high = middle
        return high

    def _decode_seconds(self, steps: int) -> float:
        """Time of the next `steps` steps of decoding alone; every step adds a token of context a sequence."""
        times, n = self.times, self._decoding
        fixed = times.step_s + times.sequence_s * n + times.linear_s(n)
        context = steps * self._context + n * (steps * (steps + 1) // 2)
        return (steps * fixed + times.kv_token_s * context) * self._factor(steps)

    def _factor(self, steps: int) -> float:
        """Mean noise of the next `steps` steps, times the slowdown now."""
        sums = self._noise_sums
        at = self.counters.steps % _NOISE_STEPS
        span = min(steps, _NOISE_STEPS)
        factor = (sums[at + span] - sums[at]) / span
        return factor if self._slowdown is None else factor * self._slowdown(self.now_s)

    def _pass_time(self, seconds: float, steps: int) -> None:
        self.now_s += seconds * self._factor(steps)
        self.counters.steps += steps

    def _take_decode_steps(self, steps: int) -> list[Sequence]:
        """Give every decoding sequence `steps` tokens; those that have all theirs are taken out."""
        n, block, before = self._decoding, self.limits.block_tokens, self._step
        if not self.policy.reserves:
            whole, rest = divmod(steps, block)
            taken = whole * n
            for offset in range(rest):
                taken += self._classes[(before + offset) % block]
            self._free -= taken
        self._step = now = before + steps
        self._context += n * steps
        self._outstanding -= n * steps
        self.counters.output_tokens += n * steps
        ended: list[Sequence] = []
        ends, running = self._ends, self._running
        while ends and ends[0][0] <= now:
            step, number = heapq.heappop(ends)
            sequence = running.get(number)
            if sequence is not None and sequence.ends_at_step == step:
                self._drop(sequence)
                ended.append(sequence)
        self.counters.finished += len(ended)
        return ended


def _noise_sums(seed: int, noise: float) -> list[float]:
    """Running sums of lognormal factors of mean 1, twice around, so that any run of them is one difference."""
    if noise == 0:
        return [float(i) for i in range(2 * _NOISE_STEPS + 1)]
    normal = np.random.default_rng(seed).standard_normal(_NOISE_STEPS)
    factors = np.exp(noise * normal - noise**2 / 2)
    sums: list[float] = np.concatenate([[0.0], np.cumsum(np.tile(factors, 2))]).tolist()
    return sums
