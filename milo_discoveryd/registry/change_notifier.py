"""Wakes those who wait for changes: the one part of this room that knows of an event loop."""

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

COST_S = 0.0001
"""What it takes to hand a message to one subscriber, about, with room to spare."""
LONGEST_S = 0.05
LOW_PRIORITY_DELAY_S = 0.5
"""For news that nobody waits for: at a score of probes a second, each subscriber is told of ten clusters at once."""


class Waiter:
    """One subscriber's bell."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._is_rung = False
        self._sleep: asyncio.Future[None] | None = None

    def ring(self) -> None:
        self._is_rung = True
        if self._sleep is not None and not self._sleep.done():
            self._sleep.set_result(None)

    async def wait(self, timeout_s: float) -> None:
        """Until it is rung, at most for so long. It may be sooner, with nothing new: a timer that is set is left to
        ring, since there is news far more often than anybody has waited for as long as he would."""
        if not self._is_rung:
            due = self._loop.time() + timeout_s
            if self._timer is None or self._timer.when() > due:
                self.close()
                self._timer = self._loop.call_at(due, self._time_out)
            self._sleep = self._loop.create_future()
            try:
                await self._sleep
            finally:
                self._sleep = None
        self._is_rung = False

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _time_out(self) -> None:
        self._timer = None
        self.ring()


class ChangeNotifier:
    """Rings every bell soon after a change.

    At once, if the last time is long enough ago; else when it will be, so that many changes a second cost each
    subscriber a few messages and not as many. The interval grows with the number of subscribers, up to a twentieth of
    a second.
    """

    def __init__(self) -> None:
        self._waiters: dict[Waiter, None] = {}
        """Rung in the order in which they came."""
        self._last = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._published: deque[tuple[int, float]] = deque(maxlen=1024)

    def __len__(self) -> int:
        return len(self._waiters)

    @contextmanager
    def waiter(self) -> Iterator[Waiter]:
        waiter = Waiter()
        self._waiters[waiter] = None
        try:
            yield waiter
        finally:
            del self._waiters[waiter]
            waiter.close()

    def published(self, revision: int, read_at: float) -> None:
        """A commit reached `revision`, from bytes that were read at `read_at` on the loop's clock."""
        self._published.append((revision, read_at))
        self.ring()

    def read_at(self, revision: int) -> float | None:
        """When the bytes behind `revision` were read; None where that was too long ago."""
        found = None
        for head, read_at in reversed(self._published):
            if head < revision:
                break
            found = read_at
        return found

    def ring_now(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._ring()

    def ring(self, after_s: float = 0.0) -> None:
        """Not before `after_s`, unless there is another reason to."""
        if not self._waiters:
            return
        loop = asyncio.get_running_loop()
        now = loop.time()
        due = max(now + after_s, self._last + min(LONGEST_S, len(self._waiters) * COST_S))
        if self._timer is not None:
            if self._timer.when() <= due:
                return
            self._timer.cancel()
        if due <= now:
            self._ring()
        else:
            self._timer = loop.call_at(due, self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._last = asyncio.get_running_loop().time()
        for waiter in self._waiters:
            waiter.ring()
