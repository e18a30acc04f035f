"""A timer for many leases: wakes one task when the next of them is due."""

import asyncio
import heapq
import itertools
from collections.abc import Iterator
from typing import Generic, TypeVar

L = TypeVar("L")


class RenewalTimer(Generic[L]):
    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count()
        self._due: list[tuple[float, int, L]] = []
        self._due_sooner = asyncio.Event()

    def add(self, due_at: float, lease: L) -> None:
        """Add a lease that is due at this time of the event loop. It may be in the timer several times."""
        heapq.heappush(self._due, (due_at, next(self._numbers), lease))
        if self._due[0][2] is lease:
            self._due_sooner.set()

    def take_due(self, now: float) -> Iterator[L]:
        while self._due and self._due[0][0] <= now:
            yield heapq.heappop(self._due)[2]

    async def wait_for_due(self, now: float, *, at_most_s: float) -> None:
        """Wait until the next lease is due, for up to `at_most_s`."""
        self._due_sooner.clear()
        wait_s = at_most_s if not self._due else min(at_most_s, self._due[0][0] - now)
        timer = self._loop.call_later(max(0.0, wait_s), self._due_sooner.set)
        try:
            await self._due_sooner.wait()
        finally:
            timer.cancel()
