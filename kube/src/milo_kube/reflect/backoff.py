"""Retry delays with exponential backoff and jitter."""

from collections.abc import Callable

import msgspec


class Backoff(msgspec.Struct, frozen=True):
    """A base delay that doubles from `first_s` to `cap_s`; each delay is drawn between the base and twice the base.

    Many daemons lose the same API server at the same moment. Without jitter they would all reconnect at once.
    """

    first_s: float = 0.4
    cap_s: float = 15.0

    def delay(self, attempt: int, jitter: Callable[[], float]) -> float:
        """Return the delay after the `attempt`-th consecutive failure; `jitter` draws from [0, 1)."""
        base = min(self.cap_s, self.first_s * 2.0 ** min(attempt - 1, 30))
        return base * (1.0 + jitter())
