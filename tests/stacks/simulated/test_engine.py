from __future__ import annotations

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stacks.simulated.engine import POLICIES, Engine, EngineLimits, Policy, Sequence
from stacks.simulated.timing import StepTimes

TIMES = StepTimes(step_s=0.001, sequence_s=1e-5, kv_token_s=1e-6, attention_s=1e-9, token_s=1e-4, weights_s=(0.01,))
ROOMY = EngineLimits(blocks=10_000, block_tokens=16, sequences=64, step_tokens=512, request_tokens=4096)


def play(engine: Engine, requests: list[tuple[int, int]]) -> dict[int, tuple[float, float]]:
    """All requests at time 0; tag -> (first token, end) in s."""
    for tag, (prompt, output) in enumerate(requests):
        assert engine.refuses(prompt, output) is None
        engine.submit(prompt, output, tag)
    done: dict[int, tuple[float, float]] = {}
    while not engine.idle:
        ended, failed = engine.advance()
        for sequence in ended:
            assert isinstance(sequence.tag, int)
            assert sequence.first_s is not None
            done[sequence.tag] = (sequence.first_s, engine.now_s)
        for sequence in failed:
            assert isinstance(sequence.tag, int)
            done[sequence.tag] = (math.inf, engine.now_s)
    return done


class Plain:
    """The same engine written down token by token, with no cleverness: what the fast one must agree with."""

    def __init__(self, limits: EngineLimits, policy: Policy) -> None:
        self.limits, self.policy = limits, policy
        self.now = 0.0
        self.free = limits.blocks
        self.waiting: list[PlainRequest] = []
        self.running: list[PlainRequest] = []
        self.preemptions = 0
        self.done: dict[int, tuple[float, float]] = {}

    def blocks(self, tokens: int) -> int:
        return -(-tokens // self.limits.block_tokens)

    def leave(self, r: PlainRequest) -> None:
        self.running.remove(r)
        self.free += r.blocks
        r.blocks = 0

    def fits(self, r: PlainRequest) -> int | None:
        if len(self.running) >= self.limits.sequences:
            return None
        need = self.blocks(r.left + (r.output - r.made if self.policy.reserves else 0))
        owed = sum(x.output - x.made for x in self.running)
        spare = self.policy.headroom * owed / self.limits.block_tokens if self.running else 0.0
        return need if need + spare <= self.free else None

    def room(self) -> bool:
        """Room for the next decode step; false if everything failed."""
        while True:
            decoding = [r for r in self.running if not r.left]
            need = sum(self.blocks(r.context + 1) > r.blocks for r in decoding)
            if not decoding or need <= self.free or self.policy.reserves:
                return True
            if self.policy.when_full == "fail":
                for r in list(self.running):
                    self.leave(r)
                    self.done[r.tag] = (math.inf, self.now)
                return False
            last = self.running[-1]
            self.leave(last)
            last.left, last.context = last.prompt + last.made, 0
            self.waiting.insert(0, last)
            self.preemptions += 1

    def admit(self) -> None:
        prefilling = sum(r.left for r in self.running)
        decoding = sum(not r.left for r in self.running) if self.policy.mixed else 0
        budget = self.limits.step_tokens - decoding - prefilling
        while self.waiting and budget > 0 and (need := self.fits(self.waiting[0])) is not None:
            r = self.waiting.pop(0)
            r.blocks = need
            self.free -= need
            budget -= r.left
            self.running.append(r)

    def step(self) -> None:
        alone = not self.policy.mixed and (
            any(r.left for r in self.running) or (bool(self.waiting) and self.fits(self.waiting[0]) is not None)
        )
        before = self.preemptions
        if not alone and not self.room():
            return
        if self.preemptions == before or not self.running:
            self.admit()
        prefilling = [r for r in self.running if r.left]
        decoding = [r for r in self.running if not r.left] if self.policy.mixed or not prefilling else []
        context = sum(r.context for r in decoding) + (0 if prefilling else len(decoding))
        tokens, attention, finished = self.prefill(prefilling, max(1, self.limits.step_tokens - len(decoding)))
        self.now += TIMES.step_s + TIMES.sequence_s * (len(decoding) + len(finished))
        self.now += TIMES.linear_s(tokens + len(decoding)) + TIMES.kv_token_s * context + TIMES.attention_s * attention
        self.decode(decoding)
        self.give_tokens(decoding + finished)

    def prefill(self, prefilling: list[PlainRequest], left: int) -> tuple[int, int, list[PlainRequest]]:
        tokens, attention = 0, 0
        finished = []
        for r in prefilling:
            chunk = min(r.left, left)
            attention += chunk * (r.context + chunk // 2)
            tokens, left = tokens + chunk, left - chunk
            r.left, r.context = r.left - chunk, r.context + chunk
            if not r.left:
                finished.append(r)
            if not left:
                break
        return tokens, attention, finished

    def decode(self, decoding: list[PlainRequest]) -> None:
        for r in decoding:
            r.context += 1
            if not self.policy.reserves and self.blocks(r.context) > r.blocks:
                r.blocks += 1
                self.free -= 1

    def give_tokens(self, requests: list[PlainRequest]) -> None:
        for r in requests:
            r.made += 1
            r.first = r.first if r.first is not None else self.now
            if r.made == r.output:
                self.leave(r)
                self.done[r.tag] = (r.first, self.now)


class PlainRequest:
    def __init__(self, tag: int, prompt: int, output: int) -> None:
        self.tag, self.prompt, self.output = tag, prompt, output
        self.left, self.context, self.made, self.blocks = prompt, 0, 0, 0
        self.first: float | None = None


LENGTHS = st.lists(st.tuples(st.integers(1, 90), st.integers(1, 60)), min_size=1, max_size=25)


@settings(max_examples=150, deadline=None)
@example([(1, 3), (1, 42), (17, 60), (17, 60), (1, 1)], "sglang", 10, 16, 5, 16)
@given(
    LENGTHS,
    st.sampled_from(sorted(POLICIES)),
    st.integers(10, 40),
    st.sampled_from([1, 4, 16]),
    st.integers(1, 12),
    st.integers(16, 128),
)
def test_jumping_from_event_to_event_gives_what_every_single_step_gives(
    lengths: list[tuple[int, int]], stack: str, pool: int, block: int, sequences: int, step_tokens: int
) -> None:
    limits = EngineLimits(
        blocks=pool * 16 // block,
        block_tokens=block,
        sequences=sequences,
        step_tokens=step_tokens,
        request_tokens=pool * 16,
    )
    engine = Engine(limits, TIMES, POLICIES[stack], noise=0.0)
    fast = play(engine, lengths)
    plain = Plain(limits, POLICIES[stack])
    plain.waiting = [PlainRequest(tag, prompt, output) for tag, (prompt, output) in enumerate(lengths)]
    while plain.running or plain.waiting:
        plain.step()
    assert fast.keys() == plain.done.keys()
    for tag, times in fast.items():
        assert times == pytest.approx(plain.done[tag], rel=1e-9)
    assert engine.counters.preemptions == plain.preemptions


@settings(max_examples=50, deadline=None)
@given(LENGTHS, st.sampled_from(sorted(POLICIES)), st.integers(0, 2**32))
def test_everything_comes_back(lengths: list[tuple[int, int]], stack: str, seed: int) -> None:
    limits = EngineLimits(blocks=40, block_tokens=16, sequences=8, step_tokens=64, request_tokens=640)
    engine = Engine(limits, TIMES, POLICIES[stack], seed=seed)
    done = play(engine, lengths)
    assert len(done) == len(lengths)
    assert engine.counters.finished + engine.counters.failed == len(lengths)
    engine.submit(1, 1)
    engine.advance()
    assert engine.seen.kv_use == pytest.approx((2 if engine.policy.reserves else 1) / 40, abs=1 / 40 + 1e-9)


def test_the_same_seed_gives_the_same_times() -> None:
    lengths = [(50, 20), (200, 5), (10, 40)]
    once, again, other = (play(Engine(ROOMY, TIMES, POLICIES["vllm"], seed=seed), lengths) for seed in (1, 1, 2))
    assert once == again != other


def test_one_request_takes_its_prefill_and_its_steps() -> None:
    first, end = play(Engine(ROOMY, TIMES, POLICIES["vllm"], noise=0.0), [(100, 11)])[0]
    assert first == pytest.approx(0.001 + 1e-5 + 0.01 + 1e-9 * 100 * 50)
    contexts = sum(range(101, 111))
    assert end - first == pytest.approx(10 * (0.001 + 1e-5 + 0.01) + 1e-6 * contexts)


def test_a_step_that_has_begun_ends_and_none_is_begun_later() -> None:
    engine = Engine(ROOMY, TIMES, POLICIES["vllm"], noise=0.0)
    engine.submit(1, 1000)
    engine.advance()
    engine.advance(until_s=1.0)
    assert 1.0 <= engine.now_s < 1.0 + TIMES.decode_s(1, 1100)


def test_a_pool_that_runs_out_preempts_queues_or_fails_by_policy() -> None:
    limits = EngineLimits(blocks=20, block_tokens=16, sequences=8, step_tokens=512, request_tokens=320)
    lengths = [(100, 100)] * 3
    preempted = Engine(limits, TIMES, POLICIES["vllm"])
    assert all(math.isfinite(first) for first, _ in play(preempted, lengths).values())
    assert preempted.counters.preemptions > 0
    queued = Engine(limits, TIMES, POLICIES["tgi"])
    assert all(math.isfinite(first) for first, _ in play(queued, lengths).values())
    assert queued.counters.preemptions == 0
    failing = Engine(limits, TIMES, POLICIES["llamacpp"])
    assert any(math.isinf(first) for first, _ in play(failing, lengths).values())


def test_what_can_never_run_is_refused() -> None:
    limits = EngineLimits(blocks=10, block_tokens=16, sequences=8, step_tokens=512, request_tokens=320, admitted=1)
    engine = Engine(limits, TIMES, POLICIES["tgi"])
    assert engine.refuses(150, 20) == "too long"
    assert engine.refuses(100, 20) is None
    engine.submit(100, 20)
    assert engine.refuses(100, 20) == "overloaded"


def test_a_client_that_goes_leaves_nothing_behind() -> None:
    engine = Engine(ROOMY, TIMES, POLICIES["vllm"], noise=0.0)
    gone: list[Sequence] = [engine.submit(100, 50), engine.submit(100, 50)]
    engine.advance()
    for sequence in gone:
        engine.cancel(sequence)
    assert engine.idle
    waiting = engine.submit(100, 50)
    engine.cancel(waiting)
    assert engine.idle


def test_a_slowdown_stretches_the_steps() -> None:
    plain = play(Engine(ROOMY, TIMES, POLICIES["vllm"], noise=0.0), [(100, 50)])[0][1]
    slow = play(Engine(ROOMY, TIMES, POLICIES["vllm"], noise=0.0, slowdown=lambda _: 1.5), [(100, 50)])[0][1]
    assert slow == pytest.approx(1.5 * plain)
