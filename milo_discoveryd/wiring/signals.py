"""Handlers of signals that users send, such as SIGHUP."""

import asyncio
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

INTERVAL_S = 0.2
"""Shortest time between two calls of a handler, which may block for some milliseconds and write to the log."""


@contextmanager
def handled(handlers: Mapping[signal.Signals, Callable[[], None]]) -> Iterator[None]:
    """Call each handler in the event loop after its signal, at most once per `INTERVAL_S`.

    Once the context exits, the signals are ignored: the process is about to end.
    """
    with ExitStack() as stack:
        for number, handle in handlers.items():
            stack.callback(_Handler(number, handle).close)
        yield


class _Handler:
    """The handler of one signal, which is ignored from its arrival until it is handled.

    Python runs code for each signal that is not ignored, so a flood would block the event loop.
    """

    def __init__(self, number: signal.Signals, handle: Callable[[], None]) -> None:
        self._number, self._handle = number, handle
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._due_at = 0.0
        self._listen()

    def close(self) -> None:
        signal.signal(self._number, signal.SIG_IGN)
        if self._timer is not None:
            self._timer.cancel()

    def _listen(self) -> None:
        # A handler of the event loop would run only after the current callback, but a flood of signals keeps that
        # callback from returning.
        signal.signal(self._number, self._signaled)
        signal.siginterrupt(self._number, False)

    def _signaled(self, *_: object) -> None:
        signal.signal(self._number, signal.SIG_IGN)
        self._loop.call_soon_threadsafe(self._schedule)

    def _schedule(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_at(self._due_at, self._call)

    def _call(self) -> None:
        self._timer, self._due_at = None, self._loop.time() + INTERVAL_S
        self._listen()
        self._handle()
