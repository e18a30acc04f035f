"""Helpers for tests that wait for an operator to reach a state."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

from milo_discovery.testing.http import KindNotServedError


class FakeClock:
    """The clock of the running event loop, which a test can advance."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._real_time = loop.time
        self._ahead_s = 0.0

    def time(self) -> float:
        return self._real_time() + self._ahead_s

    def advance(self, by: timedelta) -> None:
        """Advance the clock, so that all timers of the loop within that time are due at once.

        That includes timeouts of requests in flight, so advance the clock while the operator is idle.
        """
        self._ahead_s += by.total_seconds()


@contextmanager
def fake_clock() -> Iterator[FakeClock]:
    """Yield a clock of the running event loop that the test can advance; the wall clock is unaffected.

    The clock stays ahead after the block, since timers were set by it.
    """
    loop = asyncio.get_running_loop()
    clock = FakeClock(loop)
    loop.time = clock.time  # type: ignore[method-assign]
    yield clock


ResultT = TypeVar("ResultT")

_INTERVAL_S = 0.02


async def eventually(check: Callable[[], ResultT | Awaitable[ResultT]], *, within_s: float = 60.0) -> ResultT:
    """Call a check until its result is true, and return the result. The event loop runs between the calls.

    A check that raises is repeated, except after KindNotServedError, which is raised at once. At the deadline, the
    check's last error is raised, or else TimeoutError.
    """
    deadline = time.monotonic() + within_s
    while True:
        outcome: ResultT | Exception
        try:
            called = check()
            outcome = await _result(called, deadline) if inspect.isawaitable(called) else called
        except Exception as error:  # noqa: BLE001  (raised at the deadline)
            outcome = error
        if _is_final(outcome, deadline, within_s):
            return outcome  # type: ignore[return-value]  # errors are raised
        await asyncio.sleep(_INTERVAL_S)


async def _result(called: Awaitable[ResultT], deadline: float) -> ResultT:
    """Return the result. Raises TimeoutError at the deadline, which a fake clock does not advance."""
    task = asyncio.ensure_future(called)
    try:
        while not task.done():
            if time.monotonic() >= deadline:
                raise TimeoutError("the check did not return in time")
            await asyncio.wait([task], timeout=_INTERVAL_S)
        return task.result()
    finally:
        task.cancel()


def eventually_blocking(check: Callable[[], ResultT], *, within_s: float = 60.0) -> ResultT:
    """Call a check until its result is true, without an event loop, for an operator in another thread or process."""
    deadline = time.monotonic() + within_s
    while True:
        outcome: ResultT | Exception
        try:
            outcome = check()
        except Exception as error:  # noqa: BLE001  (raised at the deadline)
            outcome = error
        if _is_final(outcome, deadline, within_s):
            return outcome  # type: ignore[return-value]  # errors are raised
        time.sleep(_INTERVAL_S)


def _is_final(outcome: object, deadline: float, within_s: float) -> bool:
    """Return whether to stop, or raise the last error at the deadline."""
    if outcome and not isinstance(outcome, Exception):
        return True
    if time.monotonic() < deadline and not isinstance(outcome, KindNotServedError):
        return False
    if isinstance(outcome, Exception):
        raise outcome
    raise TimeoutError(f"the check still returned {outcome!r} after {within_s:g} s")
