"""Controllers: one set of reconcilers for every engaged cluster of a fleet, or for a single cluster."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, TypeVar, overload

from prometheus_client import REGISTRY, CollectorRegistry

from milo_controllers.cache_budget import CacheBudget, CacheLimits
from milo_controllers.cluster_api import IDLE_S, USER_AGENT, ClusterApi
from milo_controllers.controller import Controller, ControllerSpec, Shared
from milo_controllers.event_log import EventLog
from milo_controllers.event_recorder import EventRecorder
from milo_controllers.fleet_view import ClusterCaches, FleetView
from milo_controllers.functions import check_plain, check_reconciler, check_timedelta
from milo_controllers.health import CacheProblem, ClusterProblem, FailingObject, Health
from milo_controllers.informer import Informer, InformerSpec
from milo_controllers.kinds import AnyKind, CacheKey, Document, Kind, kind_of
from milo_controllers.metrics import ControllerMetrics, InformerMetrics, QueueState
from milo_controllers.object_cache import Change, Index, IndexFunction, object_decoder
from milo_controllers.own_writes import OwnWrites
from milo_controllers.reconcile_call import Reconciler, stays_suspended
from milo_controllers.tracing import SpanTracer
from milo_controllers.watched import Mapper, Predicate, ReconcileTarget, WatchedKind
from milo_controllers.work_queue import Priority, QueuePolicy
from milo_discovery._failure_log import INTERVAL_S, FailureLog
from milo_discovery._task_groups import RunsInBackground, unwrap_single_error, wait_uninterrupted
from milo_discovery.client import DiscoveryClient
from milo_discovery.engaged_cluster import EngagedCluster
from milo_discovery.fleet import DiscoveryState, Fleet
from milo_discovery.model import Cluster
from milo_kube.api_server import Pools
from milo_kube.loop_watchdog import LoopWatchdog
from milo_kube.reflect.reflector import ReflectorPolicy

log = logging.getLogger("milo_controllers")

BLOCKED_S = 1.0
"""An event loop that is blocked for this long is logged."""

T = TypeVar("T")
DocumentReconciler = TypeVar("DocumentReconciler", bound=Reconciler[Document])

# Lists of one project are short, and most project control planes support streaming lists anyway.
_REFLECTION = ReflectorPolicy(page_size=500)
_FIRST_LIST_S = 30.0
"""A cluster whose first lists take longer does not answer, and controllers get ready without it."""
_THREADS = 64
_LOGGED_KINDS = 1024
WORKERS = 256
PER_CLUSTER = 4
TIMEOUT = timedelta(minutes=2)


class Clusters(Protocol):
    """The clusters that controllers run on: a Fleet, or a SingleCluster."""

    @property
    def discovery(self) -> DiscoveryState: ...

    def on_engage(self, handler: Callable[[EngagedCluster], Awaitable[None]], /) -> object: ...

    async def run(self) -> None: ...


class Election(Protocol):
    """An election that runs work on one replica at a time, such as LeaderElection."""

    async def run(self, work: Callable[[], Coroutine[Any, Any, None]], /) -> None: ...


Predicates = Predicate[T] | Sequence[Predicate[T]]


@overload
def watches(kind: str, *, map: Mapper[Document], on: Predicates[Document] = ()) -> WatchedKind: ...
@overload
def watches(kind: Kind[T], *, map: Mapper[T], on: Predicates[T] = ()) -> WatchedKind: ...
def watches(kind: AnyKind, *, map: Mapper[Any], on: Predicates[Any] = ()) -> WatchedKind:  # noqa: A002
    """Watch a kind; `map` returns the objects to reconcile for each change, in any cluster. `on`: which changes."""
    check_plain(map, "a mapper (map=)", "change")
    return WatchedKind(kind_of(kind), map, _predicates(on))


class _ClusterTasks:
    """An engaged cluster, while its informers and reconciles run."""

    __slots__ = (
        *(
            "_controllers",
            "api",
            "cluster",
            "engaged_at",
            "events",
            "incarnation",
            "informers",
            "own_writes",
            "tasks",
            "view",
        ),
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
        self.own_writes = OwnWrites()
        self.view = ClusterCaches(self)
        self.engaged_at = time.monotonic()
        self._controllers = controllers

    # --- called by its informers ---

    def changed(self, informer: Informer, change: Change) -> None:
        if self.own_writes:
            self.own_writes.changed(informer, change)
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
        clusters: Clusters | None = None,
        *,
        registry: CollectorRegistry = REGISTRY,
        resync: timedelta | None = timedelta(hours=10),
        max_clusters_in_metrics: int = 100,
        reporting_controller: str = "milo-controllers",
        cache_limits: CacheLimits = CacheLimits(),  # noqa: B008  (immutable)
        tracer: SpanTracer | None = None,
    ) -> None:
        """`clusters`: by default the Fleet of the daemon at MILO_DISCOVERY_ADDRESS.

        `resync`: how often every object is reconciled although nothing changed; None for never.
        `reporting_controller` is the name in events. `tracer`: an OpenTelemetry tracer; each reconcile is a span, whose
        children are its requests.
        """
        check_timedelta("resync", resync)
        self._client = DiscoveryClient() if clusters is None else None
        self._clusters: Clusters = clusters or Fleet(self._client, include_kubeconfigs=True)  # type: ignore[arg-type]
        self._resync = resync
        self._cache_limits = cache_limits
        self._tracer = tracer
        self._specs: list[tuple[ControllerSpec, Reconciler[Any]]] = []
        self._informers: dict[CacheKey, InformerSpec] = {}
        self._members: dict[str, _ClusterTasks] = {}
        self._controllers: list[Controller] = []
        self._incarnations = itertools.count(1)
        # The daemon's image, which publishes clusters by parts of this package, has no h2.
        from milo_kube.http.http2 import Http2Connection  # noqa: PLC0415

        self._pools = Pools(user_agent=USER_AGENT, idle_s=IDLE_S, http2=Http2Connection)
        self._metrics = ControllerMetrics.of(registry, max_clusters=max_clusters_in_metrics)
        self.registry = registry
        """The registry of the metrics."""
        self._budget = CacheBudget(cache_limits)
        self._threads: ThreadPoolExecutor | None = None
        self._crashes: dict[str, ClusterProblem] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leading: asyncio.Task[None] | None = None
        self._was_ready = False
        self._events = EventLog(reporting_controller, f"{socket.gethostname()}-{os.getpid()}")
        self._failures = FailureLog(max_kinds=_LOGGED_KINDS)
        self._has_run = False
        self.view = FleetView(self._members)
        """The caches of all engaged clusters."""
        self._clusters.on_engage(self._operate)

    # --- registration ---

    @overload
    def reconcile(
        self,
        kind: str,
        *,
        owns: Sequence[AnyKind] = (),
        watches: Sequence[WatchedKind] = (),
        on: Predicates[Any] = (),
        on_cluster_change: bool = False,
        workers: int = WORKERS,
        per_cluster: int = PER_CLUSTER,
        timeout: timedelta | None = TIMEOUT,
        name: str | None = None,
        queue: QueuePolicy = QueuePolicy(),  # noqa: B008  (immutable)
        while_deleting: bool = False,
    ) -> Callable[[DocumentReconciler], DocumentReconciler]: ...
    @overload
    def reconcile(
        self,
        kind: Kind[T],
        *,
        owns: Sequence[AnyKind] = (),
        watches: Sequence[WatchedKind] = (),
        on: Predicates[Any] = (),
        on_cluster_change: bool = False,
        workers: int = WORKERS,
        per_cluster: int = PER_CLUSTER,
        timeout: timedelta | None = TIMEOUT,
        name: str | None = None,
        queue: QueuePolicy = QueuePolicy(),  # noqa: B008  (immutable)
        while_deleting: bool = False,
    ) -> Callable[[Reconciler[T]], Reconciler[T]]: ...
    def reconcile(
        self,
        kind: AnyKind,
        *,
        owns: Sequence[AnyKind] = (),
        watches: Sequence[WatchedKind] = (),
        on: Predicates[Any] = (),
        on_cluster_change: bool = False,
        workers: int = WORKERS,
        per_cluster: int = PER_CLUSTER,
        timeout: timedelta | None = TIMEOUT,
        name: str | None = None,
        queue: QueuePolicy = QueuePolicy(),  # noqa: B008  (immutable)
        while_deleting: bool = False,
    ) -> Any:
        """Register a reconciler for the objects of a kind (a decorator): an async function, or a plain one.

        `owns`: kinds whose changes lead to a reconcile of their owner. `watches`: kinds whose changes are mapped, see
        `watches`. `on`: which changes of an object matter; all by default. `on_cluster_change`: reconcile the objects
        of a cluster when its labels, annotations or suspension change. `workers`: maximum concurrent reconciles;
        `per_cluster`: those in one cluster. `timeout`: of one reconcile; None for none. `name`: of the controller in
        logs and metrics. `while_deleting`: in projects whose deletion was requested, reconcile all objects and not only
        terminating ones.
        """
        self._require_new()
        if callable(kind):
            raise TypeError("@controllers.reconcile without a kind: write @controllers.reconcile(KIND)")
        primary = kind_of(kind)
        name = name or primary.plural
        check_timedelta(f"{name}: timeout", timeout)
        for option, given in (("owns", owns), ("watches", watches)):
            if isinstance(given, str | Kind | WatchedKind):
                raise TypeError(f"{name}: {option}= takes a list: write {option}=[{given!r}]")
        for option, number in (("workers", workers), ("per_cluster", per_cluster)):
            if number < 1:
                raise ValueError(f"{name}: {option}={number}: at least one reconcile has to run")
        for each in watches:
            if not isinstance(each, WatchedKind):
                raise TypeError(f"{name}: watches= takes what watches(kind, map=...) returns, not {each!r}")
        for required in (primary, *map(kind_of, owns), *(watched.kind for watched in watches)):
            self._require_informer(required, {})
        spec = ControllerSpec(
            name=name,
            kind=primary,
            owns=tuple(kind_of(owned).key for owned in owns),
            watches=tuple(watches),
            on=_predicates(on),
            on_cluster_change=on_cluster_change,
            while_deleting=while_deleting,
            workers=workers,
            per_cluster=min(per_cluster, workers),
            policy=queue,
            timeout_s=None if timeout is None else timeout.total_seconds(),
        )
        if any(spec.name == other.name for other, _ in self._specs):
            raise ValueError(f"a controller {spec.name!r} exists already: pass another name=")

        def register(reconciler: Reconciler[Any]) -> Reconciler[Any]:
            check_reconciler(reconciler)
            self._specs.append((spec, reconciler))
            return reconciler

        return register

    def cache(self, kind: AnyKind, *, indexes: Mapping[str, IndexFunction] | None = None) -> None:
        """Cache a kind for `Request.get` and `Request.list`, with indexes; or add them to one that is cached already.

        An index function takes an object as `Request.get` returns it, and returns a list of the values under which it
        is found.
        """
        self._require_new()
        for function in (indexes or {}).values():
            check_plain(function, "an index function", "object")
        kind = kind_of(kind)
        self._require_informer(kind, {name: Index(each, kind.decode) for name, each in (indexes or {}).items()})

    def _require_informer(self, kind: Kind[Any], indexes: dict[str, Index]) -> None:
        held = self._informers.get(kind.key)
        cached, indexes = (kind, indexes) if held is None else (_shared(held.kind, kind), {**held.indexes, **indexes})
        decoder = object_decoder(metadata_only=cached.metadata_only, transform=cached.transform)
        self._informers[kind.key] = InformerSpec(cached, indexes, decoder)

    def _require_new(self) -> None:
        if self._has_run:
            raise RuntimeError("the controllers are running: register reconcilers and caches before")

    # --- life cycle ---

    def _watchdog(self) -> LoopWatchdog:
        return LoopWatchdog(
            self._metrics.loop_delay.observe,
            blocked=lambda found: log.warning(
                "the event loop is blocked for %.1f s by a call that does not await (%s): every cluster waits. "
                "Make it async, or the reconciler a plain function, which runs in a thread\n%s",
                found.seconds,
                found.task,
                found.stack,
            ),
            was_blocked=lambda seconds: log.warning(
                "the event loop was blocked for %.1f s, in which nothing was reconciled", seconds
            ),
            blocked_s=BLOCKED_S,
        )

    async def run(self, *, election: Election | None = None) -> None:
        """Run until canceled. It returns or raises after all reconciles have ended.

        With `election`, reconciles run while this replica leads; caches are kept up to date before, so that it starts
        at once. Raises LeadershipLost.
        """
        self._require_new()
        self._has_run = True
        self._loop = asyncio.get_running_loop()
        shared = Shared(
            members=self._members,
            clusters=self.view,
            metrics=self._metrics,
            failures=self._failures,
            threads=self._executor,
            tracer=self._tracer,
        )
        self._controllers.extend(Controller(spec, reconciler, shared) for spec, reconciler in self._specs)
        self._metrics.state.sources.append(self)
        try:
            with unwrap_single_error(), self._watchdog():
                async with self._client or nullcontext(), asyncio.TaskGroup() as tasks:
                    leading = self._lead() if election is None else election.run(self._lead)
                    self._leading = tasks.create_task(leading, name="leader election")
                    helpers = [
                        self._leading,
                        tasks.create_task(self._log_summaries(), name="log repeated failures"),
                        tasks.create_task(self._resync_periodically(), name="resync"),
                    ]
                    await self._clusters.run()
                    for helper in helpers:
                        helper.cancel()
        finally:
            self._metrics.state.sources.remove(self)
            if self._threads is not None:
                self._threads.shutdown(wait=False)

    async def _lead(self) -> None:
        """Reconcile until canceled."""
        for controller in self._controllers:
            controller.resume()
        try:
            await asyncio.Event().wait()
        finally:
            await self._end_reconciles()

    async def drain(self, within: timedelta) -> None:
        """Begin no further reconciles, let the running ones end within this time, and stop leading.

        Another replica takes over from then on, while this one still has to let its clusters go.
        """
        for controller in self._controllers:
            controller.pause()
        running = [task for controller in self._controllers for task in controller.tasks]
        if running:
            await asyncio.wait(running, timeout=within.total_seconds())
        if self._leading is not None:
            self._leading.cancel()
            await asyncio.wait([self._leading])

    async def _end_reconciles(self) -> None:
        for controller in self._controllers:
            controller.pause()
        running = [task for controller in self._controllers for task in controller.tasks]
        for task in running:
            task.cancel()
        for task in running:
            await wait_uninterrupted(task)

    def _executor(self) -> ThreadPoolExecutor:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="reconcile")
        return self._threads

    def enqueue(self, target: ReconcileTarget, *, controller: str | None = None) -> None:
        """Reconcile an object, for a reason outside of its cluster: a timer, a queue, a webhook. Safe in any thread.

        `target.cluster` has to be set; a cluster that is not engaged is ignored. `controller`: one of them by its name;
        by default the only one.
        """
        if target.cluster is None:
            raise ValueError(f"{target!r} names no cluster")
        names = [spec.name for spec, _ in self._specs]
        if (controller is None and len(names) != 1) or (controller is not None and controller not in names):
            raise ValueError(f"controller={controller!r}: pass one of {', '.join(map(repr, names))}")
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._enqueue, target, controller)

    def _enqueue(self, target: ReconcileTarget, name: str | None) -> None:
        for controller in self._controllers:
            if name in (None, controller.spec.name):
                controller.enqueue(target)

    # --- health: safe in any thread ---

    def health(self) -> Health:
        """Return the state of discovery, caches, clusters and queues. Safe in any thread."""
        members = tuple(self._members.values())
        informers = [(member, informer) for member in members for informer in tuple(member.informers.values())]
        now = self.now()
        oldest = [since for each in self._controllers if (since := each.queue.oldest) is not None]
        discovery = self._clusters.discovery
        late = time.monotonic() - _FIRST_LIST_S
        is_waiting = any(informer.state == "starting" and member.engaged_at > late for member, informer in informers)
        # A cluster that is engaged later does not make the process unready.
        self._was_ready = self._was_ready or (discovery.synced and not is_waiting)
        return Health(
            ready=self._was_ready,
            discovery=discovery,
            clusters=len(members),
            synced=discovery.synced and all(informer.cache.synced for _, informer in informers),
            problems=tuple(
                CacheProblem(
                    cluster=member.cluster.name,
                    kind=str(informer.key),
                    state=informer.state,
                    is_synced=informer.cache.synced,
                    problem=informer.problem,
                    since=datetime.fromtimestamp(informer.since, UTC),
                )
                for member, informer in informers
                if informer.problem
            ),
            crashing=tuple(each for name, each in tuple(self._crashes.items()) if not self._has_recovered(name)),
            failing=sum(len(each.failures) for each in self._controllers),
            oldest_queued=timedelta(seconds=now - min(oldest, default=now)),
        )

    def _has_recovered(self, name: str) -> bool:
        """Return whether a cluster that has crashed has run for long enough."""
        member = self._members.get(name)
        return member is not None and member.engaged_at < time.monotonic() - _FIRST_LIST_S

    def failing(self) -> Iterator[FailingObject]:
        """Return the objects whose last reconcile failed. Safe in any thread."""
        now, wall = self.now(), time.time()
        for controller in self._controllers:
            for key, failure, retry_at in controller.failing():
                # One that is not delayed is ready, or in flight again.
                due = None if failure.is_stopped else wall + max(0.0, (retry_at or now) - now)
                yield FailingObject(
                    controller=controller.spec.name,
                    cluster=key.cluster,
                    namespace=key.namespace,
                    name=key.name,
                    error=failure.error,
                    attempts=failure.attempts,
                    since=datetime.fromtimestamp(failure.since, UTC),
                    next_try=None if due is None else datetime.fromtimestamp(due, UTC),
                )

    # --- clusters ---

    async def _operate(self, cluster: EngagedCluster) -> None:
        """Run the informers and reconciles of a cluster, until it is disengaged."""
        try:
            async with cluster.credentials() as credentials:
                api = ClusterApi(cluster.name, credentials, self._pools, proxy=cluster.proxy, tracer=self._tracer)
                try:
                    with unwrap_single_error():
                        async with asyncio.TaskGroup() as tasks:
                            await self._run_member(
                                _ClusterTasks(
                                    cluster,
                                    next(self._incarnations),
                                    api,
                                    EventRecorder(api, self._events),
                                    tasks=tasks,
                                    controllers=self._controllers,
                                )
                            )
                finally:
                    await api.aclose()
        except Exception as error:
            before = self._crashes.get(cluster.name)
            self._crashes[cluster.name] = ClusterProblem(
                cluster=cluster.name,
                problem=str(error) or repr(error),
                failures=1 if before is None else before.failures + 1,
                since=datetime.now(UTC) if before is None else before.since,
            )
            raise
        finally:
            if not cluster.engaged:
                self._crashes.pop(cluster.name, None)

    async def _run_member(self, member: _ClusterTasks) -> None:
        for key, spec in self._informers.items():
            member.informers[key] = Informer(member.api, spec, _REFLECTION, listener=member, budget=self._budget)
        self._members[member.cluster.name] = member
        for controller in self._controllers:
            controller.engage(member)
        try:
            for informer in member.informers.values():
                following = informer.run(member.api, _REFLECTION)
                member.tasks.create_task(following, name=f"{informer.key} of {member.cluster.name}")
            seen = member.cluster.current
            while True:
                before, seen = seen, await member.cluster.updated(since=seen)
                for controller in self._controllers:
                    if stays_suspended(before) and not stays_suspended(seen):
                        controller.unpark(member)
                    if controller.spec.on_cluster_change and _content(before) != _content(seen):
                        controller.resync(member, Priority.LIVE)
        finally:
            # Before the task group cancels the reconciles, so that no further ones begin.
            del self._members[member.cluster.name]
            member.own_writes.clear()
            for controller in self._controllers:
                controller.drop(member)

    # --- periodic work ---

    async def _log_summaries(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL_S)
            for failures, _, what in self._failures.summaries(asyncio.get_running_loop().time()):
                log.error("%s (%d times since it was last logged)", what, failures)

    async def _resync_periodically(self) -> None:
        if self._resync is None:
            return
        while True:
            await asyncio.sleep(self._resync.total_seconds())
            for member in tuple(self._members.values()):
                for controller in self._controllers:
                    controller.resync(member)
                await asyncio.sleep(0)

    # --- metrics: collected in another thread ---

    def now(self) -> float:
        return 0.0 if self._loop is None else self._loop.time()

    def queues(self) -> Iterable[QueueState]:
        return [QueueState(each.spec.name, each.queue, each.running) for each in self._controllers]

    def informers(self) -> Iterator[InformerMetrics]:
        for member in tuple(self._members.values()):
            for informer in tuple(member.informers.values()):
                yield InformerMetrics(informer.key.resource, informer.state, informer.counted_bytes)

    def clusters(self) -> int:
        return len(self._members)


def _predicates(on: Predicates[Any]) -> tuple[Predicate[Any], ...]:
    given = (on,) if isinstance(on, str) or callable(on) else tuple(on)
    for each in given:
        if callable(each):
            check_plain(each, "a predicate (on=)", "change")
        elif each not in ("generation", "labels", "annotations"):
            raise ValueError(f"on={each!r}: write generation, labels, annotations, or a function")
    return given


def _shared(held: Kind[Any], wanted: Kind[Any]) -> Kind[Any]:
    """Return the kind to cache for two users: whole objects if one of them needs these. Raises ValueError."""
    if held.transform is not wanted.transform:
        raise ValueError(f"{held.key} is cached with another transform=: use one Kind for both")
    return wanted if held.metadata_only else held


def _content(cluster: Cluster) -> tuple[object, ...]:
    """Return what `on_cluster_change` compares."""
    return dict(cluster.labels), dict(cluster.annotations), cluster.suspended
