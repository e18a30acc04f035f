"""Divides the streams' reads of the log among iterations of the event loop.

A read takes up to some milliseconds, depending on the filter that its subscriber chose. One change wakes all streams,
and hundreds of reads, one after the other, would block the event loop for seconds.
"""

import asyncio
from collections import deque
from collections.abc import Callable

AT_ONCE_S = 0.02
"""How long streams that are ready may read in one iteration of the event loop. Others wait for their turn."""
WOKEN = 8
"""How many waiting streams may read in one iteration."""


class ReadingTurns:
    """The turns of all streams, in the order in which they became ready."""

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._clock = clock or self._loop.time
        self._ends_at: float | None = None
        """When streams have read enough in this iteration; None if none has read yet."""
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def is_free(self) -> bool:
        """Whether a stream may read at once. Otherwise it must `wait`."""
        if self._ends_at is None:
            self._ends_at = self._clock() + AT_ONCE_S
            self._loop.call_soon(self._iterate)
            return True
        return not self._waiting and self._clock() < self._ends_at

    async def wait(self) -> None:
        turn: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append(turn)
        await turn

    def _iterate(self) -> None:
        """Wake streams that wait; they read in the iteration that follows."""
        self._ends_at = None
        if not self._waiting:
            return
        woken = 0
        while self._waiting and woken < WOKEN:
            turn = self._waiting.popleft()
            if not turn.done():  # not canceled
                turn.set_result(None)
                woken += 1
        self._ends_at = self._clock()
        self._loop.call_soon(self._iterate)
