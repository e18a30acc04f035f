"""Read-only access to the caches of all engaged clusters, from any thread.

Only the event loop reads a cache. A read from another thread is a call in the event loop; the objects that it found are
decoded in the thread.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, cast, overload

from milo_controllers.errors import NotCached, NotSynced, text_of
from milo_controllers.event_loop import EventLoop
from milo_controllers.informer import Informer
from milo_controllers.kinds import AnyKind, CacheKey, Document, Kind, kind_of
from milo_controllers.object_cache import CachedObject, ObjectCache
from milo_discovery.engaged_cluster import EngagedCluster
from milo_discovery.fleet import DiscoveryState
from milo_kube.user_code import call
from milo_objects.follow import fleet_state, scope_state
from milo_objects.scope import Pending, Stale, Synced
from milo_objects.view import ScopeView, View, view_of

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
    def informers(self) -> Mapping[CacheKey, Informer]: ...
    @property
    def loop(self) -> EventLoop: ...


class ClusterCaches:
    """The caches of one cluster. Safe in any thread."""

    __slots__ = ("_member",)

    def __init__(self, member: CachedCluster) -> None:
        self._member = member

    @property
    def cluster(self) -> EngagedCluster:
        return self._member.cluster

    @overload
    def get(self, kind: str, name: str, namespace: str = "") -> Document | None: ...
    @overload
    def get(self, kind: Kind[T], name: str, namespace: str = "") -> T | None: ...
    def get(self, kind: Any, name: str, namespace: str = "") -> Any:
        """Return the object; None if it does not exist. Raises NotCached or NotSynced."""
        found = self._found(kind, name, namespace)
        return None if found is None else self._decoder(kind)(found.raw)

    @overload
    def list(
        self,
        kind: str,
        namespace: str | None = None,
        *,
        owner: str | None = None,
        index: tuple[str, Hashable] | None = None,
    ) -> Iterator[Document]: ...
    @overload
    def list(
        self,
        kind: Kind[T],
        namespace: str | None = None,
        *,
        owner: str | None = None,
        index: tuple[str, Hashable] | None = None,
    ) -> Iterator[T]: ...
    def list(
        self,
        kind: Any,
        namespace: str | None = None,
        *,
        owner: str | None = None,
        index: tuple[str, Hashable] | None = None,
    ) -> Iterator[Any]:
        """Return the objects, decoded lazily: all, or those of a namespace, an owner (by its UID) and an index value.

        Raises NotCached or NotSynced.
        """
        objects, decode = self._held(kind, namespace, owner, index), self._decoder(kind)
        return (decode(found.raw) for found in objects)

    def decodable(self, kind: Any, namespace: str | None, *, index: tuple[str, Hashable] | None) -> Iterator[Any]:
        """Return the objects as `list` does, without those that cannot be decoded: what one cluster's API server sends
        must not fail those who read all clusters."""
        objects, decode = self._held(kind, namespace, None, index), self._decoder(kind)
        for found in objects:
            try:
                decoded = call(decode, found.raw)
            except Exception as error:  # noqa: BLE001  (of the kind's type, such as pydantic's)
                about = (self.cluster.name, kind_of(kind).resource, found.name, text_of(error))
                warning = partial(informer(self._member, kind).warn, "%s: %s %s cannot be decoded: %s", *about)
                self._member.loop.call(warning)
            else:
                yield decoded

    def _held(
        self, kind: Any, namespace: str | None, owner: str | None, index: tuple[str, Hashable] | None
    ) -> Iterator[CachedObject]:
        def objects_now() -> Iterator[CachedObject]:
            cache = synced_cache(self._member, kind)
            if index is None:
                return cache.values() if owner is None else cache.owned_by(owner)
            found = cache.indexed(*index)
            return found if owner is None else (one for one in found if owner in {each.uid for each in one.owners})

        _check_namespace(kind, namespace)
        loop = self._member.loop
        objects = objects_now() if loop.is_here else loop.call(objects_now)
        return (found for found in objects if namespace is None or found.namespace == namespace)

    def _found(self, kind: AnyKind, name: str, namespace: str) -> CachedObject | None:
        def found_now() -> CachedObject | None:
            cache = synced_cache(self._member, kind)
            found = cache.get(namespace, name)
            if found is None and (problem := cache.problem(namespace, name)):
                what = f"{kind_of(kind).key} {name} of {self.cluster.name}"
                raise NotCached(f"{what} exists, but is invalid, and so is not cached: {problem}")
            return found

        _check_namespace(kind, namespace)
        loop = self._member.loop
        return found_now() if loop.is_here else loop.call(found_now)

    def _decoder(self, kind: AnyKind) -> Callable[[bytes], Any]:
        wanted, cached = kind_of(kind), informer(self._member, kind).spec.kind
        if not cached.metadata_only:
            return wanted.decode
        if wanted.has_type:
            raise NotCached(
                f"{cached.key} is cached with metadata_only=True, so its objects are dicts: leave out that option, or "
                "read it with a Kind that has no type"
            )
        return cached.document


class RequestCaches(ClusterCaches):
    """The caches of one cluster, with what a request needs to know of them."""

    __slots__ = ()

    def is_partial(self, kind: AnyKind) -> bool:
        """Return whether these objects are cached without some of their fields. Raises NotCached."""
        return informer(self._member, kind).spec.kind.is_partial

    def partial_kind(self, kind: Kind[Any]) -> Kind[Any] | None:
        """Return the kind under which these objects are cached without some of their fields; None if they are whole.

        Raises ValueError if objects of the resource are cached under several other such kinds.
        """
        held = self._member.informers.get(kind.key)
        if held is not None:
            return held.spec.kind if held.spec.kind.is_partial else None
        others = [other.spec.kind for other in self._member.informers.values() if other.key.resource == kind.resource]
        partial = [other for other in others if other.is_partial]
        if len(partial) > 1:
            raise ValueError(
                f"{kind.resource} is cached in several ways: pass the Kind under which the object was read"
            )
        return partial[0] if partial else None

    def document(self, kind: AnyKind, name: str, namespace: str = "") -> Document | None:
        """Return the object as a dict, even if its Kind has a model. Raises NotCached or NotSynced."""
        found = self._found(kind, name, namespace)
        return None if found is None else informer(self._member, kind).spec.kind.document(found.raw)

    def whole_document(self, kind: Kind[Any], name: str, namespace: str) -> Document | None:
        """Return the object as a dict, if it is cached with all fields."""
        held = self._member.informers.get(kind.key)
        is_whole = held is not None and held.cache.synced and not held.spec.kind.is_partial
        is_within = kind.key.namespace in ("", namespace)
        return self.document(kind, name, namespace) if is_whole and is_within else None

    def cached(self, kind: AnyKind, name: str, namespace: str) -> CachedObject | None:
        """Return the object as it is cached; None if it does not exist. Raises NotCached or NotSynced."""
        return self._found(kind, name, namespace)

    def decoded(self, kind: Kind[T], raw: bytes) -> T:
        """Return a cached object as `get` does. Raises NotCached."""
        return cast(T, self._decoder(kind)(raw))


class EngagedNames(Protocol):
    """The engaged clusters, whether or not their caches exist yet."""

    @property
    def clusters(self) -> Mapping[str, object]: ...
    @property
    def discovery(self) -> DiscoveryState: ...


class FleetView:
    """The caches of all engaged clusters. Safe in any thread."""

    def __init__(self, members: Mapping[str, CachedCluster], engaged: EngagedNames | None = None) -> None:
        """`engaged` is required for `view`."""
        self._members = members
        self._engaged = engaged

    def __contains__(self, cluster: str) -> bool:
        return cluster in self._members

    def names(self) -> tuple[str, ...]:
        """Return the names of the engaged clusters."""
        return tuple(self._members)

    def cluster(self, name: str) -> ClusterCaches | None:
        """Return the caches of an engaged cluster; None if it is not engaged."""
        member = self._members.get(name)
        return None if member is None else ClusterCaches(member)

    @overload
    def list(
        self,
        kind: str,
        namespace: str | None = None,
        *,
        index: tuple[str, Hashable] | None = None,
    ) -> Iterator[ClusterObject[Document]]: ...
    @overload
    def list(
        self,
        kind: Kind[T],
        namespace: str | None = None,
        *,
        index: tuple[str, Hashable] | None = None,
    ) -> Iterator[ClusterObject[T]]: ...
    def list(
        self,
        kind: Any,
        namespace: str | None = None,
        *,
        index: tuple[str, Hashable] | None = None,
    ) -> Iterator[ClusterObject[Any]]:
        """Return the objects of every cluster whose cache of the kind is complete, each with its cluster.

        `view` says which are missing. Objects that cannot be decoded are left out, with a warning.
        """
        for member in tuple(self._members.values()):
            with suppress(NotSynced):
                for found in ClusterCaches(member).decodable(kind, namespace, index=index):
                    yield ClusterObject(member.cluster, found)

    def view(self, kind: AnyKind) -> View:
        """Return what is known of a kind in all engaged clusters, and what is missing: so that "not found" is told
        apart from "not read yet". Raises NotCached."""
        assert self._engaged is not None
        before = self._engaged.discovery  # before the clusters: all are known that were when it was synced
        members, engaged = dict(self._members), self._engaged.clusters
        after = self._engaged.discovery  # those of a lost ownership leave when it is synced no longer
        fleet = fleet_state(before if after.synced else after)
        unread = ScopeView(Pending(fleet.since), is_filled=False)
        scopes = {name: informer(member, kind) for name, member in members.items()}
        states = {name: _scope_view(found) for name, found in scopes.items()}
        clusters = ((name, states.get(name, unread)) for name in {**engaged, **states})
        return view_of(kind_of(kind).resource, fleet, clusters)


def _scope_view(found: Informer) -> ScopeView:
    state, invalid = scope_state(found), found.cache.invalid
    if invalid and isinstance(state, Synced):
        state = Stale(state.since, invalid)
    return ScopeView(state, found.cache.is_filled)


def _check_namespace(kind: AnyKind, namespace: str | None) -> None:
    """Raise NotCached if the objects of the kind are cached in another namespace only."""
    key = kind_of(kind).key
    if namespace is not None and key.namespace not in ("", namespace):
        raise NotCached(f"{key.resource}: the namespace {namespace!r} is not cached, only {key.namespace!r}")


def synced_cache(member: CachedCluster, kind: AnyKind) -> ObjectCache:
    """Return the cache of a kind. Raises NotCached or NotSynced."""
    found = informer(member, kind)
    if not found.cache.synced:
        why = f" ({found.problem})" if found.problem else ""
        name = member.cluster.name
        raise NotSynced(f"the cache of {found.key} of {name} is not complete{why}; retry later", cluster=name)
    return found.cache


def informer(member: CachedCluster, kind: AnyKind) -> Informer:
    """Return the informer of a kind. Raises NotCached."""
    key = kind_of(kind).key
    try:
        return member.informers[key]
    except KeyError:
        others = [str(other) for other in member.informers if other.resource == key.resource]
        what = f", only {', '.join(others)}: pass that Kind, or declare this one" if others else ": declare it"
        raise NotCached(
            f"{key} is not cached{what} with owns=, with watches=, or with Controllers.cache({key.resource!r})"
        ) from None
