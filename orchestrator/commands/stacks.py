"""`loadproof stacks`: the serving stacks that a plan can name, and all that is known of one before it starts."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator

import click
import msgspec

from orchestrator import __version__
from stacks.about import About, FailureRow, ValueRow, about
from stacks.catalog import names, stack
from stacks.settings import release

WIDTH = 110
_CACHE = {"flag": "switched off at the start", "per request": "switched off request by request", "none": "stays on"}
_LENGTH = {
    "ignore_eos": "exact (ignore_eos)",
    "min_tokens": "exact (min_tokens)",
    "config_string": "exact (generation_config)",
    "none": "cannot be forced",
}


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
@click.pass_context
def stacks(ctx: click.Context, as_json: bool) -> None:
    """List the serving stacks that a plan can name; `show NAME` tells all that is known of one."""
    if ctx.invoked_subcommand is not None:
        return
    known = list(_loadable())
    if as_json:
        _tell({"loadproof": __version__, "stacks": known})
        return
    wide = max(len(each.name) for each in known)
    for each in known:
        versions = " to ".join(each.versions) if each.versions else "any version"
        click.echo(f"{each.name:<{wide}}  {each.title}, {versions}; as {', '.join(each.launches)}")
        if each.status:
            click.echo(f"{'':<{wide}}  {each.status}")


@stacks.command()
@click.argument("name")
@click.option("--release", "wanted", metavar="VERSION", help="Values of this release; else of the newest known.")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
def show(name: str, wanted: str | None, as_json: bool) -> None:
    """Flags, formats, versions, metrics and remedies of the stack NAME."""
    found = _about(name, wanted)
    if as_json:
        _tell(found)
        return
    for line in page(found):
        click.echo(line)


def _loadable() -> Iterator[About]:
    """All stacks; one of a stranger that cannot be loaded is told, and hides none of the others."""
    for name in names():
        try:
            yield about(stack(name))
        except ValueError as error:
            click.echo(f"loadproof: {error}", err=True)


def _about(name: str, wanted: str | None) -> About:
    number = release(wanted)
    if wanted is not None and number is None:
        raise click.BadParameter(f'"{wanted}" is no version; write it as 0.33.0.', param_hint="--release")
    try:
        return about(stack(name), number)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="NAME") from error


def _tell(facts: object) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(facts)).decode())


# --- a page -------------------------------------------------------------------------------------------------------


def page(found: About) -> Iterator[str]:
    """All that is known of a stack, as text."""
    yield f"{found.title}  {found.homepage}".rstrip()
    yield from _wrapped(found.status)
    yield ""
    yield from _rows(_heads(found))
    if found.settings:
        yield from _section("Settings of a deployment, and how they are given to it")
        yield from _rows(
            (row.key, " ".join(row.given_as) or (f"refused: {row.refused}" if row.refused else "on no command line"))
            for row in found.settings
        )
    label = f"{found.title} {found.release or (found.versions[1] if found.versions else '')}".strip()
    yield from _formats(f"Quantizations of {label}", found.quantizations)
    yield from _kv_types(f"KV types of {label}, beside auto", found.kv_dtypes)
    if found.metrics:
        yield from _section("Metrics; a name that a release lacks is not reported, and never zero")
        yield from _rows((name, ", ".join(metrics)) for name, metrics in found.metrics.items())
    if found.log_facts:
        yield from _section("What its log is read for")
        yield from _wrapped(", ".join(found.log_facts))
    yield from _failures("Failures and remedies", found.failures)
    yield from _failures("Failures that all stacks share", found.shared_failures)
    if found.notes:
        yield from _section("What the report says beside its numbers")
        for note in found.notes:
            yield from _wrapped(note)


def _heads(found: About) -> Iterator[tuple[str, str]]:
    can = found.capabilities
    yield "releases", f"{' to '.join(found.versions)} are known" if found.versions else "not told apart"
    if found.image:
        yield "image", found.image
    if found.command:
        yield "command", " ".join(found.command)
    yield "launch", ", ".join(found.launches)
    yield "api", ", ".join(f"{w.api} ({w.path}{', token ids' if w.token_ids else ''})" for w in found.wires)
    yield "ready when", ", ".join(found.ready)
    yield "metrics at", found.metrics_path or "nowhere"
    yield "output length", _LENGTH[can.exact_length]
    yield "prefix cache", f"{_CACHE[can.cache_off]}; proved by: {can.cache_check}"
    yield "KV cache full", can.when_kv_full
    yield "GPUs", "takes all that it sees" if can.takes_all_gpus else "takes those that it is told"


def _formats(title: str, rows: tuple[ValueRow, ...]) -> Iterator[str]:
    if not rows:
        return
    now = [row for row in rows if row.accepted]
    yield from _section(title)
    yield from _rows(
        (what, ", ".join(row.value for row in chosen))
        for what, chosen in (
            ("while it loads", [row for row in now if row.on_load]),
            ("from a checkpoint", [row for row in now if not row.on_load]),
        )
        if chosen
    )
    yield from _elsewhere(rows)


def _kv_types(title: str, rows: tuple[ValueRow, ...]) -> Iterator[str]:
    if not rows:
        return
    yield from _section(title)
    yield from _wrapped(", ".join(row.value for row in rows if row.accepted))
    yield from _elsewhere(rows)


def _elsewhere(rows: tuple[ValueRow, ...]) -> Iterator[str]:
    gone = [f"{row.value} ({row.releases})" for row in rows if not row.accepted]
    if gone:
        yield from _rows([("other releases", ", ".join(gone))])


def _failures(title: str, rows: tuple[FailureRow, ...]) -> Iterator[str]:
    if rows:
        yield from _section(title)
        yield from _rows(dict.fromkeys((row.failure_class, row.remedy) for row in rows))


def _section(title: str) -> Iterator[str]:
    yield ""
    yield click.style(title, bold=True)


def _rows(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Names on the left, what they are on the right, wrapped."""
    listed = list(rows)
    wide = max((len(name) for name, _ in listed), default=0)
    for name, text in listed:
        yield _filled(text, f"  {name:<{wide}}  ")


def _wrapped(text: str) -> Iterator[str]:
    if text:
        yield _filled(text, "  ")


def _filled(text: str, head: str) -> str:
    """Wrapped below `head`; a flag is never cut at its hyphens."""
    below = " " * len(head)
    return textwrap.fill(
        text, WIDTH, initial_indent=head, subsequent_indent=below, break_long_words=False, break_on_hyphens=False
    )
