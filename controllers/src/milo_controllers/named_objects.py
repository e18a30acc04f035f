"""The objects that mappers of each cluster have named in other clusters, as long as they wait to be reconciled.

A cluster's API server determines how many its mappers name: they count for that cluster, and not for the one that has
to reconcile them, nor for others that name objects there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from milo_controllers.work_queue import ObjectKey

_PRUNED_FROM = 64

_Cluster = tuple[str, int]


class NamedObjects:
    """`waits` returns whether an object waits to be reconciled; others are forgotten at times."""

    def __init__(self, waits: Callable[[ObjectKey], bool]) -> None:
        self._waits = waits
        self._by: dict[_Cluster, set[ObjectKey]] = {}
        self._prune_at: dict[_Cluster, int] = {}
        self._in: Counter[_Cluster] = Counter()

    def add(self, by: _Cluster, key: ObjectKey, *, has_waited: bool = False) -> int:
        """Record that a cluster has named an object in another one; return about how many of it wait there.

        `has_waited`: whether the object waited before. One that no cluster has named waits for its own cluster's sake,
        and counts for no other.
        """
        named = self._by.setdefault(by, set())
        if key not in named and (not has_waited or any(key in others for others in self._by.values())):
            named.add(key)
            self._in[key[:2]] += 1
            if len(named) > self._prune_at.get(by, _PRUNED_FROM):
                self._forget(by, [other for other in named if not self._waits(other)])
                self._prune_at[by] = 2 * len(named) + _PRUNED_FROM
        return len(named)

    def exact(self, by: _Cluster) -> int:
        """Return how many objects that the cluster has named wait in others."""
        named = self._by.get(by, set())
        self._forget(by, [other for other in named if not self._waits(other)])
        return len(named)

    def by(self, cluster: _Cluster) -> int:
        """Return about how many objects that the cluster has named wait in others."""
        return len(self._by.get(cluster, ()))

    def within(self, cluster: _Cluster) -> int:
        """Return about how many objects that others have named wait in the cluster."""
        return self._in[cluster]

    def disown(self, key: ObjectKey) -> None:
        """Record that an object waits for its own cluster's sake."""
        if self._in[key[:2]]:
            for by, named in self._by.items():
                if key in named:
                    self._forget(by, (key,))

    def take(self, by: _Cluster) -> frozenset[ObjectKey]:
        """Forget what the cluster has named, and return what no other one has named."""
        named = frozenset(self._by.get(by, ()))
        self._forget(by, named)
        self._by.pop(by, None)
        self._prune_at.pop(by, None)
        return named.difference(*self._by.values())

    def _forget(self, by: _Cluster, keys: Iterable[ObjectKey]) -> None:
        for key in tuple(keys):
            self._by[by].remove(key)
            self._in[key[:2]] -= 1
            if not self._in[key[:2]]:
                del self._in[key[:2]]
