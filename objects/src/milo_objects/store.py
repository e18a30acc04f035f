"""The projected objects of all engaged clusters, with indexes, and with the state of each scope. Pure.

It consumes the changes of a source, and passes on those that change something.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import NamedTuple

from milo_objects.object_index import IndexFunction, ObjectIndex
from milo_objects.projection import Place, ProjectedObject
from milo_objects.scope import (
    Change,
    ClusterChanged,
    ClusterEnded,
    FleetChanged,
    FleetCluster,
    FleetState,
    Gone,
    ObjectChanged,
    ObjectGone,
    Pending,
    Scope,
    ScopeChanged,
    ScopeEnded,
    ScopeState,
    Synced,
)
from milo_objects.view import ScopeView, View, view_of

_NOTHING: Mapping[Place, ProjectedObject] = MappingProxyType({})


class FoundObject(NamedTuple):
    """An object, with its kind, and the cluster that it is in."""

    cluster: FleetCluster
    resource: str
    object: ProjectedObject


class Index(NamedTuple):
    """An index of the objects of one kind; a function alone is an index of the objects of all kinds."""

    resource: str
    function: IndexFunction
    """Takes a ProjectedObject, and returns a list of values."""


class _HeldScope:
    """A scope with its objects."""

    __slots__ = ("index_bytes", "is_filled", "objects", "state")

    def __init__(self, state: ScopeState) -> None:
        self.state = state
        self.is_filled = False
        self.objects: dict[Place, ProjectedObject] = {}
        self.index_bytes = 0


_ObjectKey = tuple[Scope, Place]


class Store:
    """The known clusters, scopes and objects."""

    def __init__(
        self,
        resources: Iterable[str],
        indexes: Mapping[str, IndexFunction | Index],
        since: datetime,
        *,
        changed: Callable[[Change], None] = lambda _: None,
        index_failed: Callable[[str, FoundObject, Exception], None] = lambda *_: None,
    ) -> None:
        """`changed` is called with each change that changes something. `index_failed` is called when an index function
        raises or returns no list; the object is then missing from that index."""
        self.fleet: FleetState = Pending(since)
        """Whether all engaged clusters are known."""
        self._clusters: dict[str, FleetCluster] = {}
        self._scopes: dict[Scope, _HeldScope] = {}
        self._of_cluster: dict[str, dict[str, Scope]] = {name: {} for name in resources}
        """The scope of each cluster, by kind and name."""
        self._changed = changed
        self._index_failed = index_failed
        self._indexes: dict[str, tuple[str, ObjectIndex[_ObjectKey]]] = {}
        for name, given in indexes.items():
            resource, function = given if isinstance(given, Index) else ("", given)
            if resource:
                self._require(resource)
            self._indexes[name] = resource, ObjectIndex(name, function, self._failed)

    def __len__(self) -> int:
        """Return the number of objects."""
        return sum(len(held.objects) for held in self._scopes.values())

    # --- for readers ---

    @property
    def clusters(self) -> Mapping[str, FleetCluster]:
        """The known clusters, by name."""
        return MappingProxyType(self._clusters)

    def find(self, index: str, value: Hashable) -> builtins.list[FoundObject]:
        """Return the objects for which the index function returned this value, with their clusters.

        Raises KeyError for an unknown index.
        """
        if index not in self._indexes:
            known = ", ".join(map(repr, self._indexes)) or "none"
            raise KeyError(f"index {index!r} does not exist (existing indexes: {known}); pass it in indexes=")
        keys = self._indexes[index][1].keys(value)
        return [self._found(scope, self._scopes[scope].objects[place]) for scope, place in keys]

    def get(self, cluster: str, resource: str, name: str, namespace: str = "") -> ProjectedObject | None:
        """Return an object of a cluster; None if it is not known. Raises KeyError for a kind that is not followed."""
        scope = self._require(resource).get(cluster)
        return None if scope is None else self._scopes[scope].objects.get((namespace, name))

    def list(self, resource: str, cluster: str | None = None) -> Iterator[FoundObject]:
        """Return the known objects of a kind, in one cluster or in all. Raises KeyError for one that is not followed.

        The objects are those of now, of each cluster when the iteration reaches it.
        """
        scopes = self._require(resource)
        for scope in [*scopes.values()] if cluster is None else filter(None, [scopes.get(cluster)]):
            for found in [*self.objects(scope).values()]:
                yield self._found(scope, found)

    def view(self, resource: str) -> View:
        """Return what is known of a kind in all clusters. Raises KeyError for a kind that is not followed."""
        scopes = self._require(resource)
        unread = ScopeView(Pending(self.fleet.since), is_filled=False)
        states = (
            (name, ScopeView(held.state, held.is_filled))
            if (held := self._scopes.get(scopes[name]) if name in scopes else None) is not None
            else (name, unread)
            for name in self._clusters
        )
        return view_of(resource, self.fleet, states)

    def snapshot(self) -> Iterator[Change]:
        """Return the changes that make an empty store equal to this one."""
        yield FleetChanged(Pending(self.fleet.since))
        for cluster in self._clusters.values():
            yield ClusterChanged(cluster)
        for scope, held in self._scopes.items():
            yield ScopeChanged(scope, Pending(held.state.since))
            for found in held.objects.values():
                yield ObjectChanged(scope, found)
            if held.is_filled:
                yield ScopeChanged(scope, Synced(held.state.since))
            yield ScopeChanged(scope, held.state)
        yield FleetChanged(self.fleet)

    # --- for sources ---

    def objects(self, scope: Scope) -> Mapping[Place, ProjectedObject]:
        """Return the objects of a scope: a live view, empty if the scope is unknown."""
        held = self._scopes.get(scope)
        return _NOTHING if held is None else MappingProxyType(held.objects)

    def index_bytes(self, scope: Scope) -> int:
        """Return approximately how many bytes the values of a scope's objects take in indexes."""
        held = self._scopes.get(scope)
        return 0 if held is None else held.index_bytes

    def scopes(self, cluster: str) -> builtins.list[Scope]:
        """Return the scopes of a cluster."""
        return [scopes[cluster] for scopes in self._of_cluster.values() if cluster in scopes]

    def apply(self, change: Change) -> None:
        """Apply a change. What changes nothing is ignored, and so is what belongs to no present scope."""
        match change:
            case ObjectChanged():
                self._object_changed(change)
            case ObjectGone():
                self._object_gone(change)
            case ScopeChanged():
                self._scope_changed(change)
            case ScopeEnded(scope):
                if self._drop(scope):
                    self._changed(change)
            case ClusterChanged():
                self._cluster_changed(change)
            case ClusterEnded():
                self._cluster_ended(change)
            case _:
                before, self.fleet = self.fleet, change.state
                if before != change.state:
                    self._changed(change)

    def _object_changed(self, change: ObjectChanged) -> None:
        held = self._scopes.get(change.scope)
        if held is None:
            return
        found = change.object
        place = found.place
        before = held.objects.get(place)
        if before is not None and before.uid != found.uid:
            self._object_gone(ObjectGone(change.scope, before, Gone.OBJECT_DELETED))
            before = None
        elif before is not None and found.equals(before):
            return
        held.objects[place] = found
        key = change.scope, place
        for resource, index in self._indexes.values():
            if resource in ("", change.scope.resource):
                held.index_bytes -= index.size(key)
                index.put(key, found)
                held.index_bytes += index.size(key)
        self._changed(ObjectChanged(change.scope, found, before))

    def _object_gone(self, change: ObjectGone) -> None:
        held = self._scopes.get(change.scope)
        place = change.object.place
        before = None if held is None else held.objects.get(place)
        if held is None or before is None or before.uid != change.object.uid:
            return
        del held.objects[place]
        held.index_bytes -= sum(index.size((change.scope, place)) for _, index in self._indexes.values())
        self._unindex(change.scope, place)
        self._changed(ObjectGone(change.scope, before, change.reason))

    def _scope_changed(self, change: ScopeChanged) -> None:
        scope, state = change.scope, change.state
        cluster = self._clusters.get(scope.cluster)
        if cluster is None or cluster.incarnation != scope.incarnation or scope.resource not in self._of_cluster:
            return
        held = self._scopes.get(scope)
        if held is None:
            held = self._scopes[scope] = _HeldScope(state)
            self._of_cluster[scope.resource][scope.cluster] = scope
        elif held.state == state:
            return
        held.state = state
        held.is_filled |= isinstance(state, Synced)
        self._changed(change)

    def _cluster_changed(self, change: ClusterChanged) -> None:
        cluster = change.cluster
        before = self._clusters.get(cluster.name)
        if before == cluster:
            return
        if before is not None and before.incarnation != cluster.incarnation:
            self._cluster_ended(ClusterEnded(before, "REPLACED"))
        self._clusters[cluster.name] = cluster
        self._changed(change)

    def _cluster_ended(self, change: ClusterEnded) -> None:
        known = self._clusters.get(change.cluster.name)
        if known is None or known.incarnation != change.cluster.incarnation:
            return
        for scope in self.scopes(known.name):
            self._drop(scope)
        del self._clusters[known.name]
        self._changed(change)

    def _drop(self, scope: Scope) -> bool:
        held = self._scopes.pop(scope, None)
        if held is None:
            return False
        del self._of_cluster[scope.resource][scope.cluster]
        for place in held.objects:
            self._unindex(scope, place)
        held.objects.clear()
        return True

    def _unindex(self, scope: Scope, place: Place) -> None:
        for _, index in self._indexes.values():
            index.remove((scope, place))

    # --- helpers ---

    def _found(self, scope: Scope, found: ProjectedObject) -> FoundObject:
        return FoundObject(self._clusters[scope.cluster], scope.resource, found)

    def _failed(self, name: str, key: _ObjectKey, error: Exception) -> None:
        scope, place = key
        self._index_failed(name, self._found(scope, self._scopes[scope].objects[place]), error)

    def _require(self, resource: str) -> dict[str, Scope]:
        try:
            return self._of_cluster[resource]
        except KeyError:
            known = ", ".join(self._of_cluster) or "none"
            raise KeyError(f"{resource} is not followed (followed kinds: {known}); pass its Kind") from None
