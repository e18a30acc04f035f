"""Controllers: one set of reconcilers for every engaged cluster of a fleet, or for a single cluster."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, TypeVar, overload

from prometheus_client import REGISTRY, CollectorRegistry

from milo_discovery._extras import needs_extra
from milo_discovery._failure_log import INTERVAL_S, FailureLog
from milo_discovery._task_groups import RunsInBackground, unwrap_single_error
from milo_discovery.controllers.cluster_api import ClusterApi
from milo_discovery.controllers.connections import Connections
from milo_discovery.controllers.controller import Controller, ControllerSpec, Mapper, Reconciler, WatchedKind
from milo_discovery.controllers.event_log import EventLog
from milo_discovery.controllers.fleet_view import ClusterView, FleetView
from milo_discovery.controllers.informer import Informer, InformerKey, InformerSpec
from milo_discovery.controllers.kinds import AnyKind, Document, Kind, kind_of
from milo_discovery.controllers.metrics import ControllerMetrics, QueueState, StateCollector
from milo_discovery.controllers.object_cache import Change, IndexFunction
from milo_discovery.controllers.request import Request, Result
from milo_discovery.controllers.work_queue import ObjectKey, QueuePolicy
from milo_discovery.engaged_cluster import EngagedCluster
from milo_kube.reflect.reflector import ReflectorPolicy

log = logging.getLogger("milo_discovery.controllers")

T = TypeVar("T")
DocumentReconciler = TypeVar("DocumentReconciler", bound=Callable[[Request[Document]], Awaitable[Result | None]])

# Lists of one project are short, and most project control planes support streaming lists anyway.
_REFLECTION = ReflectorPolicy(page_size=500)


class Clusters(Protocol):
    """The clusters that controllers run on: a Fleet, or a SingleCluster."""

    def on_engage(self, handler: Callable[[EngagedCluster], Awaitable[None]], /) -> object: ...

    async def run(self) -> None: ...


@overload
def watches(kind: str, *, map: Mapper[Document], selector: str = "", metadata_only: bool = False) -> WatchedKind: ...
@overload
def watches(kind: Kind[T], *, map: Mapper[T], selector: str = "", metadata_only: bool = False) -> WatchedKind: ...
def watches(
    kind: AnyKind,
    *,
    map: Mapper[Any],  # noqa: A002
    selector: str = "",
    metadata_only: bool = False,
) -> WatchedKind:
    """Watch a kind; `map` returns the objects to reconcile for each change, in any cluster."""
    return WatchedKind(kind_of(kind), map, selector, metadata_only)


@dataclass(frozen=True, slots=True, kw_only=True)
class InformerProblem:
    """An informer whose cache is not current."""

    cluster: str
    kind: str
    is_synced: bool
    """Whether it has been current before."""
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The state of the controllers."""

    clusters: int
    synced: bool
    """Whether every informer of every engaged cluster has read its first list."""
    problems: tuple[InformerProblem, ...]
    stopped: tuple[tuple[ObjectKey, str], ...]
    """Objects that are not retried, because their reconciler raised Permanent."""
    oldest_queued: timedelta
    """Time that the longest-waiting object has been ready to be reconciled."""


class _Member:
    """An engaged cluster, while its informers and reconciles run."""

    __slots__ = ("_controllers", "api", "cluster", "incarnation", "informers", "tasks", "view")

    def __init__(
        self,
        cluster: EngagedCluster,
        incarnation: int,
        api: ClusterApi,
        tasks: asyncio.TaskGroup,
        controllers: Sequence[Controller],
    ) -> None:
        self.cluster = cluster
        self.incarnation = incarnation
        self.api = api
        self.tasks = tasks
        self.informers: dict[InformerKey, Informer] = {}
        self.view = ClusterView(self)
        self._controllers = controllers

    # --- called by its informers ---

    def changed(self, informer: Informer, change: Change) -> None:
        for controller in self._controllers:
            controller.changed(self, informer, change)

    def synced(self, _informer: Informer) -> None:
        for controller in self._controllers:
            controller.listed(self)

    failed = synced


