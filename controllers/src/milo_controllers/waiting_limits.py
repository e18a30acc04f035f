"""Limits of the objects that wait to be reconciled without being in a cache, whose limits do not count them.

An API server can report any number of objects, and delete each at once. Pure.
"""

from __future__ import annotations

from milo_kube.cache_budget import CacheLimits

_BYTES = 1024
"""Maximum memory of an object in the queue, whose name and namespace its API server determines."""
_COUNTED_EVERY = 1009
"""The number of changes after which the objects of all clusters are counted. A prime number, so that controllers with
the same changes take turns."""


class WaitingLimits:
    """The limits for all controllers. A limit that is exceeded is returned as a text; it is empty otherwise."""

    def __init__(self, limits: CacheLimits) -> None:
        self._limits = limits
        self._changes = 0

    def exceeded(self, waiting: int, *, is_own: bool) -> str:
        """`waiting`: those of the cluster in which an object is enqueued; `is_own`: whether it has changed there."""
        # All objects of a cluster may be named before they are listed there, and as many be deleted. Other clusters
        # must leave room for those that have changed there.
        most = self._limits.objects * (2 if is_own else 1)
        limit = f"{'twice ' if is_own else ''}CacheLimits.objects"
        return f"{most} objects of the cluster ({limit})" if waiting > most else ""

    def kept(self, clusters: int) -> int:
        """Return how many objects of a cluster wait on when a limit is exceeded: those of all `clusters` half of it."""
        return min(self._limits.objects, self._limits.total_bytes // (2 * _BYTES * clusters))

    def is_count_due(self) -> bool:
        """Record a change, and return whether to count the objects of all clusters."""
        self._changes = (self._changes + 1) % _COUNTED_EVERY
        return not self._changes

    def exceeded_by_all(self, waiting: int) -> str:
        """`waiting`: those of all clusters."""
        most = self._limits.total_bytes // _BYTES
        return f"{most} objects of all clusters (CacheLimits.total_bytes)" if waiting > most else ""
