"""The report in a real browser: it draws, it fits, it prints, and nothing in it runs or calls home."""

from __future__ import annotations

import shutil
import struct
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakes.browser import Page, open_page
from fakes.hostile_run import HOSTILE, hostile

from reports.comparison import compare
from reports.html import write_comparison, write_report
from reports.result import result
from reports.run import read_run

pytestmark = pytest.mark.chromium
AXE = "axe-core@4"
KINDS = ["twelve", "one", "failures", "interrupted", "dies", "external"]


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Page]:
    with open_page(chromium) as page:
        yield page


@pytest.mark.parametrize("report", KINDS, indirect=True)
def test_no_request_and_nothing_to_complain_of(browser: Page, report: Path) -> None:
    browser.open(report, 1280)
    assert browser.evaluate("document.querySelectorAll('main section').length") >= 4
    assert browser.said() == []
    assert [url for url in browser.requests() if not url.startswith("data:")] == [report.resolve().as_uri()]
    assert browser.evaluate("getComputedStyle(document.body).margin") == "0px", "the style sheet was refused"


@pytest.mark.parametrize("width", [390, 820, 1280])
@pytest.mark.parametrize("report", [*KINDS, "along", "followed"], indirect=True)
def test_nothing_hangs_over_the_side(browser: Page, report: Path, width: int) -> None:
    browser.open(report, width)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    inside = "[...document.querySelectorAll('main table')].every(t => t.closest('.scroll, .card'))"
    assert browser.evaluate(inside)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("report", ["twelve", "failures"], indirect=True)
def test_text_is_readable_on_its_ground(browser: Page, report: Path, dark: bool) -> None:
    """WCAG AA: 4.5 to 1 for text, whatever element it stands in."""
    browser.open(report, 1280, dark=dark)
    found = browser.evaluate(CONTRAST)
    assert found["checked"] > 100
    assert found["dark"] == dark
    assert found["poor"] == []


@pytest.mark.parametrize("report", ["twelve"], indirect=True)
def test_tables_that_scroll_can_be_reached_by_keyboard(browser: Page, report: Path) -> None:
    browser.open(report, 390)
    scrolling = "[...document.querySelectorAll('.scroll')].filter(s => s.scrollWidth > s.clientWidth)"
    assert browser.evaluate(f"{scrolling}.length") >= 1
    assert browser.evaluate(f"{scrolling}.every(s => s.tabIndex === 0 && s.getAttribute('aria-label'))")


@pytest.mark.parametrize("report", KINDS, indirect=True)
def test_it_prints_with_everything_unfolded_but_the_courses_that_decided_nothing(browser: Page, report: Path) -> None:
    browser.open(report, 1280)
    printed = browser.pdf()
    assert printed.startswith(b"%PDF-")
    assert printed.count(b"/Type /Page\n") >= 2
    browser.call("Emulation.setEmulatedMedia", media="print")
    inner = "[...document.querySelectorAll('details:not(.screen-only) > :not(summary)')]"
    assert browser.evaluate(f"{inner}.length") >= 2
    assert browser.evaluate(f"{inner}.filter(e => !e.checkVisibility()).length") == 0
    assert browser.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    browser.call("Emulation.setEmulatedMedia", media="")


@pytest.mark.parametrize("report", ["twelve", "one", "dies", "external", "along"], indirect=True)
def test_no_table_is_wider_than_the_paper(browser: Page, report: Path) -> None:
    """A4 less its margins is 184 mm, which is 695 px."""
    browser.open(report, 695)
    browser.call("Emulation.setEmulatedMedia", media="print")
    wide = "[...document.querySelectorAll('table, svg, pre')].filter(e => e.getBoundingClientRect().right > 697)"
    assert browser.evaluate(f"{wide}.map(e => e.closest('section').id + ' ' + e.className)") == []
    browser.call("Emulation.setEmulatedMedia", media="")


@pytest.mark.parametrize("report", ["one", "along"], indirect=True)
def test_every_mark_of_a_chart_is_on_paper_too(browser: Page, report: Path) -> None:
    browser.open(report, 695)
    shown = "[...document.querySelectorAll('svg .mark')].filter(m => getComputedStyle(m).display !== 'none').length"
    on_screen = browser.evaluate(shown)
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert browser.evaluate(shown) == on_screen > 3
    assert browser.evaluate("getComputedStyle(document.querySelector('.signature')).display") == "grid"
    browser.call("Emulation.setEmulatedMedia", media="")


# --- the charts read out ----------------------------------------------------------------------------------------


@pytest.fixture
def levels(written: Callable[[Path], Path], twelve: Path) -> Path:
    return written(twelve)


