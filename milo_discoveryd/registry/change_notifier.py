"""Wakes the subscribers that wait for changes. With `fleet`, the only part of this package that uses the event loop."""

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

COST_PER_WAITER_S = 0.0001
"""A generous estimate of what it takes to hand a message to one subscriber."""
LONGEST_DELAY_S = 0.05
LOW_PRIORITY_DELAY_S = 0.5
"""The delay of changes that are not urgent: at 20 probes a second, a subscriber gets ten clusters in one message."""


class Waiter:
    """One subscriber's wake-up call."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._is_woken = False
        self._sleep: asyncio.Future[None] | None = None

    def wake(self) -> None:
        self._is_woken = True
        if self._sleep is not None and not self._sleep.done():
            self._sleep.set_result(None)

    async def wait(self, timeout_s: float) -> None:
        """Wait until it is woken, or for at most `timeout_s`.

        It may return early with nothing new: an earlier timer is kept, because changes are far more frequent than
        timeouts and setting a timer for each wait would cost more.
        """
        if not self._is_woken:
            deadline = self._loop.time() + timeout_s
            if self._timer is None or self._timer.when() > deadline:
                self.close()
                self._timer = self._loop.call_at(deadline, self._time_out)
            self._sleep = self._loop.create_future()
            try:
                await self._sleep
            finally:
                self._sleep = None
        self._is_woken = False

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _time_out(self) -> None:
        self._timer = None
        self.wake()


class ChangeNotifier:
    """Wakes every waiter soon after a change, with a debounce.

    The first change is announced at once. Further ones are delayed so that many changes a second cost each subscriber
    a few messages only. The delay grows with the number of subscribers, up to `LONGEST_DELAY_S`.
    """

    def __init__(self) -> None:
        self._waiters: dict[Waiter, None] = {}
        """Woken in the order in which they came."""
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
        """Note that a commit reached `revision`, from bytes read at `read_at` on the event loop's clock."""
        self._published.append((revision, read_at))
        self.notify()

    def read_at(self, revision: int) -> float | None:
        """Return when the bytes behind `revision` were read, or None if that was too long ago."""
        found = None
        for head, read_at in reversed(self._published):
            if head < revision:
                break
            found = read_at
        return found

    def notify_now(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._wake_all()

    def notify(self, after_s: float = 0.0) -> None:
        """Wake all waiters, not before `after_s` unless there is another reason to."""
        if not self._waiters:
            return
        loop = asyncio.get_running_loop()
        now = loop.time()
        delay_s = min(LONGEST_DELAY_S, len(self._waiters) * COST_PER_WAITER_S)
        due = max(now + after_s, self._last + delay_s)
        if self._timer is not None:
            if self._timer.when() <= due:
                return
            self._timer.cancel()
        if due <= now:
            self._wake_all()
        else:
            self._timer = loop.call_at(due, self._wake_all)

    def _wake_all(self) -> None:
        self._timer = None
        self._last = asyncio.get_running_loop().time()
        for waiter in self._waiters:
            waiter.wake()
