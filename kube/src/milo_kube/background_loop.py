"""Event loops in background threads, on which other threads and event loops run coroutines."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")


class BackgroundLoop:
    """An event loop that is started lazily, so that the process can fork before its first use."""

    def __init__(self, closed: Callable[[], Exception] = lambda: RuntimeError("the event loop is closed")) -> None:
        """`closed` returns the error that `run` raises if the loop is closed before the coroutine finishes."""
        self._closed_error = closed
        # Reentrant, because a signal handler may run a coroutine, or close the loop, on the thread that holds the lock.
        self._lock = threading.RLock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stopping = asyncio.Event()
        self._closed = False

    def run(self, coroutine: Coroutine[Any, Any, ResultT]) -> ResultT:
        """Run a coroutine on the loop, and return its result. KeyboardInterrupt in the waiting thread cancels it."""
        try:
            future = self._submit(coroutine)
        except BaseException:  # including KeyboardInterrupt, before or after the coroutine was scheduled
            self._end(coroutine)
            raise
        try:
            return future.result()
        except CancelledError:
            raise self._closed_error() from None
        except BaseException:  # including KeyboardInterrupt, after which the coroutine would otherwise keep running
            future.cancel()
            raise

    def close(self, last: Coroutine[Any, Any, None]) -> None:
        """Run the coroutine `last`, cancel all others, and stop the thread.

        If the thread is not running or the loop is already closed, only close `last`, without running it.
        """
        with self._lock:
            future = None if self._closed or self._loop is None else asyncio.run_coroutine_threadsafe(last, self._loop)
            self._closed = True
        if future is None:
            last.close()
            return
        try:
            future.result()
        finally:
            self.stop()

    def stop(self) -> None:
        """Cancel all coroutines, and stop the thread."""
        with self._lock:
            self._closed = True
            loop, self._loop = self._loop, None
            if loop is not None:
                loop.call_soon_threadsafe(self._stopping.set)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def start(self) -> asyncio.AbstractEventLoop:
        """Return the event loop, and start it if it is not running."""
        with self._lock:
            if self._closed:
                raise self._closed_error()
            if self._loop is None:
                self._loop = self._start()
            return self._loop

    def _submit(self, coroutine: Coroutine[Any, Any, ResultT]) -> Future[ResultT]:
        # Under the lock, so that the loop cannot stop before it runs the coroutine.
        with self._lock:
            return asyncio.run_coroutine_threadsafe(coroutine, self.start())

    def _end(self, coroutine: Coroutine[Any, Any, object]) -> None:
        """Cancel the coroutine's task if it is scheduled; otherwise close the coroutine.

        Python warns of a coroutine that was never awaited, unless it is closed.
        """

        def end() -> None:
            tasks = [task for task in asyncio.all_tasks() if task.get_coro() is coroutine]
            for task in tasks:
                task.cancel()
            if not tasks:
                coroutine.close()

        with self._lock:
            if self._loop is None:
                coroutine.close()
            else:
                self._loop.call_soon_threadsafe(end)

    def _start(self) -> asyncio.AbstractEventLoop:
        started: Future[asyncio.AbstractEventLoop] = Future()

        def serve() -> None:
            runner = asyncio.Runner()
            try:
                loop = runner.get_loop()
            except Exception as error:  # noqa: BLE001 - raised to the caller: no file descriptor may be left
                started.set_exception(error)
                return
            with runner:
                started.set_result(loop)
                runner.run(self._until_stopped())

        # A daemon thread, so that a client which is never closed does not keep the process running.
        thread = threading.Thread(target=serve, name="milo-discovery", daemon=True)
        thread.start()
        loop = started.result()
        self._thread = thread
        return loop

    async def _until_stopped(self) -> None:
        await self._stopping.wait()


async def run_on(loop: asyncio.AbstractEventLoop, work: Callable[[], Coroutine[Any, Any, ResultT]]) -> ResultT:
    """Run work on the event loop of another thread. If the caller is canceled, cancel the work and wait for its end."""
    here = asyncio.get_running_loop()
    ended = here.create_future()
    tasks: list[asyncio.Task[ResultT]] = []

    def start() -> None:
        tasks.append(loop.create_task(work()))
        tasks[0].add_done_callback(lambda _: here.call_soon_threadsafe(ended.set_result, None))

    def cancel() -> None:
        tasks[0].cancel()

    loop.call_soon_threadsafe(start)
    is_cancelled = False
    while not ended.done():
        try:
            await asyncio.wait([ended])
        except asyncio.CancelledError:
            is_cancelled = True
            loop.call_soon_threadsafe(cancel)
    result = tasks[0].result()
    if is_cancelled:
        raise asyncio.CancelledError
    return result


async def run_in_thread(work: Callable[[], Coroutine[Any, Any, ResultT]]) -> ResultT:
    """Run work on an event loop in a new thread, so that a blocked event loop of the caller does not delay it."""
    background = BackgroundLoop()
    try:
        return await run_on(background.start(), work)
    finally:
        background.stop()
