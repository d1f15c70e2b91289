"""A loadproof to be killed: opens one server of the fake stack, says where it is, and waits.

python owner_process.py DIRECTORY RUN_ID [IMAGE] -- SERVER-ARGUMENTS
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fakes.stacks import FakeStack  # noqa: E402  # run as a script, this file must find the packages first

from orchestrator.launch.server import Owner, open_server  # noqa: E402
from orchestrator.records import ServerRecord  # noqa: E402
from stacks.base import Deployment  # noqa: E402


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


def starting(record: ServerRecord) -> None:
    say(event="starting", pid=record.pid, container=record.container_id)


async def main(directory: str, run_id: str, image: str | None, arguments: list[str]) -> None:
    deployment = Deployment(
        name="d",
        stack="fake",
        model="fake-model",
        launch="docker" if image else "process",
        image=image,
        args=tuple(arguments),
    )
    owner = Owner.current(run_id, "cell-1")
    opening = open_server(FakeStack(), deployment, directory=Path(directory), owner=owner, on_starting=starting)
    async with opening as server:
        say(event="ready", pids=await asyncio.to_thread(server.pids), base_url=server.base_url)
        await asyncio.Event().wait()


if __name__ == "__main__":
    split = sys.argv.index("--")
    given = sys.argv[1:split]
    asyncio.run(main(given[0], given[1], given[2] if len(given) > 2 else None, sys.argv[split + 1 :]))
