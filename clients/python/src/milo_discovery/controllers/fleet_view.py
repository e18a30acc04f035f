"""Read-only access to the caches of all engaged clusters."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, overload

from milo_discovery.controllers.errors import NotCached, NotSynced
from milo_discovery.controllers.informer import Informer, InformerKey
from milo_discovery.controllers.kinds import AnyKind, Document, Kind, kind_of
from milo_discovery.controllers.object_cache import ObjectCache
from milo_discovery.engaged_cluster import EngagedCluster

T = TypeVar("T")


class ClusterObject(NamedTuple, Generic[T]):
    """An object, and the cluster that it is in."""

    cluster: EngagedCluster
    object: T


class CachedCluster(Protocol):
    """An engaged cluster with its informers."""

    @property
    def cluster(self) -> EngagedCluster: ...
    @property
    def informers(self) -> Mapping[InformerKey, Informer]: ...


class ClusterView:
    """The caches of one cluster."""

    __slots__ = ("_member",)

    def __init__(self, member: CachedCluster) -> None:
        self._member = member

    @property
    def cluster(self) -> EngagedCluster:
        return self._member.cluster

    def is_metadata_only(self, kind: AnyKind, selector: str = "") -> bool:
        """Return whether nothing but the metadata of these objects is cached. Raises NotCached."""
        return informer(self._member, kind, selector).spec.metadata_only

    @overload
    def get(self, kind: str, name: str, namespace: str = "", *, selector: str = "") -> Document | None: ...
    @overload
    def get(self, kind: Kind[T], name: str, namespace: str = "", *, selector: str = "") -> T | None: ...
    def get(self, kind: Any, name: str, namespace: str = "", *, selector: str = "") -> Any:
        """Return the object; None if it does not exist. Raises NotCached or NotSynced."""
        found = synced_cache(self._member, kind, selector).get(namespace, name)
        return None if found is None else kind_of(kind).decode(found.raw)

    @overload
    def list(
        self,
        kind: str,
        namespace: str | None = None,
        *,
        selector: str = "",
        owner: str | None = None,
        index: tuple[str, Hashable] | None = None,
    ) -> Iterator[Document]: ...
    @overload
    def list(
        self,
        kind: Kind[T],
        namespace: str | None = None,
        *,
        selector: str = "",
        owner: str | None = None,
        index: tuple[str, Hashable] | None = None,
    ) -> Iterator[T]: ...
    def list(
        self,
        kind: Any,
        namespace: str | None = None,
        *,
        selector: str = "",
        owner: str | None = None,
        index: tuple[str, Hashable] | None = None,
    ) -> Iterator[Any]:
        """Return the objects, decoded as they are read: of a namespace, of an owner by its UID, or of an index.

        `selector` names the informer, if the kind is cached with a label selector. Raises NotCached or
        NotSynced.
        """
        cache = synced_cache(self._member, kind, selector)
        if owner is not None:
            objects = cache.owned_by(owner)
        elif index is not None:
            objects = cache.indexed(*index)
        else:
            objects = cache.values()
        decode = kind_of(kind).decode
        return (decode(found.raw) for found in objects if namespace is None or found.namespace == namespace)


class FleetView:
    """The caches of all engaged clusters."""

    def __init__(self, members: Mapping[str, CachedCluster]) -> None:
        self._members = members

    def __contains__(self, cluster: str) -> bool:
        return cluster in self._members

    def names(self) -> tuple[str, ...]:
        """Return the names of the engaged clusters."""
        return tuple(self._members)

    def cluster(self, name: str) -> ClusterView | None:
        """Return the caches of an engaged cluster; None if it is not engaged."""
        member = self._members.get(name)
        return None if member is None else ClusterView(member)

    @overload
    def list(
        self,
        kind: str,
        namespace: str | None = None,
        *,
        selector: str = "",
        index: tuple[str, Hashable] | None = None,
    ) -> Iterator[ClusterObject[Document]]: ...
    @overload
    def list(
        self,
        kind: Kind[T],
        namespace: str | None = None,
        *,
        selector: str = "",
        index: tuple[str, Hashable] | None = None,
    ) -> Iterator[ClusterObject[T]]: ...
    def list(
        self,
        kind: Any,
        namespace: str | None = None,
        *,
        selector: str = "",
        index: tuple[str, Hashable] | None = None,
    ) -> Iterator[ClusterObject[Any]]:
        """Return the objects of every cluster whose cache of the kind is complete, with the cluster in each."""
        for member in tuple(self._members.values()):
            if informer(member, kind, selector).cache.synced:
                for found in ClusterView(member).list(kind, namespace, selector=selector, index=index):
                    yield ClusterObject(member.cluster, found)


def synced_cache(member: CachedCluster, kind: Kind[Any] | str, selector: str) -> ObjectCache:
    """Return the cache of a kind. Raises NotCached or NotSynced."""
    found = informer(member, kind, selector)
    if not found.cache.synced:
        why = f" ({found.problem})" if found.problem else ""
        raise NotSynced(f"{found.key} of {member.cluster.name} have not been listed yet{why}; retry later")
    return found.cache


def informer(member: CachedCluster, kind: Kind[Any] | str, selector: str = "") -> Informer:
    """Return the informer of a kind. Raises NotCached."""
    key = InformerKey(kind_of(kind).resource, selector)
    try:
        return member.informers[key]
    except KeyError:
        raise NotCached(
            f"{key} is not cached; declare it with owns=, with watches=, or with Controllers.cache({key.resource!r})"
        ) from None