class Controllers(RunsInBackground):
    """A set of reconcilers, which run for every engaged cluster.

    Register them, then `await run()`, or `async with controllers:` beside a block.
    """

    def __init__(
        self,
        clusters: Clusters,
        *,
        registry: CollectorRegistry = REGISTRY,
        resync: timedelta | None = timedelta(hours=10),
        max_clusters_in_metrics: int = 100,
        reporting_controller: str = "milo-controllers",
    ) -> None:
        """`resync`: how often every object is reconciled although nothing changed; None for never.

        `reporting_controller` is the name in events.
        """
        self._clusters = clusters
        self._resync = resync
        self._specs: list[tuple[ControllerSpec, Reconciler[Any]]] = []
        self._informers: dict[InformerKey, InformerSpec] = {}
        self._members: dict[str, _Member] = {}
        self._controllers: list[Controller] = []
        self._incarnations = itertools.count(1)
        # Imported here, because the daemon's image uses parts of this package to publish clusters, and has no h2.
        with needs_extra("controllers"):
            from milo_kube.http.http2 import Http2Connection  # noqa: PLC0415

        self._connections = Connections(http2=Http2Connection)
        self._metrics = ControllerMetrics(registry, max_clusters=max_clusters_in_metrics)
        self._registry = registry
        self._events = EventLog(reporting_controller, f"{socket.gethostname()}-{os.getpid()}")
        self._failures = FailureLog()
        self._has_run = False
        self.view = FleetView(self._members)
        """The caches of all engaged clusters."""
        clusters.on_engage(self._operate)

    # --- registration ---

    @overload
    def reconcile(
        self,
        kind: str,
        *,
        owns: Sequence[AnyKind] = (),
        watches: Sequence[WatchedKind] = (),
        selector: str = "",
        metadata_only: bool = False,
        workers: int = 16,
        per_cluster: int = 4,
        name: str | None = None,
        queue: QueuePolicy | None = None,
        timeout: timedelta | None = None,
    ) -> Callable[[DocumentReconciler], DocumentReconciler]: ...
    @overload
    def reconcile(
        self,
        kind: Kind[T],
        *,
        owns: Sequence[AnyKind] = (),
        watches: Sequence[WatchedKind] = (),
        selector: str = "",
        metadata_only: bool = False,
        workers: int = 16,
        per_cluster: int = 4,
        name: str | None = None,
        queue: QueuePolicy | None = None,
        timeout: timedelta | None = None,
    ) -> Callable[[Reconciler[T]], Reconciler[T]]: ...
    def reconcile(
        self,
        kind: AnyKind,
        *,
        owns: Sequence[AnyKind] = (),
        watches: Sequence[WatchedKind] = (),
        selector: str = "",
        metadata_only: bool = False,
        workers: int = 16,
        per_cluster: int = 4,
        name: str | None = None,
        queue: QueuePolicy | None = None,
        timeout: timedelta | None = None,
    ) -> Any:
        """Register a reconciler for the objects of a kind (a decorator).

        `owns`: kinds whose changes lead to a reconcile of their owner; only their metadata is kept. `watches`: kinds
        whose changes are mapped, see `watches`. `selector`: only objects with these labels. `metadata_only`: keep only
        the metadata of the objects. `workers`: maximum concurrent reconciles, `per_cluster`: those in one cluster.
        `timeout`: of one reconcile. `name`: of the controller in logs and metrics.
        """
        self._require_new()
        primary = kind_of(kind)
        self._require_informer(InformerSpec(primary, selector, metadata_only, {}))
        for owned in owns:
            self._require_informer(InformerSpec(kind_of(owned), "", True, {}))
        for watched in watches:
            self._require_informer(InformerSpec(watched.kind, watched.selector, watched.metadata_only, {}))
        policy = queue or QueuePolicy(per_cluster=min(per_cluster, workers))
        spec = ControllerSpec(
            name or primary.plural,
            primary,
            selector,
            tuple(InformerKey(kind_of(owned).resource) for owned in owns),
            tuple(watches),
            workers,
            policy,
            timeout,
        )
        if any(spec.name == other.name for other, _ in self._specs):
            raise ValueError(f"a controller {spec.name!r} exists already: pass another name=")

        def register(reconciler: Reconciler[Any]) -> Reconciler[Any]:
            self._specs.append((spec, reconciler))
            return reconciler

        return register

    def cache(
        self,
        kind: AnyKind,
        *,
        selector: str = "",
        metadata_only: bool = False,
        indexes: Mapping[str, IndexFunction] | None = None,
    ) -> None:
        """Cache a kind for `Request.get` and `Request.list`, with indexes; or add them to one that is cached already.

        An index function takes an object as a dict, and returns the values under which it is found.
        """
        self._require_new()
        self._require_informer(InformerSpec(kind_of(kind), selector, metadata_only, dict(indexes or {})))

    def _require_informer(self, spec: InformerSpec) -> None:
        held = self._informers.get(spec.key)
        if held is not None:
            # Shared: whole objects if any user needs them.
            metadata_only = held.metadata_only and spec.metadata_only
            spec = InformerSpec(spec.kind, spec.selector, metadata_only, {**held.indexes, **spec.indexes})
        self._informers[spec.key] = spec

    def _require_new(self) -> None:
        if self._has_run:
            raise RuntimeError("the controllers are running: register reconcilers and caches before")

    # --- life cycle ---

    async def run(self) -> None:
        """Run until canceled. It returns or raises after all reconciles have ended."""
        self._require_new()
        self._has_run = True
        clock = asyncio.get_running_loop().time
        for spec, reconciler in self._specs:
            self._controllers.append(
                Controller(
                    spec,
                    reconciler,
                    members=self._members,
                    clusters=self.view,
                    metrics=self._metrics,
                    events=self._events,
                    failures=self._failures,
                )
            )
        collector = StateCollector(self._queues, self._informer_states, lambda: len(self._members), clock)
        self._registry.register(collector)
        try:
            with unwrap_single_error():
                async with asyncio.TaskGroup() as tasks:
                    helpers = [
                        tasks.create_task(self._log_summaries(), name="log repeated failures"),
                        tasks.create_task(self._resync_periodically(), name="resync"),
                    ]
                    await self._clusters.run()
                    for helper in helpers:
                        helper.cancel()
        finally:
            self._registry.unregister(collector)

    def health(self) -> Health:
        """Return the state of the informers and queues."""
        now = asyncio.get_running_loop().time()
        oldest = [since for controller in self._controllers if (since := controller.queue.oldest) is not None]
        informers = [(member, informer) for member in self._members.values() for informer in member.informers.values()]
        return Health(
            clusters=len(self._members),
            synced=all(informer.cache.synced for _, informer in informers),
            problems=tuple(
                InformerProblem(
                    cluster=member.cluster.name,
                    kind=str(informer.key),
                    is_synced=informer.cache.synced,
                    problem=informer.problem,
                )
                for member, informer in informers
                if informer.problem
            ),
            stopped=tuple(found for controller in self._controllers for found in controller.queue.stopped()),
            oldest_queued=timedelta(seconds=now - min(oldest, default=now)),
        )

    # --- clusters ---

    async def _operate(self, cluster: EngagedCluster) -> None:
        """Run the informers and reconciles of a cluster, until it is disengaged."""
        async with cluster.credentials() as credentials:
            api = ClusterApi(
                cluster.name,
                credentials,
                self._connections,
                is_suspended=lambda: cluster.current.suspended,
                proxy=cluster.proxy,
            )
            try:
                with unwrap_single_error():
                    async with asyncio.TaskGroup() as tasks:
                        await self._run_member(
                            _Member(cluster, next(self._incarnations), api, tasks, self._controllers)
                        )
            finally:
                await api.aclose()

    async def _run_member(self, member: _Member) -> None:
        for key, spec in self._informers.items():
            member.informers[key] = Informer(member.api, key, spec, _REFLECTION, listener=member)
        self._members[member.cluster.name] = member
        for controller in self._controllers:
            controller.engage(member)
        try:
            for informer in member.informers.values():
                member.tasks.create_task(informer.run(), name=f"{informer.key} of {member.cluster.name}")
            seen = member.cluster.current
            while True:
                before, seen = seen, await member.cluster.updated(since=seen)
                if before.suspended and not seen.suspended:
                    for controller in self._controllers:
                        controller.unpark(member)
        finally:
            # Before the task group cancels the reconciles, so that no further ones begin.
            del self._members[member.cluster.name]
            for controller in self._controllers:
                controller.drop(member)

    # --- periodic work ---

    async def _log_summaries(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL_S)
            for failures, clusters in self._failures.summaries(asyncio.get_running_loop().time()):
                log.error("failures repeated: %d in %d clusters", failures, clusters)

    async def _resync_periodically(self) -> None:
        if self._resync is None:
            return
        while True:
            await asyncio.sleep(self._resync.total_seconds())
            for member in tuple(self._members.values()):
                for controller in self._controllers:
                    controller.resync(member)
                await asyncio.sleep(0)

    # --- metrics ---

    def _queues(self) -> Iterable[QueueState]:
        return (QueueState(each.spec.name, each.queue, each.running) for each in self._controllers)

    def _informer_states(self) -> Iterator[tuple[str, str]]:
        for member in tuple(self._members.values()):  # a copy, since metrics are collected in another thread
            for informer in member.informers.values():
                yield informer.key.resource, informer.state
