import base64
import hashlib
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from fakes.hostile_run import HOSTILE, hostile

import reports
from reports.comparison import compare
from reports.html import render, render_comparison, write_report
from reports.result import encode, result, write_result
from reports.run import read_run

GOLDEN = Path(__file__).parent.parent / "golden" / "reports"
VOID = {"meta", "link", "br", "img", "input", "hr"}
KINDS = ["one", "twelve", "failures", "interrupted", "dies", "external"]


class Page(HTMLParser):
    """Elements with their attributes, text, and whether every element is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def page(report: Path) -> str:
    return report.read_text(encoding="utf-8")


def without_inlined(text: str) -> str:
    """The style sheet and the script are files of their own, and the policy names their hashes."""
    text = re.sub(r"<(style|script)>.*?</\1>", r"<\1></\1>", text, flags=re.DOTALL)
    return re.sub(r"'sha256-[^']+'", "'sha256-...'", text)


@pytest.mark.parametrize("report", ["failures", "interrupted"], indirect=True)
def test_golden(report: Path, page: str, update: bool) -> None:
    found = without_inlined(page)
    golden = GOLDEN / report.name
    if update:
        golden.write_text(found, encoding="utf-8")
    assert found == golden.read_text(encoding="utf-8"), "run pytest with --update and look at the difference"


def test_the_golden_of_a_real_run(tmp_path: Path, update: bool) -> None:
    """Real llama.cpp under the demo's plan (tests/data/runs/README.md): every number, and the page byte for byte."""
    run = Path(__file__).parent.parent / "data" / "runs" / "llamacpp-demo"
    found = result(read_run(run))
    assert [(c.verdict.verdict, c.verdict.c_ok) for c in found.cells] == [("PROVISIONAL", n) for n in (1, 2, 1, 2)]
    page = write_report(run, tmp_path / "report.html", found=found).read_bytes()
    told = {
        "result.json": (GOLDEN / "llamacpp-demo.json", encode(found)),
        "report.html": (GOLDEN / "llamacpp-demo.sha256", hashlib.sha256(page).hexdigest().encode() + b"\n"),
    }
    for name, (golden, data) in told.items():
        if update:
            golden.write_bytes(data)
        assert golden.read_bytes() == data, f"{name} is another: run pytest with --update and look at the difference"


def test_the_same_bytes_for_the_same_run(one: Path, tmp_path: Path) -> None:
    root = shutil.copytree(one, tmp_path / "one")
    first = write_report(root)
    assert first == root / "report.html"
    data = first.read_bytes()
    found = write_result(root)
    (root / "notes.txt").write_text("laid beside it")
    assert write_report(root, found=found).read_bytes() == data
    first.unlink()
    assert write_report(root).read_bytes() == data


@pytest.mark.parametrize("report", KINDS, indirect=True)
def test_one_self_contained_file_with_one_script(page: str) -> None:
    found = Page(page)
    tags = {tag for tag, _ in found.elements}
    assert found.all("script") == [{}], "ours, inlined, once"
    assert not tags & {"iframe", "object", "embed", "form", "img", "base"}
    assert len(page.encode()) < 1_000_000
    for _, attributes in found.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        for name in ("href", "src", "xlink:href"):
            target = attributes.get(name)
            assert target is None or target == "data:," or target.startswith("#")
    assert not re.search(r"url\(|@import|@font-face", page)


@pytest.mark.parametrize("report", ["one"], indirect=True)
def test_the_policy_allows_the_one_style_sheet_the_one_script_and_nothing_else(page: str) -> None:
    policy = next(m["content"] for m in Page(page).all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy
    assert policy.startswith("default-src 'none'; ")
    for tag in ("style", "script"):
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert len(found) == 1
        digest = base64.b64encode(hashlib.sha256(found[0].encode()).digest()).decode()
        assert f"; {tag}-src 'sha256-{digest}';" in policy
    assert "unsafe" not in policy


def test_the_script_makes_nothing_out_of_text() -> None:
    script = (Path(reports.__file__).parent / "templates" / "charts.js").read_text(encoding="utf-8")
    assert "textContent" in script
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|DOMParser|fetch|XMLHttp|import\b"
    )
    assert not re.search(forbidden, script)


@pytest.mark.parametrize("report", KINDS, indirect=True)
def test_links_lead_somewhere_and_names_are_unique(page: str) -> None:
    found = Page(page)
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"] for attributes in found.all("a")]
    assert len(links) > 5
    assert {link[1:] for link in links if link} <= set(ids)
    for _, attributes in found.elements:
        assert attributes.get("aria-labelledby", ids[0]) in ids