@pytest.fixture
def chart(browser: Page, levels: Path) -> str:
    """The first chart of a workload with a search, in the middle of the window: an expression that gives its frame."""
    browser.open(levels, 1280)
    browser.evaluate("document.querySelector('.plot').scrollIntoView({block: 'center'})")
    return "document.querySelector('.plot')"


def place_of_mark(browser: Page, mark: str) -> tuple[float, float]:
    x, y = browser.evaluate(f"(r => [r.x + r.width / 2, r.y + r.height / 2])({mark}.getBoundingClientRect())")
    return x, y


def press(browser: Page, key: str) -> None:
    for kind in ("rawKeyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)


def rows(browser: Page, chart: str) -> list[str]:
    shown = f"[...{chart}.querySelectorAll('.readout:not([hidden]) > *')].map(e => e.innerText.replaceAll('\\n', ' '))"
    found: list[str] = browser.evaluate(shown)
    return found


def test_a_pointer_reads_a_level_out_and_every_chart_of_the_workload_shows_it(browser: Page, chart: str) -> None:
    assert browser.evaluate("document.querySelectorAll('.plot').length") == 8
    assert rows(browser, chart) == []
    x, y = place_of_mark(browser, f"{chart}.querySelector('.mark[data-level=\"4 users\"]')")
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    shown = rows(browser, chart)
    assert shown[0] == "4 users"
    assert [row.split()[0] for row in shown[1:]] == ["4-bit", "8-bit", "16-bit"]
    assert all("%" in row and " to " in row for row in shown[1:]), "a value with its interval"
    group = f"{chart}.closest('.pictures')"
    assert browser.evaluate(f"{group}.querySelectorAll('.cross:not(.off)').length") == 4
    assert browser.evaluate(f"{group}.querySelectorAll('.mark.read').length") == 12
    assert browser.evaluate(f"{group}.querySelectorAll('.readout:not([hidden])').length") == 1
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=5, y=5)
    assert rows(browser, chart) == []
    assert browser.evaluate(f"{group}.querySelectorAll('.cross:not(.off), .mark.read').length") == 0


def test_keys_walk_the_levels_and_a_screen_reader_hears_them(browser: Page, chart: str) -> None:
    levels = f"[...{chart}.querySelectorAll('.mark')].map(m => parseInt(m.dataset.level))"
    users = sorted(set(browser.evaluate(levels)))
    assert len(users) > 3
    browser.evaluate(f"{chart}.focus({{focusVisible: true}})")
    assert rows(browser, chart)[0] == f"{users[0]} users"
    press(browser, "ArrowRight")
    assert rows(browser, chart)[0] == f"{users[1]} users"
    told = browser.evaluate(
        f"['role', 'aria-valuenow', 'aria-valuemax', 'aria-valuetext'].map(n => {chart}.getAttribute(n))"
    )
    assert told[:3] == ["slider", "2", str(len(users))]
    assert told[3].startswith(f"{users[1]} users: 4-bit ")
    press(browser, "End")
    press(browser, "ArrowRight")
    assert rows(browser, chart)[0] == f"{users[-1]} users"
    press(browser, "Home")
    assert rows(browser, chart)[0] == f"{users[0]} users"
    press(browser, "Escape")
    assert rows(browser, chart) == []


def test_a_touch_reads_a_level_out_inside_the_page(browser: Page, levels: Path, chart: str) -> None:
    browser.open(levels, 390)
    browser.evaluate(f"{chart}.scrollIntoView({{block: 'center'}})")
    mark = f"{chart}.querySelector('.mark[data-level=\"8 users\"]')"
    x, y = place_of_mark(browser, mark)
    browser.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
    browser.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    assert len(rows(browser, chart)) >= 2
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_legend_hides_a_deployment_in_every_chart_of_its_workload(browser: Page, chart: str) -> None:
    group = f"{chart}.closest('.pictures')"
    browser.evaluate(f"{group}.previousElementSibling.querySelector('button').click()")
    off = "[...document.querySelectorAll('.curve.off')].map(c => c.dataset.name)"
    assert browser.evaluate(off) == ["4-bit"] * 4
    assert browser.evaluate("document.querySelectorAll('.legend button[aria-pressed=false]').length") == 1
    browser.evaluate(f"{chart}.focus({{focusVisible: true}})")
    assert [row.split()[0] for row in rows(browser, chart)[1:]] == ["8-bit", "16-bit"]
    browser.evaluate(f"{group}.previousElementSibling.querySelector('button').click()")
    assert browser.evaluate(off) == []


@pytest.mark.parametrize("report", ["along"], indirect=True)
def test_the_frontier_is_read_out_and_its_legend_hides_a_line(browser: Page, report: Path) -> None:
    browser.open(report, 1280)
    chart = "document.querySelector('.frontier .plot')"
    browser.evaluate(f"{chart}.focus({{focusVisible: true}})")
    press(browser, "End")
    assert rows(browser, chart) == ["4,096 prompt tokens", "4-bit 3 held, 4 did not", "16-bit 3 held, 4 did not"]
    browser.evaluate("document.querySelector('.frontier').previousElementSibling.querySelector('button').click()")
    press(browser, "Home")
    assert rows(browser, chart)[0] == "256 prompt tokens"
    assert [row.split()[0] for row in rows(browser, chart)[1:]] == ["16-bit", "32-bit"]


