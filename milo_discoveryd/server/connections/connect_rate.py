"""How often one place may connect: a handshake costs us more than it costs whoever asks for it. Pure."""

from collections import OrderedDict

BURST = 500.0
PER_SECOND = 50.0
FAILED = 10.0
"""Connections that one costs which came to nothing. Nobody who means well makes many of those."""
REMEMBERED = 1_000
"""Places. Who is forgotten begins anew, so as many of them as that could each connect as often."""


class ConnectRateLimiter:
    def __init__(self, *, burst: float = BURST, per_second: float = PER_SECOND, failed: float = FAILED) -> None:
        self._burst = burst
        self._per_second = per_second
        self._failed = failed
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def admit(self, place: str, now: float) -> bool:
        left = self._refilled(place, now)
        is_admitted = left >= 1
        self._keep(place, left - 1 if is_admitted else left, now)
        return is_admitted

    def failed(self, place: str, now: float) -> None:
        """One that was admitted came to nothing."""
        owing = self._refilled(place, now) + 1 - self._failed
        # Of many that were begun together, not all are atoned for: whoever mends it is let in again soon.
        self._keep(place, max(-self._burst, owing), now)

    def _refilled(self, place: str, now: float) -> float:
        left, at = self._left.pop(place, (self._burst, now))
        return min(self._burst, left + (now - at) * self._per_second)

    def _keep(self, place: str, left: float, now: float) -> None:
        """At the end: who came last is the last to be forgotten."""
        self._left[place] = (left, now)
        if len(self._left) > REMEMBERED:
            self._left.popitem(last=False)
