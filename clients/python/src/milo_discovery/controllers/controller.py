"""One reconciler over all clusters: turns changes into entries of its work queue, and runs its reconciles."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from milo_discovery._failure_log import FailureLog
from milo_discovery.controllers.cluster_api import ClusterApi
from milo_discovery.controllers.errors import ApiError, ControllerError, Permanent, ProjectSuspended
from milo_discovery.controllers.event_log import EventLog
from milo_discovery.controllers.fleet_view import ClusterView, FleetView
from milo_discovery.controllers.informer import Informer, InformerKey
from milo_discovery.controllers.kinds import Kind, ObjectT
from milo_discovery.controllers.logs import current_cluster, current_object
from milo_discovery.controllers.metrics import ControllerMetrics
from milo_discovery.controllers.object_cache import CachedObject, Change
from milo_discovery.controllers.request import Request, Result
from milo_discovery.controllers.work_queue import (
    Done,
    Failed,
    ObjectKey,
    Outcome,
    Parked,
    Priority,
    QueuePolicy,
    Stopped,
    Work,
    WorkQueue,
)
from milo_discovery.engaged_cluster import EngagedCluster
from milo_discovery.errors import DiscoveryError

log = logging.getLogger("milo_discovery.controllers")

T = TypeVar("T")
Reconciler = Callable[[Request[T]], Awaitable[Result | None]]


class Target(NamedTuple):
    """An object to reconcile, as a mapper returns it."""

    name: str
    namespace: str = ""
    cluster: str | None = None
    """Name of the cluster; by default the one in which the watched object changed."""


class Watched(Generic[ObjectT]):
    """A change of a watched object, for a mapper."""

    def __init__(self, kind: Kind[ObjectT], change: Change, cluster: EngagedCluster, clusters: FleetView) -> None:
        self.cluster = cluster
        self.clusters = clusters
        """The caches of all clusters."""
        self.name = change.current.name
        self.namespace = change.current.namespace
        self.is_deleted = change.new is None
        self._kind = kind
        self._change = change

    @property
    def object(self) -> ObjectT:
        """The object as it is, or as it last was if it was deleted."""
        return self._kind.decode(self._change.current.raw)

    @property
    def before(self) -> ObjectT | None:
        """The object before the change; None if it is new."""
        return None if self._change.old is None else self._kind.decode(self._change.old.raw)


Mapper = Callable[[Watched[T]], Iterable[Target]]


class WatchedKind(NamedTuple):
    """A kind whose changes lead to reconciles of other objects. Made by `watches`."""

    kind: Kind[Any]
    map: Mapper[Any]
    selector: str
    metadata_only: bool

    @property
    def informer(self) -> InformerKey:
        return InformerKey(self.kind.resource, self.selector)


class ControllerSpec(NamedTuple):
    """The arguments of `Controllers.reconcile`."""

    name: str
    kind: Kind[Any]
    selector: str
    owns: tuple[InformerKey, ...]
    watches: tuple[WatchedKind, ...]
    workers: int
    policy: QueuePolicy
    timeout: timedelta | None

    @property
    def primary(self) -> InformerKey:
        return InformerKey(self.kind.resource, self.selector)


class ReconciledCluster(Protocol):
    """An engaged cluster, as a controller needs it."""

    @property
    def cluster(self) -> EngagedCluster: ...
    @property
    def incarnation(self) -> int: ...
    @property
    def api(self) -> ClusterApi: ...
    @property
    def view(self) -> ClusterView: ...
    @property
    def tasks(self) -> asyncio.TaskGroup: ...
    @property
    def informers(self) -> Mapping[InformerKey, Informer]: ...


class Controller:
    """One reconciler. The runtime engages and drops members, and passes the changes of their informers."""

    def __init__(
        self,
        spec: ControllerSpec,
        reconciler: Reconciler[Any],
        *,
        members: Mapping[str, ReconciledCluster],
        clusters: FleetView,
        metrics: ControllerMetrics,
        events: EventLog,
        failures: FailureLog,
    ) -> None:
        self.spec = spec
        self._reconciler = reconciler
        self._members = members
        self._clusters = clusters
        self._events = events
        self._failures = failures
        self._clock: Callable[[], float] = asyncio.get_running_loop().time
        self.queue = WorkQueue(spec.policy, random.random, self._clock())
        self._running: dict[ObjectKey, float] = {}
        self._active = 0
        self._timer: asyncio.TimerHandle | None = None
        self._pump_is_due = False
        self._owned = frozenset(spec.owns)
        self._mapped: dict[InformerKey, list[WatchedKind]] = {}
        for watched in spec.watches:
            self._mapped.setdefault(watched.informer, []).append(watched)
        self._needed = {spec.primary, *self._owned, *self._mapped}
        self._metrics = metrics
        name = spec.name
        self._adds = metrics.adds.labels(name, name)
        self._retries = metrics.retries.labels(name, name)
        self._queue_duration = metrics.queue_duration.labels(name, name)
        self._work_duration = metrics.work_duration.labels(name, name)
        self._reconcile_time = metrics.reconcile_time.labels(name)
        self._active_metric = metrics.active.labels(name)
        self._errors = metrics.errors.labels(name)
        self._terminal_errors = metrics.terminal_errors.labels(name)
        self._results = {
            result: metrics.reconciles.labels(name, result) for result in ("success", "requeue_after", "error")
        }
        metrics.max_concurrent.labels(name).set(spec.workers)

    # --- called by the runtime ---

    def engage(self, member: ReconciledCluster) -> None:
        self.queue.engage(member.cluster.name, member.incarnation)

    def drop(self, member: ReconciledCluster) -> None:
        """Forget the queued objects of the member. The runtime cancels its tasks."""
        self.queue.drop(member.cluster.name, member.incarnation)

    def listed(self, member: ReconciledCluster) -> None:
        """Start reconciling in this cluster, if all informers that are needed for it have synced.

        Others, which reconcilers may read, are awaited too, unless they fail.
        """
        are_needed_synced = all(member.informers[key].cache.synced for key in self._needed)
        if are_needed_synced and all(each.state != "starting" for each in member.informers.values()):
            self.queue.open(member.cluster.name, member.incarnation)
            self.pump_soon()

    def unpark(self, member: ReconciledCluster) -> None:
        self.queue.unpark(member.cluster.name, member.incarnation, self._clock())
        self.pump_soon()

    def changed(self, member: ReconciledCluster, informer: Informer, change: Change) -> None:
        """Enqueue the objects that have to be reconciled because of a change."""
        priority = Priority.LIVE if change.is_live else Priority.BACKGROUND
        if informer.key == self.spec.primary:
            self._add(member, change.current.namespace, change.current.name, priority)
        if informer.key in self._owned:
            for seen in (change.old, change.new):
                if seen is not None:
                    self._add_owners(member, seen, priority)
        for watched in self._mapped.get(informer.key, ()):
            self._add_mapped(member, watched, change, priority)

    def resync(self, member: ReconciledCluster) -> None:
        """Enqueue every object of the cluster."""
        for found in member.informers[self.spec.primary].cache.values():
            self._add(member, found.namespace, found.name, Priority.BACKGROUND)

    def running(self) -> Iterable[float]:
        """Return when each running reconcile began."""
        return self._running.values()

    # --- changes ---

    def _add(self, member: ReconciledCluster, namespace: str, name: str, priority: Priority) -> None:
        key = ObjectKey(member.cluster.name, member.incarnation, namespace, name)
        self.queue.add(key, self._clock(), priority)
        self._adds.inc()
        self.pump_soon()

    def _add_owners(self, member: ReconciledCluster, owned: CachedObject, priority: Priority) -> None:
        primaries = member.informers[self.spec.primary].cache
        for owner in owned.owners:
            for namespace in {owned.namespace, ""}:
                found = primaries.get(namespace, owner.name)
                # An owner that is not in the cache is reconciled when it appears there.
                if found is not None and found.uid == owner.uid:
                    self._add(member, namespace, owner.name, priority)

    def _add_mapped(self, member: ReconciledCluster, watched: WatchedKind, change: Change, priority: Priority) -> None:
        try:
            targets = tuple(watched.map(Watched(watched.kind, change, member.cluster, self._clusters)))
        except Exception as error:  # noqa: BLE001  (the author's code: an error there must not stop the informer)
            self._log_failure(member.cluster.name, f"the mapper of {watched.kind.resource}", error, None)
            return
        for target in targets:
            of = member if target.cluster is None else self._members.get(target.cluster)
            if of is not None:
                self._add(of, target.namespace, target.name, priority)

    # --- reconciles ---

    def pump_soon(self) -> None:
        if not self._pump_is_due:
            self._pump_is_due = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        """Start the reconciles that may run now, and set a timer for the next one that is delayed."""
        self._pump_is_due = False
        now = self._clock()
        while self._active < self.spec.workers and (work := self.queue.take(now)) is not None:
            member = self._members[work.key.cluster]
            process = self._process(member, work)
            try:
                task = member.tasks.create_task(process, name=f"reconcile {work.key.cluster}")
            except RuntimeError:  # another task of the cluster has failed: it is about to be dropped
                process.close()
                continue
            self._active += 1
            # A callback rather than the task's own code, of which nothing runs if it is canceled before it begins.
            task.add_done_callback(self._ended)
        self._active_metric.set(self._active)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self.queue.next_at
        if due is not None and self._active < self.spec.workers:
            self._timer = asyncio.get_running_loop().call_at(due, self._pump)

    async def _process(self, member: ReconciledCluster, work: Work) -> None:
        key = work.key
        self._queue_duration.observe(work.queued_s)
        began = self._running[key] = self._clock()
        current_cluster.set(key.cluster)
        current_object.set(f"{key.namespace}/{key.name}" if key.namespace else key.name)
        outcome: Outcome = Failed()
        error: Exception | None = None
        try:
            outcome = await self._reconciled(member, work)
        except Exception as caught:  # noqa: BLE001  (the top of a reconcile: recorded, logged and retried)
            error = caught
            outcome = _outcome(caught, member.cluster)
        finally:
            now = self._clock()
            del self._running[key]
            delay_s = self.queue.done(key, outcome, now)
            self._measure(key, outcome, now - began)
        if error is not None and not isinstance(outcome, Parked):
            self._log_failure(key.cluster, f"reconciling {current_object.get()}", error, delay_s)

    def _ended(self, _task: asyncio.Task[None]) -> None:
        self._active -= 1
        self.pump_soon()

    async def _reconciled(self, member: ReconciledCluster, work: Work) -> Outcome:
        request = Request(
            kind=self.spec.kind,
            namespace=work.key.namespace,
            name=work.key.name,
            selector=self.spec.selector,
            api=member.api,
            view=member.view,
            clusters=self._clusters,
            events=self._events,
            field_manager=self.spec.name,
            failures=work.failures,
        )
        timeout = self.spec.timeout
        try:
            async with asyncio.timeout(None if timeout is None else timeout.total_seconds()):
                result = await self._reconciler(request)
        except asyncio.CancelledError as cancelled:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise RuntimeError("the reconcile was canceled, but not by its controller") from cancelled
        after = None if result is None else result.requeue_after
        return Done(None if after is None else after.total_seconds())

    def _measure(self, key: ObjectKey, outcome: Outcome, duration_s: float) -> None:
        self._reconcile_time.observe(duration_s)
        self._work_duration.observe(duration_s)
        match outcome:
            case Done(None) | Parked():
                self._results["success"].inc()
                return
            case Done():
                self._results["requeue_after"].inc()
                return
            case Stopped():
                self._terminal_errors.inc()
            case Failed():
                self._retries.inc()
        self._results["error"].inc()
        self._errors.inc()
        self._metrics.cluster_errors.labels(self.spec.name, self._metrics.cluster_label(key.cluster)).inc()

    def _log_failure(self, cluster: str, what: str, error: Exception, delay_s: float | None) -> None:
        if not self._failures.is_new(cluster, error, self._clock()):
            return
        then = "no retry until it changes" if delay_s is None else f"retry in {delay_s:.1f} s"
        # Expected errors are logged without a traceback; others are bugs.
        trace = None if isinstance(error, ControllerError | DiscoveryError) else error
        log.error("%s: %s: %s failed (%s): %s", self.spec.name, cluster, what, then, error, exc_info=trace)


def _outcome(error: Exception, cluster: EngagedCluster) -> Outcome:
    match error:
        case Permanent():
            return Stopped(str(error))
        case ProjectSuspended() if cluster.current.suspended:
            return Parked()
        case ApiError():
            return Failed(error.retry_after_s)
        case _:
            return Failed()
