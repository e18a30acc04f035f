"""Wakes every waiting stream, at each write or on request."""

import asyncio


class Bell:
    """A notification for waiting streams. They check their state before they wait, so that none misses one."""

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    def ring(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    async def wait_until(self, deadline: float) -> None:
        """Wait until the next ring, or until a time of the loop's clock."""
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        self._waiters.add(waiter)
        timer = loop.call_at(deadline, _wake, waiter) if deadline != float("inf") else None
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)
            if timer:
                timer.cancel()


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