def test_without_scripts_nothing_is_lost(browser: Page, levels: Path) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(levels, 1280)
        assert browser.evaluate("document.querySelectorAll('.plot, .readout, .legend button').length") == 0
        titles = browser.evaluate("[...document.querySelectorAll('svg.levels .mark title')].map(t => t.textContent)")
        assert len(titles) > 40
        assert all(titles)
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)


def test_no_hostile_string_runs_or_leaves_its_element(browser: Page, tmp_path: Path) -> None:
    browser.open(write_report(hostile(tmp_path)), 390)
    assert browser.said() == []
    assert len([url for url in browser.requests() if not url.startswith("data:")]) == 1
    assert browser.evaluate("typeof window.owned") == "undefined"
    assert browser.evaluate("document.querySelectorAll('script').length") == 1
    assert browser.evaluate("document.querySelectorAll('img, iframe').length") == 0
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    shown = HOSTILE.split("\x00")[0].replace("\\", "\\\\").replace("'", "\\'")
    assert browser.evaluate(f"document.querySelector('h1').textContent.startsWith('{shown}')")


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of axe-core, from npm or a package that lies in its cache."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm on PATH, which axe-core comes from")
    folder = tmp_path_factory.mktemp("axe")
    done = subprocess.run([npm, "pack", AXE, "--prefer-offline", "--silent"], cwd=folder, capture_output=True)
    packed = list(folder.glob("axe-core-*.tgz"))
    if done.returncode or not packed:
        pytest.skip(f"npm does not hand out {AXE}: {done.stderr.decode()[-200:]}")
    with tarfile.open(packed[0]) as archive:
        file = archive.extractfile("package/axe.min.js")
        assert file is not None
        return file.read().decode()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("report", ["twelve", "one", "failures", "interrupted"], indirect=True)
def test_axe_finds_nothing_serious(browser: Page, report: Path, axe: str, width: int, dark: bool) -> None:
    browser.open(report, width, dark=dark)
    assert serious(browser, axe) == []


def test_axe_finds_nothing_serious_in_a_comparison(browser: Page, twelve: Path, tmp_path: Path, axe: str) -> None:
    run = result(read_run(twelve))
    found = compare(run, run, name_a="4-bit", name_b="16-bit")
    write_comparison(run, run, found, tmp_path / "c.html")
    for width in (390, 1280):
        browser.open(tmp_path / "c.html", width)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.said() == []
        assert serious(browser, axe) == []


def serious(browser: Page, axe: str) -> list[str]:
    """What axe-core calls serious or critical, everything unfolded."""
    browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    browser.evaluate(f"{axe}; 0")
    found = browser.call(
        "Runtime.evaluate", expression=f"axe.run().then({AXE_TOLD})", awaitPromise=True, returnByValue=True
    )
    assert "exceptionDetails" not in found, found
    told: list[str] = found["result"]["value"]
    return told


@pytest.mark.parametrize("report", ["one"], indirect=True)
def test_a_picture_has_the_width_that_was_asked(browser: Page, report: Path) -> None:
    browser.open(report, 390)
    picture = browser.screenshot()
    width, height = struct.unpack(">II", picture[16:24])
    assert (width, height > 2000) == (390, True)


AXE_TOLD = """(found => (found.passes.length > 20 ? [] : ['axe hardly ran']).concat(found.violations
  .filter(v => ['serious', 'critical'].includes(v.impact))
  .map(v => v.id + ': ' + v.nodes.slice(0, 3).map(n => n.html.slice(0, 160)).join(' | '))))"""

CONTRAST = """(() => {
  const channel = v => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
  const parts = c => c.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const ground = e => {
    for (; e; e = e.parentElement) {
      const c = parts(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] === 1) return c;
    }
    return [255, 255, 255];
  };
  let checked = 0; const poor = [];
  for (const e of document.querySelectorAll('body *')) {
    if (e.closest('.skip, title') || ![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    const style = getComputedStyle(e), svg = e instanceof SVGElement;
    const [a, b] = [light(parts(svg ? style.fill : style.color)), light(ground(e))].sort((x, y) => y - x);
    checked += 1;
    if ((a + 0.05) / (b + 0.05) < 4.5) poor.push(e.tagName + ' ' + e.className + ' ' + e.textContent.slice(0, 40));
  }
  return {checked, poor: poor.slice(0, 5), dark: light(ground(document.body)) < 0.2};
})()"""
