"""What a loadproof that died left behind: processes and containers that carry its marks and have no living owner."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import NamedTuple

from orchestrator.errors import HostError
from orchestrator.launch.docker import Engine
from orchestrator.launch.engine_facts import Found
from orchestrator.launch.owner import IN_CONTAINER, LABEL, Owner, is_alive, owner_of, owner_of_labels
from orchestrator.launch.tree import Tree, read_environment, read_table, stop_tree

GRACE_S = 10.0
WORKERS = 8


class Orphan(NamedTuple):
    """Something that nobody owns any more."""

    owner: Owner
    pids: tuple[int, ...] = ()
    """Processes of one server."""
    container: Found | None = None

    def __str__(self) -> str:
        whose = f"run {self.owner.run_id}, cell {self.owner.cell}, whose loadproof (pid {self.owner.pid}) is gone"
        if self.container is not None:
            return f"container {self.container.id[:12]} {self.container.name}: {whose}"
        return f"process{'es' if len(self.pids) > 1 else ''} {', '.join(map(str, self.pids))}: {whose}"


def find_orphans(run_id: str | None) -> list[Orphan]:
    """Everything of a run, or of all runs, that has no living owner. Without a Docker Engine there are no containers.

    `run_id`: a run that its caller has locked, so that none of its owners can be alive: then what an owner in another
    place left (another container, a machine before its reboot) counts as well. With None, such a container counts only
    if it has stopped, or if its owner lived in a container that has.
    """
    orphans = process_orphans(run_id)
    try:
        orphans += container_orphans(run_id)
    except HostError:  # no engine answers, so no container of it runs
        return orphans
    return orphans


def process_orphans(run_id: str | None) -> list[Orphan]:
    """Process trees of dead owners of this place, one orphan for each server."""
    servers: dict[Owner, list[int]] = {}
    for pid in read_table():
        owner = owner_of(read_environment(pid))
        if owner is not None and run_id in (None, owner.run_id):
            servers.setdefault(owner, []).append(pid)
    return [Orphan(owner, tuple(sorted(pids))) for owner, pids in servers.items() if is_alive(owner) is False]


def container_orphans(run_id: str | None) -> list[Orphan]:
    """Containers of dead owners. Raises HostError if no engine answers."""
    labels = {LABEL: "1"} | ({} if run_id is None else {"loadproof.run": run_id})
    with Engine.connect() as engine:
        found = engine.labelled(labels)
        owners = [owner_of_labels(container.labels) for container in found]
        places = {owner.place: _place_runs(engine, owner.place) for owner in owners if owner is not None}
    orphans = []
    for owner, container in zip(owners, found, strict=True):
        if owner is not None and is_orphan(container, is_alive(owner), places[owner.place], named=run_id is not None):
            orphans.append(Orphan(owner, container=container))
    return orphans


def is_orphan(container: Found, alive: bool | None, place_runs: bool | None, *, named: bool) -> bool:
    """The decision on a container. `alive`: whether the owner lives, None = its pid means nothing here; `place_runs`:
    whether the container in which the owner lived runs, None = it lived in none; `named`: of a run that is locked."""
    if alive is not None:
        return not alive
    if place_runs is not None:
        return named or not place_runs
    return named or not container.running


def _place_runs(engine: Engine, place: str) -> bool | None:
    if not place.startswith(IN_CONTAINER):
        return None
    state = engine.state(place.removeprefix(IN_CONTAINER))
    return state is not None and state.running


def remove(orphans: Sequence[Orphan]) -> None:
    """Stop and remove them, several at once. Raises HostError if something cannot be ended."""
    with ExitStack() as stack, ThreadPoolExecutor(WORKERS, "orphans") as pool:
        if any(orphan.container is not None for orphan in orphans):
            engine: Engine | None = stack.enter_context(Engine.connect())
        else:
            engine = None
        left = [pid for pids in pool.map(lambda orphan: _remove(orphan, engine), orphans) for pid in pids]
    if left:
        raise HostError(
            f"Left-over processes cannot be ended: pids {', '.join(map(str, left))}.",
            "They belong to another user, or hang in the kernel (see dmesg).",
        )


def _remove(orphan: Orphan, engine: Engine | None) -> Iterable[int]:
    if orphan.container is not None:
        assert engine is not None
        engine.remove(orphan.container.id)
        return ()
    marks: Mapping[str, str] = orphan.owner.environment()
    return stop_tree(Tree(None, marks), GRACE_S)
