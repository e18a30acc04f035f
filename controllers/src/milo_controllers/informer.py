"""Keeps the cache of one kind in one cluster up to date, by list and watch."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple, Protocol

from milo_controllers.errors import text_of
from milo_controllers.kinds import CacheKey, Kind
from milo_controllers.object_cache import CachedObject, Change, Index, ObjectCache, ObjectDecoder, Place
from milo_discovery.cluster_api import ClusterApi
from milo_kube.cache_budget import CacheBudget
from milo_kube.collection_follower import CollectionFollower
from milo_kube.reflect.reflector import ReflectorPolicy
from milo_kube.tenants import Tenant

log = logging.getLogger("milo_controllers")


class InformerSpec(NamedTuple):
    """An informer to run in each cluster."""

    kind: Kind[Any]
    indexes: dict[str, Index]
    decoder: ObjectDecoder

    @property
    def key(self) -> CacheKey:
        return self.kind.key

    @property
    def path(self) -> str:
        return self.kind.collection(self.key.namespace)

    @property
    def query(self) -> list[tuple[str, str]]:
        given = (("labelSelector", self.key.selector), ("fieldSelector", self.key.field_selector))
        return [(name, value) for name, value in given if value]

    @property
    def resource(self) -> str:
        return self.kind.resource

    @property
    def metadata_only(self) -> bool:
        return self.kind.metadata_only

    def __str__(self) -> str:
        return str(self.key)


class InformerListener(Protocol):
    """The receiver of an informer's reports, in an engaged cluster."""

    def tenant(self) -> Tenant: ...
    def changed(self, informer: Informer, change: Change) -> None: ...
    def synced(self, informer: Informer) -> None:
        """Called when the first list is complete, and when the first list after the cache was dropped is complete."""

    def failed(self, informer: Informer) -> None:
        """Called when the cache cannot be filled or kept up to date."""


class Informer(CollectionFollower[CachedObject, Change]):
    """Watches the objects of one kind in one cluster, and keeps its cache up to date."""

    __slots__ = ("_listener", "cache", "dropped", "key", "spec")

    def __init__(
        self,
        api: ClusterApi,
        spec: InformerSpec,
        policy: ReflectorPolicy,
        *,
        listener: InformerListener,
        budget: CacheBudget,
    ) -> None:
        self.spec = spec
        self.key = spec.key
        self.cache = ObjectCache(self._index_failed)
        for name, index in spec.indexes.items():
            self.cache.add_index(name, *index)
        self.dropped: frozenset[Place] | None = None
        """The objects that the cache had when it was dropped; None if it was not dropped since its last complete list.
        Some may have been deleted since."""
        self._listener = listener
        super().__init__(api, spec, self.cache, policy, budget=budget, cluster=api.name, log=log)

    @property
    def tenant(self) -> Tenant:
        return self._listener.tenant()

    @property
    def problem(self) -> str:
        return super().problem or self.cache.invalid

    def changed(self, change: Change) -> None:
        self._listener.changed(self, change)

    def synced(self) -> None:
        self._listener.synced(self)
        self.dropped = None

    def failed(self) -> None:
        self._listener.failed(self)

    def exceed(self, problem: str) -> None:
        # What an incomplete list contained was not reconciled: so the set is at most as large as a permitted cache.
        self.dropped = self.cache.places() if self.cache.synced else self.dropped or frozenset()
        super().exceed(problem)

    def _index_failed(self, index: str, found: CachedObject, error: Exception) -> None:
        self._log.limited(
            "%s: index %s of %s failed for %s, which is missing from the index: %s: %s",
            *(self._cluster, index, self.key, found.name, type(error).__name__, text_of(error)),
        )
