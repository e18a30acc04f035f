"""An event loop on virtual time: the clock advances when no task is ready, and the seed determines the task order.

Ready callbacks run in a random order, so that each seed is one reproducible schedule.
"""

import asyncio
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from heapq import heappop
from itertools import count
from random import Random
from typing import Any, TypeVar

T = TypeVar("T")
WALL_AT_ZERO = 1_800_000_000.0
MOST_TURNS = 10_000
"""Turns of the loop at one moment, after which a task that yields without end is assumed."""


class NothingLeftError(RuntimeError):
    """All tasks wait, and nothing will wake them."""


class Numbered(asyncio.Task[Any]):
    """A task with a number, which makes the order of a set of tasks reproducible, such as that of a task group."""

    def __init__(self, *arguments: Any, number: int, **options: Any) -> None:
        self._number = number
        super().__init__(*arguments, **options)

    def __hash__(self) -> int:
        return self._number


class VirtualLoop(asyncio.BaseEventLoop):
    # Attributes of asyncio's own loops, in all supported versions.
    _ready: Any
    _scheduled: list[Any]

    def __init__(self, random: Random) -> None:
        super().__init__()
        self._now = 0.0
        self._turns = 0
        self.slept_s = 0.0
        """The time for which the host was suspended; `time` excludes it."""
        self.wall_ahead_s = 0.0
        """The error of the wall clock."""
        self._shuffle = random.shuffle
        numbers = count()
        self.set_task_factory(lambda loop, main, **options: Numbered(main, loop=loop, number=next(numbers), **options))

    def time(self) -> float:
        return self._now

    def work(self, seconds: float) -> None:
        """Let a callback take this time, in which nothing else runs."""
        self._now += seconds

    @property
    def wall(self) -> float:
        """The true wall-clock time, as on other hosts."""
        return WALL_AT_ZERO + self._now + self.slept_s

    def _run_once(self) -> None:
        scheduled, ready = self._scheduled, self._ready
        while scheduled and scheduled[0]._cancelled:
            heappop(scheduled)._scheduled = False
        if not ready:
            if not scheduled:
                raise NothingLeftError("deadlock: all tasks wait, and no timer is due")
            self._now = max(self._now, scheduled[0]._when)
            self._turns = 0
        while scheduled and scheduled[0]._when <= self._now:
            handle = heappop(scheduled)
            handle._scheduled = False
            ready.append(handle)
        self._turns += 1
        if self._turns > MOST_TURNS:
            self._turns = 0
            raise NothingLeftError("livelock: a task yields without end, and the clock stands still")
        turns = list(ready)
        ready.clear()
        if len(turns) > 1:
            self._shuffle(turns)
        for handle in turns:
            if not handle._cancelled:
                self.run_callback(handle)

    def run_callback(self, handle: asyncio.Handle) -> None:
        """Run one callback; a subclass may measure it."""
        handle._run()

    def _process_events(self, event_list: object) -> None:
        """Do nothing: there is no external I/O."""

    def _write_to_self(self) -> None:
        """Do nothing: no other thread calls the loop."""


@contextmanager
def clocks_of(loop: VirtualLoop) -> Iterator[None]:
    """Replace every clock that the daemon reads with that of the loop."""
    wall, steady = time.time, time.monotonic
    time.time, time.monotonic = lambda: loop.wall + loop.wall_ahead_s, loop.time
    try:
        yield
    finally:
        time.time, time.monotonic = wall, steady


def run_on(loop: VirtualLoop, main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on a loop and its clocks."""
    with clocks_of(loop), asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(main)
