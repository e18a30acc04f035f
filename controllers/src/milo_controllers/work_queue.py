"""The work queue of one reconciler, for all clusters: which object is reconciled next, and when.

Does no I/O and reads no clock: callers pass the time. Invariants:

- An object is never in flight twice. Changes during its reconcile lead to exactly one more reconcile.
- Tenants take turns, and so do the clusters of each, so the changes of one do not delay the others. A cluster has at
  most `per_cluster` objects in flight.
- Half of the workers are for clusters that have no object in flight and do not hang, so that those that hang, each with
  `per_cluster` objects, do not hold all workers.
- Live changes go before retries, and retries before objects of an initial list or a resync. But where some wait, each
  `_TURN`th object is one of them, so that a cluster whose objects always change does not hold up the others.
- A failed object is retried after its own backoff. Each cluster has a token bucket of retries, and all clusters
  share a second one, whose tokens they take in turns.
- An object is held while the caches lack the writes of its last reconcile, and is not taken before `settle`.
"""

from __future__ import annotations

import enum
import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterator, Set
from contextlib import suppress
from itertools import chain
from typing import Any, Final, NamedTuple

import msgspec

from milo_kube.rate_limit import Rate, TokenBucket
from milo_kube.retry_after import delay_s
from milo_kube.tenants import Tenant, TenantTurns
from milo_kube.user_code import call

_TURN = 16
_WOKEN_AT_ONCE = 100
"""Maximum number of delays that end in one call of `take_next`. While this replica does not lead, those of all objects
may end."""
_COMPACTED_AT_ONCE = 4
_HANGS_S = 5.0
"""Minimum duration of a failed reconcile after which its cluster counts as one that hangs."""


class Priority(enum.IntEnum):
    """Priorities of ready objects; smaller values go first."""

    LIVE = 0
    """A changed object, or one that the reconcile of a change requeued."""
    RETRY = 1
    """An object whose last reconcile failed."""
    BACKGROUND = 2
    """An object of an initial list or a resync, or one that was parked."""


class ObjectKey(NamedTuple):
    """An object in one engagement of a cluster."""

    cluster: str
    incarnation: int
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.cluster}: {self.namespace}/{self.name}" if self.namespace else f"{self.cluster}: {self.name}"


class QueuePolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Backoff and rate limits of retries.

    `first_delay_s`: delay after the first failure; it doubles with each further failure, up to `max_delay_s`.
    `jitter`: maximum random addition, as a share of the delay. `delay_s`: returns the delay after a number of
    consecutive failures, instead of the exponential backoff. `cluster_retries` and `retries`: rate limits of retries in
    one cluster, and in all clusters together. `min_requeue_s`: minimum of `Result.requeue_after`.
    """

    first_delay_s: float = 0.1
    max_delay_s: float = 300.0
    jitter: float = 0.25
    delay_s: Callable[[int], float] | None = None
    cluster_retries: Rate = Rate(per_second=10.0, burst=100.0)
    retries: Rate = Rate(per_second=100.0, burst=1000.0)
    min_requeue_s: float = 1.0


class Work(NamedTuple):
    """An object to reconcile now."""

    key: ObjectKey
    queued_s: float
    """How long the object was ready before it was taken."""
    failures: int
    """Consecutive failures before this attempt."""
    is_further: bool = False
    """Whether its cluster had another object in flight, or hangs."""


class Done(msgspec.Struct, frozen=True):
    """The object was reconciled."""

    requeue_after_s: float | None = None


class Failed(msgspec.Struct, frozen=True):
    """The reconcile failed, and is retried."""

    retry_after_s: float | None = None
    """Delay that the API server requested, capped at five minutes. It ends early if the object changes."""


class Stopped(msgspec.Struct, frozen=True):
    """The reconcile failed in a way that a retry does not fix: the object is reconciled again when it changes."""

    message: str


class Parked(msgspec.Struct, frozen=True):
    """The reconcile cannot continue until `WorkQueue.unpark` is called for the object."""


class Interrupted(msgspec.Struct, frozen=True):
    """The reconcile did not begin, was canceled, or could not write, because this replica does not hold the Lease or
    own the cluster at the moment. It is due again: both may be renewed after all, or won again."""

    again_after_s: float = 1.0


Outcome = Done | Failed | Stopped | Parked | Interrupted


_PRIORITIES: Final = tuple(Priority)  # iterating over an enumeration costs more than the rest of `take_next`


class _InFlight(NamedTuple):
    priority: Priority
    since: float


class _ClusterQueue:
    """The objects of one engagement of a cluster."""

    def __init__(self) -> None:
        # OrderedDict rather than dict, which takes linear time to find its first entry after many removals.
        self.ready: tuple[OrderedDict[ObjectKey, float], ...] = tuple(OrderedDict() for _ in Priority)
        self.dirty: dict[ObjectKey, Priority] = {}
        """Objects that changed while they were in flight or held, with the priority of the change."""
        self.in_flight: dict[ObjectKey, _InFlight] = {}
        self.hangs = False
        """Whether its last reconcile failed, and took long."""
        self.held: set[ObjectKey] = set()
        self.delayed: dict[ObjectKey, tuple[float, Priority]] = {}
        self.failures: dict[ObjectKey, int] = {}
        self.stopped: dict[ObjectKey, str] = {}
        self.parked: dict[ObjectKey, None] = {}
        self.retries: TokenBucket | None = None

    @property
    def is_next_further(self) -> bool:
        return self.hangs or bool(self.in_flight)

    @property
    def is_empty(self) -> bool:
        return not (self.count or self.failures)

    @property
    def count(self) -> int:
        """The number of objects, of which some are counted twice."""
        ready = sum(map(len, self.ready))
        kept = len(self.dirty) + len(self.in_flight) + len(self.held)
        return ready + kept + len(self.delayed) + len(self.stopped) + len(self.parked)

    @property
    def waiting(self) -> tuple[dict[ObjectKey, Any], ...]:
        return *self.ready, self.delayed, self.stopped, self.parked

    def forget_waiting(self, kept: Set[ObjectKey]) -> None:
        for objects in (*self.waiting, self.failures):
            for key in [key for key in objects if key not in kept]:
                del objects[key]


_Cluster = tuple[str, int]
_Timer = tuple[float, int, ObjectKey]
"""When the delay of an object ends. The number makes timers of the same time differ."""


class _ClusterTurns:
    """The clusters that have an object to start, by priority, and the workers that are left for clusters that have an
    object in flight, or hang."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self.tenants: dict[_Cluster, Tenant] = {}
        """The engaged clusters, with their tenants."""
        tenant = self.tenants.__getitem__
        self._next: tuple[TenantTurns[_Cluster], ...] = tuple(TenantTurns(tenant) for _ in Priority)
        self._put_off: tuple[TenantTurns[_Cluster], ...] = tuple(TenantTurns(tenant) for _ in Priority)
        """Clusters whose turn came when no worker was left for them."""
        self._further = 0
        """The number of workers with an object of a cluster that had another one in flight, or hung."""

    def __getitem__(self, priority: Priority) -> TenantTurns[_Cluster]:
        return self._next[priority]

    def offer(self, cluster: _Cluster, queue: _ClusterQueue) -> None:
        """Queue the cluster for every priority in which it has ready objects."""
        for ready, turns, put_off in zip(queue.ready, self._next, self._put_off, strict=True):
            if ready and not (cluster in put_off and queue.is_next_further):
                put_off.discard(cluster)
                turns.add(cluster)

    def withdraw(self, cluster: _Cluster) -> None:
        for turns in (*self._next, *self._put_off):
            turns.discard(cluster)

    @property
    def left(self) -> int:
        """The number of workers left for clusters that have an object in flight, or hang."""
        kept = min(self._workers // 2, len(self.tenants))
        return max(1, self._workers - kept) - self._further

    def put_off(self, cluster: _Cluster, priority: Priority) -> None:
        self._put_off[priority].add(cluster)

    def resume(self) -> None:
        """Give clusters the turns that were put off, as far as workers are left for them."""
        if any(self._put_off) and (left := self.left) > 0:
            for turns, put_off in zip(self._next, self._put_off, strict=True):
                for cluster in [put_off.pop() for _ in range(left) if put_off][::-1]:
                    turns.add_first(cluster)

    def began(self, work: Work) -> None:
        self._further += work.is_further

    def freed(self, work: Work) -> None:
        self._further -= work.is_further


class WorkQueue:
    """The queue of one reconciler. `jitter` returns random numbers in [0, 1)."""

    def __init__(
        self,
        policy: QueuePolicy,
        jitter: Callable[[], float],
        now: float,
        *,
        per_cluster: int,
        workers: int,
        delay_failed: Callable[[ObjectKey, Exception], None] = lambda _key, _error: None,
    ) -> None:
        """`per_cluster`: maximum objects of one cluster in flight; `workers`: of all clusters, to which callers keep.
        `delay_failed` is called when `policy.delay_s` raises, or returns no delay; the exponential backoff applies
        then."""
        self._policy = policy
        self._per_cluster = per_cluster
        self._jitter = jitter
        self._delay_failed = delay_failed
        self._retries = TokenBucket(policy.retries, now)
        self._retry_at = now
        """When the bucket that all clusters share has a token again, if `take_next` found it empty."""
        self._open: set[_Cluster] = set()
        """The engaged clusters whose objects may be taken."""
        self._clusters: dict[_Cluster, _ClusterQueue] = {}
        """The queues of the clusters that have objects; of thousands of clusters, most have none."""
        self._turns = _ClusterTurns(workers)
        self._passed_over = [0] * len(Priority)
        """For each priority: how many objects were taken while some of it waited, since the last one of it."""
        self._timers: list[_Timer] = []
        self._uncompacted: list[_Timer] = []
        """A former `_timers`, whose current timers move to `_timers` a few at a time: there may be a million."""
        self._added = 0
        self._compact_at = 64

    # --- clusters ---

    def engage(self, cluster: str, incarnation: int, tenant: Tenant = ()) -> None:
        """Accept objects of the cluster. None is taken before `open` is called. By default, it is a tenant of its
        own."""
        self._turns.tenants.setdefault((cluster, incarnation), tenant or (cluster,))

    def open(self, cluster: str, incarnation: int) -> None:
        """Allow reconciles in the cluster to start, if it is engaged."""
        if (cluster, incarnation) in self._turns.tenants:
            self._open.add((cluster, incarnation))
            self._offer((cluster, incarnation))

    def is_open(self, cluster: str, incarnation: int) -> bool:
        """Return whether objects of the cluster may be taken."""
        return (cluster, incarnation) in self._open

    def drop(self, cluster: str, incarnation: int) -> None:
        """Forget every object of the cluster, and accept no more of them."""
        self._open.discard((cluster, incarnation))
        self._clusters.pop((cluster, incarnation), None)
        if (cluster, incarnation) in self._turns.tenants:
            self._turns.withdraw((cluster, incarnation))
            del self._turns.tenants[cluster, incarnation]

    def parked(self, cluster: str, incarnation: int) -> tuple[ObjectKey, ...]:
        """Return the parked objects of the cluster."""
        queue = self._clusters.get((cluster, incarnation))
        return () if queue is None else tuple(queue.parked)

    # --- objects ---

    def add(self, key: ObjectKey, now: float, priority: Priority = Priority.LIVE) -> None:
        """Make the object ready, now or as soon as it is neither in flight nor held, even if its retry was delayed.

        Ignored for a cluster that is not engaged.
        """
        cluster = key[:2]
        if cluster not in self._turns.tenants:
            return
        queue = self._clusters.get(cluster)
        if queue is None:
            queue = self._clusters[cluster] = _ClusterQueue()
        queue.stopped.pop(key, None)
        if key in queue.in_flight or key in queue.held:
            queue.dirty[key] = min(priority, queue.dirty.get(key, priority))
            return
        queue.delayed.pop(key, None)
        queue.parked.pop(key, None)
        before = next((other for other in _PRIORITIES if key in queue.ready[other]), None)
        if before is None:
            queue.ready[priority][key] = now
        elif priority < before:
            queue.ready[priority][key] = queue.ready[before].pop(key)
        self._offer(cluster)

    def unpark(self, key: ObjectKey, now: float) -> None:
        """Make an object ready if it is parked."""
        queue = self._clusters.get(key[:2])
        if queue is not None and key in queue.parked:
            self.add(key, now, Priority.BACKGROUND)

    def take_next(self, now: float) -> Work | None:
        """Return an object to reconcile, which is in flight until `done` is called; None if there is none now."""
        self._wake(now)
        self._turns.resume()
        late = [priority for priority in _PRIORITIES if self._passed_over[priority] >= _TURN - 1]
        for priority in (*late, *_PRIORITIES) if late else _PRIORITIES:
            if (work := self._take(priority, now)) is not None:
                self._passed_over[priority] = 0
                for other in _PRIORITIES:
                    if self._turns[other] and other is not priority:
                        self._passed_over[other] += 1
                return work
        return None

    def _take(self, priority: Priority, now: float) -> Work | None:
        turns = self._turns[priority]
        if priority is Priority.RETRY and turns and (wait_s := self._retries.wait_s(now)):
            self._retry_at = now + wait_s
            return None
        while turns:
            cluster = turns.pop()
            queue = self._clusters.get(cluster)
            if queue is None or not queue.ready[priority]:
                continue  # the cluster has no ready object of this priority any more
            if queue.is_next_further and self._turns.left <= 0:
                self._turns.put_off(cluster, priority)
                continue
            key, added_at = queue.ready[priority].popitem(last=False)
            work = Work(key, now - added_at, queue.failures.get(key, 0), queue.is_next_further)
            self._turns.began(work)
            queue.in_flight[key] = _InFlight(priority, now)
            if priority is Priority.RETRY:
                self._retries.take(now)
            if len(queue.in_flight) < self._per_cluster:
                self._offer(cluster)
            else:
                self._turns.withdraw(cluster)
            return work
        return None

    def done(self, key: ObjectKey, outcome: Outcome, now: float, *, is_held: bool = False) -> float | None:
        """Record the outcome of a reconcile. Return the delay before the next one, if there is a delay.

        With `is_held` the object is not taken before `settle` is called.
        """
        queue = self._clusters.get(key[:2])
        if queue is None or key not in queue.in_flight:
            return None  # the cluster was dropped during the reconcile
        taken = queue.in_flight.pop(key)
        if not isinstance(outcome, Interrupted):
            queue.hangs = isinstance(outcome, Failed) and now - taken.since >= _HANGS_S
        delay_s = self._recorded(queue, key, outcome, now)
        if delay_s is not None:
            retried = Priority.RETRY if isinstance(outcome, Failed) else taken.priority
            self._delay(queue, key, now + delay_s, retried)
        if is_held:
            queue.held.add(key)
        elif (dirty := queue.dirty.pop(key, None)) is not None:
            delay_s = None
            self.add(key, now, dirty)
        self._offer(key[:2])
        if queue.is_empty:
            del self._clusters[key[:2]]
        return delay_s

    def freed(self, work: Work) -> None:
        """Record that the worker that took an object is free: after `done`, also if its cluster was dropped."""
        self._turns.freed(work)

    def forget_stopped(self, key: ObjectKey) -> bool:
        """Forget an object that is not retried; return whether it was one."""
        queue = self._clusters.get(key[:2])
        if queue is None or queue.stopped.pop(key, None) is None:
            return False
        if queue.is_empty:
            del self._clusters[key[:2]]
        return True

    def is_stopped(self, key: ObjectKey) -> bool:
        """Return whether the object is reconciled again only when it changes."""
        queue = self._clusters.get(key[:2])
        return queue is not None and key in queue.stopped

    def waits(self, key: ObjectKey) -> bool:
        """Return whether the object is ready, delayed, parked or stopped, or has changed while it was in flight."""
        queue = self._clusters.get(key[:2])
        return queue is not None and any(key in waiting for waiting in (*queue.waiting, queue.dirty))

    def forget(self, key: ObjectKey) -> None:
        """Forget an object, unless it is in flight or held."""
        queue = self._clusters.get(key[:2])
        if queue is not None:
            for objects in (*queue.waiting, queue.failures):
                objects.pop(key, None)
            if queue.is_empty:
                del self._clusters[key[:2]]

    def count(self, cluster: str, incarnation: int) -> int:
        """Return the number of objects of the cluster that wait, are in flight, held or stopped."""
        queue = self._clusters.get((cluster, incarnation))
        return 0 if queue is None else queue.count

    def waiting(self, cluster: str, incarnation: int) -> tuple[ObjectKey, ...]:
        """Return the objects of the cluster that are neither in flight nor held. Of those that are ready, live changes
        come first, and then what has waited for longest."""
        queue = self._clusters.get((cluster, incarnation))
        return () if queue is None else tuple(chain.from_iterable(queue.waiting))

    def forget_waiting(self, cluster: str, incarnation: int, kept: Set[ObjectKey] = frozenset()) -> None:
        """Forget the objects of the cluster that are neither in flight nor held, except those to be `kept`."""
        queue = self._clusters.get((cluster, incarnation))
        if queue is not None:
            queue.forget_waiting(kept)
            self._turns.withdraw((cluster, incarnation))
            self._offer((cluster, incarnation))
            if queue.is_empty:
                del self._clusters[cluster, incarnation]

    def put_back(self, now: float) -> None:
        """Make the objects in flight ready again, because their reconciles ended without a call of `done`."""
        for queue in tuple(self._clusters.values()):
            for key, taken in tuple(queue.in_flight.items()):
                del queue.in_flight[key]
                self.add(key, now, min(taken.priority, queue.dirty.pop(key, taken.priority)))

    def settle(self, key: ObjectKey, now: float) -> None:
        """Release a held object. It is due at once if it changed while in flight or held, otherwise after its delay."""
        queue = self._clusters.get(key[:2])
        if queue is None or key not in queue.held:
            return
        queue.held.remove(key)
        if (dirty := queue.dirty.pop(key, None)) is not None:
            self.add(key, now, dirty)
        if queue.is_empty:
            del self._clusters[key[:2]]

    @property
    def next_at(self) -> float | None:
        """When to call `take_next` again, if nothing else happens."""
        due = [self._retry_at] if self._turns[Priority.RETRY] else []
        if (timer := self._next_timer) is not None:
            due.append(timer)
        return min(due, default=None)

    def retry_at(self, key: ObjectKey) -> float | None:
        """Return when the delay of the object ends; None if it is not delayed."""
        queue = self._clusters.get(key[:2])
        delayed = None if queue is None else queue.delayed.get(key)
        return None if delayed is None else delayed[0]

    # --- for metrics and health ---
    # Metrics are collected in another thread, so only copies are iterated, each made atomically by tuple().

    def __len__(self) -> int:
        """Return the number of objects that are ready."""
        return sum(len(ready) for queue in tuple(self._clusters.values()) for ready in queue.ready)

    def depth(self, priority: Priority) -> int:
        return sum(len(queue.ready[priority]) for queue in tuple(self._clusters.values()))

    @property
    def oldest(self) -> float | None:
        """When the longest-waiting ready object that may be taken became ready; None if there is none."""
        queues = (queue for cluster, queue in tuple(self._clusters.items()) if self.is_open(*cluster))
        times = (_first(ready) for queue in queues for ready in queue.ready)
        return min((first for first in times if first is not None), default=None)

    def stopped(self) -> Iterator[tuple[ObjectKey, str]]:
        """Return the objects that are not retried, with their errors."""
        for queue in tuple(self._clusters.values()):
            yield from tuple(queue.stopped.items())

    # --- internals ---

    @property
    def _first_timers(self) -> list[_Timer]:
        """The heap with the timer that is due first, which may not be current."""
        if self._timers and self._uncompacted:
            return min(self._timers, self._uncompacted)
        return self._timers or self._uncompacted

    @property
    def _next_timer(self) -> float | None:
        """When the first delay ends; earlier if many timers before it are not current."""
        for _ in range(_WOKEN_AT_ONCE):
            timers = self._first_timers
            if not timers or self._is_current(timers[0]):
                break
            heapq.heappop(timers)
        return timers[0][0] if (timers := self._first_timers) else None

    def _recorded(self, queue: _ClusterQueue, key: ObjectKey, outcome: Outcome, now: float) -> float | None:
        match outcome:
            case Failed(retry_after_s):
                failures = queue.failures[key] = queue.failures.get(key, 0) + 1
                if queue.retries is None:
                    queue.retries = TokenBucket(self._policy.cluster_retries, now)
                # The debt is bounded by one retry of each failing object, so that an object that changes all the time,
                # and thus never waits, does not delay the others.
                turn_s = queue.retries.charge(now, max_debt=len(queue.failures))
                return max(self._backoff_s(key, failures, retry_after_s), turn_s)
            case Done(requeue_after_s):
                queue.failures.pop(key, None)
                return None if requeue_after_s is None else max(requeue_after_s, self._policy.min_requeue_s)
            case Interrupted(again_after_s):
                return again_after_s
            case Stopped(message):
                queue.failures.pop(key, None)
                queue.stopped[key] = message
            case _:
                queue.failures.pop(key, None)
                queue.parked[key] = None
        return None

    def _backoff_s(self, key: ObjectKey, failures: int, retry_after_s: float | None) -> float:
        own = min(self._policy.max_delay_s, self._own_delay_s(key, failures))
        own *= 1.0 + self._policy.jitter * self._jitter()
        return delay_s(own, retry_after_s)

    def _own_delay_s(self, key: ObjectKey, failures: int) -> float:
        if self._policy.delay_s is not None:
            try:
                delay: object = call(self._policy.delay_s, failures)
                if isinstance(delay, int | float) and delay >= 0.0:
                    return float(delay)
                raise TypeError(f"QueuePolicy.delay_s returned {delay!r}: return seconds, a number of at least 0")  # noqa: TRY301
            except Exception as error:  # noqa: BLE001  (the author's code: an error there affects only this delay)
                self._delay_failed(key, error)
        return float(self._policy.first_delay_s * 2.0 ** min(failures - 1, 60))

    def _delay(self, queue: _ClusterQueue, key: ObjectKey, until: float, priority: Priority) -> None:
        queue.delayed[key] = until, priority
        self._added += 1
        heapq.heappush(self._timers, (until, self._added, key))
        # Timers of objects that became ready before their delay ended stay in the heap until then, unless there are
        # many.
        if self._uncompacted:
            for _ in range(_COMPACTED_AT_ONCE):
                # Without its last timer, a heap is a heap.
                if self._uncompacted and self._is_current(timer := self._uncompacted.pop()):
                    heapq.heappush(self._timers, timer)
            self._compact_at = 64 + 2 * len(self._timers)
        elif len(self._timers) > self._compact_at:
            self._uncompacted, self._timers = self._timers, []

    def _is_current(self, timer: _Timer) -> bool:
        at, _, key = timer
        queue = self._clusters.get(key[:2])
        return queue is not None and key in queue.delayed and queue.delayed[key][0] == at

    def _wake(self, now: float) -> None:
        for _ in range(_WOKEN_AT_ONCE):
            if (due := self._next_timer) is None or due > now:
                return
            timer = heapq.heappop(self._first_timers)
            if self._is_current(timer):
                at, _, key = timer
                self.add(key, at, self._clusters[key[:2]].delayed[key][1])

    def _offer(self, cluster: _Cluster) -> None:
        """Queue the cluster for every priority in which it has ready objects."""
        queue = self._clusters.get(cluster)
        if queue is not None and cluster in self._open and len(queue.in_flight) < self._per_cluster:
            self._turns.offer(cluster, queue)


def _first(ready: dict[ObjectKey, float]) -> float | None:
    """Return the first value, for another thread than the one that changes them: a hundred thousand are not copied."""
    while ready:
        with suppress(RuntimeError, StopIteration):  # changed meanwhile
            return next(iter(ready.values()))
    return None
