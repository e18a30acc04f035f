"""Decides when to check whether a silent server is alive, and when to give up on it.

A process that is stopped or hangs keeps its connections: its kernel acknowledges whatever is sent, so TCP keepalive
does not detect it. Silence proves nothing either, because a quiet watch is healthy. So while a response or a watch
event is awaited, the server is sent periodic liveness checks on another connection. After several consecutive
failures, with nothing received in between, the wait is aborted.
"""

import msgspec


class LivenessPolicy(msgspec.Struct, frozen=True, kw_only=True):
    every_s: float = 15.0
    """Interval between checks, and before the first one. Each check must be answered within a third of the interval."""
    misses: int = 3
    """Consecutive failures that abort the wait. With the interval above, a hung server is detected in 50 s."""

    @property
    def timeout_s(self) -> float:
        return self.every_s / 3


class LivenessCheck(msgspec.Struct, frozen=True):
    """A check to be made now, for the wait that began at `waiting_since`."""

    waiting_since: float


class LivenessTracker:
    """Counts, for each wait, the consecutive checks that failed or were not answered."""

    __slots__ = ("_check_at", "_misses", "_policy", "_since", "waiting_since")

    def __init__(self, policy: LivenessPolicy) -> None:
        self._policy = policy
        self.waiting_since: float | None = None
        """When the wait in progress began. An attribute rather than a method, since each read of a watch sets it."""
        self._since: float | None = None
        """Start of the wait to which `_check_at` and `_misses` belong."""
        self._check_at = 0.0
        self._misses = 0

    def next_at(self, now: float) -> float:
        """Return when to call `take_due`. Nothing that happens before that time makes a check due earlier."""
        self._follow_wait()
        return now + self._policy.every_s if self._since is None else self._check_at

    def take_due(self, now: float) -> LivenessCheck | None:
        self._follow_wait()
        if self._since is None or now < self._check_at:
            return None
        self._check_at = now + self._policy.every_s
        return LivenessCheck(self._since)

    def result(self, check: LivenessCheck, *, is_silent: bool) -> bool:
        """Record the result of a check. Return whether to abort the wait."""
        if check.waiting_since != self.waiting_since:
            return False  # the wait for which the check was made is over
        self._misses = self._misses + 1 if is_silent else 0
        return self._misses >= self._policy.misses

    def _follow_wait(self) -> None:
        since = self.waiting_since
        if since is not None and since != self._since:
            self._check_at, self._misses = since + self._policy.every_s, 0
        self._since = since
