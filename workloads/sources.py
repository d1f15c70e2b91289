"""From a choice of source to a workload: a preset, a trace file, or two laws; then the scaling."""

from __future__ import annotations

from pathlib import Path

from workloads.presets import preset as preset_named
from workloads.synthetic import synthetic
from workloads.traces import read_trace
from workloads.workload import Workload


def workload_from(
    *,
    preset: str | None = None,
    trace: Path | None = None,
    prompt: str | int | None = None,
    output: str | int | None = None,
    prompt_scale: float = 1.0,
    output_scale: float = 1.0,
    seed: int = 0,
) -> Workload:
    """The workload of exactly one source: `preset`, `trace`, or `prompt` with `output`.

    `output` as a whole number beside a trace is the length for rows that name none (vLLM custom lines).
    ValueError for a wrong choice or text, TraceError for a trace that cannot be read.
    """
    chosen = [preset is not None, trace is not None, prompt is not None]
    if sum(chosen) != 1:
        raise ValueError("name one source: a preset, a trace, or a prompt length with an output length")
    if preset is not None:
        workload = preset_named(preset)
    elif trace is not None:
        default = int(output) if output is not None else None
        workload = read_trace(trace, default_output_tokens=default)
    else:
        if prompt is None or output is None:
            raise ValueError("a synthetic workload needs both a prompt length and an output length")
        workload = synthetic(prompt=prompt, output=output, seed=seed)
    return workload.scaled(prompt_scale, output_scale)
