"""A deadline for one wait after another.

Nearly every wait ends long before its deadline, and the next begins. So the timer outlives the wait that it was set
for, and looks when it fires what is waited for by then: a timer for each wait would be a good part of what the wait
costs.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Deadline:
    def __init__(self, timeout: asyncio.Timeout) -> None:
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._at: float | None = None
        """Of the wait that is under way."""
        self._timer: asyncio.TimerHandle | None = None
        self._is_over = False

    def set(self, at: float) -> None:
        """A wait begins, and is given up at that time of the loop's."""
        self._at = at
        if self._timer is None or self._timer.when() > at:
            self.close()
            self._timer = self._loop.call_at(at, self._look)

    def give_up(self) -> None:
        """The wait that is under way, now."""
        self._is_over = True
        self._timeout.reschedule(self._loop.time())

    def lift(self) -> None:
        """The wait has ended."""
        self._at = None
        if self._is_over and not self._timeout.expired():
            self._timeout.reschedule(None)  # it came in the turn in which it was given up
            self._is_over = False

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        assert self._timer is not None
        now = self._timer.when()
        self._timer = None
        if self._at is None:
            return
        if self._at <= now:
            self.give_up()
        else:
            self._timer = self._loop.call_at(self._at, self._look)


@asynccontextmanager
async def deadline() -> AsyncIterator[Deadline]:
    """For the waits of a block, which is left by TimeoutError where one of them is given up."""
    async with asyncio.timeout(None) as timeout:
        kept = Deadline(timeout)
        try:
            yield kept
        finally:
            kept.close()
