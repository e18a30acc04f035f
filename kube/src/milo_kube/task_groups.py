"""Helpers for errors and cancellation of asyncio tasks."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")
_CANCEL_AGAIN_S = 5.0
"""How long an attempt may take to clean up before it is canceled again."""


class unwrap_single_error:  # noqa: N801  (used like a function)
    """A context manager that unwraps an exception group with one exception, so that callers can catch it by type."""

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            raise error.exceptions[0] from error.exceptions[0].__cause__


def cancelled_from_outside() -> bool:
    """Return whether another task canceled this one: a CancelledError can also come from an awaited task."""
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling() > 0


def closed_from_outside(task: asyncio.Task[Any] | None) -> bool:
    """Return whether the coroutine of the task is being closed: GeneratorExit can also be raised by what it calls."""
    try:
        return asyncio.current_task() is not task
    except RuntimeError:  # no event loop is running
        return True


async def wait_uninterrupted(future: asyncio.Future[Any]) -> None:
    """Wait until the future is done, ignoring cancellation of this task."""
    while not future.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([future])


async def in_own_task(attempt: Coroutine[Any, Any, T]) -> T:
    """Run an attempt in a task of its own, for loops that try again: it can lose a cancellation, and they cannot.

    A task group loses one beside an error, before Python 3.13, and so do libraries while they close a connection.
    """
    task = asyncio.create_task(attempt)
    try:
        await asyncio.wait([task])
    finally:
        while not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=_CANCEL_AGAIN_S)
        _ = task.cancelled() or task.exception()  # retrieved, or asyncio would log it
    return task.result()


class RunsInBackground(ABC):
    """A context manager that runs `run` in a task while its body runs. If the task fails, the body is canceled."""

    _background: tuple[asyncio.TaskGroup, asyncio.Task[None]] | None = None

    @abstractmethod
    async def run(self) -> None: ...

    async def __aenter__(self) -> Self:
        tasks = asyncio.TaskGroup()
        await tasks.__aenter__()
        self._background = tasks, tasks.create_task(self.run(), name=f"milo-discovery {type(self).__name__}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._background is not None
        tasks, running = self._background
        running.cancel()
        with unwrap_single_error():
            await tasks.__aexit__(kind, error, trace)
