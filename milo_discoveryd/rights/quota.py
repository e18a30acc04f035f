"""Quotas per caller: open streams and their filters, kubeconfigs per minute, and requests that are denied or find
nothing.

A caller may be counted under several keys (see `quota_keys`); it is denied when one of them has reached a limit.
"""

from collections import Counter
from collections.abc import Sequence

import msgspec

from milo_kube.rate_limit import KeyedBuckets, Rate

MAX_KEYS = 10_000
"""Maximum number of keys whose token buckets are kept. An evicted key starts again with full buckets."""
MISS_BURST = 100
MISSES_PER_S = 10.0
MAX_MISS_DELAY_S = 5.0
FILTER_BYTES_EACH = 16 << 20
"""Memory limit for the requests of a caller's open streams, in bytes."""
FILTER_BYTES = 40 << 20
"""Memory limit for the requests of all open streams, in bytes."""
DELIVERIES_BYTES = 32 << 20
"""Memory limit for the deliveries of kubeconfigs of all open streams, in bytes."""
HELD_BYTES = 56 << 20
"""Memory limit for both together, in bytes."""


class QuotaLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits for all callers together, and for each caller whose rule sets no limit."""

    streams: int
    streams_each: int
    per_minute_each: int


class StreamDenial(msgspec.Struct, frozen=True):
    """The reason why a stream cannot be opened."""

    reason: str
    subject: str
    message: str


class Quotas:
    def __init__(self, limits: QuotaLimits) -> None:
        self.limits = limits
        self._streams: Counter[str] = Counter()
        self._open = 0
        self._filter_bytes: Counter[str] = Counter()
        self._delivery_bytes = 0
        self.held_bytes = 0
        """The memory that the requests and the deliveries of all open streams take."""
        self._kubeconfigs: KeyedBuckets[str] = KeyedBuckets(MAX_KEYS)
        self._renewals: KeyedBuckets[str] = KeyedBuckets(MAX_KEYS)
        self._misses: KeyedBuckets[str] = KeyedBuckets(MAX_KEYS)

    def count_deliveries(self, added: int) -> bool:
        """Count so many more bytes of deliveries, or fewer. Return whether all take no more than they may."""
        self._delivery_bytes += added
        self.held_bytes += added
        return self._delivery_bytes <= DELIVERIES_BYTES and self.held_bytes <= HELD_BYTES

    def open_stream(self, keys: Sequence[str], limit: int | None, filter_bytes: int = 0) -> StreamDenial | None:
        """Count one more stream, or return why it is denied and count nothing."""
        each = self.limits.streams_each if limit is None else limit
        if self.open_streams(keys) >= each:
            setting = "limits.streams_per_caller" if limit is None else "rights[].streams"
            message = f"stream limit ({each}) reached for this caller; close a stream or raise {setting}"
            return StreamDenial("TOO_MANY_STREAMS", "streams", message)
        # A caller may open a stream only if it has fewer streams than are free, so that other callers can open some as
        # well.
        if self.open_streams(keys) >= self.limits.streams - self._open:
            message = (
                f"too few of the daemon's {self.limits.streams} streams are free: a caller can open another only while "
                "it has fewer open streams than are free; retry or raise limits.streams"
            )
            return StreamDenial("TOO_MANY_STREAMS", "streams", message)
        own = max(self._filter_bytes[key] for key in keys)
        free = min(FILTER_BYTES + self._delivery_bytes, HELD_BYTES) - self.held_bytes
        if own + filter_bytes > min(FILTER_BYTES_EACH, free):
            message = "the filters of open streams are too large in total; use a label selector, or close a stream"
            return StreamDenial("TOO_MANY_FILTER_BYTES", "filter bytes", message)
        self._count(keys, 1, filter_bytes)
        return None

    def close_stream(self, keys: Sequence[str], filter_bytes: int = 0) -> None:
        self._count(keys, -1, -filter_bytes)

    def _count(self, keys: Sequence[str], streams: int, filter_bytes: int) -> None:
        self._open += streams
        self.held_bytes += filter_bytes
        for counter, number in ((self._streams, streams), (self._filter_bytes, filter_bytes)):
            for key in keys:
                counter[key] += number
                if not counter[key]:
                    del counter[key]

    def open_streams(self, keys: Sequence[str]) -> int:
        return max(self._streams[key] for key in keys)

    def take_kubeconfig(self, keys: Sequence[str], limit: int | None, now: float, *, is_renewal: bool = False) -> float:
        """Count one more kubeconfig and return 0, or return the seconds until the next one and count nothing.

        Renewals, whose number tenants determine, leave half to other kubeconfigs: they have what exceeds half of the
        burst, and in any case half of the rate.
        """
        per_minute = self.limits.per_minute_each if limit is None else limit
        rate = Rate(per_minute / 60, per_minute)
        buckets = [self._kubeconfigs.bucket(key, rate, now) for key in keys]
        wait_s = max(bucket.wait_s(now) for bucket in buckets)
        if is_renewal and (surplus_in_s := max(bucket.wait_s(now, 1 + per_minute // 2) for bucket in buckets)):
            half = Rate(rate.per_second / 2, 1)
            renewals = [self._renewals.bucket(key, half, now) for key in keys]
            # Also while nothing is left, since calls may take each one as soon as there is one: they wait for the debt.
            wait_s = min(surplus_in_s, max(bucket.wait_s(now) for bucket in renewals))
            buckets += renewals
        if wait_s:
            return max(0.001, wait_s)
        for bucket in buckets:
            bucket.charge(now)
        return 0.0

    def count_miss(self, keys: Sequence[str], now: float) -> float:
        """Count a request that was denied or found nothing, and return the seconds to delay the response.

        Ordinary callers miss rarely and never wait. Enumeration of names becomes slow, without effect on other callers.
        """
        rate, max_debt = Rate(MISSES_PER_S, MISS_BURST), MAX_MISS_DELAY_S * MISSES_PER_S
        return max(self._misses.bucket(key, rate, now).charge(now, max_debt=max_debt) for key in keys)
