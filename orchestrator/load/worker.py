"""A load process of a fleet: `python -m orchestrator.load.worker SOCKET TALLY`, both inherited file descriptors.

It sends, stamps and parses; what a level is, and when it ends, it shares with the others through the tally. When the
fleet's end of the socket is closed, for whatever reason, it is gone at once.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

import msgspec
import uvloop

from orchestrator.clock import NS_PER_S, now_ns
from orchestrator.host import raise_file_limit
from orchestrator.load.engine import Target, run_part
from orchestrator.load.frames import (
    BLOCK,
    Abort,
    Broken,
    Channel,
    Done,
    Ended,
    Go,
    Hello,
    Level,
    Need,
    Over,
    Ready,
    Requests,
    Tick,
    ToWorker,
    Which,
)
from orchestrator.load.tally import Part, SharedTally
from orchestrator.load.wire import Sender
from orchestrator.records import Request, RequestRecord

TICK_S = 0.1
_BLOCKS_KEPT = 4


class Received:
    """A list of requests that comes in blocks, asked for half a block ahead. See `supply.Supply`."""

    def __init__(self, ask: Callable[[], None]) -> None:
        self._ask = ask
        self._asked = True  # the first block comes unasked
        self._blocks: dict[int, Sequence[Request]] = {}
        self._end = 0
        self._news = asyncio.Event()

    def take(self, first: int, requests: Sequence[Request]) -> None:
        """A block came. Blocks far behind it hold what others have sent."""
        number = first // BLOCK
        self._blocks[number] = requests
        self._blocks.pop(number - _BLOCKS_KEPT, None)
        self._end, self._asked = first + len(requests), False
        self._news.set()

    async def at(self, place: int) -> Request:
        while place >= self._end:
            self._news.clear()
            self._ask_more()
            await self._news.wait()
        if place >= self._end - BLOCK // 2:
            self._ask_more()
        return self._blocks[place // BLOCK][place % BLOCK]

    def _ask_more(self) -> None:
        if not self._asked:
            self._asked = True
            self._ask()


class _Current:
    """The level that this worker takes part in."""

    def __init__(self, level: Level, shared: SharedTally, channel: Channel[ToWorker]) -> None:
        self.level = level
        self.part = Part(level.number, level.of, shared.tally, shared.lock)
        self.abort: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.lists: dict[Which, Received] = {
            "measured": Received(lambda: channel.send(Need("measured"))),
            "other": Received(lambda: channel.send(Need("other"))),
        }


class _Worker:
    def __init__(self, channel: Channel[ToWorker], sender: Sender, shared: SharedTally) -> None:
        self._channel = channel
        self._sender = sender
        self._shared = shared

    async def serve(self) -> NoReturn:
        """Do as the fleet says, until it is gone."""
        current: _Current | None = None
        running: asyncio.Task[None] | None = None
        while (message := await self._channel.receive()) is not None:
            if isinstance(message, Level):
                raise_file_limit(message.spec.concurrency + (message.most_in_flight if message.due else 0) + 256)
                current = _Current(message, self._shared, self._channel)
                self._channel.send(Ready())
            elif current is None:
                continue
            elif isinstance(message, Requests):
                current.lists[message.which].take(message.first, message.requests)
            elif isinstance(message, Go):
                running = asyncio.create_task(self._run(current))
            elif isinstance(message, Over):
                current.part.cut = current.part.cut or message.cut
                current.part.over.set()
            elif isinstance(message, Abort) and not current.abort.done():
                current.abort.set_result(message.reason)
        del running
        os._exit(0)

    async def _run(self, current: _Current) -> None:
        tasks = [asyncio.create_task(task) for task in (self._tick(), self._tell_over(current.part))]
        try:
            await asyncio.sleep((self._shared.tally.started_ns - now_ns()) / NS_PER_S)
            run = await run_part(
                current.level.spec,
                current.level.due,
                current.level.most_in_flight,
                self._sender,
                measured=current.lists["measured"],
                other=current.lists["other"],
                on_record=self._tell,
                abort=current.abort,
                part=current.part,
            )
        except Exception:
            self._channel.send(Broken(traceback.format_exc()))
        else:
            self._channel.send(Done(run.health, current.part.cut))
        finally:
            for task in tasks:
                task.cancel()

    def _tell(self, record: RequestRecord) -> None:
        self._channel.send(Ended(record))

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._channel.send(Tick(now_ns()))

    async def _tell_over(self, part: Part) -> None:
        await part.over.wait()
        self._channel.send(Over(part.cut))


async def _work(sock: socket.socket, shared: SharedTally) -> None:
    channel = await Channel.over(sock, msgspec.msgpack.Decoder(ToWorker))
    hello = await channel.receive()
    if not isinstance(hello, Hello):
        return
    target = pickle.loads(hello.target)
    assert isinstance(target, Target)
    async with target.sender() as sender:
        channel.send(Ready())
        await _Worker(channel, sender, shared).serve()


def main() -> None:
    sock = socket.socket(fileno=int(sys.argv[1]))
    shared = SharedTally(int(sys.argv[2]))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_work(sock, shared))


if __name__ == "__main__":
    main()
