"""The pictures of the report in docs/pictures/ and their list, docs/pictures.md.

    make pictures                                         # needs Chromium and pdftoppm (poppler-utils); some minutes
    make pictures ARGS="--only simulated --simulated runs/demo"   # one report's; the demo as it was run before
    make pictures ARGS="--out /tmp/look"

Four reports, each on a desktop, a phone, in the dark and on paper, and some parts of them: the real run of llama.cpp
that the tests keep (`tests/data/runs`), `loadproof demo --simulated`, and from `tests/fakes/run_directory.py` one with
nothing but failures, one interrupted, and one of 40 cells.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fakes.browser import Page, open_page
from fakes.run_directory import FakeCell, asked_cell, build_run
from PIL import Image

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
RUNS = {
    "demo": "real llama.cpp on a CPU: `loadproof demo`",
    "simulated": "cards that are not there, vLLM against TGI, 16, 8 and 4 bit: `loadproof demo --simulated`",
    "failures": "a synthetic run of which no server came up",
    "interrupted": "a synthetic run that was stopped in its second cell",
    "forty": "a synthetic run of 40 cells",
}


class Shot(NamedTuple):
    """A part of a page: from the top of an element to its foot, or to `height`."""

    run: str
    width: int
    selector: str
    height: int | None
    told: str
    dark: bool = False
    read_out: bool = False
    """With a level of its second chart read out, as by the keyboard."""


class Sheets(NamedTuple):
    """The first two sheets of the PDF."""

    run: str
    told: str = "the first sheets of the PDF"


DESKTOP, PHONE, DARK = 1280, 390, "in the dark"
SHOTS: dict[str, Shot | Sheets] = {
    "demo-desktop": Shot("demo", DESKTOP, "body", 1200, "what may be signed, on a desktop"),
    "demo-phone": Shot("demo", PHONE, "body", 1700, "the same on a phone"),
    "demo-dark": Shot("demo", DESKTOP, "#breaks", 1150, f"where it breaks, {DARK}", dark=True),
    "demo-print": Sheets("demo"),
    "demo-4-bit": Shot("demo", DESKTOP, "#bought-1", 1150, "what 4-bit bought, and what it did not"),
    "demo-read-out": Shot(
        "demo", DESKTOP, "#breaks .legend", 560, "a level read out of all charts of its workload", read_out=True
    ),
    "simulated-desktop": Shot("simulated", DESKTOP, "body", 1780, "26 cells: the overview and the first cards"),
    "simulated-phone": Shot("simulated", PHONE, "body", 1700, "the same on a phone"),
    "simulated-dark": Shot(
        "simulated", DESKTOP, "#breaks", 1150, f"twelve deployments in one chart, {DARK}", dark=True
    ),
    "simulated-print": Sheets("simulated", "the sheet to sign, and the first cards"),
    "failures-desktop": Shot("failures", DESKTOP, "body", 1150, "the decision"),
    "failures-phone": Shot("failures", PHONE, "body", 1500, "the same on a phone"),
    "failures-dark": Shot("failures", DESKTOP, "#failures", 900, f"the evidence, {DARK}", dark=True),
    "failures-print": Sheets("failures"),
    "interrupted-desktop": Shot("interrupted", DESKTOP, "body", 1150, "what was measured until then"),
    "interrupted-phone": Shot("interrupted", PHONE, "body", 1500, "the same on a phone"),
    "interrupted-dark": Shot("interrupted", DESKTOP, "#time", 1000, f"the course of its levels, {DARK}", dark=True),
    "interrupted-print": Sheets("interrupted"),
    "forty-desktop": Shot("forty", DESKTOP, "body", 1000, "the overview of 40 cells"),
}
"""By the name of the picture."""


def build(name: str, to: Path, simulated: Path | None) -> Path:
    """The run directory of a name; `simulated` spares running that demo again."""
    match name:
        case "demo":
            return Path(shutil.copytree(DEMO, to))
        case "simulated":
            if simulated is not None:
                return simulated
            demo = [sys.executable, "-m", "orchestrator.cli", "demo", "--simulated", "--quiet", "--out", str(to)]
            if subprocess.run(demo, check=False).returncode not in (0, _NOT_ALL_CAME_UP):
                sys.exit("The simulated demo came to no end.")
            return to
        case "failures":
            own = {"stack": "vllm", "launch": "docker", "gpus": ["0"]}
            refused = [
                FakeCell(asked_cell(weights, "chat", **own), refuses=NO_ROOM, log=f"{NO_ROOM.evidence[0]}\n")
                for weights in ("fp16", "fp8")
            ]
            return build_run(to, refused, title="Nothing fits")
        case "interrupted":
            stopped = [
                FakeCell(asked_cell("4-bit", "chat"), rules=RULES, ttft_ms=lambda c: 60 + 40 * c),
                FakeCell(asked_cell("8-bit", "chat"), rules=RULES, levels=2),
                FakeCell(asked_cell("16-bit", "chat"), rules=RULES),
            ]
            return build_run(to, stopped, title="Interrupted")
        case _:
            return build_run(to, cells(20_000), slo=Slo(ttft_ms=800.0, tpot_ms=40.0), title="A large run")


_NOT_ALL_CAME_UP = 4
"""Exit code of a run of which a server did not come up: the demo has one, whose context does not fit."""
_MARGIN = 28
_READ_OUT = """(plot => {
  plot.focus({focusVisible: true});
  for (const key of ['ArrowRight', 'ArrowRight']) plot.dispatchEvent(new KeyboardEvent('keydown', {key}));
})(document.querySelectorAll('.plot')[1])"""


def clip(page: Page, shot: Shot) -> dict[str, float]:
    """The part of the page in its pixels."""
    box = f"document.querySelector('{shot.selector}').getBoundingClientRect()"
    x, y, width, height = page.evaluate(f"(r => [r.x, r.y + scrollY, r.width, r.height])({box})")
    foot = page.evaluate("document.documentElement.scrollHeight")
    left = min(x, _MARGIN)
    return {
        "x": x - left,
        "y": y,
        "width": min(width + 2 * left, shot.width),
        "height": min(shot.height or height, foot - y),
        "scale": 1,
    }


def taken(page: Page, path: Path, shot: Shot) -> Image.Image:
    page.open(path, shot.width, dark=shot.dark)
    if shot.read_out:
        page.evaluate(_READ_OUT)
    return Image.open(io.BytesIO(page.screenshot(clip(page, shot))))


def sheets(path: Path, folder: Path) -> Image.Image:
    """Two sheets side by side on a grey table."""
    pdf = path.with_suffix(".pdf")
    write_pdf(path, pdf)
    name = folder / path.stem
    subprocess.run(["pdftoppm", "-r", "90", "-l", "2", "-png", str(pdf), str(name)], check=True)
    pages = [Image.open(sheet) for sheet in sorted(folder.glob(f"{name.name}-*.png"))]
    width, height, gap = pages[0].width, pages[0].height, 24
    table = Image.new("RGB", (len(pages) * (width + gap) + gap, height + 2 * gap), (196, 200, 206))
    for number, sheet in enumerate(pages):
        table.paste(sheet, (gap + number * (width + gap), gap))
    return table


def save(picture: Image.Image, path: Path) -> None:
    """As PNG of 256 colours, the rare ones too: a third of its size, and no difference that one sees."""
    few = picture.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


def contents() -> Iterator[str]:
    """The list of all pictures."""
    yield "# Pictures of the report"
    yield ""
    yield "Taken by `make pictures`; nothing in them is drawn by hand."
    for run, told in RUNS.items():
        yield ""
        yield f"## {told[0].upper()}{told[1:]}"
        yield ""
        yield from (f"- [{name}](pictures/{name}.png): {shot.told}" for name, shot in SHOTS.items() if shot.run == run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    parser.add_argument("--only", choices=[*RUNS, *SHOTS], nargs="*", default=list(RUNS), metavar="NAME")
    parser.add_argument("--simulated", type=Path, help="A finished run directory of `loadproof demo --simulated`.")
    arguments = parser.parse_args()
    chromium = find_chromium()
    if shutil.which("pdftoppm") is None:
        sys.exit("pdftoppm is not on PATH: install poppler-utils.")
    shots = {name: shot for name, shot in SHOTS.items() if {name, shot.run} & set(arguments.only)}
    (arguments.out / "pictures").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, open_page(chromium) as page:
        folder = Path(temporary)
        runs = {shot.run for shot in shots.values()}
        pages = {
            name: write_report(build(name, folder / name, arguments.simulated), folder / f"{name}.html")
            for name in RUNS
            if name in runs
        }
        for name, shot in shots.items():
            path = arguments.out / "pictures" / f"{name}.png"
            whole = sheets(pages[shot.run], folder) if isinstance(shot, Sheets) else taken(page, pages[shot.run], shot)
            save(whole, path)
            print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
    (arguments.out / "pictures.md").write_text("\n".join(contents()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
