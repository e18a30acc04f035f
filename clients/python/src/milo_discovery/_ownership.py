"""The deadline of a sharded daemon's ownership of its clusters, without I/O.

A daemon that is killed or stopped cannot report that it lost its clusters, and another daemon engages them. So a
subscriber requests the remaining time of the ownership, and stops its work when that time elapses without a new
response.
"""

from __future__ import annotations

import time
from math import inf

from milo_discovery import _convert
from milo_discovery.v1 import discovery_pb2 as pb

RENEWAL_INTERVAL_S = 3.0
RENEWAL_TIMEOUT_S = 3.0
SHORTEST_RENEWAL_S = 0.2


def boottime() -> float:
    """Return the time of CLOCK_BOOTTIME, which advances while the machine is suspended, or of the monotonic clock."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


def suspended_s() -> float:
    """Return how long the machine has been suspended in all, which the clock of an event loop leaves out."""
    return boottime() - time.monotonic()


class OwnershipDeadline:
    """The deadline of the ownership that a daemon reports. Times are those of `boottime`."""

    def __init__(self) -> None:
        self.sharded = False
        """Whether the daemon is known to share the clusters with other daemons."""
        self._until = -inf

    @property
    def until(self) -> float:
        """The time at which the ownership expires; infinite for a daemon that is not sharded."""
        return self._until if self.sharded else inf

    def is_held(self, now: float) -> bool:
        return now < self.until

    def renewed(self, response: pb.RenewOwnershipResponse, asked_at: float) -> None:
        """Apply a response. Its `valid_for` is counted from `asked_at`, because the response may have been delayed."""
        self.sharded = response.sharded
        valid_for = _convert.duration(response, "valid_for")
        if valid_for is not None:
            self._until = max(self._until, asked_at + valid_for.total_seconds())

    def next_renewal_s(self, now: float, *, was_owner: bool) -> float:
        """Return the delay before the next renewal. It is 0 if the ownership has expired and `was_owner` is true.

        The interval gets shorter towards the deadline, because the daemon may renew its own Lease late.
        """
        left = self._until - now
        if left <= 0:
            return 0.0 if was_owner else RENEWAL_INTERVAL_S / 3
        return min(RENEWAL_INTERVAL_S, max(left / 2, min(left, SHORTEST_RENEWAL_S)))

    def timeout_s(self, now: float) -> float:
        """Return the timeout of a renewal: at most the remaining ownership, if it has not expired."""
        left = self._until - now
        return min(RENEWAL_TIMEOUT_S, left) if left > 0 else RENEWAL_TIMEOUT_S
