"""The report: one self-contained HTML file, the same bytes for the same run directory.

Everything in it that comes from outside passes `_shown`: cleaned of control characters, bounded, escaped. A content
security policy forbids every request to a network; the one style sheet and the one script, which reads charts out and
sets text only, are named there by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from orchestrator.journal import RunFiles
from reports import figures
from reports.charts import colour_variable, dash
from reports.comparison import Comparison
from reports.result import Result, result, write_derived
from reports.run import read_run
from reports.sections import arrivals, belief, bill, bought, breaks, decision, frontier, lengths, repeat, times, versus
from reports.sections.glossary import TERMS
from stacks.simulated.accuracy import MARK

_PLAN_CHARACTERS = 64 * 1024


def _shown(value: Any) -> Any:
    """What a template prints: untrusted strings cleaned and bounded (Jinja escapes them afterwards), numbers kept on
    the line of their units."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return figures.with_units(figures.clean(value))


def _clip(value: str, limit: int) -> Markup:
    """A string with a bound of its own."""
    return escape(figures.clean(value, limit))


def _term(key: str, text: str | None = None) -> Markup:
    """A word that links to its entry in the glossary."""
    term = next(term for term in TERMS if term.key == key)
    return Markup('<a class="term" href="#term-{}">{}</a>').format(key, text or term.name)


def _swatch(slot: int) -> Markup:
    """A piece of a deployment's line, for legends."""
    dashes = " ".join(map(str, dash(slot)))
    return Markup(
        '<svg class="swatch" width="30" height="10" aria-hidden="true"><line x1="1" y1="5" x2="29" y2="5" '
        'stroke="var(--series-{})" stroke-width="2.5" stroke-dasharray="{}"/></svg>'
    ).format(colour_variable(slot), dashes)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("reports"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., str]] = {
        "clip": _clip,
        "count": figures.count,
        "duration": figures.duration,
        "latency": figures.latency,
        "limit": figures.limit,
        "percent": figures.percent,
        "target": figures.target,
        "significant": figures.significant,
        "size": figures.size,
        "percentile": decision.percentile_text,
    }
    environment.filters.update(filters)
    environment.globals.update(simulated_mark=MARK, term=_term, swatch=_swatch, nothing=figures.NONE)
    return environment


class Inlined(NamedTuple):
    """A file that stands in the page, and what allows just it in a content security policy."""

    text: Markup
    source: str


def _inlined(environment: Environment, name: str) -> Inlined:
    text = environment.get_template(name).render()
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return Inlined(Markup(text), f"'sha256-{digest}'")


def _frame(environment: Environment) -> dict[str, Inlined]:
    """What every page has."""
    return {"style": _inlined(environment, "style.css"), "script": _inlined(environment, "charts.js")}


def render(found: Result, plan_text: str) -> str:
    """The page for a result; `plan_text` is the plan as given."""
    environment = _environment()
    cards = decision.cards(found)
    return environment.get_template("report.html").render(
        result=found,
        page_title=found.title,
        version=found.loadproof_version,
        **_frame(environment),
        cards=cards,
        matrix=decision.matrix(cards),
        tally=decision.tally(cards),
        groups=decision.by_workload(cards),
        everywhere=decision.missing_everywhere(cards),
        comparisons=bought.comparisons(found.cells),
        accounts=bill.accounts(found.cells),
        frontier=frontier.frontier(found),
        ladders=breaks.ladders(found),
        arrivals=arrivals.arrivals(found),
        traffic=lengths.workloads(found),
        times=times.lines(found),
        incidents=[(cell.asked, incident) for cell in found.cells for incident in cell.incidents],
        hardware_notes=belief.hardware_notes(found),
        pairs=versus.in_pairs(found),
        health=belief.health(found),
        sureness=belief.sureness(found),
        remarks=belief.remarks(found),
        notes=belief.notes(found),
        started=repeat.started(found),
        host=repeat.host_rows(found),
        gpus=repeat.gpus(found),
        draws=repeat.draws(found),
        command=repeat.command(found),
        plan=_clip(plan_text, _PLAN_CHARACTERS),
        terms=TERMS,
    )


def render_comparison(a: Result, b: Result, found: Comparison) -> str:
    """The page of a comparison of two results."""
    environment = _environment()
    return environment.get_template("compare.html").render(
        page_title=f"{found.title_b} against {found.title_a}",
        version=b.loadproof_version,
        **_frame(environment),
        found=found,
        cells=versus.versus(a, b, found),
        terms=TERMS,
    )


def write_comparison(a: Result, b: Result, found: Comparison, path: Path) -> None:
    """Write the page of a comparison. Raises HostError if the file cannot be written."""
    page = render_comparison(a, b, found)
    write_derived(path, page.encode())


def write_report(run_dir: Path, out: Path | None = None, *, found: Result | None = None) -> Path:
    """Write the report of a run directory, to `out` or to its ``report.html``, and return where it lies.

    `found` spares reading the run again where its result is at hand. Raises JournalError for what is no run directory
    and HostError if the file cannot be written.
    """
    run = read_run(run_dir)
    page = render(found or result(run), run.plan_text())
    path = out or RunFiles(run_dir).report
    write_derived(path, page.encode())
    return path
