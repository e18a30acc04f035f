"""Token-bucket rate limits. Reads no clock: callers pass the time, which must not go backwards."""

import math
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

import msgspec

K = TypeVar("K", bound=Hashable)


class Rate(msgspec.Struct, frozen=True):
    """A rate limit: the refill rate of a token bucket, and its size."""

    per_second: float
    burst: float


class TokenBucket:
    """A budget that refills at a steady rate, up to its burst."""

    def __init__(self, rate: Rate, now: float) -> None:
        self._rate = rate
        self._level = rate.burst
        self._refilled_at = now

    def wait_s(self, now: float, cost: float = 1.0) -> float:
        """Return the seconds until `cost` tokens are available; 0 if they are."""
        self._refill(now)
        return max(0.0, (cost - self._level) / self._rate.per_second)

    def take(self, now: float, cost: float = 1.0) -> float:
        """Take `cost` tokens and return 0, or take nothing and return the seconds until they are available."""
        wait_s = self.wait_s(now, cost)
        if not wait_s:
            self._level -= cost
        return wait_s

    def charge(self, now: float, cost: float = 1.0, *, max_debt: float = math.inf) -> float:
        """Take `cost` tokens even if that leaves a debt, and return the seconds until the debt is paid off."""
        self._refill(now)
        self._level = max(self._level - cost, -max_debt)
        return max(0.0, -self._level / self._rate.per_second)

    def spent(self, now: float) -> float:
        """Return the number of tokens that were taken and have not been refilled yet."""
        self._refill(now)
        return self._rate.burst - self._level

    def change_rate(self, rate: Rate) -> None:
        self._rate = rate
        self._level = min(self._level, rate.burst)

    def _refill(self, now: float) -> None:
        self._level = min(self._rate.burst, self._level + (now - self._refilled_at) * self._rate.per_second)
        self._refilled_at = now


class KeyedBuckets(Generic[K]):
    """One token bucket per key. Beyond `capacity` keys, the least recently used bucket is evicted, and a later bucket
    of its key starts full."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._buckets: OrderedDict[K, TokenBucket] = OrderedDict()

    def bucket(self, key: K, rate: Rate, now: float) -> TokenBucket:
        """Return the key's bucket, which refills at this rate from now on."""
        found = self._buckets.get(key)
        if found is None:
            self._buckets[key] = found = TokenBucket(rate, now)
            if len(self._buckets) > self._capacity:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(key)
            found.change_rate(rate)
        return found

    def __len__(self) -> int:
        return len(self._buckets)
