"""A clock that a test moves, for requeues, backoffs and resyncs that take minutes or hours."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta


class FakeClock:
    """The clock of the running event loop, ahead of the real one by as much as the test has moved it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._real_time = loop.time
        self._ahead_s = 0.0

    def time(self) -> float:
        return self._real_time() + self._ahead_s

    def advance(self, by: timedelta) -> None:
        """Move the clock forward: everything that the loop would have done in that time is due at once.

        That includes the time limits of requests that are in flight, so move it while the operator is idle.
        """
        self._ahead_s += by.total_seconds()


@contextmanager
def fake_clock() -> Iterator[FakeClock]:
    """Replace the clock of the running event loop until the end of the block; wall clock times stay as they are."""
    loop = asyncio.get_running_loop()
    clock = FakeClock(loop)
    loop.time = clock.time  # type: ignore[method-assign]
    try:
        yield clock
    finally:
        del loop.time  # uncovers the method of the class
