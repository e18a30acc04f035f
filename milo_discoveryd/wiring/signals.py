"""Handlers of signals that users send, such as SIGHUP."""

import asyncio
from collections.abc import Callable

INTERVAL_S = 0.2
"""Shortest time between two calls of a handler, which may block for some milliseconds and write to the log."""


def coalesced(handle: Callable[[], None]) -> Callable[[], None]:
    """Return a signal handler that calls `handle`, for all signals within `INTERVAL_S` once."""
    loop = asyncio.get_running_loop()
    due_at, waiting = 0.0, False

    def signaled() -> None:
        nonlocal waiting
        if not waiting:
            waiting = True
            loop.call_at(due_at, call)

    def call() -> None:
        nonlocal due_at, waiting
        due_at, waiting = loop.time() + INTERVAL_S, False
        handle()

    return signaled
