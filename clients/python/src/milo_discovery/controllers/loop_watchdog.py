"""Measures how late the event loop is, and logs what blocks it."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable

log = logging.getLogger("milo_discovery.controllers")

BLOCKED_S = 1.0
"""A loop that is blocked for this long is logged."""
_EVERY_S = 0.1


class LoopWatchdog:
    """A context manager that watches the running event loop from a thread. `observe` is called with each delay."""

    def __init__(self, observe: Callable[[float], None], *, blocked_s: float = BLOCKED_S) -> None:
        self._observe = observe
        self._blocked_s = blocked_s
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="milo-discovery watchdog", daemon=True)
        self._beat_at = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        self._beat()
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._timer is not None:
            self._timer.cancel()
        self._thread.join()

    def _beat(self) -> None:
        now = time.monotonic()
        if self._timer is not None:
            late_s = max(0.0, now - self._beat_at - _EVERY_S)
            self._observe(late_s)
            if late_s > self._blocked_s:
                log.warning("the event loop was blocked for %.1f s, in which nothing was reconciled", late_s)
        self._beat_at = now
        self._timer = self._loop.call_later(_EVERY_S, self._beat)

    def _watch(self) -> None:
        logged: float | None = None
        while not self._ended.wait(self._blocked_s / 4):
            beat_at = self._beat_at
            blocked_s = time.monotonic() - beat_at - _EVERY_S
            if blocked_s < self._blocked_s or logged == beat_at:
                continue
            logged = beat_at
            frame = sys._current_frames().get(self._loop_thread)
            task = asyncio.current_task(self._loop)
            log.warning(
                "the event loop is blocked for %.1f s by a call that does not await (%s): every cluster waits. "
                "Make it async, or the reconciler a plain function, which runs in a thread\n%s",
                blocked_s,
                "no task" if task is None else task.get_name(),
                "".join(traceback.format_stack(frame)[-12:]) if frame is not None else "",
            )
