"""Costly steps of an event loop, one after the other, so that they do not add up in one iteration.

A server determines what a handshake costs its client: up to 0.15 s, for a chain of large certificates; a page of a list
as much.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar
from weakref import WeakKeyDictionary

AT_ONCE_S = 0.002
"""CPU time after which further steps wait for another iteration of the event loop."""
COSTLY_S = 0.01
"""A step that took this long is followed by as much time for everything else."""

T = TypeVar("T")


class CostlySteps:
    """A queue of costly steps."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._is_planned = False
        self._free_at = 0.0

    def add(self, step: Callable[[], None]) -> None:
        """Call the step when its turn comes."""
        self._waiting.append(step)
        self._plan()

    async def result(self, step: Callable[[], T]) -> T:
        """Return what the step returns, or raise what it raises, when its turn has come."""
        result: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def take() -> None:
            if result.cancelled():
                return
            try:
                result.set_result(step())
            except Exception as error:  # noqa: BLE001  (raised by the caller's task)
                result.set_exception(error)

        self.add(take)
        return await result

    def _plan(self) -> None:
        if self._waiting and not self._is_planned:
            self._is_planned = True
            loop = asyncio.get_running_loop()
            loop.call_at(max(self._free_at, loop.time()), self._run)

    def _run(self) -> None:
        self._is_planned = False
        began = time.thread_time()
        spent = 0.0
        try:
            while self._waiting and spent < AT_ONCE_S:
                self._waiting.popleft()()
                spent = time.thread_time() - began
        finally:
            spent = time.thread_time() - began
            if spent >= COSTLY_S:
                self._free_at = asyncio.get_running_loop().time() + spent
            self._plan()


_HANDSHAKES: "WeakKeyDictionary[asyncio.AbstractEventLoop, CostlySteps]" = WeakKeyDictionary()
_PAGES: "WeakKeyDictionary[asyncio.AbstractEventLoop, CostlySteps]" = WeakKeyDictionary()


def handshake_steps() -> CostlySteps:
    """Return the queue of handshakes of the running event loop."""
    return _HANDSHAKES.setdefault(asyncio.get_running_loop(), CostlySteps())


def page_steps() -> CostlySteps:
    """Return the queue of large pages of the running event loop."""
    return _PAGES.setdefault(asyncio.get_running_loop(), CostlySteps())
