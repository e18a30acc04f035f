"""How often one place may connect: a handshake costs us more than it costs whoever asks for it. Pure."""

from collections import OrderedDict

BURST = 500.0
PER_SECOND = 50.0
REMEMBERED = 1_000
"""Places. Who is forgotten begins anew, so as many of them as that could each connect as often."""


class Arrivals:
    def __init__(self, *, burst: float = BURST, per_second: float = PER_SECOND) -> None:
        self._burst = burst
        self._per_second = per_second
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def admit(self, place: str, now: float) -> bool:
        left, at = self._left.pop(place, (self._burst, now))
        left = min(self._burst, left + (now - at) * self._per_second)
        is_admitted = left >= 1
        self._left[place] = (left - 1 if is_admitted else left, now)
        if len(self._left) > REMEMBERED:
            self._left.popitem(last=False)
        return is_admitted
