"""[open_loop]: the traffic that is expected, for each workload of a plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from orchestrator.plan.deployments import absolute
from orchestrator.plan.settings import OpenLoop, Ramp, WorkloadSettings
from orchestrator.plan.tables import Findings, nearest, shown
from workloads.arrivals import arrivals_named
from workloads.expected import Expected, expected_bins, expected_rows
from workloads.presets import names as preset_names
from workloads.presets import preset
from workloads.rows import TraceError
from workloads.traces import read_rows
from workloads.workload import Workload


def is_checked(settings: OpenLoop, ramp: Ramp) -> bool:
    """Whether the open-loop check follows the search."""
    return ramp.method == "full" if settings.check is None else settings.check


def expected_traffic(
    settings: OpenLoop,
    ramp: Ramp,
    workloads: Sequence[WorkloadSettings],
    lengths: Mapping[str, Workload],
    base: Path,
    findings: Findings,
) -> dict[str, Expected]:
    """By workload; one of which nothing is known of its traffic is left out. Wrong tables are told."""
    if settings.trace is not None and settings.arrivals is not None:
        findings.add("open_loop", "names both trace and arrivals.", "Give one: the trace has its own arrivals.")
        return {}
    if not is_checked(settings, ramp):
        for name in ("trace", "arrivals"):
            if getattr(settings, name) is not None:
                findings.add(f"open_loop.{name}", "has no meaning without the check.", "Set open_loop.check = true.")
        return {}
    if settings.trace is not None:
        named = _of_trace(absolute(settings.trace, base), "open_loop.trace", findings)
    elif settings.arrivals is not None:
        named = _of_arrivals(settings.arrivals, findings)
    else:
        found = {w.name: _own(w, lengths[w.name]) for w in workloads if w.name in lengths}
        return {name: traffic for name, traffic in found.items() if traffic is not None}
    return {} if named is None else {w.name: named for w in workloads}


def _own(settings: WorkloadSettings, workload: Workload) -> Expected | None:
    """The traffic that the workload itself comes from."""
    if settings.trace is None:
        return expected_bins(f"{workload.name}, bin by bin", workload.arrivals)
    default = settings.output_tokens if isinstance(settings.output_tokens, int) else None
    layout, rows = read_rows(Path(settings.trace), default_output_tokens=default)
    scale = np.array([settings.prompt_scale, settings.output_scale])
    pairs = np.maximum(1, np.rint(rows.pairs * scale)).astype(np.int64)
    return expected_rows(f"{Path(settings.trace).name} ({layout})", dataclasses.replace(rows, pairs=pairs))


def _of_trace(path: Path, key: str, findings: Findings) -> Expected | None:
    try:
        layout, rows = read_rows(path)
    except TraceError as error:
        findings.add(key, error.message, error.remedy)
        return None
    found = expected_rows(f"{path.name} ({layout})", rows)
    if found is None:
        findings.add(key, f"{path.name} has no time stamps, so it says nothing of arrivals.", "Give arrivals instead.")
    return found


def _of_arrivals(text: str, findings: Findings) -> Expected | None:
    if text in preset_names():
        bins = preset(text).arrivals
        found = expected_bins(
            f"the arrivals of {text}, bin by bin",
            bins and dataclasses.replace(bins, prompt_tokens_per_bin=(), output_tokens_per_bin=()),
        )
        if found is None:
            findings.add("open_loop.arrivals", f"the preset {text} says nothing of arrivals.", "Name another one.")
        return found
    try:
        return Expected(name=f"{text} arrivals at a constant rate", law=arrivals_named(text))
    except ValueError as error:
        known = [*preset_names(), "constant", "poisson"]
        remedy = f"{nearest(text, known)} Presets are {', '.join(preset_names())}.".strip()
        findings.add("open_loop.arrivals", f"found {shown(text)}: {error}.", remedy)
        return None
