"""Determines which objects a controller reconciles after a change: the object, its owners, and mapped objects."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from itertools import islice
from typing import Any, Protocol

from milo_controllers.errors import NotSynced
from milo_controllers.fleet_view import CachedCluster, FleetView
from milo_controllers.informer import Informer
from milo_controllers.kinds import CacheKey, Kind
from milo_controllers.named_objects import NamedObjects
from milo_controllers.object_cache import CachedObject, Change, is_named_by
from milo_controllers.reconcile_failures import ReconcileFailures
from milo_controllers.registration import ControllerSpec
from milo_controllers.watched import OwnedKind, Predicate, Watched, WatchedKind
from milo_controllers.work_queue import ObjectKey
from milo_discovery.model import DisengageReason
from milo_kube.tenants import Tenant
from milo_kube.user_code import call

log = logging.getLogger("milo_controllers")

_ENDED = frozenset(
    {
        DisengageReason.DELETED,
        DisengageReason.REMOVED,
        DisengageReason.LABELS_CHANGED,
        DisengageReason.REVOKED,
        DisengageReason.UNSPECIFIED,  # such as missing after a reconnect: it may have been deleted
    }
)
_ALL = ""
_MOST_NAMED = 100
"""Maximum number of clusters that are kept by name for a cache: the tenant may determine how many its objects name."""
_LONGEST_NAME = 253
_MOST_LOST = 1000


class AffectedCluster(CachedCluster, Protocol):
    """An engaged cluster whose objects are reconciled."""

    @property
    def incarnation(self) -> int: ...
    def tenant(self) -> Tenant: ...


class AffectedObjects:
    """Decides which objects one controller reconciles after a change. Errors of the author's functions are logged."""

    def __init__(
        self,
        spec: ControllerSpec,
        members: Mapping[str, AffectedCluster],
        clusters: FleetView,
        failures: ReconcileFailures,
        waits: Callable[[ObjectKey], bool],
    ) -> None:
        """`waits`: whether an object waits to be reconciled."""
        self._spec = spec
        self._members = members
        self._clusters = clusters
        self._failures = failures
        self._owned: dict[CacheKey, list[OwnedKind]] = {}
        for owned in spec.owns:
            self._owned.setdefault(owned.kind.key, []).append(owned)
        self._mapped: dict[CacheKey, list[WatchedKind]] = {}
        for watched in spec.watches:
            self._mapped.setdefault(watched.kind.key, []).append(watched)
        self.needed_kinds = {spec.kind.key, *self._owned, *self._mapped}
        """The kinds whose caches have to be complete before the first reconcile."""
        self._named_others: dict[tuple[str, int, CacheKey], set[str]] = {}
        """The other clusters of which mappers named objects, by the cluster name, incarnation and kind of the cache of
        the changed object; `_ALL` if they are many."""
        self._lost: dict[str, dict[CacheKey, set[str]]] = {}
        """Those of dropped caches, by cluster name and kind: objects may be deleted until a cache is complete again."""
        self.named = NamedObjects(waits)
        self._unmapped: dict[str, set[tuple[str, int, CacheKey]]] = {}
        """The caches with changes that a mapper could not map, by the cluster of the incomplete cache that it read;
        empty if that is not known."""

    def after_change(self, member: AffectedCluster, informer: Informer, change: Change) -> Iterator[ObjectKey]:
        """Yield the objects to reconcile after a change."""
        if informer.key == self._spec.kind.key and self._matters(member, self._spec.kind, self._spec.on, change):
            yield key_of(member, change.current.namespace, change.current.name)
        if any(self._matters(member, owned.kind, owned.on, change) for owned in self._owned.get(informer.key, ())):
            for state in (change.old, change.new):
                if state is not None:
                    yield from self._owners(member, state)
        for watched in self._mapped.get(informer.key, ()):
            if self._matters(member, watched.kind, watched.on, change):
                for state in (change.new, change.old):
                    if state is not None:
                        yield from self._mapped_objects(member, watched, change, state)

    def has_named_others(self, member: AffectedCluster, key: CacheKey) -> bool:
        """Return whether a mapper has named an object of another cluster after a change of this cache."""
        return (member.cluster.name, member.incarnation, key) in self._named_others

    def take_unmapped(self, complete: str) -> Iterator[tuple[AffectedCluster, CacheKey]]:
        """Yield the caches with changes that were not mapped since the last call and may be now, because a cache of the
        cluster `complete` is, or will never be, each with its cluster."""
        for name, incarnation, key in self._unmapped.pop(complete, set()) | self._unmapped.pop("", set()):
            member = self._members.get(name)
            if member is not None and member.incarnation == incarnation:
                yield member, key

    def take_lost(self, member: AffectedCluster) -> Iterable[AffectedCluster]:
        """Return the clusters of which objects were named by former caches of the member that are complete again."""
        lost = self._lost.get(member.cluster.name, {})
        complete = [key for key in lost if member.informers[key].cache.synced]
        named = set[str]().union(*map(lost.pop, complete))
        if not lost:
            self._lost.pop(member.cluster.name, None)
        return self._engaged(named)

    def drop(self, member: AffectedCluster) -> Iterable[AffectedCluster]:
        """Forget the caches of the member. Return the clusters of which objects were named by caches that are not
        expected to be complete again."""
        self.named.take((member.cluster.name, member.incarnation))
        for key in self._mapped:
            cache = member.cluster.name, member.incarnation, key
            if named := self._named_others.pop(cache, None):
                self._lost.setdefault(member.cluster.name, {}).setdefault(key, set()).update(named)
            for unmapped in self._unmapped.values():
                unmapped.discard(cache)
        draining = member.cluster.draining
        reason = member.cluster.disengage_reason or (draining and draining.reason)
        ended = [member.cluster.name] if reason in _ENDED else []
        ended += islice(self._lost, max(0, len(self._lost) - _MOST_LOST))
        return self._engaged(
            {name for cluster in ended for named in self._lost.pop(cluster, {}).values() for name in named}
        )

    def _engaged(self, named: Set[str]) -> Iterable[AffectedCluster]:
        if _ALL in named:
            return tuple(self._members.values())
        return [self._members[name] for name in named if name in self._members]

    def _has_named(self, cache: tuple[str, int, CacheKey], other: str) -> None:
        named = self._named_others.setdefault(cache, set())
        if _ALL not in named and 0 < len(other) <= _LONGEST_NAME:
            named.add(other)
            if len(named) > _MOST_NAMED:
                named.clear()
                named.add(_ALL)

    def _owners(self, member: AffectedCluster, owned: CachedObject) -> Iterator[ObjectKey]:
        primaries = member.informers[self._spec.kind.key].cache
        for owner in owned.owners:
            for namespace in {owned.namespace, ""}:
                found = primaries.get(namespace, owner.name)
                # An owner that is not in the cache is reconciled when it appears there. One that was created again
                # under its name is reconciled too: it may wait until its predecessor's object is deleted.
                if found is not None and is_named_by(owner, self._spec.kind.group, found):
                    yield key_of(member, namespace, owner.name)

    def _mapped_objects(
        self, member: AffectedCluster, watched: WatchedKind, change: Change, state: CachedObject
    ) -> Iterator[ObjectKey]:
        try:
            targets = call(watched.targets, Watched(watched.kind, change, member.cluster, self._clusters, state=state))
        except NotSynced as error:
            cache = member.cluster.name, member.incarnation, watched.kind.key
            self._unmapped.setdefault(error.cluster, set()).add(cache)
            log.debug(
                "%s: %s: the mapper of %s failed: %s",
                self._spec.name,
                member.cluster.name,
                watched.kind.resource,
                error,
            )
            return
        except Exception as error:  # noqa: BLE001  (the author's code: an error there must not stop the informer)
            what = f"the mapper of {watched.kind.resource}"
            self._failures.log(member.cluster.name, what, error, "nothing is reconciled")
            return
        for target in targets:
            target_member = member if target.cluster is None else self._members.get(target.cluster)
            if target_member is not member:
                self._has_named((member.cluster.name, member.incarnation, watched.kind.key), target.cluster or "")
            if target_member is not None:
                yield key_of(target_member, target.namespace, target.name)

    def _matters(
        self, member: AffectedCluster, kind: Kind[Any], on: tuple[Predicate[Any], ...], change: Change
    ) -> bool:
        try:
            return not on or call(Watched(kind, change, member.cluster, self._clusters).matters, on)
        except Exception as error:  # noqa: BLE001  (the author's code, as in `_mapped_objects`)
            self._failures.log(
                member.cluster.name, f"a predicate (on=) of {kind.resource}", error, "the change is treated as relevant"
            )
            return True


def key_of(member: AffectedCluster, namespace: str, name: str) -> ObjectKey:
    return ObjectKey(member.cluster.name, member.incarnation, namespace, name)
