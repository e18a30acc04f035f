"""Publishers and readers of a real nats-server, and the fleet that is published."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec

from milo_discovery.errors import ClusterNotFound, DiscoveryError
from milo_discovery.model import ClusterReport, Listing, ServerInfo, SourceState, SourceStatus
from milo_objects.jetstream import NatsOptions, NatsSession, NewStream, open_session
from milo_objects.kinds import Kind
from milo_objects.messages import StoredMessage
from milo_objects.nats_source import NatsSource
from milo_objects.objects import Objects
from milo_objects.projection import ProjectedObject
from milo_objects.publication import StreamConnected
from milo_objects.publisher import ObjectPublisher
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
    ObjectStore,
    Pending,
    Scope,
    ScopeChanged,
    Synced,
)
from milo_sandbox.nats_server import NatsServer
from tests.support.eventually import eventually

NAMESPACES = Kind("v1/namespaces", ["metadata.labels", "status.phase"])
ROLES = Kind("rbac.authorization.k8s.io/v1/clusterroles")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Fleet:
    """A source of changes that a test makes, and the daemon that has the clusters."""

    def __init__(self) -> None:
        self.clusters: dict[str, FleetCluster] = {}
        self.objects: dict[Scope, dict[tuple[str, str], ProjectedObject]] = {}
        self.stores: list[ObjectStore] = []
        self.relisted: list[Scope] = []
        self.known: FleetState = Synced(NOW)
        self.problems = {"": ""}
        self.info: ServerInfo | DiscoveryError = ServerInfo()
        self._kinds: Sequence[Kind] = ()
        self._number = 0

    async def run(self, kinds: Sequence[Kind], store: ObjectStore) -> None:
        self._kinds = kinds
        for cluster in self.clusters.values():
            store.apply(ClusterChanged(cluster))
            for kind in kinds:
                scope = Scope(cluster.name, cluster.incarnation, kind.resource)
                store.apply(ScopeChanged(scope, Pending(NOW)))
                for found in self.objects.get(scope, {}).values():
                    store.apply(ObjectChanged(scope, found))
                store.apply(ScopeChanged(scope, Synced(NOW)))
        store.apply(FleetChanged(self.known))
        self.stores.append(store)
        try:
            await asyncio.Event().wait()
        finally:
            self.stores.remove(store)

    async def relist(self, scope: Scope) -> None:
        self.relisted.append(scope)

    async def list(self, **_: Any) -> Listing:
        return Listing(source=SourceStatus(state=SourceState.STREAMING))

    async def server_info(self) -> ServerInfo:
        self.asked_info += 1
        if isinstance(self.info, DiscoveryError):
            raise self.info
        return self.info

    asked = 0
    asked_info = 0
    not_found_reason = ""

    async def get(self, name: str) -> ClusterReport:
        self.asked += 1
        raise ClusterNotFound(name, code="NOT_FOUND", reason=self.not_found_reason)

    def apply(self, change: Change) -> None:
        for store in self.stores:
            store.apply(change)

    def engage(self, name: str, *, kinds: Sequence[Kind] = (NAMESPACES,), **fields: Any) -> FleetCluster:
        self._number += 1
        fields = {"uid": f"uid of {name}", "incarnation": f"i{self._number}", **fields}
        cluster = self.clusters[name] = FleetCluster(name=name, **fields)
        self.apply(ClusterChanged(cluster))
        for kind in kinds:
            scope = Scope(name, cluster.incarnation, kind.resource)
            self.apply(ScopeChanged(scope, Pending(NOW)))
            self.apply(ScopeChanged(scope, Synced(NOW)))
        return cluster

    def end(self, name: str, reason: str = "DELETED") -> None:
        self.apply(ClusterEnded(self.clusters.pop(name), reason))

    def scope(self, name: str, kind: Kind = NAMESPACES) -> Scope:
        return Scope(name, self.clusters[name].incarnation, kind.resource)

    def put(
        self, cluster: str, name: str, content: object = None, *, kind: Kind = NAMESPACES, namespace: str = ""
    ) -> ProjectedObject:
        self._number += 1
        scope = self.scope(cluster, kind)
        objects = self.objects.setdefault(scope, {})
        before = objects.get((namespace, name))
        uid = f"u{self._number}" if before is None else before.uid
        found = objects[namespace, name] = ProjectedObject(
            namespace, name, uid, msgspec.json.encode(content or {}), str(self._number), created_at=NOW
        )
        self.apply(ObjectChanged(scope, found))
        return found

    def delete(self, cluster: str, name: str, *, kind: Kind = NAMESPACES) -> None:
        scope = self.scope(cluster, kind)
        self.apply(ObjectGone(scope, self.objects[scope].pop(("", name)), Gone.OBJECT_DELETED))

    def state(self, cluster: str, state: Any, *, kind: Kind = NAMESPACES) -> None:
        self.apply(ScopeChanged(self.scope(cluster, kind), state))


@asynccontextmanager
async def running(work: Awaitable[None]) -> AsyncIterator[None]:
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class World:
    """A server, a fleet, and what was reported."""

    def __init__(self, server: NatsServer, **access: Any) -> None:
        """`access`: fields of NatsOptions."""
        self.server = server
        self.fleet = Fleet()
        self.reports: list[str] = []
        self.options = NatsOptions(**{"servers": (server.url,), **access})

    @asynccontextmanager
    async def publisher(
        self, kinds: Sequence[Kind] = (NAMESPACES,), fleet: Fleet | None = None, **options: Any
    ) -> AsyncIterator[ObjectPublisher]:
        source = fleet or self.fleet
        options = {"new": NewStream(), "report": self.reports.append, **options}
        started = ObjectPublisher(source, source, kinds, self.options, **options)
        async with running(started.run()):
            await eventually(lambda: source.stores and isinstance(started.publication.connection, StreamConnected))
            yield started

    @asynccontextmanager
    async def reader(self, kinds: Sequence[Kind] = (NAMESPACES,), **options: Any) -> AsyncIterator[Objects]:
        objects = Objects(NatsSource(NatsOptions(servers=(self.server.url,), **options)), kinds)
        async with running(objects.run()):
            yield objects

    @asynccontextmanager
    async def session(self) -> AsyncIterator[NatsSession]:
        async with open_session(self.options, "test") as session:
            yield session

    async def stored(self) -> list[StoredMessage]:
        """Return the messages of clusters, scopes and objects."""
        async with self.session() as session:
            return (await session.last_messages(["milo.clusters.>", "milo.objects.>"]))[0]


async def settled(publisher: ObjectPublisher) -> None:
    await eventually(lambda: publisher.publication.is_settled)


def names(objects: Objects, kind: Kind = NAMESPACES) -> set[str]:
    return {found.object.name for found in objects.list(kind.resource)}
