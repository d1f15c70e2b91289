"""A loadproof to be killed: opens one server of the fake stack, says where it is, and waits.

python owner_process.py DIRECTORY RUN_ID [IMAGE [COUNT]] -- SERVER-ARGUMENTS

COUNT servers at once; each says that it is ready.
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


async def hold(directory: Path, run_id: str, image: str | None, arguments: list[str]) -> None:
    deployment = Deployment(
        name="d",
        stack="fake",
        model="fake-model",
        launch="docker" if image else "process",
        image=image,
        args=tuple(arguments),
        start_timeout_s=120.0,  # many come up at once
    )
    owner = Owner.current(run_id, "cell-1")
    async with open_server(FakeStack(), deployment, directory=directory, owner=owner, on_starting=starting) as server:
        say(event="ready", pids=await asyncio.to_thread(server.pids), base_url=server.base_url)
        await asyncio.Event().wait()


async def main(folders: list[Path], run_id: str, image: str | None, arguments: list[str]) -> None:
    await asyncio.gather(*(hold(folder, run_id, image, arguments) for folder in folders))


if __name__ == "__main__":
    split = sys.argv.index("--")
    place, run, *more = sys.argv[1:split]
    places = [Path(place) / str(number) for number in range(int(more[1]))] if more[1:] else [Path(place)]
    for folder in places:
        folder.mkdir(exist_ok=True)
    asyncio.run(main(places, run, more[0] if more else None, sys.argv[split + 1 :]))
