"""One reconciler over all clusters: turns changes into entries of its work queue, and runs its reconciles."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import AbstractContextManager
from functools import partial
from itertools import islice
from random import getrandbits
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from milo_controllers.affected_objects import AffectedCluster, AffectedObjects, key_of
from milo_controllers.errors import cause_of
from milo_controllers.fleet_view import FleetView
from milo_controllers.informer import Informer
from milo_controllers.kinds import CacheKey
from milo_controllers.logs import current_cluster, current_object, current_reconcile
from milo_controllers.metrics import ControllerMetrics, ReconcileMetrics
from milo_controllers.object_cache import CachedObject, Change, Place, is_terminating
from milo_controllers.reconcile_call import ReconcileCall, Reconciler, failed_outcome
from milo_controllers.reconcile_failures import ReconcileFailure, ReconcileFailures
from milo_controllers.registration import ControllerSpec
from milo_controllers.request import Request, RequestedCluster
from milo_controllers.waiting_limits import WaitingLimits
from milo_controllers.watched import ReconcileTarget
from milo_controllers.work_queue import (
    Done,
    Interrupted,
    ObjectKey,
    Outcome,
    Parked,
    Priority,
    Stopped,
    Work,
    WorkQueue,
)
from milo_controllers.write_holds import WriteHolds, WrittenCluster
from milo_discovery.tracing import SpanTracer, span
from milo_kube.collection_follower import FollowerState
from milo_kube.failure_log import FailureLog
from milo_kube.tenants import Tenant, working_for

_RESYNC_EVERY_S = 0.005
_AT_ONCE = 1000
"""Maximum number of objects of a cluster that are handled in one iteration of the event loop."""

_LACKING: Final = frozenset[FollowerState]({"forbidden", "not_served"})

T = TypeVar("T")


class Shared(NamedTuple):
    """What all controllers of a set share. `read`: the kinds of `Controllers.cache`. `may_reconcile`: whether this
    replica leads."""

    members: Mapping[str, ReconciledCluster]
    clusters: FleetView
    metrics: ControllerMetrics
    failures: FailureLog
    waiting: WaitingLimits
    read: Set[CacheKey] = frozenset()
    tracer: SpanTracer | None = None
    may_reconcile: Callable[[], bool] = lambda: True


class ReconciledCluster(AffectedCluster, RequestedCluster, WrittenCluster, Protocol):
    """The parts of an engaged cluster that a controller uses."""

    @property
    def tasks(self) -> asyncio.TaskGroup: ...


class Controller:
    """One reconciler. EngagedClusters calls `engage` and `drop` for clusters, and passes changes of their informers."""

    def __init__(self, spec: ControllerSpec, reconciler: Reconciler[Any], shared: Shared) -> None:
        self.spec = spec
        self._call = ReconcileCall(
            reconciler, timeout_s=spec.timeout_s, workers=spec.workers, may_begin=shared.may_reconcile
        )
        self._shared = shared
        self._loop = asyncio.get_running_loop()
        self.queue = WorkQueue(
            spec.policy,
            random.random,
            self._loop.time(),
            per_cluster=spec.per_cluster,
            workers=spec.workers,
            delay_failed=self._delay_failed,
        )
        self.failures = ReconcileFailures(spec.name, shared.failures)
        self._running: dict[ObjectKey, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._leads: bool | None = None
        """Whether reconciles begin; None before they ever did."""
        self._timer: asyncio.TimerHandle | None = None
        self._pump_is_due = False
        self._affected = AffectedObjects(spec, shared.members, shared.clusters, self.failures, self.queue.waits)
        self._holds = WriteHolds(spec.name, self._release)
        self._metrics = ReconcileMetrics(shared.metrics, spec.name)

    # --- called by EngagedClusters ---

    def engage(self, member: ReconciledCluster) -> None:
        self.queue.engage(member.cluster.name, member.incarnation, member.tenant())

    def drop(self, member: ReconciledCluster) -> None:
        """Forget the queued objects and failures of the member. EngagedClusters cancels its tasks."""
        self.queue.drop(member.cluster.name, member.incarnation)
        self.failures.drop(member.cluster.name, member.incarnation)
        self._resync_for((), self._affected.drop(member))
        self.resync_unmapped(member.cluster.name)

    def resume(self) -> None:
        """Start reconciling. A new controller is paused."""
        # Those that were canceled before they started: none of their own code has run.
        self.queue.put_back(self._loop.time())
        if self._leads is False:  # another replica may have led: what it was to reconcile again is not known here
            self._resync_for((), self._shared.members.values())
        self._leads = True
        self.pump_soon()

    def pause(self) -> None:
        """Start no further reconciles."""
        if self._leads:
            self._leads = False

    def close(self) -> None:
        """Release the threads. Called after all reconciles have ended."""
        self._call.close()

    @property
    def tasks(self) -> frozenset[asyncio.Task[None]]:
        """The running reconciles."""
        return frozenset(self._tasks)

    def listed(self, member: ReconciledCluster) -> None:
        """Start reconciling in this cluster if all informers that this controller needs have synced.

        Those of the caches that reconcilers read are awaited too, unless they fail.
        """
        are_needed_synced = all(member.informers[key].cache.synced for key in self._affected.needed_kinds)
        if are_needed_synced and all(member.informers[key].state != "starting" for key in self._shared.read):
            self.queue.open(member.cluster.name, member.incarnation)
            self.pump_soon()
        self._resync_for((), self._affected.take_lost(member))

    def listed_again(self, member: ReconciledCluster, informer: Informer) -> None:
        """Enqueue what may be affected by changes of a needed cache while it was dropped."""
        if informer.key in self._affected.needed_kinds:
            self._resync_for([(member, informer.key)])
        if informer.key == self.spec.kind.key:

            def add_deleted(place: Place) -> None:
                if informer.cache.get(*place) is None:  # deleted while the cache was dropped
                    self._add(key_of(member, *place), Priority.BACKGROUND)

            self._in_slices(member, iter(informer.dropped or ()), add_deleted)

    def resync_unmapped(self, complete: str) -> None:
        """Enqueue what may be affected by changes that could not be mapped. Called when a cache of the cluster
        `complete` is complete, or will never be: it may be the one that the mapper reads."""
        unmapped = list(self._affected.take_unmapped(complete))
        read = self._shared.members.get(complete)
        self._resync_for(unmapped, [read] if unmapped and read is not None else ())
        for number, (member, key) in enumerate(unmapped):
            self._loop.call_later(number * _RESYNC_EVERY_S, self._map_again, member, key)

    def _map_again(self, member: AffectedCluster, key: CacheKey) -> None:
        """Enqueue what the mappers of a cache name, beside the cached objects of its own cluster."""
        informer = member.informers.get(key)
        if informer is not None and self._shared.members.get(member.cluster.name) is member:

            def enqueue(found: CachedObject) -> None:
                self._enqueue_affected(member, informer, Change(None, found, is_live=False), is_resynced=True)

            self._in_slices(member, informer.cache.values(), enqueue)

    def _resync_for(
        self, caches: Iterable[tuple[AffectedCluster, CacheKey]], others: Iterable[AffectedCluster] = ()
    ) -> None:
        """Enqueue every object of the clusters of these caches, of the others, and of all clusters if objects of one of
        these caches have named others."""
        found: dict[str, AffectedCluster] = {}
        have_named_others = False
        for member, key in caches:
            found[member.cluster.name] = member
            have_named_others = have_named_others or self._affected.has_named_others(member, key)
        found |= {other.cluster.name: other for other in others}
        if have_named_others:
            found |= self._shared.members
        for number, member in enumerate(found.values()):  # spread: there may be thousands
            if number:
                self._loop.call_later(number * _RESYNC_EVERY_S, self.resync, member)
            else:
                self.resync(member)

    def unpark(self, member: ReconciledCluster) -> None:
        def unpark(key: ObjectKey) -> None:
            self.queue.unpark(key, self._loop.time())
            self.pump_soon()

        self.failures.suspension_ended(member.cluster.name, member.incarnation)
        self._in_slices(member, iter(self.queue.parked(member.cluster.name, member.incarnation)), unpark)

    def deletion_requested(self, member: ReconciledCluster) -> None:
        """Forget the failures of objects that are left to the deletion of their project."""

        def forget(key: ObjectKey) -> None:
            if self._is_left_to_deletion(member, key):
                self.failures.recovered(key)

        self._in_slices(member, iter(self.failures.of_cluster(member.cluster.name, member.incarnation)), forget)

    def changed(self, member: ReconciledCluster, informer: Informer, change: Change) -> None:
        """Enqueue the objects that have to be reconciled because of a change."""
        self._enqueue_affected(member, informer, change)
        if change.new is None and informer.key == self.spec.kind.key:
            key = key_of(member, change.current.namespace, change.current.name)
            if self.queue.forget_stopped(key):  # a predicate has ignored the deletion
                self.failures.recovered(key)
            if self._leads is None or self._lacks_kind(member):
                self.queue.forget(key)  # nothing was reconciled, and that may not change for months

    def _lacks_kind(self, member: ReconciledCluster) -> bool:
        """Return whether nothing was reconciled in the cluster because it does not serve, or forbids, a kind that this
        controller needs."""
        states = (member.informers[key].state for key in self._affected.needed_kinds)
        return not self.queue.is_open(member.cluster.name, member.incarnation) and not _LACKING.isdisjoint(states)

    def _enqueue_affected(
        self, member: AffectedCluster, informer: Informer, change: Change, *, is_resynced: bool = False
    ) -> None:
        """Enqueue what is affected by a change; with `is_resynced`, without the cached objects of its cluster."""
        priority = Priority.LIVE if change.is_live else Priority.BACKGROUND
        for key in self._affected.after_change(member, informer, change):
            if is_resynced and key.cluster == member.cluster.name and self._is_cached(member, key):
                continue
            self._add(key, priority, by=member)
            if self._limit_waiting(member, informer, key):
                return

    def resync(
        self, member: AffectedCluster, priority: Priority = Priority.BACKGROUND, *, is_periodic: bool = False
    ) -> None:
        """Enqueue every object of the cluster; if nothing has changed, without those that wait for a change."""

        def add(found: CachedObject) -> None:
            key = key_of(member, found.namespace, found.name)
            if not (is_periodic and self.queue.is_stopped(key)):
                self._add(key, priority)

        self._in_slices(member, member.informers[self.spec.kind.key].cache.values(), add)

    def _in_slices(self, member: AffectedCluster, objects: Iterator[T], handle: Callable[[T], None]) -> None:
        """Handle objects of an engaged cluster, of which there may be a hundred thousand."""
        found = tuple(islice(objects, _AT_ONCE))
        for one in found:
            handle(one)
        if len(found) == _AT_ONCE and self._shared.members.get(member.cluster.name) is member:
            self._loop.call_soon(self._in_slices, member, objects, handle)

    def enqueue(self, target: ReconcileTarget) -> None:
        """Enqueue an object, if its cluster is engaged."""
        member = self._shared.members.get(target.cluster or "")
        if member is not None:
            self._add(key_of(member, target.namespace, target.name), Priority.LIVE)

    @property
    def oldest(self) -> float | None:
        """When the longest-waiting object became ready; None if none waits for this replica. Safe in any thread."""
        return self.queue.oldest if self._leads else None

    def running(self) -> Iterable[float]:
        """Return when each running reconcile began."""
        return tuple(self._running.values())

    def failing(self) -> Iterator[tuple[ObjectKey, ReconcileFailure, float | None]]:
        """Return the objects whose last reconcile failed, each with its failure and, if its retry is delayed, the time
        of the retry. Safe in any thread."""
        for key, failure in self.failures:
            yield key, failure, None if failure.is_stopped else self.queue.retry_at(key)

    def _limit_waiting(self, member: AffectedCluster, informer: Informer, key: ObjectKey) -> bool:
        """Drop the cache whose changes let too many objects wait; return whether it is that of the informer."""
        limits, named = self._shared.waiting, self._affected.named
        own, target = (member.cluster.name, member.incarnation), self._shared.members.get(key.cluster)
        limit = ""
        if target is member:
            limit = limits.exceeded(self._uncached(member) - named.within(own), is_own=True)
        elif limits.exceeded(named.by(own), is_own=False):
            limit = limits.exceeded(named.exact(own), is_own=False)
        if limit:
            self._drop_waiting(member, informer, limit)
            return True
        if limits.is_count_due():
            waiting = {name: self._own_waiting(other) for name, other in self._shared.members.items()}
            if limit := limits.exceeded_by_all(sum(waiting.values())):
                largest = self._largest(waiting)
                primary = largest.informers[self.spec.kind.key]
                self._drop_waiting(largest, informer if largest is member else primary, limit)
                return largest is member
        return False

    def _largest(self, waiting: Mapping[str, int]) -> AffectedCluster:
        """Return the cluster with the most of the tenant with the most."""
        tenants: Counter[Tenant] = Counter()
        for name, member in self._shared.members.items():
            tenants[member.tenant()] += waiting[name]
        return max(
            self._shared.members.values(),
            key=lambda member: (tenants[tenant := member.tenant()], tenant, waiting[member.cluster.name]),
        )

    def _own_waiting(self, member: AffectedCluster) -> int:
        """Return how many objects wait because of the cluster, beyond those that are cached."""
        own, named = (member.cluster.name, member.incarnation), self._affected.named
        return max(0, self._uncached(member) - named.within(own)) + named.by(own)

    def _uncached(self, member: AffectedCluster) -> int:
        """Return the number of objects in the queue beyond those that are cached."""
        cached = len(member.informers[self.spec.kind.key].cache)
        return max(0, self.queue.count(member.cluster.name, member.incarnation) - cached)

    def _drop_waiting(self, member: AffectedCluster, informer: Informer, limit: str) -> None:
        own, is_primary = (member.cluster.name, member.incarnation), informer.key == self.spec.kind.key
        waiting = {key: self._is_cached(member, key) for key in self.queue.waiting(*own)}
        # No list shows deletions again. Cached objects are listed again, if their cache is the one that is dropped.
        uncached = (key for key, is_cached in waiting.items() if not is_cached)
        kept = {*islice(uncached, self._shared.waiting.kept(len(self._shared.members)))}
        if not is_primary:
            kept.update(key for key, is_cached in waiting.items() if is_cached)
        self.queue.forget_waiting(*own, kept)
        for key in self._affected.named.take(own):
            self.queue.forget(key)
            self.failures.recovered(key)
        self.failures.drop(member.cluster.name, member.incarnation)
        informer.exceed(f"besides the cached objects, more than {limit} wait to be reconciled")

    def _add(self, key: ObjectKey, priority: Priority, *, by: AffectedCluster | None = None) -> None:
        """Enqueue an object; `by` is the cluster whose change affects it."""
        if by is None or key[:2] == (by.cluster.name, by.incarnation):
            self._affected.named.waits_anyway(key)
        elif not self._is_cached(self._shared.members[key.cluster], key):
            self._affected.named.add((by.cluster.name, by.incarnation), key)
        self.queue.add(key, self._loop.time(), priority)
        self._metrics.added()
        self.pump_soon()

    # --- reconciles ---

    def pump_soon(self) -> None:
        if not self._pump_is_due:
            self._pump_is_due = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Start the reconciles that may run now, and set a timer for the next one that is delayed."""
        self._pump_is_due = False
        now = self._loop.time()
        while self._leads and len(self._tasks) < self.spec.workers:
            work = self.queue.take_next(now)
            if work is None:
                break
            member = self._shared.members[work.key.cluster]
            process = self._process(member, work)
            try:
                task = member.tasks.create_task(
                    process, name=f"reconcile {work.key}", context=self._call.context.copy()
                )
            except RuntimeError:  # another task of the cluster has failed, so the cluster is about to be dropped
                process.close()
                self.queue.freed(work)
                continue
            self._tasks.add(task)
            # A callback, because none of the task's own code runs if it is canceled before it starts.
            task.add_done_callback(partial(self._ended, work))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self.queue.next_at
        if due is not None and self._leads and len(self._tasks) < self.spec.workers:
            self._timer = self._loop.call_at(due, self._pump)

    async def _process(self, member: ReconciledCluster, work: Work) -> None:
        key = work.key
        if (left_out := self._left_out(member, key)) is not None:
            self.queue.done(key, left_out, self._loop.time())
            if isinstance(left_out, Done):
                self.failures.recovered(key)
            return
        self._metrics.began(work.queued_s)
        began = self._running[key] = self._loop.time()
        member.own_writes.reconcile_began()
        working_for.set(member.tenant())
        current_cluster.set(key.cluster)
        current_object.set(f"{key.namespace}/{key.name}" if key.namespace else key.name)
        current_reconcile.set(f"{getrandbits(64):016x}")
        request = self._request(member, work)
        outcome: Outcome = Interrupted()  # if this task is canceled
        error: Exception | None = None
        try:
            with self._span():
                outcome = await self._call.outcome(request)
        except Exception as caught:  # noqa: BLE001  (the top of a reconcile: recorded, logged and retried)
            error = cause_of(caught)
            outcome = failed_outcome(error, member.cluster)
        finally:
            now = self._loop.time()
            del self._running[key]
            is_held = self._holds.hold(member, key, request.writes.values(), now)
            member.own_writes.reconcile_ended()
            delay_s = self.queue.done(key, outcome, now, is_held=is_held)
            self._metrics.ended(key.cluster, outcome, now - began)
        if isinstance(outcome, Parked) and self._shared.members.get(key.cluster) is member:
            self.failures.log_suspension(key, current_object.get())
        if isinstance(outcome, Done | Parked):
            self.failures.recovered(key)
        elif error is not None and not isinstance(outcome, Interrupted):
            self._record_failure(member, key, error, outcome, delay_s)

    def _record_failure(
        self, member: ReconciledCluster, key: ObjectKey, error: Exception, outcome: Outcome, delay_s: float | None
    ) -> None:
        if self._shared.members.get(key.cluster) is member:  # the cluster was not dropped during the reconcile
            if isinstance(outcome, Stopped) and self._is_gone(member, key):
                self.queue.forget_stopped(key)
                self.failures.recovered(key)
            elif not self._is_left_to_deletion(member, key):
                self.failures.record(key, error, is_stopped=isinstance(outcome, Stopped))
            if isinstance(outcome, Stopped):
                then = "no retry until the object changes"
            elif delay_s is None:
                then = "retry at once, since the object changed"
            else:
                then = f"retry in {delay_s:.1f} s"
        else:
            then = "its cluster is disengaged"
        self.failures.log(key.cluster, f"reconciling {current_object.get()}", error, then)

    def _delay_failed(self, key: ObjectKey, error: Exception) -> None:
        self.failures.log(key.cluster, "QueuePolicy.delay_s", error, "the default backoff applies")

    def _release(self, key: ObjectKey) -> None:
        self.queue.settle(key, self._loop.time())
        self.pump_soon()

    def _ended(self, work: Work, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self.queue.freed(work)
        self.pump_soon()

    def _request(self, member: ReconciledCluster, work: Work) -> Request[Any]:
        return Request(self.spec.kind, work, member, clusters=self._shared.clusters, field_manager=self.spec.name)

    def _left_out(self, member: ReconciledCluster, key: ObjectKey) -> Done | Interrupted | None:
        """Return the outcome of a reconcile that must not begin; None if it may."""
        # Also if the cluster is not engaged: an ownership that has expired is at times renewed by an answer in flight.
        if not member.cluster.engaged or not self._shared.may_reconcile():
            return Interrupted()
        return Done() if self._is_left_to_deletion(member, key) else None

    def _is_left_to_deletion(self, member: ReconciledCluster, key: ObjectKey) -> bool:
        """Return whether the object's project is being deleted and the object is not terminating.

        Milo deletes the content of such a project repeatedly: objects that a reconciler restores delay the deletion.
        """
        if self.spec.while_deleting or member.cluster.current.deletion_requested_at is None:
            return False
        found = member.informers[self.spec.kind.key].cache.get(key.namespace, key.name)
        return found is None or not is_terminating(found)

    def _is_cached(self, member: AffectedCluster, key: ObjectKey) -> bool:
        return member.informers[self.spec.kind.key].cache.get(key.namespace, key.name) is not None

    def _is_gone(self, member: ReconciledCluster, key: ObjectKey) -> bool:
        cache, place = member.informers[self.spec.kind.key].cache, (key.namespace, key.name)
        return cache.synced and cache.get(*place) is None and not cache.problem(*place)

    def _span(self) -> AbstractContextManager[Any]:
        cluster, found, reconcile = current_cluster.get(), current_object.get(), current_reconcile.get()
        attributes = {"milo.cluster": cluster, "milo.object": found, "milo.reconcile": reconcile}
        return span(self._shared.tracer, f"reconcile {self.spec.name}", attributes)
