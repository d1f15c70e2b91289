"""The pictures of the report in docs/: a real run of llama.cpp, 40 cells, nothing but failures, an interrupted run.

    make pictures                         # into docs/; needs Chromium
    make pictures ARGS="--out /tmp/look --all"   # every kind at every width, in light, dark and print

The first is the run directory of the tests (`tests/data/runs`); the others are synthetic
(`tests/fakes/run_directory.py`).
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from fakes.browser import Page, open_page
from fakes.run_directory import FakeCell, asked_cell, build_run

from benchmarks.report import cells
from orchestrator.judge.search import SearchRules
from orchestrator.records import ServerFailure, Slo
from reports.html import write_report
from reports.pdf import find_chromium, write_pdf

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "tests" / "data" / "runs" / "llamacpp-demo"
RULES = SearchRules(start=2, maximum=16, confirm=1, precision=0.2)
NO_ROOM = ServerFailure(
    failure_class="oom-weights",
    message="The weights do not fit on the card.",
    remedy="Use a smaller format or a larger card.",
    evidence=("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",),
    exit_code=1,
)


class Shot(NamedTuple):
    """A part of a page."""

    run: str
    width: int
    selector: str
    """From the top of this element to its foot, or to `height`."""
    height: int | None = None
    dark: bool = False
    read_out: bool = False
    """With a level of its second chart read out, as by the keyboard."""


SHOTS = {
    "report-decision": Shot("llamacpp-demo", 1280, "body", 1160),
    "report-4-bit": Shot("llamacpp-demo", 1280, "#bought-1", 1120),
    "report-breaks": Shot("llamacpp-demo", 1280, "#breaks .legend", 800, dark=True, read_out=True),
    "report-phone": Shot("llamacpp-demo", 390, "body", 1500),
    "report-40-cells": Shot("forty", 1280, "body", 1000),
    "report-failures": Shot("failures", 1280, "body", 1100),
    "report-interrupted": Shot("interrupted", 1280, "body", 1100),
}
"""By the name of the picture in docs/."""


def runs(folder: Path, wanted: Collection[str]) -> dict[str, Path]:
    """Run directories by name."""
    shutil.copytree(DEMO, folder / DEMO.name)
    refused = [
        FakeCell(
            asked_cell(name, "chat", stack="vllm", launch="docker", gpus=["0"]), refuses=NO_ROOM, log="line\n" * 40
        )
        for name in ("fp16", "fp8")
    ]
    stopped = [
        FakeCell(asked_cell("4-bit", "chat"), rules=RULES, ttft_ms=lambda c: 60 + 40 * c),
        FakeCell(asked_cell("8-bit", "chat"), rules=RULES, levels=2),
        FakeCell(asked_cell("16-bit", "chat"), rules=RULES),
    ]
    slo = Slo(ttft_ms=800.0, tpot_ms=40.0)
    built: dict[str, Callable[[Path], Path]] = {
        DEMO.name: lambda to: to,
        "forty": lambda to: build_run(to, cells(20_000), slo=slo, title="A large run"),
        "failures": lambda to: build_run(to, refused, title="Nothing fits"),
        "interrupted": lambda to: build_run(to, stopped, title="Interrupted"),
    }
    return {name: build(folder / name) for name, build in built.items() if name in wanted}


_MARGIN = 28
_READ_OUT = """(plot => {
  plot.focus({focusVisible: true});
  for (const key of ['ArrowRight', 'ArrowRight']) plot.dispatchEvent(new KeyboardEvent('keydown', {key}));
})(document.querySelectorAll('.plot')[1])"""


def clip(page: Page, shot: Shot) -> dict[str, float]:
    """The part of the page in its pixels."""
    box = f"document.querySelector('{shot.selector}').getBoundingClientRect()"
    x, y, width, height = page.evaluate(f"(r => [r.x, r.y + scrollY, r.width, r.height])({box})")
    left = min(x, _MARGIN)
    return {
        "x": x - left,
        "y": y,
        "width": min(width + 2 * left, shot.width),
        "height": shot.height or height,
        "scale": 1,
    }


def every(pages: dict[str, Path]) -> Iterator[tuple[str, Shot]]:
    for run in pages:
        for width in (390, 1280):
            for dark in (False, True):
                yield f"{run}-{width}{'-dark' if dark else ''}", Shot(run, width, "body", dark=dark)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    parser.add_argument("--only", choices=sorted(SHOTS), nargs="*", default=list(SHOTS), metavar="NAME")
    parser.add_argument("--all", action="store_true", help="Whole pages of every kind, and PDFs.")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    chromium = find_chromium()
    with tempfile.TemporaryDirectory() as folder:
        shots = {name: SHOTS[name] for name in arguments.only}
        wanted = {shot.run for shot in (SHOTS if arguments.all else shots).values()}
        pages = {name: write_report(run) for name, run in runs(Path(folder), wanted).items()}
        with open_page(chromium) as page:
            for name, shot in every(pages) if arguments.all else shots.items():
                page.open(pages[shot.run], shot.width, dark=shot.dark)
                if shot.read_out:
                    page.evaluate(_READ_OUT)
                (arguments.out / f"{name}.png").write_bytes(page.screenshot(clip(page, shot)))
                print(arguments.out / f"{name}.png")
        for name, path in pages.items() if arguments.all else ():
            write_pdf(path, arguments.out / f"{name}.pdf")


if __name__ == "__main__":
    main()
