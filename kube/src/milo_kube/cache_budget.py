"""Memory limits of the caches, because the API server of a tenant could return more objects than fit into memory.

Does no I/O and owns no cache: callers pass the caches.
"""

from __future__ import annotations

from typing import Protocol

import msgspec


class CacheLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of caches. A cache that exceeds a limit is dropped, and its kind is listed again after `retry_s`."""

    objects: int = 100_000
    """Maximum number of objects of one kind in one cluster; twice as many may wait to be reconciled besides."""
    bytes: int = 64 << 20
    """Maximum estimated memory of the objects of one kind in one cluster, and maximum bytes of one page of a list, if
    less than 16 MiB."""
    total_bytes: int = 1 << 30
    """Maximum bytes of all caches; above it, the largest cache is dropped."""
    retry_s: float = 600.0


class BudgetedCache(Protocol):
    """A cache whose size counts toward the budget."""

    @property
    def counted_bytes(self) -> int: ...

    def exceed(self, problem: str) -> None:
        """Drop the cache because it exceeds a limit; `problem` is the reason to report."""


class CacheBudget:
    """The memory budget that all caches share."""

    def __init__(self, limits: CacheLimits) -> None:
        self.limits = limits
        self.total = 0
        self._caches: set[BudgetedCache] = set()

    def grown(self, cache: BudgetedCache, size: int) -> None:
        """Record a change of a cache's size, and drop the largest cache if the total exceeds the limit."""
        self.total += size
        self._caches.add(cache)
        if size > 0 and self.total > self.limits.total_bytes:
            largest = max(self._caches, key=lambda held: held.counted_bytes)
            limit = self.limits.total_bytes
            largest.exceed(
                f"it is the largest of all caches, which together exceed {limit} bytes (CacheLimits.total_bytes)"
            )

    def forget(self, cache: BudgetedCache) -> None:
        """Stop counting a cache."""
        if cache in self._caches:
            self._caches.remove(cache)
            self.total -= cache.counted_bytes

    def problem(self, objects: int, size: int) -> str:
        """Return which limit of one cache is exceeded; empty if none is."""
        if objects > self.limits.objects:
            return f"the cluster has more than {self.limits.objects} of these objects (CacheLimits.objects)"
        if size > self.limits.bytes:
            return f"these objects of the cluster take more than {self.limits.bytes} bytes (CacheLimits.bytes)"
        return ""
