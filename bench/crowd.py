"""`python -m bench.crowd ADDRESS COUNT`: subscribers in a process of their own, which record the latency of events.

It prints `synced` once every subscriber has the whole fleet, and for each line on standard input the figures since the
previous line.
"""

import asyncio
import re
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec

from bench.process import Process, standard_input
from bench.projects import MARK
from bench.subscribers import Subscriber, meanwhile, synced
from milo_discovery.v1 import discovery_pb2 as pb

_MOMENT = re.compile(rb"%s\x12.([0-9]+\.[0-9]+)" % MARK.encode(), re.DOTALL)
_DISENGAGED = bytes([pb.ClusterEvent.TYPE_FIELD_NUMBER << 3, pb.ClusterEvent.TYPE_DISENGAGED])
_IN_A_PROCESS = 250
"""Subscribers per process: more of them would saturate a core, and so receive events late."""


class Heard(msgspec.Struct):
    """Statistics of the events that several subscribers received."""

    late_ms: list[float] = []
    """Latency of the oldest change in each batch, rounded to microseconds."""
    resets: int = 0
    gaps: int = 0
    """Batches whose previous revision is not that of the batch received before."""

    async def listen(self, subscriber: Subscriber) -> None:
        while True:
            before = subscriber.revision
            await subscriber.read()
            now = time.perf_counter()
            self.gaps += subscriber.batch.previous_revision != before
            self.resets += subscriber.batch.reset
            for event in subscriber.batch.events:
                # A disengaged cluster is sent in its last state, with the label value of an earlier change.
                if not event.startswith(_DISENGAGED) and (moment := _MOMENT.search(event)):
                    self.late_ms.append(round(1000 * (now - float(moment[1])), 3))
                    break

    def __add__(self, other: "Heard") -> "Heard":
        return Heard(self.late_ms + other.late_ms, self.resets + other.resets, self.gaps + other.gaps)


class Crowd:
    def __init__(self, processes: list[Process]) -> None:
        self._processes = processes
        self._lines = 1

    async def heard(self) -> Heard:
        """Return the figures since the last call."""
        found = Heard()
        self._lines += 1
        for process in self._processes:
            process.tell("what did you hear?")
            line = (await process.wait_for_lines(self._lines))[self._lines - 1]
            found += msgspec.json.decode(line, type=Heard)
        return found


@asynccontextmanager
async def crowd(address: str, count: int, directory: Path) -> AsyncIterator[Crowd]:
    """Open subscribers, each of which has the whole fleet."""
    async with AsyncExitStack() as stack:
        processes = []
        for first in range(0, count, _IN_A_PROCESS):
            some = min(_IN_A_PROCESS, count - first)
            command = [sys.executable, "-m", "bench.crowd", address, str(some)]
            processes.append(Process(command, directory / f"crowd-{first}.log"))
            stack.push_async_callback(processes[-1].end)
        for process in processes:
            await process.wait_for_lines(1)
        yield Crowd(processes)


async def listen(address: str, count: int) -> None:
    heard = Heard()
    reader = await standard_input()
    async with (
        synced(address, count) as subscribers,
        meanwhile([heard.listen(subscriber) for subscriber in subscribers]),
    ):
        say("synced")
        while await reader.readline():
            say(msgspec.json.encode(heard).decode())
            heard.late_ms.clear()
            heard.resets = heard.gaps = 0


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(listen(sys.argv[1], int(sys.argv[2])))
