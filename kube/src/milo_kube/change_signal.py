"""Wakes asyncio waiters whenever shared state changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class ChangeSignal:
    """A condition variable without a lock: waiters re-check their predicate after each notification."""

    def __init__(self) -> None:
        self._waiters: dict[asyncio.Future[None], None] | None = None  # in the order of their calls

    def notify(self) -> None:
        waiters, self._waiters = self._waiters, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(None)

    async def wait_for(self, predicate: Callable[[], bool]) -> None:
        """Return once `predicate()` is true; immediately if it already is."""
        while not predicate():
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            if self._waiters is None:
                self._waiters = {}
            self._waiters[waiter] = None
            try:
                await waiter
            finally:
                if self._waiters is not None:
                    self._waiters.pop(waiter, None)