@pytest.mark.parametrize("report", KINDS, indirect=True)
def test_it_can_be_heard(page: str) -> None:
    found = Page(page)
    assert found.all("html") == [{"lang": "en"}]
    assert len(found.all("main")) == len(found.all("header")) == len(found.all("footer")) == 1
    assert all(th.get("scope") in ("col", "row", "rowgroup") for th in found.all("th"))
    for drawing in found.all("svg"):
        assert drawing.get("aria-hidden") == "true" or (drawing.get("role") == "img" and drawing.get("aria-label"))
    headings = [int(tag[1]) for tag, _ in found.elements if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(headings))


@pytest.mark.parametrize("report", ["twelve"], indirect=True)
def test_the_decision_comes_first_and_the_parts_follow(page: str) -> None:
    titles = re.findall(r"<h2 [^>]*>([^<]+)</h2>", page)
    assert titles == [
        "The decision",
        "What 4-bit bought, and what it did not",
        "The memory bill: predicted, measured, explained",
        "Where it breaks",
        "What the traffic was",
        "Over time",
        "Can I believe it?",
        "Reproduce it",
        "Glossary",
    ]
    assert page.count('<article class="card"') == 12
    assert page.count('class="chart levels"') == 8
    assert page.count('class="chart"') == 12 + 1
    strips = page.count('class="chart strips"')
    assert f"{strips} levels were measured" in page, "the course of every level"
    assert "No GPU was used" in page


def test_a_command_can_be_copied(one: Path) -> None:
    """Between a number and its unit stands a space that keeps the line, but not in what goes into a shell."""
    found = msgspec.structs.replace(result(read_run(one)), overrides=("slo.ttft_ms=400 ms",))
    text = Page(render(found, "")).text
    assert "loadproof run plan.toml --set 'slo.ttft_ms=400 ms'" in text
    assert "400\u00a0ms" in text


@pytest.mark.parametrize("report", ["interrupted"], indirect=True)
def test_an_interrupted_run_says_so_at_the_top(page: str) -> None:
    assert "This run was interrupted." in page.split("<main>")[0]
    assert "Not measured: the run ended before it." in page


@pytest.mark.parametrize("report", ["failures"], indirect=True)
def test_failures_show_class_remedy_evidence_and_log(page: str) -> None:
    text = Page(page).text
    assert "oom-weights" in text
    assert "What to do. Use a smaller format or a larger card." in text
    assert "Tried to allocate 2.00 GiB" in text
    assert "The last 20 lines of the server's log" in text
    assert "No level was measured" in text


# --- hostile input ----------------------------------------------------------------------------------------------


def test_hostile_text_is_shown_and_never_read(tmp_path: Path) -> None:
    page = write_report(hostile(tmp_path)).read_text(encoding="utf-8")
    found = Page(page)
    assert found.all("script") == [{}]
    assert not found.all("img")
    assert not [attributes for _, attributes in found.elements if any(name.startswith("on") for name in attributes)]
    assert found.text.count("<script>window.owned=1</script>\"'><img src=x onerror=owned()>&amp;") > 60
    assert not re.search("[\x00\x1b\u202e]", page)
    assert "{{7*7}}" in found.text
    assert len({attributes.get("class") for attributes in found.all("span")}) < 15


def test_hostile_text_is_shown_and_never_read_in_a_comparison(tmp_path: Path) -> None:
    run = result(read_run(hostile(tmp_path)))
    other = msgspec.structs.replace(run, host={"cpu_model": HOSTILE, "gpu:0": HOSTILE}, run_id=HOSTILE)
    names = [cell.asked.deployment for cell in run.cells]
    found = compare(run, other, name_a=names[0], name_b=names[1], under_test=["machine", "tokens", "cache"])
    text = render_comparison(run, other, found)
    page = Page(text)
    assert page.all("script") == [{}]
    assert not page.all("img")
    assert not [attributes for _, attributes in page.elements if any(name.startswith("on") for name in attributes)]
    assert page.text.count("<script>window.owned=1</script>") > 8
    assert not re.search("[\x00\x1b\u202e]", text)


def test_endless_text_is_bounded(tmp_path: Path) -> None:
    run = hostile(tmp_path, longest="y" * 100_000)
    page = write_report(run).read_text(encoding="utf-8")
    assert len(page) < 3_000_000
    assert "characters left out" in page
    assert max(map(len, Page(page).text.split())) < 70_000


def test_the_result_of_hostile_input_reads_back(tmp_path: Path) -> None:
    found = result(read_run(hostile(tmp_path)))
    assert found.title == HOSTILE
    assert len(found.cells) == 3
