"""A deadline that is reused for consecutive waits.

Most waits end long before their deadlines. To save the cost of a timer per wait, a timer stays scheduled after its wait
has ended, and when it fires, it is rescheduled for the deadline of the wait in progress.
"""

import asyncio
from types import TracebackType
from typing import Self


class Deadline:
    """A context manager with a deadline for each wait in its block, which raises TimeoutError if a wait exceeds it.

    Not a generator, which would take more memory in each open watch.
    """

    __slots__ = ("_at", "_is_over", "_loop", "_timeout", "_timer")

    def __init__(self) -> None:
        self._timeout = asyncio.timeout(None)
        self._loop = asyncio.get_running_loop()
        self._at: float | None = None
        """Deadline of the wait in progress."""
        self._timer: asyncio.TimerHandle | None = None
        self._is_over = False

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        await self._timeout.__aexit__(kind, error, trace)

    def set(self, at: float) -> None:
        """Start a wait with this deadline (time of the event loop)."""
        self._at = at
        if self._timer is None or self._timer.when() > at:
            self.close()
            self._timer = self._loop.call_at(at, self._check_deadline)

    def give_up(self) -> None:
        """Abort the wait in progress with TimeoutError, unless it is already ending."""
        if not self._is_over:
            self._is_over = True
            self._timeout.reschedule(self._loop.time())

    def lift(self) -> None:
        """End the wait normally: its deadline no longer applies."""
        self._at = None
        if self._is_over and not self._timeout.expired():
            self._timeout.reschedule(None)  # the result arrived in the same iteration as the deadline
            self._is_over = False

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check_deadline(self) -> None:
        assert self._timer is not None
        now = self._timer.when()
        self._timer = None
        if self._at is None:
            return
        if self._at <= now:
            self.give_up()
        else:
            self._timer = self._loop.call_at(self._at, self._check_deadline)
