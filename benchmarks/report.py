"""What the report of a large run costs: 40 cells, 100,000 requests of 128 tokens, a fresh process that builds it.

    make bench-report
    make bench-report ARGS="--requests 20000 --keep runs/large"

The run is synthetic (`tests/fakes/run_directory.py`): the product's own journal, metrics, judge and search around a
server that is a formula. The limit is on processor time, which is what building takes on a machine that is free.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fakes.run_directory import FakeCell, asked_cell, build_run

from orchestrator.judge.search import SearchRules
from orchestrator.records import Slo

MOST_S, MOST_MIB = 30.0, 600.0
DEPLOYMENTS, WORKLOADS = 10, 4
TOKENS = 128


def cells(requests: int) -> list[FakeCell]:
    """Ten deployments under four workloads; each cell measures its share of the requests in about eight levels."""
    share = requests // (DEPLOYMENTS * WORKLOADS)
    return [
        FakeCell(
            asked_cell(f"deployment-{i}", f"workload-{j}", quantization=("awq", "fp8", "bf16")[i % 3], gpus=["0"]),
            source="gpu:0",
            base_mib=20_000 + 500 * i,
            power_w=300.0,
            rules=SearchRules(start=2, maximum=64, confirm=1, precision=0.2),
            requests=share // 10 * 10 // 9,
            tokens=TOKENS,
            ttft_ms=lambda c, i=i, j=j: (40 + 12 * c) * (1 + i / 10 + j / 5),  # type: ignore[misc]
            tpot_ms=lambda c, i=i: (9 + 0.8 * c) * (1 + i / 10),  # type: ignore[misc]
            facts={"weights_bytes": 8e9, "kv_bytes": 1e10},
        )
        for i in range(DEPLOYMENTS)
        for j in range(WORKLOADS)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--keep", type=Path, help="Make the run here and leave it there.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = arguments.keep or Path(folder) / "run"
        if not run.exists():
            build_run(run, cells(arguments.requests), slo=Slo(ttft_ms=800.0, tpot_ms=40.0), title="A large run")
        files = list(run.rglob("requests.jsonl"))
        lines = sum(path.read_bytes().count(b"\n") for path in files)
        size = sum(path.stat().st_size for path in files)
        print(f"run     {len(files)} cells, {lines:,} requests, {size / 1e6:,.0f} MB of records")
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "orchestrator.cli", "report", str(run)], check=True, stdout=sys.stderr)
        took = time.perf_counter() - started
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        busy, peak = used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
        report, result = ((run / name).stat().st_size / 1e6 for name in ("report.html", "result.json"))
        print(f"time    {took:.1f} s, {busy:.1f} s of a processor (at most {MOST_S:.0f})")
        print(f"memory  {peak:.0f} MiB (at most {MOST_MIB:.0f})")
        print(f"files   report.html {report:.2f} MB, result.json {result:.2f} MB")
        if busy > MOST_S or peak > MOST_MIB:
            sys.exit("over the limit")


if __name__ == "__main__":
    main()
