"""Measures the delay of the event loop, and reports calls that block it."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

_EVERY_S = 0.25
_STACK_DEPTH = 12


@dataclass(frozen=True, slots=True)
class BlockedLoop:
    """An event loop that runs one call for too long."""

    seconds: float
    task: str
    stack: str


class LoopWatchdog:
    """A context manager that watches the running event loop from a thread.

    `observe` is called with each delay. If the loop is blocked for longer than `blocked_s`, `blocked` is called in the
    thread, at most once and while the loop is still blocked; afterwards, `was_blocked` is called in the loop.
    """

    def __init__(
        self,
        observe: Callable[[float], None],
        *,
        blocked: Callable[[BlockedLoop], None],
        was_blocked: Callable[[float], None],
        blocked_s: float,
    ) -> None:
        self._observe = observe
        self._blocked = blocked
        self._was_blocked = was_blocked
        self._blocked_s = blocked_s
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="milo watchdog", daemon=True)
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
                self._was_blocked(late_s)
        self._beat_at = now
        self._timer = self._loop.call_later(_EVERY_S, self._beat)

    def _watch(self) -> None:
        reported: float | None = None
        while not self._ended.wait(self._blocked_s / 4):
            beat_at = self._beat_at
            blocked_s = time.monotonic() - beat_at - _EVERY_S
            if blocked_s < self._blocked_s or reported == beat_at:
                continue
            reported = beat_at
            frame = sys._current_frames().get(self._loop_thread)
            task = asyncio.current_task(self._loop)
            self._blocked(
                BlockedLoop(
                    blocked_s,
                    "no task" if task is None else task.get_name(),
                    "".join(traceback.format_stack(frame)[-_STACK_DEPTH:]) if frame is not None else "",
                )
            )
