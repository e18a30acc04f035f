"""Limits for TokenReviews: per connection, per owner of connections, and in total. Callers pass the time.

Tokens that were accepted before have a separate budget, so that invalid tokens cannot keep them from being reviewed. A
connection or owner may use at most half of the budget that the others leave unused, so that none of them is starved.
So it is with the reviews in flight: an API server may need long for some tokens, such as those that it passes on.
"""

from collections import Counter, OrderedDict
from typing import Generic, TypeVar

import msgspec

from milo_kube.rate_limit import KeyedBuckets, Rate, TokenBucket

PER_CONNECTION = Rate(per_second=5.0, burst=20.0)
PER_OWNER = Rate(per_second=10.0, burst=50.0)
TOTAL = Rate(per_second=20.0, burst=100.0)
RESERVED = Rate(per_second=20.0, burst=100.0)
"""The rate limit for tokens that were accepted before."""
REJECTION_COST = 4.0
"""Additional cost of a rejected token to its connection and owners. Legitimate callers present few invalid tokens."""
MAX_KEYS = 10_000
MAX_IN_FLIGHT = 128
"""Maximum number of reviews in flight of tokens that were accepted before, and of others. An owner may have half, which
is more than its burst."""
T = TypeVar("T")


class TokenOrigin(msgspec.Struct, frozen=True):
    """The origin of a token: its connection, and the connection's owners."""

    connection: str = ""
    owners: tuple[str, ...] = ()
    """A user, or each name of a certificate; empty if the listener does not identify its callers."""

    @property
    def charged(self) -> tuple[str, ...]:
        """Whose limits count: nobody's in particular, if nobody is known."""
        return self.owners or ("",)


UNKNOWN_ORIGIN = TokenOrigin()


class ReviewBudget:
    def __init__(self, now: float, *, total: Rate = TOTAL) -> None:
        self._total = TokenBucket(total, now)
        self._reserved = TokenBucket(RESERVED, now)
        self._connections: KeyedBuckets[str] = KeyedBuckets(MAX_KEYS)
        self._owners: KeyedBuckets[str] = KeyedBuckets(MAX_KEYS)

    def charge_review(self, origin: TokenOrigin, now: float, *, was_accepted: bool) -> float:
        """Count one review and return 0, or return the seconds until it is allowed and count nothing."""
        if was_accepted and self._reserved.take(now) == 0:
            return 0.0
        own = self._buckets_of(origin, now)
        spent = max(bucket.spent(now) for bucket in own)
        wait_s = max(self._total.wait_s(now, 1.0 + spent), *(bucket.wait_s(now) for bucket in own))
        if not wait_s:
            for bucket in (*own, self._total):
                bucket.take(now)
        return wait_s

    def rejected(self, origin: TokenOrigin, now: float) -> None:
        for bucket in self._buckets_of(origin, now):
            bucket.charge(now, REJECTION_COST)

    def _buckets_of(self, origin: TokenOrigin, now: float) -> list[TokenBucket]:
        return [
            self._connections.bucket(origin.connection, PER_CONNECTION, now),
            *(self._owners.bucket(owner, PER_OWNER, now) for owner in origin.charged),
        ]


class ReviewsInFlight(Generic[T]):
    """The reviews in flight of tokens that were accepted before, or of others, and the recent failures of each owner.
    What an API server does with the tokens of one owner says nothing about those of another."""

    def __init__(self) -> None:
        self._taken = 0
        self._by_owner: Counter[str] = Counter()
        self._failures: OrderedDict[str, tuple[T, float]] = OrderedDict()

    def has_room(self, origin: TokenOrigin) -> bool:
        own = max(self._by_owner[owner] for owner in origin.charged)
        return own < MAX_IN_FLIGHT - self._taken

    def count(self, origin: TokenOrigin, change: int) -> None:
        self._taken += change
        for owner in origin.charged:
            self._by_owner[owner] += change
            if not self._by_owner[owner]:
                del self._by_owner[owner]

    def failed(self, origin: TokenOrigin, failure: T, until: float) -> None:
        for owner in origin.charged:
            self._failures.pop(owner, None)
            self._failures[owner] = failure, until
            if len(self._failures) > MAX_KEYS:
                self._failures.popitem(last=False)

    def recent_failure(self, origin: TokenOrigin, now: float) -> T | None:
        """Return the last failure of an owner, if no review is to be sent for it yet."""
        found = (self._failures[owner] for owner in origin.charged if owner in self._failures)
        return next((failure for failure, until in found if now < until), None)
