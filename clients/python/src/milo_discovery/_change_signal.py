"""Wakes asyncio waiters whenever shared state changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class ChangeSignal:
    """A condition variable without a lock: waiters re-check their predicate after each notification."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        self._event.set()
        self._event = asyncio.Event()

    async def wait_for(self, predicate: Callable[[], bool]) -> None:
        """Return once `predicate()` is true; immediately if it already is."""
        while not predicate():
            await self._event.wait()
