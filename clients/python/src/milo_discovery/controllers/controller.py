"""One reconciler over all clusters: turns changes into entries of its work queue, and runs its reconciles."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from contextvars import copy_context
from random import getrandbits
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

import msgspec

from milo_discovery._failure_log import FailureLog, raised_at
from milo_discovery._task_groups import cancelled_from_outside, wait_uninterrupted
from milo_discovery.controllers.cluster_api import ClusterApi
from milo_discovery.controllers.conditions import is_terminating
from milo_discovery.controllers.errors import (
    ApiError,
    ControllerError,
    Permanent,
    ProjectSuspended,
    ReconcileTimeout,
)
from milo_discovery.controllers.event_log import EventLog
from milo_discovery.controllers.fleet_view import ClusterCaches, FleetView
from milo_discovery.controllers.functions import is_async
from milo_discovery.controllers.informer import Informer
from milo_discovery.controllers.kinds import CacheKey, Kind, ObjectT
from milo_discovery.controllers.logs import current_cluster, current_object, current_reconcile
from milo_discovery.controllers.metrics import ControllerMetrics
from milo_discovery.controllers.object_cache import CachedObject, Change, changed
from milo_discovery.controllers.own_writes import WITHIN_S, OwnWrites
from milo_discovery.controllers.request import Request, Result
from milo_discovery.controllers.tracing import SpanTracer, span
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
from milo_discovery.model import Cluster

log = logging.getLogger("milo_discovery.controllers")

T = TypeVar("T")
Reconciler = Callable[[Request[T]], Awaitable[Result | None] | Result | None]
"""An async function, or a plain one, which is called in a thread."""

_HOT_S = 10.0
_HOT_RECONCILES = 100
"""An object that is reconciled this often within `_HOT_S` is logged."""
_LONGEST_ERROR = 500


class ReconcileTarget(NamedTuple):
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


Mapper = Callable[[Watched[T]], Iterable[ReconcileTarget]]
Predicate = Literal["generation", "labels", "annotations"] | Callable[[Watched[T]], bool]
"""Which updates of an object matter: those of its generation (its spec), labels or annotations, or those for which the
function returns true. Without a function, creations and deletions always matter."""


class WatchedKind(NamedTuple):
    """A kind whose changes lead to reconciles of other objects. Made by `watches`."""

    kind: Kind[Any]
    map: Mapper[Any]
    on: tuple[Predicate[Any], ...]


class ControllerSpec(NamedTuple):
    """The arguments of `Controllers.reconcile`."""

    name: str
    kind: Kind[Any]
    owns: tuple[CacheKey, ...] = ()
    watches: tuple[WatchedKind, ...] = ()
    on: tuple[Predicate[Any], ...] = ()
    on_cluster_change: bool = False
    while_deleting: bool = False
    workers: int = 256
    per_cluster: int = 4
    policy: QueuePolicy = QueuePolicy()
    timeout_s: float | None = None


class ReconcileFailure(msgspec.Struct):
    """The last failure of an object."""

    error: str
    attempts: int
    since: float
    is_stopped: bool


class Shared(NamedTuple):
    """What all controllers of a set share."""

    members: Mapping[str, ReconciledCluster]
    clusters: FleetView
    metrics: ControllerMetrics
    events: EventLog
    failures: FailureLog
    threads: Callable[[], Executor]
    tracer: SpanTracer | None = None


class ReconciledCluster(Protocol):
    """An engaged cluster, as a controller needs it."""

    @property
    def cluster(self) -> EngagedCluster: ...
    @property
    def incarnation(self) -> int: ...
    @property
    def api(self) -> ClusterApi: ...
    @property
    def view(self) -> ClusterCaches: ...
    @property
    def tasks(self) -> asyncio.TaskGroup: ...
    @property
    def informers(self) -> Mapping[CacheKey, Informer]: ...
    @property
    def own_writes(self) -> OwnWrites: ...


class Controller:
    """One reconciler. The runtime engages and drops members, and passes the changes of their informers."""

    def __init__(self, spec: ControllerSpec, reconciler: Reconciler[Any], shared: Shared) -> None:
        self.spec = spec
        self._reconciler = reconciler
        self._is_async = is_async(reconciler)
        self._shared = shared
        self._members = shared.members
        self._clock: Callable[[], float] = asyncio.get_running_loop().time
        self.queue = WorkQueue(spec.policy, random.random, self._clock(), per_cluster=spec.per_cluster)
        self._running: dict[ObjectKey, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._failing: dict[ObjectKey, ReconcileFailure] = {}
        self._recent: dict[ObjectKey, int] = {}
        """Reconciles of each object since `_recent_since`."""
        self._recent_since = self._clock()
        self._is_paused = True
        self._timer: asyncio.TimerHandle | None = None
        self._pump_is_due = False
        self._owned = frozenset(spec.owns)
        self._mapped: dict[CacheKey, list[WatchedKind]] = {}
        for watched in spec.watches:
            self._mapped.setdefault(watched.kind.key, []).append(watched)
        self._needed = {spec.kind.key, *self._owned, *self._mapped}
        metrics = self._metrics = shared.metrics
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
        dropped = member.cluster.name, member.incarnation
        self.queue.drop(*dropped)
        for key in [key for key in self._failing if key[:2] == dropped]:
            del self._failing[key]

    def resume(self) -> None:
        """Start reconciling. A new controller is paused."""
        self._is_paused = False
        self.pump_soon()

    def pause(self) -> None:
        """Begin no further reconciles."""
        self._is_paused = True

    @property
    def tasks(self) -> frozenset[asyncio.Task[None]]:
        """The running reconciles."""
        return frozenset(self._tasks)

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
        if informer.key == self.spec.kind.key and self._matters(member, self.spec.kind, self.spec.on, change):
            self._add(member, change.current.namespace, change.current.name, priority)
        if informer.key in self._owned:
            for seen in (change.old, change.new):
                if seen is not None:
                    self._add_owners(member, seen, priority)
        for watched in self._mapped.get(informer.key, ()):
            if self._matters(member, watched.kind, watched.on, change):
                self._add_mapped(member, watched, change, priority)

    def resync(self, member: ReconciledCluster, priority: Priority = Priority.BACKGROUND) -> None:
        """Enqueue every object of the cluster."""
        for found in member.informers[self.spec.kind.key].cache.values():
            self._add(member, found.namespace, found.name, priority)

    def enqueue(self, target: ReconcileTarget) -> None:
        """Enqueue an object, if its cluster is engaged."""
        member = self._members.get(target.cluster or "")
        if member is not None:
            self._add(member, target.namespace, target.name, Priority.LIVE)

    def running(self) -> Iterable[float]:
        """Return when each running reconcile began."""
        return tuple(self._running.values())

    def failing(self) -> Iterator[tuple[ObjectKey, ReconcileFailure, float | None]]:
        """Return the objects whose last reconcile failed, and the time of the next one. Safe in any thread."""
        for key, failure in tuple(self._failing.items()):
            yield key, failure, None if failure.is_stopped else self.queue.retry_at(key)

    @property
    def failures(self) -> int:
        """The number of objects whose last reconcile failed."""
        return len(self._failing)

    # --- changes ---

    def _add(self, member: ReconciledCluster, namespace: str, name: str, priority: Priority) -> None:
        key = ObjectKey(member.cluster.name, member.incarnation, namespace, name)
        self.queue.add(key, self._clock(), priority)
        self._adds.inc()
        self.pump_soon()

    def _add_owners(self, member: ReconciledCluster, owned: CachedObject, priority: Priority) -> None:
        primaries = member.informers[self.spec.kind.key].cache
        for owner in owned.owners:
            for namespace in {owned.namespace, ""}:
                found = primaries.get(namespace, owner.name)
                # An owner that is not in the cache is reconciled when it appears there.
                if found is not None and found.uid == owner.uid:
                    self._add(member, namespace, owner.name, priority)

    def _add_mapped(self, member: ReconciledCluster, watched: WatchedKind, change: Change, priority: Priority) -> None:
        try:
            found = watched.map(Watched(watched.kind, change, member.cluster, self._shared.clusters))
            targets = _targets(found)
        except Exception as error:  # noqa: BLE001  (the author's code: an error there must not stop the informer)
            self._log_failure(
                member.cluster.name, f"the mapper of {watched.kind.resource}", error, "nothing is reconciled"
            )
            return
        for target in targets:
            of = member if target.cluster is None else self._members.get(target.cluster)
            if of is not None:
                self._add(of, target.namespace, target.name, priority)

    def _matters(
        self, member: ReconciledCluster, kind: Kind[Any], on: tuple[Predicate[Any], ...], change: Change
    ) -> bool:
        try:
            return not on or any(
                changed(each, change)
                if isinstance(each, str)
                else each(Watched(kind, change, member.cluster, self._shared.clusters))
                for each in on
            )
        except Exception as error:  # noqa: BLE001  (as above)
            self._log_failure(member.cluster.name, f"on= of {kind.resource}", error, "the change counts")
            return True

    # --- reconciles ---

    def pump_soon(self) -> None:
        if not self._pump_is_due:
            self._pump_is_due = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        """Start the reconciles that may run now, and set a timer for the next one that is delayed."""
        self._pump_is_due = False
        now = self._clock()
        while not self._is_paused and len(self._tasks) < self.spec.workers:
            work = self.queue.take(now)
            if work is None:
                break
            member = self._members[work.key.cluster]
            process = self._process(member, work)
            try:
                task = member.tasks.create_task(process, name=f"reconcile {_named(work.key)}")
            except RuntimeError:  # another task of the cluster has failed: it is about to be dropped
                process.close()
                continue
            self._tasks.add(task)
            # A callback rather than the task's own code, of which nothing runs if it is canceled before it begins.
            task.add_done_callback(self._ended)
        self._active_metric.set(len(self._tasks))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self.queue.next_at
        if due is not None and not self._is_paused and len(self._tasks) < self.spec.workers:
            self._timer = asyncio.get_running_loop().call_at(due, self._pump)

    async def _process(self, member: ReconciledCluster, work: Work) -> None:
        key = work.key
        # It was disengaged after the task was created, and is about to be dropped; or its project is being deleted.
        if not member.cluster.engaged or self._is_left_to_deletion(member, key):
            self.queue.done(key, Done(), self._clock())
            return
        self._queue_duration.observe(work.queued_s)
        began = self._running[key] = self._clock()
        current_cluster.set(key.cluster)
        current_object.set(f"{key.namespace}/{key.name}" if key.namespace else key.name)
        current_reconcile.set(f"{getrandbits(64):016x}")
        self._note_rate(key, began)
        request = self._request(member, work)
        outcome: Outcome = Failed()
        error: Exception | None = None
        try:
            outcome = await self._reconciled(request)
        except Exception as caught:  # noqa: BLE001  (the top of a reconcile: recorded, logged and retried)
            error = caught
            outcome = _outcome(caught, member.cluster)
        finally:
            now = self._clock()
            del self._running[key]
            is_held = bool(request.writes) and self._hold(member, key, request)
            delay_s = self.queue.done(key, outcome, now, is_held=is_held)
            self._measure(key, outcome, now - began)
        if error is None or isinstance(outcome, Parked):
            self._failing.pop(key, None)
            return
        self._note_failure(key, error, is_stopped=isinstance(outcome, Stopped))
        then = "no retry until it changes" if delay_s is None else f"retry in {delay_s:.1f} s"
        self._log_failure(key.cluster, f"reconciling {current_object.get()}", error, then)

    def _hold(self, member: ReconciledCluster, key: ObjectKey, request: Request[Any]) -> bool:
        """Hold the object until the caches have what its reconcile wrote; return whether they lack any of it."""

        def settle() -> None:
            timer.cancel()
            self.queue.settle(key, self._clock())
            self.pump_soon()

        timer = asyncio.get_running_loop().call_later(WITHIN_S, settle)
        is_held = member.own_writes.hold(request.writes.values(), member.informers.values(), settle)
        if not is_held:
            timer.cancel()
        return is_held

    def _note_rate(self, key: ObjectKey, now: float) -> None:
        if now - self._recent_since > _HOT_S:
            self._recent.clear()
            self._recent_since = now
        count = self._recent[key] = self._recent.get(key, 0) + 1
        if count == _HOT_RECONCILES:
            log.warning(
                "%s: %s was reconciled %d times in %.1f s: its reconciler probably changes it each time; compare "
                'before writing, or use on="generation"',
                *(self.spec.name, _named(key), count, now - self._recent_since),
            )

    def _note_failure(self, key: ObjectKey, error: Exception, *, is_stopped: bool) -> None:
        before = self._failing.get(key)
        since, attempts = (time.time(), 0) if before is None else (before.since, before.attempts)
        member = self._members.get(key.cluster)
        if member is not None and member.incarnation == key.incarnation:  # it was not dropped meanwhile
            self._failing[key] = ReconcileFailure(_text(error)[:_LONGEST_ERROR], attempts + 1, since, is_stopped)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self.pump_soon()

    def _request(self, member: ReconciledCluster, work: Work) -> Request[Any]:
        return Request(
            kind=self.spec.kind,
            namespace=work.key.namespace,
            name=work.key.name,
            api=member.api,
            view=member.view,
            clusters=self._shared.clusters,
            events=self._shared.events,
            field_manager=self.spec.name,
            failures=work.failures,
        )

    async def _reconciled(self, request: Request[Any]) -> Outcome:
        limit_s = self.spec.timeout_s
        try:
            async with asyncio.timeout(limit_s) as limit:
                result = await self._called(request)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise ReconcileTimeout(
                f"the reconcile was ended after {limit_s:g} s; pass timeout= if it needs longer"
            ) from error
        except asyncio.CancelledError as cancelled:
            if cancelled_from_outside():
                raise
            raise RuntimeError("the reconcile was canceled, but not by its controller") from cancelled
        if result is None:
            return Done()
        if not isinstance(result, Result):
            raise TypeError(f"the reconciler returned {result!r}: return None or a Result")
        after = result.requeue_after
        return Done(None if after is None else after.total_seconds())

    def _is_left_to_deletion(self, member: ReconciledCluster, key: ObjectKey) -> bool:
        """Return whether the object's project is being deleted and the object is not terminating.

        Milo empties such a project again and again: what a reconciler restores keeps it from ending.
        """
        if self.spec.while_deleting or member.cluster.current.deletion_requested_at is None:
            return False
        found = member.informers[self.spec.kind.key].cache.get(key.namespace, key.name)
        return found is None or not is_terminating(msgspec.json.decode(found.raw))

    async def _called(self, request: Request[Any]) -> Any:
        attributes = {"milo.cluster": current_cluster.get(), "k8s.namespace.name": request.namespace}
        attributes |= {"milo.object": current_object.get(), "milo.reconcile": current_reconcile.get()}
        with span(self._shared.tracer, f"reconcile {self.spec.name}", attributes):
            return await self._run(request)

    async def _run(self, request: Request[Any]) -> Any:
        if self._is_async:
            return await self._reconciler(request)  # type: ignore[misc]  # checked at registration
        calling = asyncio.get_running_loop().run_in_executor(
            self._shared.threads(), copy_context().run, self._reconciler, request
        )
        try:
            return await asyncio.shield(calling)
        except asyncio.CancelledError:
            # A thread cannot be ended from outside: its next call of request.wait raises.
            request.end()
            await wait_uninterrupted(calling)
            raise

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

    def _log_failure(self, cluster: str, what: str, error: Exception, then: str) -> None:
        text = _text(error)
        key: tuple[object, ...] = (self.spec.name, cluster, type(error), raised_at(error))
        match error:
            case Permanent():
                key = (self.spec.name, cluster, what, Permanent)
            case ApiError():
                key = (self.spec.name, cluster, error.status, error.reason)
            case _:
                pass
        summary = f"{self.spec.name}: {cluster}: {what} failed: {text}"
        if not self._shared.failures.is_new(cluster, error, self._clock(), key=key, what=summary):
            return
        # Expected errors are logged without a traceback; others are bugs.
        trace = None if isinstance(error, ControllerError | DiscoveryError) else error
        log.error("%s: %s: %s failed (%s): %s", self.spec.name, cluster, what, then, text, exc_info=trace)


def _named(key: ObjectKey) -> str:
    return f"{key.cluster}: {key.namespace}/{key.name}" if key.namespace else f"{key.cluster}: {key.name}"


def _text(error: Exception) -> str:
    return str(error) or repr(error)


def _targets(found: object) -> list[ReconcileTarget]:
    """Return what a mapper returned. Raises TypeError if it is not an iterable of Targets."""
    if isinstance(found, ReconcileTarget) or not isinstance(found, Iterable):
        raise TypeError(f"the mapper returned {found!r}: return an iterable of Targets, such as [Target(...)]")
    targets = list(found)
    for each in targets:
        if not isinstance(each, ReconcileTarget):
            raise TypeError(f"the mapper returned {each!r} among its targets: return Target(name, namespace)")
    return targets


def stays_suspended(cluster: Cluster) -> bool:
    """Return whether the suspension of a project ends before the project: Milo lifts none during a deletion."""
    return cluster.suspended and cluster.deletion_requested_at is None


def _outcome(error: Exception, cluster: EngagedCluster) -> Outcome:
    match error:
        case Permanent():
            return Stopped(str(error))
        case ProjectSuspended() if stays_suspended(cluster.current):
            return Parked()
        case ApiError():
            return Failed(error.retry_after_s)
        case _:
            return Failed()
