"""The order in which the handshakes of an event loop compute, so that costly ones do not add up in one iteration.

A server determines what a handshake costs its client: up to 0.15 s, for a chain of large certificates.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from weakref import WeakKeyDictionary

AT_ONCE_S = 0.002
"""CPU time after which further steps wait for another iteration of the event loop."""
COSTLY_S = 0.01
"""A step that took this long is followed by as much time for everything else."""

_TURNS: "WeakKeyDictionary[asyncio.AbstractEventLoop, HandshakeTurns]" = WeakKeyDictionary()


class HandshakeTurns:
    """A queue of steps of handshakes."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._is_planned = False
        self._free_at = 0.0

    def add(self, step: Callable[[], None]) -> None:
        """Call the step when its turn comes."""
        self._waiting.append(step)
        self._plan()

    def _plan(self) -> None:
        if self._waiting and not self._is_planned:
            self._is_planned = True
            asyncio.get_running_loop().call_at(self._free_at, self._run)

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


def turns() -> HandshakeTurns:
    """Return the queue of the running event loop."""
    return _TURNS.setdefault(asyncio.get_running_loop(), HandshakeTurns())
