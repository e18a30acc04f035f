"""Writes to the API server, and the latency with which watch clients receive them."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from statistics import quantiles
from typing import Any

import aiohttp

from bench.milo import Milo, label, project_path
from bench.projects import MARK
from milo_discovery import Watch

_LAST_WITHIN_S = 10.0


class Writes:
    """Writes at an even rate, with the times at which each was started and received."""

    def __init__(
        self,
        milo: Milo,
        count: int,
        per_s: float,
        clusters: int,
        first_mark: int,
        *,
        path: Callable[[int], str] = project_path,
    ) -> None:
        """Prepare the writes; `path` returns the path of the object to write, by its index among `clusters`."""
        self._milo = milo
        self._count = count
        self._interval_s = 1 / per_s
        self._clusters = clusters
        self._first_mark = first_mark
        self._path = path
        self._begun: dict[int, float] = {}
        self.latencies_ms: list[float] = []
        self.round_trips_ms: list[float] = []
        self._all_seen = asyncio.Event()

    def seen(self, mark: int, at: float | None = None) -> None:
        """Record that a watch client received the label value `mark`; `at` defaults to now."""
        at = time.perf_counter() if at is None else at
        # A watch client that skips states has received the earlier writes to the object with this one.
        while (begun := self._begun.pop(mark, None)) is not None:
            self.latencies_ms.append((at - begun) * 1000)
            mark -= self._clusters
        if len(self.latencies_ms) == self._count:
            self._all_seen.set()

    def at(self, percent: int) -> float:
        """Return a percentile of the latencies."""
        return quantiles(self.latencies_ms, n=100)[percent - 1]

    async def run(self) -> None:
        """Make the writes, and wait until all of them were received."""
        loop = asyncio.get_running_loop()
        async with self._milo.access.session() as session:
            start = loop.time() + 0.2
            async with asyncio.TaskGroup() as tasks:
                for number in range(self._count):
                    await asyncio.sleep(start + number * self._interval_s - loop.time())
                    tasks.create_task(self._write(session, number))
            async with asyncio.timeout(_LAST_WITHIN_S):
                await self._all_seen.wait()

    async def _write(self, session: aiohttp.ClientSession, number: int) -> None:
        mark = self._first_mark + number
        self._begun[mark] = begun = time.perf_counter()
        await label(session, self._path(number % self._clusters), str(mark))
        self.round_trips_ms.append((time.perf_counter() - begun) * 1000)


Reader = Callable[[Writes, asyncio.Event], Coroutine[Any, Any, None]]
"""A watch client that reports label values until it is canceled, and sets the event once it is ready."""


async def read_by(reader: Reader, writes: Writes) -> Writes:
    ready = asyncio.Event()
    reading = asyncio.create_task(reader(writes, ready))
    try:
        await ready.wait()
        await writes.run()
    finally:
        reading.cancel()
        await asyncio.wait([reading])
        if not reading.cancelled():
            reading.result()
    return writes


async def subscriber(watch: Watch, writes: Writes, ready: asyncio.Event) -> None:
    ready.set()
    async for event in watch:
        mark = event.cluster.labels.get(MARK, "")
        if mark:
            writes.seen(int(mark))
