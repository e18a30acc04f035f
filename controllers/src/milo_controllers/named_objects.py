"""The objects that mappers of each cluster have named in other clusters, as long as they wait to be reconciled.

A cluster's API server determines how many its mappers name: they count for that cluster, and not for the one that has
to reconcile them, nor for others that name objects there. Those that wait for another reason too are not among them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from milo_controllers.work_queue import ObjectKey

_PRUNED_FROM = 64

_Cluster = tuple[str, int]


class NamedObjects:
    """`waits` returns whether an object waits to be reconciled; others are forgotten at times."""

    def __init__(self, waits: Callable[[ObjectKey], bool]) -> None:
        self._waits = waits
        self._by: dict[_Cluster, set[ObjectKey]] = {}
        self._namers: dict[ObjectKey, set[_Cluster]] = {}
        """The clusters that have named each object."""
        self._prune_at: dict[_Cluster, int] = {}
        self._in: Counter[_Cluster] = Counter()

    def add(self, by: _Cluster, key: ObjectKey) -> None:
        """Record that a cluster names an object in another one, which then waits, unless it waits already."""
        named = self._by.setdefault(by, set())
        if key in named or (key not in self._namers and self._waits(key)):
            return
        if len(named) >= self._prune_at.get(by, _PRUNED_FROM):
            self.exact(by)
            self._prune_at[by] = 2 * len(named) + _PRUNED_FROM
        named.add(key)
        self._in[key[:2]] += key not in self._namers
        self._namers.setdefault(key, set()).add(by)

    def exact(self, by: _Cluster) -> int:
        """Return how many objects that the cluster has named wait in others."""
        named = self._by.get(by, set())
        for key in [key for key in named if not self._waits(key)]:
            self._forget(by, key)
        return len(named)

    def by(self, cluster: _Cluster) -> int:
        """Return about how many objects that the cluster has named wait in others."""
        return len(self._by.get(cluster, ()))

    def within(self, cluster: _Cluster) -> int:
        """Return about how many objects that others have named wait in the cluster."""
        return self._in[cluster]

    def waits_anyway(self, key: ObjectKey) -> None:
        """Record that an object waits for another reason than that clusters have named it."""
        for by in tuple(self._namers.get(key, ())):
            self._forget(by, key)

    def take(self, by: _Cluster) -> frozenset[ObjectKey]:
        """Forget what the cluster has named, and return what no other has named."""
        named = self._by.get(by, set())
        alone = frozenset(key for key in named if len(self._namers[key]) == 1)
        for key in tuple(named):
            self._forget(by, key)
        self._by.pop(by, None)
        self._prune_at.pop(by, None)
        return alone

    def _forget(self, by: _Cluster, key: ObjectKey) -> None:
        self._by[by].remove(key)
        self._namers[key].remove(by)
        if not self._namers[key]:
            del self._namers[key]
            self._in[key[:2]] -= 1
            if not self._in[key[:2]]:
                del self._in[key[:2]]
