"""The command line: finds the command, and turns every error into one sentence and an exit code.

Commands are imported when they are called, so that `loadproof load` starts in a fraction of a second.
"""

from __future__ import annotations

import importlib
import sys
from typing import NamedTuple

import click

from orchestrator import __version__
from orchestrator.errors import LoadproofError, PlanError


class _Entry(NamedTuple):
    module: str
    attribute: str
    summary: str


COMMANDS = {
    "demo": _Entry("orchestrator.commands.demo", "demo", "The main job on real llama.cpp, here, in minutes."),
    "run": _Entry("orchestrator.commands.run", "run", "Measure what a plan asks for; find where it breaks; report."),
    "load": _Entry("orchestrator.commands.load", "load", "Load any endpoint at one level; the times it answers in."),
    "size": _Entry("orchestrator.commands.size", "size", "Predict the memory bill before a card is rented."),
    "report": _Entry("orchestrator.commands.report", "report", "Build the HTML report of a run again."),
    "show": _Entry("orchestrator.commands.show", "show", "A run's results in the terminal."),
    "check": _Entry("orchestrator.commands.check", "check", "The gate: exit 0 signed, 1 refused, 6 not yet known."),
    "compare": _Entry("orchestrator.commands.compare", "compare_runs", "Two runs side by side, by their intervals."),
    "export": _Entry("orchestrator.commands.export", "export", "A run as JSON, CSV, Parquet, or another tool's files."),
    "stacks": _Entry("orchestrator.commands.stacks", "stacks", "The serving stacks, and what is known of each."),
    "doctor": _Entry("orchestrator.commands.doctor", "doctor", "What this machine can do, with remedies."),
    "clean": _Entry("orchestrator.commands.clean", "clean", "Stop and remove what a dead run left behind."),
}


class _LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command = getattr(importlib.import_module(entry.module), entry.attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "-V", "--version", prog_name="loadproof")
def loadproof() -> None:
    """Prove, before launch, what an LLM serving stack holds on a card.

    Start with `loadproof demo`; then write a plan (see examples/) and `loadproof run PLAN.toml`.
    """


def _tell(error: LoadproofError) -> None:
    if isinstance(error, PlanError):
        count = len(error.problems)
        click.echo(f"loadproof: {count} problem{'s' if count != 1 else ''} in the plan; nothing was started.", err=True)
        for problem in error.problems:
            click.echo(f"  {problem}", err=True)
    else:
        click.echo(f"loadproof: {error}", err=True)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the console script. Exit codes: those of `orchestrator.errors`; 130 = Ctrl-C."""
    try:
        code = loadproof.main(args=arguments, prog_name="loadproof", standalone_mode=False)
    except LoadproofError as error:
        _tell(error)
        code = error.exit_code
    except click.exceptions.Abort:
        code = 130
    except click.ClickException as error:
        error.show()
        code = 2
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
