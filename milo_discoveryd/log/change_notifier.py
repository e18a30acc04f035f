"""Wakes subscribers that wait for changes, and divides reads of clusters among iterations of the event loop.

No other module of this package uses the event loop.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Hashable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

T = TypeVar("T")

COST_PER_WAITER_S = 0.0001
"""A generous estimate of the time that it takes to send a message to one subscriber."""
LONGEST_DELAY_S = 0.05
LOW_PRIORITY_DELAY_S = 0.5
"""The delay of changes that are not urgent. At 20 probes per second, one message then covers ten clusters."""

AT_ONCE_S = 0.02
"""How long clusters may be read in one iteration of the event loop. Other reads wait for their turn."""
IN_TURNS_S = 0.002
"""The same while reads wait, so that iterations stay short: gRPC accepts one call in some five."""
WOKEN = 8
"""How many reads that wait may be woken in one iteration, but not many more than the one before had time for."""


class Waiter:
    """The wake-up signal of one subscriber."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._is_woken = False
        self._sleep: asyncio.Future[None] | None = None

    def wake(self) -> None:
        self._is_woken = True
        if self._sleep is not None and not self._sleep.done():
            self._sleep.set_result(None)

    async def wait_for_change(self, timeout_s: float) -> None:
        """Wait until `wake` is called, or for at most `timeout_s`.

        It may return early without a change: an earlier timer is kept, because changes are far more frequent than
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
    """Debounced wake-ups of all waiters after a change.

    The first change wakes them at once. Later ones are delayed, so that many changes per second become a few messages
    to each subscriber. The delay grows with the number of subscribers, up to `LONGEST_DELAY_S`.
    """

    def __init__(self) -> None:
        self._waiters: dict[Waiter, None] = {}
        """The waiters in the order in which they are woken, which is the order of registration."""
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
        """Record that a commit reached `revision`, from bytes read at `read_at` on the event loop's clock."""
        self._published.append((revision, read_at))
        self.notify()

    def read_at(self, revision: int) -> float | None:
        """Return when the bytes that led to `revision` were read, or None if that is not known."""
        first_read_at = None
        for head, read_at in reversed(self._published):
            if head < revision:
                break
            first_read_at = read_at
        return first_read_at

    def notify_now(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._wake_all()

    def notify(self, after_s: float = 0.0) -> None:
        """Wake all waiters after at least `after_s`, or with an earlier wake-up that is already scheduled."""
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


class ReadingTurns:
    """The turns of all that read many clusters: streams, in the order in which they became ready, and the steps of
    lists. Callers take turns as well, so that the many reads of one do not delay those of another.

    A read takes up to some milliseconds, depending on the filter that its caller chose. One change wakes all streams,
    and hundreds of reads, one after the other, would block the event loop for seconds.
    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._clock = clock or self._loop.time
        self._ends_at: float | None = None
        """When enough was read in this iteration; None if nothing was read yet."""
        self._waiting: OrderedDict[Hashable, deque[asyncio.Future[None]]] = OrderedDict()
        """What waits, by caller; the caller whose turn is next is first."""
        self._postponed: deque[asyncio.Future[None]] = deque()
        """What was woken, but found that enough was read: it is next."""
        self._is_iterating = False
        self._reads = 0
        """How many reads this iteration had time for."""
        self._has_woken = False
        """Whether this iteration belongs to what was woken."""

    @property
    def is_free(self) -> bool:
        """Whether a stream may read at once. Otherwise it must `wait`."""
        return not (self._has_woken or self._waiting) and self._has_time()

    async def wait(self, caller: Hashable) -> None:
        """Wait until the caller may read; it reads before it awaits anything else."""
        await self._woken(self._waiting.setdefault(caller, deque()))
        while not self._has_time():
            await self._woken(self._postponed)

    async def complete(self, steps: Generator[None, None, T], caller: Hashable) -> T:
        """Make the steps of a read in the caller's turns. Return its result."""
        while True:
            if not self.is_free:
                await self.wait(caller)
            try:
                next(steps)
            except StopIteration as ended:
                result: T = ended.value
                return result

    async def _woken(self, waiting: deque[asyncio.Future[None]]) -> None:
        turn: asyncio.Future[None] = self._loop.create_future()
        waiting.append(turn)
        self._begin()
        await turn

    def _has_time(self) -> bool:
        if self._ends_at is None:
            self._ends_at = self._clock() + (IN_TURNS_S if self._has_woken else AT_ONCE_S)
            self._begin()
        elif self._clock() >= self._ends_at:
            return False
        self._reads += 1
        return True

    def _begin(self) -> None:
        if not self._is_iterating:
            self._is_iterating = True
            self._loop.call_soon(self._iterate)

    def _iterate(self) -> None:
        """Wake what waits; it reads in the iteration that follows."""
        woken = max(min(WOKEN, self._reads + 1), len(self._postponed))
        self._ends_at, self._reads, self._has_woken = None, 0, False
        for turn in islice(self._next(), woken):
            turn.set_result(None)
            self._has_woken = True
        self._is_iterating = self._has_woken
        if self._has_woken:
            self._loop.call_soon(self._iterate)

    def _next(self) -> Iterator[asyncio.Future[None]]:
        """Remove and yield what waits, except what was canceled."""
        while self._postponed:
            if not (turn := self._postponed.popleft()).done():
                yield turn
        while self._waiting:
            caller, waiting = self._waiting.popitem(last=False)
            turn = waiting.popleft()
            if waiting:
                self._waiting[caller] = waiting
            if not turn.done():
                yield turn
