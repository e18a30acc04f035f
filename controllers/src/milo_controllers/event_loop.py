"""Calls from other threads into the event loop of the controllers, which alone reads and changes their caches."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from milo_kube.user_code import not_an_exception

T = TypeVar("T")

_CHECK_S = 1.0
"""How often a waiting thread checks whether the event loop has ended, and with it the call."""


class EventLoop:
    """The running event loop, for callers in any thread."""

    __slots__ = ("_loop", "_thread")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    @property
    def is_here(self) -> bool:
        """Whether the caller runs in the thread of the event loop."""
        return threading.get_ident() == self._thread

    def call(self, function: Callable[[], T]) -> T:
        """Return what the function returns in the event loop. Blocks the thread of the caller, unless it is the loop's.

        Raises RuntimeError after the end of the event loop.
        """
        if self.is_here:
            return function()
        result: Future[T] = Future()

        def called() -> None:
            try:
                result.set_result(function())
            except BaseException as error:  # noqa: BLE001  (raised in the calling thread)
                result.set_exception(error)

        self.schedule(called)
        return self.result_of(result)

    def schedule(self, function: Callable[[], object]) -> None:
        """Call the function in the event loop, in the context of the caller. Raises RuntimeError after its end."""
        self._loop.call_soon_threadsafe(function)

    def result_of(self, result: Future[T]) -> T:
        """Block this thread until the event loop has set the result. Raises RuntimeError after its end."""
        while True:
            try:
                return result.result(_CHECK_S)
            except TimeoutError:
                if result.done():
                    return result.result()
                if self._loop.is_closed():
                    raise RuntimeError("the controllers have ended") from None


class ThreadCalls:
    """The calls of a reconciler that runs in a thread. They fail once its reconcile is canceled or has ended."""

    __slots__ = ("_cancels_next", "_loop", "_may_begin", "_tasks")

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop
        self._may_begin: Callable[[], bool] = lambda: True
        self._cancels_next = False
        self._tasks: set[asyncio.Task[Any]] = set()

    def wait(self, call: Coroutine[Any, Any, T]) -> T:
        """Run a call in the event loop and return its result. Raises asyncio.CancelledError if the reconcile was
        canceled, and RuntimeError in the thread of the event loop."""
        if not isinstance(call, Coroutine):
            raise TypeError(f"request.wait takes a coroutine, such as request.get(), not {call!r:.100}")
        if self._loop.is_here:
            call.close()
            raise RuntimeError(
                "request.wait in the event loop would block every cluster: await the call instead; request.wait is for "
                "reconcilers that are plain functions"
            )
        result: Future[T] = Future()
        try:
            self._loop.schedule(lambda: self._start(call, result))
        except RuntimeError:
            call.close()
            raise _canceled() from None
        return self._loop.result_of(result)

    def end(self) -> None:
        """Cancel the calls that are in flight, and send no further ones. Called in the event loop."""
        self.cancel(lambda: False)

    def cancel(self, may_clean_up: Callable[[], bool]) -> None:
        """Cancel the calls that are in flight, or the next one. Further ones are sent while `may_clean_up` returns
        true. Called in the event loop."""
        self._may_begin = may_clean_up
        self._cancels_next = sum(task.cancel() for task in self._tasks) == 0

    def _start(self, call: Coroutine[Any, Any, T], result: Future[T]) -> None:
        is_canceled, self._cancels_next = self._cancels_next or not self._may_begin(), False
        if is_canceled:
            call.close()
            result.set_exception(_canceled())
            return
        task = asyncio.get_running_loop().create_task(_contained(call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda done: _copy(done, result))
        task.add_done_callback(lambda _: call.close())  # it was never awaited if the task was canceled before it began


async def _contained(call: Coroutine[Any, Any, T]) -> T:
    try:
        return await call
    except (Exception, asyncio.CancelledError, GeneratorExit, KeyboardInterrupt):
        raise
    except BaseException as error:  # noqa: BLE001  (the author's code)
        raise not_an_exception(error) from None


def _copy(task: asyncio.Task[T], result: Future[T]) -> None:
    if task.cancelled():
        result.set_exception(_canceled())
    elif (error := task.exception()) is not None:
        result.set_exception(error)
    else:
        result.set_result(task.result())


def _canceled() -> asyncio.CancelledError:
    """Return the error that an async reconciler gets, which `except Exception` does not catch."""
    return asyncio.CancelledError("the reconcile was canceled")
