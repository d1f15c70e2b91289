"""Run directories that the report tests share; each is built once and must not be changed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.run_directory import MIB, FakeCell, asked_cell, build_run

from orchestrator.judge.search import SearchRules
from orchestrator.records import Predicted, PredictedItem, ServerFailure
from reports.html import write_report

SMALL = SearchRules(start=2, maximum=16, confirm=1, precision=0.2)

NO_ROOM = ServerFailure(
    failure_class="oom-weights",
    message="The weights do not fit on the card.",
    remedy="Use a smaller format or a larger card.",
    evidence=("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",),
    exit_code=1,
)


def foreseen(weights_mib: float, total_mib: float, *, kv_mib: float = 180.0, key: str = "llamacpp, CPU") -> Predicted:
    """A prediction whose weights and pool are right."""

    def item(name: str, mib: float, share: float = 0.0) -> PredictedItem:
        low, high = (round(mib * (1 + sign * share) * MIB) for sign in (-1, 1))
        return PredictedItem(name=name, value_bytes=round(mib * MIB), low_bytes=low, high_bytes=high)

    return Predicted(
        key=key,
        basis="class =: the pool is set, not left over",
        items=(
            item("weights", weights_mib),
            item("KV cache", kv_mib),
            item("compute buffers", 36.0, 0.05),
            item("runtime", total_mib - weights_mib - kv_mib - 36.0, 0.15),
        ),
        total=item("total", total_mib, 0.05),
        kv_bytes_per_token=23040.0,
        kv_tokens=8192,
        kv_tokens_low=8192,
        kv_tokens_high=8192,
        requests=15.6,
        requests_low=15.6,
        requests_high=15.6,
        cap=8,
        limit="slots (-np)",
    )


def format_cells() -> list[FakeCell]:
    """Three weight formats of one model under four workloads: a slower and larger server for each wider format."""
    cells = []
    for name, quantization, weights_mib, slower in (
        ("4-bit", "Q4_1", 93, 2.0),
        ("8-bit", "Q8_0", 138, 2.4),
        ("16-bit", "F16", 259, 3.6),
    ):
        facts: dict[str, float | str] = {
            "weights_bytes": float(weights_mib * MIB),
            "kv_bytes": 180.0 * MIB,
            "kv_tokens": 8192.0,
            "compute_bytes": 36.0 * MIB,
            "kernel": "CPU",
        }
        for workload in ("short-one-user", "long-one-user", "long-overlapping", "chat"):
            fixed = workload.endswith("one-user")
            cells.append(
                FakeCell(
                    asked_cell(
                        name,
                        workload,
                        model=f"models/SmolLM2-135M-Instruct.{quantization}.gguf",
                        predicted=foreseen(weights_mib, 230.0 + weights_mib),
                    ),
                    rules=SearchRules(levels=(1,)) if fixed else SMALL,
                    ttft_ms=lambda c, s=slower: (30 + 12 * c) * s,  # type: ignore[misc]
                    tpot_ms=lambda c, s=slower: (4 + 2.1 * c) * s,  # type: ignore[misc]
                    base_mib=150.0 + weights_mib,
                    facts=facts,
                )
            )
    return cells


FRONTIER = (256, 1024, 4096)


def frontier_cell(name: str, length: int, each_ms: float, **more: object) -> FakeCell:
    """A server whose TTFT grows by `each_ms` a user: its limit of 400 ms is reached at 400 / each_ms."""
    values: dict[str, object] = {
        "rules": SearchRules(maximum=64),
        "ttft_ms": lambda c: each_ms * c,
        "tpot_ms": lambda c: 5.0,
        **more,
    }
    asked = asked_cell(name, f"prompt-{length}", frontier_prompt_tokens=length, mean_prompt_tokens=float(length))
    return FakeCell(asked, **values)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def written(runs: Path) -> Callable[[Path], Path]:
    """Writes the report of a run directory beside the runs, once for all tests that only look at it."""

    @functools.cache
    def write(run: Path) -> Path:
        return write_report(run, runs / f"{run.name}.html")

    return write


@pytest.fixture
def report(request: pytest.FixtureRequest, written: Callable[[Path], Path]) -> Path:
    """The report of the run directory that the (indirect) parameter names."""
    return written(request.getfixturevalue(request.param))


@pytest.fixture(scope="session")
def twelve(runs: Path) -> Path:
    """Three formats under four workloads, complete."""
    return build_run(runs / "twelve", format_cells(), title="SmolLM2-135M on llama.cpp: 4, 8 and 16 bit")


@pytest.fixture(scope="session")
def one(runs: Path) -> Path:
    """One deployment on a GPU in a container, one invalid level (load generator too slow at 16)."""
    cell = FakeCell(
        asked_cell("vllm-awq", "chat", stack="vllm", launch="docker", gpus=["0"], quantization="awq"),
        source="gpu:GPU-1",
        base_mib=20_000,
        rules=SMALL,
        ttft_ms=lambda c: 60 + 30 * c,
        loop_lag_ms=lambda c: 9.0 if c == 16 else 0.4,
        server={
            "image": "vllm/vllm-openai:v0.33.0",
            "image_digest": "sha256:" + "ab" * 32,
            "env": {"VLLM_LOGGING_LEVEL": "INFO"},
            "secret_env": ["HF_TOKEN"],
        },
    )
    return build_run(runs / "one", [cell], title="One cell")


@pytest.fixture(scope="session")
def failures(runs: Path) -> Path:
    """Nothing came up."""
    cells = [
        FakeCell(
            asked_cell(name, "chat", stack="vllm", launch="docker", gpus=["0"]), refuses=NO_ROOM, log="line\n" * 40
        )
        for name in ("fp16", "fp8")
    ]
    return build_run(runs / "failures", cells, title="Nothing fits")


@pytest.fixture(scope="session")
def interrupted(runs: Path) -> Path:
    """Stopped in the second cell, after two of its levels; the third was never begun."""
    cells = [
        FakeCell(asked_cell("a", "chat"), rules=SMALL, ttft_ms=lambda c: 60 + 40 * c),
        FakeCell(asked_cell("b", "chat"), rules=SMALL, levels=2),
        FakeCell(asked_cell("c", "chat"), rules=SMALL),
    ]
    return build_run(runs / "interrupted", cells, title="Interrupted")


@pytest.fixture(scope="session")
def dies(runs: Path) -> Path:
    """The server is killed for its memory at 16 users; at 8 and more every fifth request fails before that."""
    cell = FakeCell(asked_cell("kv-cliff", "long"), rules=SMALL, dies_at=16, failing=lambda c: c >= 12)
    return build_run(runs / "dies", [cell], title="Dies under load")


@pytest.fixture(scope="session")
def external(runs: Path) -> Path:
    """An endpoint that is not ours: no log, no memory, no command; the budget cut the search."""
    cell = FakeCell(
        asked_cell("gateway", "chat", stack="external", launch="external", lengths_forced=False),
        source="none",
        rules=SMALL,
        levels=2,
        note="the time budget ended before the step bracket at 8",
        server={"argv": [], "base_url": "https://llm.example.org/v1", "version": None},
    )
    return build_run(runs / "external", [cell], title="A gateway")


@pytest.fixture(scope="session")
def along(runs: Path) -> Path:
    """4-bit holds more of the short prompts and as few of the long ones; at 256 tokens it has no break up to 64."""
    cells = [
        *(frontier_cell("4-bit", n, ms) for n, ms in zip(FRONTIER, (4.0, 20.0, 100.0), strict=True)),
        *(frontier_cell("16-bit", n, ms) for n, ms in zip(FRONTIER[:2], (14.0, 40.0), strict=True)),
        frontier_cell("16-bit", 4096, 105.0, rules=SearchRules(maximum=64, confirm=0)),
        frontier_cell("32-bit", 256, 900.0),
        frontier_cell("32-bit", 1024, 900.0, refuses=NO_ROOM),
        frontier_cell("32-bit", 4096, 900.0, refuses=NO_ROOM),
        FakeCell(asked_cell("4-bit", "chat"), rules=SearchRules(levels=(1,))),
    ]
    return build_run(runs / "along", cells, title="Along the prompt length")


@pytest.fixture(scope="session")
def followed(runs: Path) -> Path:
    """What follows a search: a steady server, one that stays slower and leaks, one that dies; and none of it."""
    rules = SearchRules(maximum=16, confirm=1, recovery=True, soak_seconds=1200.0)
    cells = [
        FakeCell(asked_cell("steady", "chat"), rules=rules, ttft_ms=lambda c: 45.0 * c, mib_per_user=20.0),
        FakeCell(
            asked_cell("worn", "chat"), rules=rules, ttft_ms=lambda c: 45.0 * c, worn=1.25, leaks_mib_per_hour=90.0
        ),
        FakeCell(asked_cell("dies", "chat"), rules=rules, ttft_ms=lambda c: 20.0 * c, dies_at=8),
        FakeCell(asked_cell("before", "chat"), rules=SearchRules(maximum=16), ttft_ms=lambda c: 45.0 * c),
    ]
    return build_run(runs / "followed", cells, title="After the search")
