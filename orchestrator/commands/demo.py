"""`loadproof demo`: the main job on an embedded default that is real."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.commands.run import measure, new_journal
from orchestrator.demo import demo_plan, model_folder, prepare, simulated_plan
from orchestrator.errors import StackError
from orchestrator.plan import parse_plan


@click.command("demo")
@click.option("--simulated", is_flag=True, help="On cards that are not there: a 24 GB and an 80 GB one, vLLM, TGI.")
@click.option("--minutes", type=click.FloatRange(min=0.5), help="Time for measuring; trims the ladder (default: 6).")
@click.option("--out", type=click.Path(path_type=Path), help="Run directory to make (default: runs/TIME-...).")
@click.option("--open", "open_report", is_flag=True, help="Open the report in the browser.")
@click.option("--prepare", "prepare_only", is_flag=True, help="Fetch and convert the weights; measure nothing.")
@click.option("--quiet", is_flag=True, help="Print the summary alone.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line on stdout.")
def demo(
    simulated: bool,
    minutes: float | None,
    out: Path | None,
    open_report: bool,
    prepare_only: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """The main job on this machine: the real llama.cpp server with one small model in 4, 8 and 16 bit.

    Each deployment is started, asked a short and a long prompt by one user, then long prompts by more and more users
    until it breaks, then realistic lengths (azure-conv-2023). No GPU, no Docker and no model hub are needed.

    With --simulated nothing is started: Llama 3.1 8B in 16, 8 and 4 bit, vLLM against TGI, on a 24 GB and an 80 GB card
    that are not there, by the full method in virtual time. Its figures are a model's, and every page says so.
    """
    if simulated:
        if minutes is not None or prepare_only:
            raise click.UsageError("--minutes and --prepare belong to the demo that measures; leave them out.")
        plan = parse_plan(simulated_plan(), "demo-simulated.toml", base=Path.cwd())
        try:
            measure(plan, new_journal(plan, out), (), quiet=quiet, as_json=as_json, open_report=open_report)
        except StackError as error:  # one deployment is there to show how a refusal looks
            click.echo(f"{error}", err=True)
        return
    folder = model_folder()
    prepare(folder, lambda text: None if quiet else click.echo(text, err=True))
    if prepare_only:
        return
    overrides = () if minutes is None else (f"budget.minutes={minutes:g}",)
    plan = parse_plan(demo_plan(folder), "demo.toml", overrides, base=Path.cwd())
    journal = new_journal(plan, out)
    measure(plan, journal, overrides, quiet=quiet, as_json=as_json, open_report=open_report)
