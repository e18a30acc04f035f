"""How much each caller has of what there is a limited amount of: open streams, and kubeconfigs a minute."""

from collections import Counter, OrderedDict

import msgspec

REMEMBERED = 10_000
MISS_BURST = 100
MISSES_PER_S = 10.0
MAX_MISS_DELAY_S = 5.0


class QuotaLimits(msgspec.Struct, frozen=True, kw_only=True):
    """For each caller where its rule doesn't say, and for all together."""

    streams: int
    streams_each: int
    per_minute_each: int


class _Bucket(msgspec.Struct):
    level: float
    at: float


class Quotas:
    def __init__(self, limits: QuotaLimits) -> None:
        self.limits = limits
        self._streams: Counter[str] = Counter()
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()
        self._misses: OrderedDict[str, _Bucket] = OrderedDict()

    # Streams

    def open(self, identity: str, limit: int | None) -> str:
        """One more stream. Why not, if it can't be; then nothing has changed."""
        each = self.limits.streams_each if limit is None else limit
        if self._streams[identity] >= each:
            return f"{each} streams are open already, and you may have no more at once"
        if self._streams.total() >= self.limits.streams:
            return f"{self.limits.streams} streams are open, and the daemon has no more at once"
        self._streams[identity] += 1
        return ""

    def close(self, identity: str) -> None:
        self._streams[identity] -= 1
        if not self._streams[identity]:
            del self._streams[identity]

    def streams(self, identity: str) -> int:
        return self._streams.get(identity, 0)

    # Kubeconfigs: a bucket for each caller, that holds those of a minute

    def take(self, identity: str, limit: int | None, now: float) -> float:
        """One more kubeconfig: 0 if it may be had, else how many seconds from now it may; then nothing is taken."""
        per_minute = self.limits.per_minute_each if limit is None else limit
        bucket = _filled(self._buckets, identity, now, per_minute / 60, per_minute)
        if bucket.level < 1:
            return max(0.001, (1 - bucket.level) * 60 / per_minute)
        bucket.level -= 1
        return 0.0

    # What is asked for in vain: names that are not there, revisions of others, calls that no rule allows

    def miss(self, identity: str, now: float) -> float:
        """One more of those: how many seconds its answer is to wait.

        Who asks for what is his seldom misses, and never waits. Who guesses is slowed down to a pace that is no
        burden to others, and at which guessing leads nowhere.
        """
        bucket = _filled(self._misses, identity, now, MISSES_PER_S, MISS_BURST)
        bucket.level = max(bucket.level - 1, -MAX_MISS_DELAY_S * MISSES_PER_S)
        return max(0.0, -bucket.level / MISSES_PER_S)


def _filled(buckets: OrderedDict[str, _Bucket], identity: str, now: float, per_s: float, most: float) -> _Bucket:
    """The caller's, with what has come into it since."""
    bucket = buckets.pop(identity, None) or _Bucket(most, now)
    # At the end: who asked last is the last to be forgotten.
    buckets[identity] = bucket
    if len(buckets) > REMEMBERED:
        buckets.popitem(last=False)
    bucket.level = min(most, bucket.level + (now - bucket.at) * per_s)
    bucket.at = now
    return bucket
