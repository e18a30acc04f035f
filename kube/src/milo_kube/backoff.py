"""Exponential backoff with jitter. Computes delays; the caller sleeps."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from milo_kube.retry_after import delay_s


@dataclass(frozen=True, slots=True, kw_only=True)
class BackoffPolicy:
    """The delays of a backoff. They double from `initial` to `maximum`.

    After a run that lasted `healthy` or longer, they start at `initial` again.
    """

    initial: timedelta = timedelta(milliseconds=100)
    maximum: timedelta = timedelta(seconds=5)
    healthy: timedelta = timedelta(seconds=10)


class StreamBackoff:
    """A counter of consecutive failures, from which the next delay is computed.

    Each delay is drawn from the upper half of its range, so that clients that lost the connection to the same
    daemon do not all reconnect at the same moment.
    """

    def __init__(self, policy: BackoffPolicy, *, draw: Callable[[], float] = random.random) -> None:
        self._policy = policy
        self._draw = draw
        self._failures = 0

    def failed(self, *, ran: timedelta, retry_after: timedelta | None = None) -> timedelta:
        """Record the failure of a run that lasted `ran`, and return the delay before the next run.

        The delay is at least the server's `retry_after`, which is capped at five minutes.
        """
        if ran >= self._policy.healthy:
            self._failures = 0
        # Capped at 2^32: the maximum applies anyway, and the product would eventually overflow.
        ceiling = min(self._policy.initial * (1 << min(self._failures, 32)), self._policy.maximum)
        self._failures += 1
        own = ceiling.total_seconds() * (0.5 + self._draw() / 2)
        stated = None if retry_after is None else retry_after.total_seconds()
        return timedelta(seconds=delay_s(own, stated))
