"""How much each caller has of what there is a limited amount of: open streams, and kubeconfigs a minute."""

from collections import Counter, OrderedDict

import msgspec

REMEMBERED = 10_000


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """For each caller where his rule doesn't say, and for all together."""

    streams: int
    streams_each: int
    per_minute_each: int


class _Bucket(msgspec.Struct):
    level: float
    at: float


class Quotas:
    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._streams: Counter[str] = Counter()
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

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
        bucket = self._buckets.pop(identity, None) or _Bucket(per_minute, now)
        # At the end: who asked last is the last to be forgotten.
        self._buckets[identity] = bucket
        if len(self._buckets) > REMEMBERED:
            self._buckets.popitem(last=False)
        bucket.level = min(per_minute, bucket.level + (now - bucket.at) * per_minute / 60)
        bucket.at = now
        if bucket.level < 1:
            return max(0.001, (1 - bucket.level) * 60 / per_minute)
        bucket.level -= 1
        return 0.0
