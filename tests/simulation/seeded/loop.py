"""An event loop on virtual time: the clock advances when no task is ready, and the seed determines the task order.

Ready callbacks run in a random order, so that each seed is one reproducible schedule.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from heapq import heappop
from itertools import count
from random import Random
from typing import Any

WALL_AT_ZERO = 1_800_000_000.0


class NothingLeftError(RuntimeError):
    """All wait, and nobody will ever wake them."""


class Numbered(asyncio.Task[Any]):
    """Those in a set (a task group keeps one) come in the same order each time."""

    def __init__(self, *arguments: Any, number: int, **options: Any) -> None:
        self._number = number
        super().__init__(*arguments, **options)

    def __hash__(self) -> int:
        return self._number


class VirtualLoop(asyncio.BaseEventLoop):
    # What asyncio's own loops are made of, in all versions that we support.
    _ready: Any
    _scheduled: list[Any]

    def __init__(self, random: Random) -> None:
        super().__init__()
        self._now = 0.0
        self.slept_s = 0.0
        """For so long the machine stood still, and with it what `time` tells."""
        self.wall_ahead_s = 0.0
        """So much its wall clock is set wrong."""
        self._shuffle = random.shuffle
        numbers = count()
        self.set_task_factory(lambda loop, main, **options: Numbered(main, loop=loop, number=next(numbers), **options))

    def time(self) -> float:
        return self._now

    @property
    def wall(self) -> float:
        """The true one, as other machines have it."""
        return WALL_AT_ZERO + self._now + self.slept_s

    def _run_once(self) -> None:
        scheduled, ready = self._scheduled, self._ready
        while scheduled and scheduled[0]._cancelled:
            heappop(scheduled)._scheduled = False
        if not ready:
            if not scheduled:
                raise NothingLeftError("everything waits, and nothing is due")
            self._now = scheduled[0]._when
        while scheduled and scheduled[0]._when <= self._now:
            handle = heappop(scheduled)
            handle._scheduled = False
            ready.append(handle)
        turns = list(ready)
        ready.clear()
        if len(turns) > 1:
            self._shuffle(turns)
        for handle in turns:
            if not handle._cancelled:
                handle._run()

    def _process_events(self, event_list: object) -> None:
        """There are none: nothing is read from outside."""

    def _write_to_self(self) -> None:
        """No other thread ever calls."""


@contextmanager
def clocks_of(loop: VirtualLoop) -> Iterator[None]:
    """Every clock that the daemon reads is the loop's."""
    wall, steady = time.time, time.monotonic
    time.time, time.monotonic = lambda: loop.wall + loop.wall_ahead_s, loop.time
    try:
        yield
    finally:
        time.time, time.monotonic = wall, steady
