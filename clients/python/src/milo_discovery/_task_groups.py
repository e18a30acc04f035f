"""Errors and cancellation of asyncio tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def unwrap_single_error() -> Iterator[None]:
    """Raise the only exception of a group by itself, so that callers can catch it by type."""
    try:
        yield
    except BaseExceptionGroup as group:
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from group.exceptions[0].__cause__
        raise


def cancelled_from_outside() -> bool:
    """Return whether another task cancelled this one: a CancelledError can also come from what it awaits."""
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling() > 0
