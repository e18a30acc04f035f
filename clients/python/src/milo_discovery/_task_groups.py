"""Errors and cancellation of asyncio tasks."""

from __future__ import annotations

import asyncio


class unwrap_single_error:  # noqa: N801  (used like a function)
    """Raises the only exception of a group by itself, so that callers can catch it by type."""

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            raise error.exceptions[0] from error.exceptions[0].__cause__


def cancelled_from_outside() -> bool:
    """Return whether another task cancelled this one: a CancelledError can also come from what it awaits."""
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling() > 0
