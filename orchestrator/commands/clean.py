"""`loadproof clean`: stop and remove what a loadproof that died left behind."""

from __future__ import annotations

import click

from orchestrator.errors import HostError
from orchestrator.launch.orphans import container_orphans, process_orphans, remove


@click.command("clean")
@click.option("--dry-run", is_flag=True, help="Say what would be stopped and removed; touch nothing.")
def clean(dry_run: bool) -> None:
    """Stop the processes and remove the containers that loadproof started and that have no living owner.

    A loadproof that is killed cleans up behind itself; this is for what was left all the same (a machine that went
    down, an engine that did not answer). Whatever a running loadproof owns is not touched, nor is anything that
    loadproof did not start.
    """
    orphans = process_orphans(None)
    try:
        orphans += container_orphans(None)
    except HostError as error:
        click.echo(f"Containers were not looked at. {error}", err=True)
    for orphan in orphans:
        click.echo(str(orphan))
    if not orphans:
        click.echo("Nothing is left over.")
    elif dry_run:
        click.echo(f"{len(orphans)} would be stopped and removed.")
    else:
        remove(orphans)
        click.echo(f"{len(orphans)} stopped and removed.")
