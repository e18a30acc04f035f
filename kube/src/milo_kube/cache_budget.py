"""Memory limits of the caches, because the API server of a tenant could return more objects than fit into memory.

Does no I/O and owns no cache: callers pass the caches.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from typing import Final, Protocol

import msgspec

from milo_kube.tenants import Tenant

_ROOM_PART: Final = 64
"""Above the limit of all caches, this part of it is freed besides: each search for the largest reads all caches."""


class CacheLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of caches. A cache that exceeds a limit is dropped, and its kind is listed again after `retry_s`."""

    objects: int = 100_000
    """Maximum number of objects of one kind in one cluster; twice as many may wait to be reconciled besides."""
    bytes: int = 64 << 20
    """Maximum estimated memory of the objects of one kind in one cluster, and maximum bytes of one page of a list, if
    less than 16 MiB."""
    total_bytes: int = 1 << 30
    """Maximum bytes of all caches; above it, the tenant whose caches take the most loses its largest ones."""
    retry_s: float = 600.0


class BudgetedCache(Protocol):
    """A cache whose size counts toward the budget."""

    @property
    def tenant(self) -> Tenant:
        """The present tenant: a cluster's organization can change."""

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
        """Record a change of a cache's size, and drop the largest tenant's largest cache while the total exceeds the
        limit."""
        self.total += size
        self._caches.add(cache)
        if size > 0 and self.total > self.limits.total_bytes:
            self._make_room()

    def _make_room(self) -> None:
        limit = self.limits.total_bytes
        caches: defaultdict[Tenant, list[BudgetedCache]] = defaultdict(list)
        for cache in sorted(self._caches, key=lambda held: held.counted_bytes):
            caches[cache.tenant].append(cache)
        tenants = [(-sum(cache.counted_bytes for cache in held), tenant) for tenant, held in caches.items()]
        heapq.heapify(tenants)
        while self.total > limit - limit // _ROOM_PART:
            bytes_left, tenant = tenants[0]
            largest = caches[tenant].pop()
            heapq.heapreplace(tenants, (bytes_left + largest.counted_bytes, tenant))
            largest.exceed(
                f"it is the largest of its tenant, which has the most of all caches, and these together exceed {limit}"
                " bytes (CacheLimits.total_bytes)"
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
