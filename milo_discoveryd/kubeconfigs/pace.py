"""How many mints may begin: a bucket that fills at a steady rate. Pure."""


class Pace:
    def __init__(self, per_second: float, burst: float, now: float) -> None:
        self._rate = per_second
        self._burst = burst
        self._level = burst
        self._at = now

    def take(self, now: float) -> float:
        """One more: how many seconds from now it may begin."""
        self._level = min(self._burst, self._level + (now - self._at) * self._rate) - 1
        self._at = now
        return max(0.0, -self._level / self._rate)
