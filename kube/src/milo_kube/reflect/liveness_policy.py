"""Decides when to check whether a silent server is alive, and when to give up on it.

A process that is stopped or hangs keeps its connections: its kernel acknowledges whatever is sent, so TCP keepalive
does not detect it. Silence proves nothing either, because a quiet watch is healthy. So while a response or a watch
event is awaited, the server is sent periodic liveness checks on another connection. When several checks in a row fail,
with nothing received in between, the wait is given up.
"""

import msgspec


class LivenessPolicy(msgspec.Struct, frozen=True, kw_only=True):
    every_s: float = 15.0
    """Interval between checks, and before the first. Each must be answered within a third of it."""
    misses: int = 3
    """Unanswered checks in a row. With the interval above, a hung server is detected within 50 s."""

    @property
    def timeout_s(self) -> float:
        return self.every_s / 3


class LivenessCheck(msgspec.Struct, frozen=True):
    """A check to be made now."""

    wait: int


class LivenessTracker:
    """The count of unanswered checks, over consecutive waits."""

    def __init__(self, policy: LivenessPolicy) -> None:
        self._policy = policy
        self._waits = 0
        self._check_at: float | None = None
        self._misses = 0

    def start_wait(self, now: float) -> None:
        self._waits += 1
        self._misses = 0
        self._check_at = now + self._policy.every_s

    def end_wait(self) -> None:
        self._check_at = None

    def next_at(self, now: float) -> float:
        """Return when to call `take_due`. Nothing that happens before makes a check due earlier."""
        return now + self._policy.every_s if self._check_at is None else self._check_at

    def take_due(self, now: float) -> LivenessCheck | None:
        if self._check_at is None or now < self._check_at:
            return None
        self._check_at = now + self._policy.every_s
        return LivenessCheck(self._waits)

    def result(self, check: LivenessCheck, *, is_silent: bool) -> bool:
        """Record the result of a check. Return whether to give up the wait."""
        if self._check_at is None or check.wait != self._waits:
            return False  # the wait that it was made for is over
        self._misses = self._misses + 1 if is_silent else 0
        return self._misses >= self._policy.misses
