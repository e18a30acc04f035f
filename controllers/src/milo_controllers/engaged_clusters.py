"""The engaged clusters of a set of controllers, and the informers and reconciles that run in each."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime

from milo_controllers.controller import Controller
from milo_controllers.errors import text_of
from milo_controllers.event_log import EventLog
from milo_controllers.event_loop import EventLoop
from milo_controllers.event_recorder import EventRecorder
from milo_controllers.fleet_view import RequestCaches
from milo_controllers.health import ClusterProblem
from milo_controllers.informer import Informer, InformerSpec
from milo_controllers.kinds import CacheKey
from milo_controllers.metrics import InformerMetrics, QueueState
from milo_controllers.object_cache import Change
from milo_controllers.own_writes import OwnWrites
from milo_controllers.reconcile_call import stays_suspended
from milo_controllers.work_queue import Priority
from milo_discovery.cluster_api import ClusterApi
from milo_discovery.engaged_cluster import EngagedCluster
from milo_discovery.model import Cluster
from milo_discovery.tracing import SpanTracer
from milo_kube.api_server import Pools
from milo_kube.cache_budget import CacheBudget
from milo_kube.failure_log import FailureLog
from milo_kube.reflect.reflector import ReflectorPolicy
from milo_kube.task_groups import unwrap_single_error
from milo_kube.tenants import Tenant, tenant_of

# Lists of one project are short, and most project control planes support streaming lists anyway.
_REFLECTION = ReflectorPolicy(page_size=500)

_CRASHES = 64
"""The number of failures of clusters at which those of former engagements are dropped for the first time."""


class ClusterTasks:
    """An engaged cluster whose informers and reconciles are running."""

    __slots__ = (
        *("_controllers", "api", "cluster", "engaged_at", "events", "incarnation", "informers", "loop", "own_writes"),
        *("tasks", "view"),
    )

    def __init__(
        self,
        cluster: EngagedCluster,
        incarnation: int,
        api: ClusterApi,
        events: EventRecorder,
        *,
        tasks: asyncio.TaskGroup,
        controllers: Sequence[Controller],
    ) -> None:
        self.cluster = cluster
        self.incarnation = incarnation
        self.api = api
        self.events = events
        self.tasks = tasks
        self.informers: dict[CacheKey, Informer] = {}
        self.loop = EventLoop()
        self.own_writes = OwnWrites()
        self.view = RequestCaches(self)
        self.engaged_at = time.monotonic()
        self._controllers = controllers

    # --- called by its informers ---

    def tenant(self) -> Tenant:
        return tenant_of(self.cluster.current)

    def changed(self, informer: Informer, change: Change) -> None:
        if self.own_writes:
            self.own_writes.changed(informer, change)
        for controller in self._controllers:
            controller.changed(self, informer, change)

    def synced(self, informer: Informer) -> None:
        for controller in self._controllers:
            controller.listed(self)
            if informer.dropped is not None:
                controller.listed_again(self, informer)
            controller.resync_unmapped(self.cluster.name)

    def failed(self, _informer: Informer) -> None:
        for controller in self._controllers:
            controller.listed(self)


class EngagedClusters:
    """The engaged clusters, by name. Metrics of their state are collected in another thread."""

    def __init__(
        self,
        informers: Mapping[CacheKey, InformerSpec],
        *,
        pools: Pools,
        budget: CacheBudget,
        events: EventLog,
        failures: FailureLog,
        tracer: SpanTracer | None,
    ) -> None:
        self.members: dict[str, ClusterTasks] = {}
        self.controllers: list[Controller] = []
        self.crashes: dict[str, tuple[EngagedCluster, ClusterProblem]] = {}
        """The last failure of each cluster whose informers and reconciles failed as a whole, by cluster name. Those of
        clusters that were disengaged before their restart are dropped at times."""
        self._crashes_at_most = _CRASHES
        self._informers = informers
        self._pools = pools
        self._budget = budget
        self._events = events
        self._failures = failures
        self._tracer = tracer
        self._incarnations = itertools.count(1)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_leader: Callable[[], bool] = lambda: True

    def begin(self, controllers: Iterable[Controller], *, is_leader: Callable[[], bool] = lambda: True) -> None:
        """Add controllers, which will use the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._is_leader = is_leader
        self.controllers.extend(controllers)

    def may_reconcile(self) -> bool:
        """Return whether this replica leads. Asked before each reconcile and each write, since a process that was
        suspended, or whose event loop was blocked, notices late that it has lost the Lease."""
        return self._is_leader()

    def engaged(self, name: str) -> EngagedCluster | None:
        """Return the cluster of this name, if this replica works in it."""
        found = self.members.get(name)
        return None if found is None else found.cluster

    async def operate(self, cluster: EngagedCluster) -> None:
        """Run the informers and reconciles of a cluster, until it is disengaged."""
        try:
            async with cluster.credentials() as credentials:
                api = ClusterApi(
                    cluster.name,
                    credentials,
                    self._pools,
                    proxy=cluster.proxy,
                    tracer=self._tracer,
                    may_write=lambda server: (
                        cluster.engaged and self.may_reconcile() and credentials.is_present(server)
                    ),
                )
                events, number = EventRecorder(api, self._events, self._failures), next(self._incarnations)
                try:
                    with unwrap_single_error():
                        async with asyncio.TaskGroup() as tasks:
                            await self._run_member(
                                ClusterTasks(cluster, number, api, events, tasks=tasks, controllers=self.controllers)
                            )
                finally:
                    try:
                        await events.aclose(is_engaged=cluster.engaged)
                    finally:
                        await api.aclose()
        except Exception as error:
            self._crashed(cluster, error)
            raise
        finally:
            if not cluster.engaged:
                self.crashes.pop(cluster.name, None)

    def _crashed(self, cluster: EngagedCluster, error: Exception) -> None:
        crash = self.crashes.get(cluster.name)
        before = crash[1] if crash is not None and crash[0].engaged else None
        problem = ClusterProblem(
            cluster=cluster.name,
            problem=text_of(error),
            failures=1 if before is None else before.failures + 1,
            since=datetime.now(UTC) if before is None else before.since,
        )
        self.crashes[cluster.name] = cluster, problem
        if len(self.crashes) > self._crashes_at_most:
            self.crashes = {name: crash for name, crash in self.crashes.items() if crash[0].engaged}
            self._crashes_at_most = max(_CRASHES, 2 * len(self.crashes))

    async def _run_member(self, member: ClusterTasks) -> None:
        for key, spec in self._informers.items():
            member.informers[key] = Informer(member.api, spec, _REFLECTION, listener=member, budget=self._budget)
        self.members[member.cluster.name] = member
        for controller in self.controllers:
            controller.engage(member)
        try:
            for informer in member.informers.values():
                member.tasks.create_task(informer.run(), name=f"{informer.key} of {member.cluster.name}")
            seen = member.cluster.current
            while True:
                before, seen = seen, await member.cluster.updated(since=seen)
                if (
                    before.endpoint != seen.endpoint
                ):  # watches are open at the former one, which may be another's by now
                    for informer in member.informers.values():
                        informer.list_again()
                for controller in self.controllers:
                    if before.deletion_requested_at is None and seen.deletion_requested_at is not None:
                        controller.deletion_requested(member)
                    if stays_suspended(before) and not stays_suspended(seen):
                        controller.unpark(member)
                    if controller.spec.on_cluster_change and _content(before) != _content(seen):
                        controller.resync(member, Priority.LIVE)
        finally:
            # Runs before the task group cancels the reconciles, so that no further reconciles start.
            del self.members[member.cluster.name]
            member.own_writes.clear()
            for controller in self.controllers:
                controller.drop(member)

    def pause(self) -> list[asyncio.Task[None]]:
        """Start no further reconciles, and return the tasks of the running ones."""
        for controller in self.controllers:
            controller.pause()
        return [task for controller in self.controllers for task in controller.tasks]

    async def flush_events(self) -> None:
        """Write the pending events of all clusters, for a short time."""
        await asyncio.gather(*(member.events.flush() for member in self.members.values()))

    async def resync(self) -> None:
        """Enqueue every object of every cluster, except those that wait for a change."""
        for member in tuple(self.members.values()):
            for controller in self.controllers:
                controller.resync(member, is_periodic=True)
            await asyncio.sleep(0)

    # --- metrics ---

    def now(self) -> float:
        return 0.0 if self._loop is None else self._loop.time()

    def queues(self) -> Iterable[QueueState]:
        return [
            QueueState(one.spec.name, one.queue, one.oldest, one.running, one.spec.workers) for one in self.controllers
        ]

    def informers(self) -> Iterator[InformerMetrics]:
        for member in tuple(self.members.values()):
            for informer in tuple(member.informers.values()):
                yield InformerMetrics(informer.key.resource, informer.state, informer.counted_bytes)

    def clusters(self) -> int:
        return len(self.members)


def _content(cluster: Cluster) -> tuple[object, ...]:
    """Return the fields of a cluster that `on_cluster_change` compares."""
    return dict(cluster.labels), dict(cluster.annotations), cluster.suspended
