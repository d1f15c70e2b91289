"""Why a server ended: the engine's word on memory first, then the log, then the exit code."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes.stacks import FakeStack

from orchestrator.launch.death import EVIDENCE_LINES, Exit, ending, failure_of, stack_error

LOG = Path("/runs/1/server.log")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "exited with code 0"),
        (3, "exited with code 3"),
        (-9, "was killed by SIGKILL"),
        (137, "was killed by SIGKILL"),
        (139, "was killed by SIGSEGV"),
        (-99, "was killed by signal 99"),
        (255, "exited with code 255"),
        (None, "is gone, and its exit code is not known"),
    ],
)
def test_an_exit_code_in_words(code: int | None, words: str) -> None:
    assert ending(code) == words


def test_the_kernel_s_kill_counts_more_than_the_log() -> None:
    ended = Exit(137, oom_killed=True, limit_bytes=64 << 20, evidence=("engine: OOMKilled=true",))
    failure = failure_of(FakeStack(), ended, ["CUDA out of memory", "end"], LOG)
    assert failure.failure_class == "out of memory"
    assert "its limit of 64 MiB" in failure.message
    assert failure.evidence == ("engine: OOMKilled=true", "CUDA out of memory", "end")


def test_a_child_killed_for_memory_is_out_of_memory_whatever_the_root_s_code() -> None:
    assert failure_of(FakeStack(), Exit(5, oom_killed=True), [], None).failure_class == "out of memory"


def test_a_known_line_names_the_class_and_stands_in_the_evidence() -> None:
    lines = ["CUDA out of memory. Tried", *(f"trace {number}" for number in range(100))]
    failure = failure_of(FakeStack(), Exit(1, oom_killed=False), lines, LOG)
    assert (failure.failure_class, failure.remedy) == ("oom-weights", "Take a bigger card.")
    assert failure.message == "Fake exited with code 1: CUDA out of memory. Tried"
    assert failure.evidence[0] == "CUDA out of memory. Tried"
    assert len(failure.evidence) == EVIDENCE_LINES + 1


def test_an_unknown_end_points_to_the_log() -> None:
    failure = failure_of(FakeStack(), Exit(-11), ["x" * 9000], LOG)
    assert failure.failure_class == "server died"
    assert "was killed by SIGSEGV" in failure.message
    assert failure.remedy == f"Read {LOG}."
    assert max(map(len, failure.evidence)) <= 500


def test_a_start_s_error_carries_all_of_it() -> None:
    failure = failure_of(FakeStack(), Exit(1), ["CUDA out of memory"], LOG)
    error = stack_error(failure)
    assert (error.failure_class, error.evidence, error.exit_code) == ("oom-weights", failure.evidence, 4)
    assert str(error).endswith("Take a bigger card.")
