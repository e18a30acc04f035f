"""How long to wait before another attempt: a decision, not a sleep."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class BackoffPolicy:
    """Delays double from `initial` to `maximum`, and start over after a run of at least `healthy`."""

    initial: timedelta = timedelta(milliseconds=100)
    maximum: timedelta = timedelta(seconds=5)
    healthy: timedelta = timedelta(seconds=10)


class Backoff:
    """The failures so far, and the delay that follows from them.

    Each delay is drawn from the upper half of its range: a crowd that lost the same daemon comes back spread out, and
    nobody comes back at once.
    """

    def __init__(self, policy: BackoffPolicy, *, draw: Callable[[], float] = random.random) -> None:
        self._policy = policy
        self._draw = draw
        self._failures = 0

    def failed(self, *, ran: timedelta, retry_after: timedelta | None = None) -> timedelta:
        """Another attempt failed after it `ran` so long; the other side may have said when to come again."""
        if ran >= self._policy.healthy:
            self._failures = 0
        # Beyond 2^32 the maximum holds anyway, and the product would overflow in the end.
        ceiling = min(self._policy.initial * (1 << min(self._failures, 32)), self._policy.maximum)
        self._failures += 1
        delay = ceiling * (0.5 + self._draw() / 2)
        return delay + (retry_after or timedelta())
