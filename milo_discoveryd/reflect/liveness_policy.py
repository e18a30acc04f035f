"""Whether a server that says nothing is still there.

A process that is stopped, or hangs, keeps its connections: its kernel acknowledges whatever is sent, and no keepalive
notices. Silence proves nothing either, for a quiet watch is a healthy one. So while something is waited for, the server
is asked for a sign of life now and then, on another connection; and when several of these come to nothing, one after
another and with nothing heard in between, nobody is waited for any more.
"""

import msgspec


class LivenessPolicy(msgspec.Struct, frozen=True, kw_only=True):
    every_s: float = 15.0
    """Between two looks, and before the first. Each has a third of it for its answer."""
    misses: int = 3
    """In a row: with the time above, 50 s pass at most."""

    @property
    def patience_s(self) -> float:
        return self.every_s / 3


class LivenessCheck(msgspec.Struct, frozen=True):
    """To be made now; what comes of it is to be told."""

    wait: int


class LivenessTracker:
    """Over one wait after another."""

    def __init__(self, liveness: LivenessPolicy) -> None:
        self._every_s = liveness.every_s
        self._enough = liveness.misses
        self._waits = 0
        self._look_at: float | None = None
        self._misses = 0

    def begin(self, now: float) -> None:
        """Something is waited for from now on."""
        self._waits += 1
        self._misses = 0
        self._look_at = now + self._every_s

    def end(self) -> None:
        """It came, or is given up."""
        self._look_at = None

    def next_at(self, now: float) -> float:
        """When to see whether there is something to do: nothing that happens by then makes it earlier."""
        return now + self._every_s if self._look_at is None else self._look_at

    def look(self, now: float) -> LivenessCheck | None:
        if self._look_at is None or now < self._look_at:
            return None
        self._look_at = now + self._every_s
        return LivenessCheck(self._waits)

    def told(self, look: LivenessCheck, *, is_silent: bool) -> bool:
        """Whether nobody is there any more: it is no use to wait on."""
        if self._look_at is None or look.wait != self._waits:
            return False  # what it was made for is over
        self._misses = self._misses + 1 if is_silent else 0
        return self._misses >= self._enough
