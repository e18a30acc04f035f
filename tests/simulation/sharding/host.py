"""A simulated host with its own clocks, and the simulation's events in order of time."""

import heapq
from collections.abc import Callable
from random import Random


class Timeline:
    """Events in order of true time, which no simulated process can read."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, when: float, happens: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (max(when, self.now), self._count, happens))

    def after(self, delay: float, happens: Callable[[], None]) -> None:
        self.at(self.now + delay, happens)

    def run(self, until: float) -> None:
        while self._events and self._events[0][0] <= until:
            self.now, _, happens = heapq.heappop(self._events)
            happens()
        self.now = until


class Host:
    def __init__(self, timeline: Timeline, random: Random) -> None:
        self.timeline = timeline
        self.rate = random.uniform(0.95, 1.05)
        self._zero = random.uniform(0, 1e6)
        self.wall_error = random.uniform(-1, 1)
        self.is_suspended = False
        self._suspended_since = 0.0
        self._suspended_s = 0.0
        self._deferred: list[Callable[[], None]] = []

    def boottime(self) -> float:
        return self._zero + self.timeline.now * self.rate

    def monotonic(self) -> float:
        """Return the clock that stops while the host is suspended."""
        running = self.timeline.now - self._suspended_since if self.is_suspended else 0.0
        return self.boottime() - (self._suspended_s + running) * self.rate

    def wall(self) -> float:
        return 1e9 + self.timeline.now + self.wall_error

    def after(self, delay: float, happens: Callable[[], None]) -> None:
        """Call a function after a delay on this host's clock; if the host is suspended then, when it resumes."""
        self.timeline.after(max(0.0, delay) / self.rate, lambda: self.run(happens))

    def run(self, happens: Callable[[], None]) -> None:
        if self.is_suspended:
            self._deferred.append(happens)
        else:
            happens()

    def suspend(self) -> None:
        if not self.is_suspended:
            self.is_suspended, self._suspended_since = True, self.timeline.now

    def resume(self, first: Callable[[], None]) -> None:
        if self.is_suspended:
            self.is_suspended = False
            self._suspended_s += self.timeline.now - self._suspended_since
            first()
            deferred, self._deferred = self._deferred, []
            for happens in deferred:
                happens()
