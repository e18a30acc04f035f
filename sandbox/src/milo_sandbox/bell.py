"""Waking every stream that waits, at each write or when somebody wants them to look up."""

import asyncio


class Bell:
    """Rung from the event loop. Whoever waits has looked before, so a ring that nobody hears is a ring nobody needs."""

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    def ring(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    async def wait_until(self, deadline: float) -> None:
        """Until the next ring, or that time of the loop's clock, whichever comes first."""
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
