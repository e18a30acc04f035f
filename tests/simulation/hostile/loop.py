"""An event loop for a daemon that has a processor of its own: the clock advances by the processor time of each
callback, and over the time in which all tasks wait."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.simulation.cost.meter import InOrder
from tests.simulation.seeded.loop import VirtualLoop


class BusyLoop(VirtualLoop):
    def __init__(self) -> None:
        super().__init__(InOrder())
        self._began: float | None = None
        self.busy_s = 0.0
        """The processor time of all callbacks."""
        self.longest_s = 0.0
        """The processor time of the longest callback."""
        self.longest = ""

    def time(self) -> float:
        return self._now if self._began is None else self._now + time.thread_time() - self._began

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let no time pass in the block, which is the simulation's own work."""
        assert self._began is not None, "no callback is running"
        began = time.thread_time()
        try:
            yield
        finally:
            self._began += time.thread_time() - began

    def run_callback(self, handle: asyncio.Handle) -> None:
        self._began = time.thread_time()
        try:
            handle._run()
        finally:
            took = time.thread_time() - self._began
            self._now, self._began = self._now + took, None
        self.busy_s += took
        if took > self.longest_s:
            self.longest_s, self.longest = took, f"{handle!r}, at {self._now:.1f} s"
