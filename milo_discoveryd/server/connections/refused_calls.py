"""Rate limit for refused calls, by owner of connections: a refusal costs the daemon as much as its caller. Pure."""

from collections.abc import Iterable

from milo_kube.rate_limit import KeyedBuckets, Rate, TokenBucket

RATE = Rate(per_second=50.0, burst=500.0)
"""Far above the rate of clients that back off before they retry."""
MAX_DEBT = 500.0
"""Limits the pause to ten seconds, so that a client that was fixed is soon served again."""
MAX_OWNERS = 10_000
EXCESS = "too many calls were refused"


class PausedError(Exception):
    """A connection is refused because too many calls of its owner were refused."""


class RefusedCallLimiter:
    def __init__(self) -> None:
        self._buckets: KeyedBuckets[str] = KeyedBuckets(MAX_OWNERS)

    def charge(self, owners: Iterable[str], now: float) -> float:
        """Count a refused call, and return the seconds for which its owners must pause; 0 within the rate."""
        return max(bucket.charge(now, max_debt=MAX_DEBT) for bucket in self._of(owners, now))

    def admit(self, owners: Iterable[str], now: float) -> None:
        """Admit a connection. Raises PausedError if the owners of a new connection must still pause."""
        if pause_s := max(bucket.wait_s(now, 0) for bucket in self._of(owners, now)):
            raise PausedError(f"{EXCESS}; connect again in {pause_s:.1f} s")

    def _of(self, owners: Iterable[str], now: float) -> list[TokenBucket]:
        return [self._buckets.bucket(owner, RATE, now) for owner in owners]
