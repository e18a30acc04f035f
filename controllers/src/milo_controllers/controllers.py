"""Controllers: one set of reconcilers for every engaged cluster of a fleet, or for a single cluster."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from datetime import timedelta
from functools import partial
from typing import Any, Protocol, TypeVar, overload, runtime_checkable

from prometheus_client import REGISTRY, CollectorRegistry

from milo_controllers.admission_review import AdmissionOperation
from milo_controllers.controller import Controller, Shared
from milo_controllers.engaged_clusters import EngagedClusters
from milo_controllers.event_log import EventLog
from milo_controllers.fleet_view import FleetView
from milo_controllers.functions import check_async, check_called_with, check_plain, check_reconciler, is_async
from milo_controllers.health import FailingObject, Health
from milo_controllers.health_check import HealthCheck
from milo_controllers.kinds import AnyKind, Document, Kind, kind_of
from milo_controllers.logs import log_with_stack
from milo_controllers.metrics import ControllerMetrics
from milo_controllers.object_cache import Index
from milo_controllers.options import check_options
from milo_controllers.reconcile_call import Reconciler
from milo_controllers.registration import BackgroundTask, ControllerSpec, Registration
from milo_controllers.waiting_limits import WaitingLimits
from milo_controllers.watched import Mapper, OwnedKind, Predicate, ReconcileTarget, WatchedKind, checked_target
from milo_controllers.webhooks import (
    FailurePolicy,
    ProjectClusters,
    Reviewer,
    Unknown,
    Webhook,
    Webhooks,
    WebhookType,
)
from milo_controllers.work_queue import QueuePolicy
from milo_discovery.client import DiscoveryClient
from milo_discovery.cluster_api import IDLE_S, USER_AGENT
from milo_discovery.engaged_cluster import EngagedCluster
from milo_discovery.fleet import DiscoveryState, Fleet
from milo_discovery.model import Cluster
from milo_discovery.tracing import SpanTracer
from milo_kube.api_server import Pools
from milo_kube.cache_budget import CacheBudget, CacheLimits
from milo_kube.change_signal import ChangeSignal
from milo_kube.failure_log import INTERVAL_S, FailureLog
from milo_kube.loop_watchdog import LoopWatchdog
from milo_kube.task_groups import (
    RunsInBackground,
    cancelled_from_outside,
    closed_from_outside,
    unwrap_single_error,
    wait_uninterrupted,
)
from milo_kube.user_code import not_an_exception
from milo_objects.object_index import IndexFunction

log = logging.getLogger("milo_controllers")

BLOCKED_S = 1.0
"""Minimum time for which a call has to block the event loop before it is logged."""

T = TypeVar("T")
DocumentReconciler = TypeVar("DocumentReconciler", bound=Reconciler[Document])
BackgroundT = TypeVar("BackgroundT", bound=Callable[[], Coroutine[Any, Any, object]])
DisengageHandlerT = TypeVar("DisengageHandlerT", bound=Callable[[EngagedCluster], Awaitable[None]])

_LOGGED_KINDS = 1024
WORKERS = 256
THREADS = 64
"""Maximum concurrent reconciles of a plain function, each in a thread."""
PER_CLUSTER = 4
TIMEOUT = timedelta(minutes=2)


class Clusters(Protocol):
    """The clusters that controllers run on: a Fleet, or a SingleCluster."""

    @property
    def discovery(self) -> DiscoveryState: ...

    @property
    def clusters(self) -> Mapping[str, object]:
        """The engaged clusters, by name."""

    def on_engage(self, handler: Callable[[EngagedCluster], Awaitable[None]], /) -> object: ...

    async def find(self, project: str, /) -> Cluster | None: ...

    def on_disengage(self, handler: Callable[[EngagedCluster], Awaitable[None]], /) -> object: ...

    async def run(self) -> None: ...


class Election(Protocol):
    """An election that runs work on one replica at a time, such as LeaderElection."""

    async def run(self, work: Callable[[], Coroutine[Any, Any, None]], /) -> None: ...


@runtime_checkable
class FencedElection(Election, Protocol):
    """An election that knows at any time, and in any thread, whether the work may continue."""

    @property
    def is_leader(self) -> bool: ...


Predicates = Predicate[T] | Sequence[Predicate[T]]


@overload
def watches(kind: str, *, map: Mapper[Document], on: Predicates[Document] = ()) -> WatchedKind: ...
@overload
def watches(kind: Kind[T], *, map: Mapper[T], on: Predicates[T] = ()) -> WatchedKind: ...
def watches(kind: AnyKind, *, map: Mapper[Any], on: Predicates[Any] = ()) -> WatchedKind:  # noqa: A002
    """Watch a kind; `map` returns the objects to reconcile for each change, in any cluster. `on` filters changes."""
    check_plain(map, "a mapper (map=)", "change")
    return WatchedKind(kind_of(kind), map, _predicates(on))


@overload
def owns(kind: str, *, on: Predicates[Document] = ()) -> OwnedKind: ...
@overload
def owns(kind: Kind[T], *, on: Predicates[T] = ()) -> OwnedKind: ...
def owns(kind: AnyKind, *, on: Predicates[Any] = ()) -> OwnedKind:
    """Own a kind, for `reconcile(owns=[...])`; `on` filters the changes that lead to a reconcile of the owner."""
    return OwnedKind(kind_of(kind), _predicates(on))


class Controllers(RunsInBackground):
    """A set of reconcilers, which run for every engaged cluster.

    Register them, then `await run()`, or use `async with controllers:` to run them while its body runs.
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

        `resync`: the interval at which every object is reconciled even without changes; None disables it.
        `reporting_controller`: the name of the controller in events. `tracer`: an OpenTelemetry tracer; each reconcile
        is a span, whose children are its requests.
        """
        check_options(
            "",
            clusters=clusters,
            registry=registry,
            resync=resync,
            max_clusters_in_metrics=max_clusters_in_metrics,
            reporting_controller=reporting_controller,
            cache_limits=cache_limits,
        )
        self._client = DiscoveryClient() if clusters is None else None
        self._clusters: Clusters = clusters or Fleet(self._client, include_kubeconfigs=True)  # type: ignore[arg-type]
        self._resync = resync
        self._registration = Registration()
        # Imported here because the daemon's image, which uses parts of this package to publish clusters, lacks h2.
        from milo_kube.http.http2 import Http2Connection  # noqa: PLC0415

        failures = FailureLog(max_kinds=_LOGGED_KINDS)
        self._engaged = EngagedClusters(
            self._registration.informers,
            pools=Pools(user_agent=USER_AGENT, idle_s=IDLE_S, http2=Http2Connection),
            budget=CacheBudget(cache_limits),
            events=EventLog(reporting_controller, f"{socket.gethostname()}-{os.getpid()}"),
            failures=failures,
            tracer=tracer,
        )
        self._health = HealthCheck(self._engaged, self._clusters)
        self.view = FleetView(self._engaged.members, self._clusters)
        """The caches of all engaged clusters."""
        self.registry = registry
        """The registry of the metrics."""
        self._shared = Shared(
            members=self._engaged.members,
            clusters=self.view,
            metrics=ControllerMetrics.of_registry(registry, max_clusters=max_clusters_in_metrics),
            failures=failures,
            waiting=WaitingLimits(cache_limits),
            read=self._registration.read,
            tracer=tracer,
            may_reconcile=self._engaged.may_reconcile,
        )
        self.webhooks = Webhooks(
            ProjectClusters(known=self._clusters.find, engaged=self._engaged.engaged), self._shared.failures
        )
        """What `validate` and `mutate` have registered; `main(webhooks=...)` serves it."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leading: asyncio.Task[object] | None = None
        self._failure: Exception | None = None
        """Why the controllers end, if by an error."""
        self._failed = ChangeSignal()
        self._clusters.on_engage(self._engaged.operate)

    # --- registration ---

    @overload
    def reconcile(
        self,
        kind: str,
        *,
        owns: Sequence[AnyKind | OwnedKind] = (),
        watches: Sequence[WatchedKind] = (),
        on: Predicates[Any] = (),
        on_cluster_change: bool = False,
        workers: int | None = None,
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
        owns: Sequence[AnyKind | OwnedKind] = (),
        watches: Sequence[WatchedKind] = (),
        on: Predicates[Any] = (),
        on_cluster_change: bool = False,
        workers: int | None = None,
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
        owns: Sequence[AnyKind | OwnedKind] = (),
        watches: Sequence[WatchedKind] = (),
        on: Predicates[Any] = (),
        on_cluster_change: bool = False,
        workers: int | None = None,
        per_cluster: int = PER_CLUSTER,
        timeout: timedelta | None = TIMEOUT,
        name: str | None = None,
        queue: QueuePolicy = QueuePolicy(),  # noqa: B008  (immutable)
        while_deleting: bool = False,
    ) -> Any:
        """Register a reconciler for the objects of a kind (a decorator): an async function, or a plain one.

        `owns`: kinds whose changes lead to a reconcile of their owner, see the function `owns`. `watches`: kinds whose
        changes are mapped to objects to reconcile, see the function `watches`. `on`: which changes of an object matter;
        all by default. `on_cluster_change`: reconcile the objects of a cluster when its labels, annotations or
        suspension change. `workers`: maximum concurrent reconciles, by default 256, or 64 (threads) of a plain
        function; `per_cluster`: the maximum in one cluster. `timeout`: time limit of one reconcile, or None for no
        limit. `name`: the name in logs and metrics. `while_deleting`: in projects whose deletion was requested,
        reconcile all objects and not only terminating ones.
        """
        self._registration.require_open()
        if callable(kind):
            raise TypeError("@controllers.reconcile without a kind: write @controllers.reconcile(KIND)")
        primary = kind_of(kind)
        check_options(primary.plural, name=name)
        name = primary.plural if name is None else name
        for option, given in (("owns", owns), ("watches", watches)):
            if isinstance(given, str | Kind | OwnedKind | WatchedKind):
                raise TypeError(f"{name}: {option}= takes a list: write {option}=[{given!r}]")
        check_options(
            name,
            owns=owns,
            watches=watches,
            on_cluster_change=on_cluster_change,
            workers=workers,
            per_cluster=per_cluster,
            timeout=timeout,
            queue=queue,
            while_deleting=while_deleting,
        )
        for watched in watches:
            if not isinstance(watched, WatchedKind):
                raise TypeError(f"{name}: watches= takes what watches(kind, map=...) returns, not {watched!r}")
        owned_kinds = tuple(owned if isinstance(owned, OwnedKind) else OwnedKind(kind_of(owned)) for owned in owns)
        for required in (primary, *(owned.kind for owned in owned_kinds), *(watched.kind for watched in watches)):
            self._registration.require_informer(required, {})
        spec = ControllerSpec(
            name=name,
            kind=primary,
            owns=owned_kinds,
            watches=tuple(watches),
            on=_predicates(on),
            on_cluster_change=on_cluster_change,
            while_deleting=while_deleting,
            per_cluster=per_cluster,
            policy=queue,
            timeout_s=None if timeout is None else timeout.total_seconds(),
        )
        self._registration.require_new_name(name)

        def register(reconciler: Reconciler[Any]) -> Reconciler[Any]:
            check_reconciler(reconciler)
            limit = workers or (WORKERS if is_async(reconciler) else THREADS)
            limited = spec._replace(workers=limit, per_cluster=min(per_cluster, limit))
            self._registration.reconcilers.append((limited, reconciler))
            return reconciler

        return register

    def validate(
        self,
        kind: Kind[T] | str,
        *,
        operations: Sequence[AdmissionOperation] = ("CREATE", "UPDATE"),
        subresource: str = "",
        unknown: Unknown = "allow",
        failure_policy: FailurePolicy = "Fail",
        name: str | None = None,
    ) -> Callable[[Reviewer[T]], Reviewer[T]]:
        """Register a validator of writes (a decorator), which is called for each before it is stored, in any project.

        It gets a `Review`, and raises `Deny` to deny the write. `unknown`: what to answer without calling it if no
        daemon has engaged the project, or the write is to the core API. `failure_policy`: what the API server does if
        no replica answers, for `milo-discovery webhooks`.
        """
        options = {"operations": operations, "subresource": subresource, "unknown": unknown}
        return self._webhook(WebhookType.VALIDATING, kind, name, failure_policy=failure_policy, **options)

    def mutate(
        self,
        kind: Kind[T] | str,
        *,
        operations: Sequence[AdmissionOperation] = ("CREATE", "UPDATE"),
        subresource: str = "",
        unknown: Unknown = "allow",
        failure_policy: FailurePolicy = "Fail",
        name: str | None = None,
    ) -> Callable[[Reviewer[T]], Reviewer[T]]:
        """Register a mutator of writes (a decorator): as `validate`, and its changes of `review.object` are stored."""
        options = {"operations": operations, "subresource": subresource, "unknown": unknown}
        return self._webhook(WebhookType.MUTATING, kind, name, failure_policy=failure_policy, **options)

    def _webhook(
        self, type_: WebhookType, kind: Kind[T] | str, name: str | None, **options: Any
    ) -> Callable[[Reviewer[T]], Reviewer[T]]:
        self._registration.require_open()
        if callable(kind):
            raise TypeError(f"@controllers.{type_.value} without a kind: write @controllers.{type_.value}(KIND)")
        reviewed: Kind[T] = kind_of(kind)
        if reviewed.key != (resource := kind_of(reviewed.resource).key):
            raise ValueError(
                f"@controllers.{type_.value} is called for all {resource}, not only {reviewed.key}: leave out "
                "selector=, field_selector= and namespace=, and look at review.object"
            )
        check_options(reviewed.plural, webhook_name=name, **options)
        label = name or reviewed.plural.replace(".", "-")
        operations = tuple(options.pop("operations"))

        def register(reviewer: Reviewer[T]) -> Reviewer[T]:
            check_called_with(reviewer, "a validator or mutator", "review")
            self.webhooks.add(Webhook(type_, label, reviewed, operations, reviewer=reviewer, **options))
            return reviewer

        return register

    def cache(self, kind: AnyKind, *, indexes: Mapping[str, IndexFunction] | None = None) -> None:
        """Cache a kind for `Request.get` and `Request.list`, with indexes; or add indexes to a kind that is cached.

        An index function takes an object as `Request.get` returns it, and returns a list of the values under which the
        object is found.
        """
        self._registration.require_open()
        for function in (indexes or {}).values():
            check_plain(function, "an index function", "object")
        kind = kind_of(kind)
        self._registration.read.add(kind.key)
        self._registration.require_informer(
            kind, {name: Index(indexed_by, kind.decode) for name, indexed_by in (indexes or {}).items()}
        )

    def background(self, *, leader_only: bool = True) -> Callable[[BackgroundT], BackgroundT]:
        """Run an async function beside the reconcilers (a decorator): canceled at the end, which its error causes.

        With an election it runs while this replica leads, or on each replica with `leader_only=False`.
        """
        self._registration.require_open()
        check_options("background", leader_only=leader_only)

        def register(function: BackgroundT) -> BackgroundT:
            check_async(function, "a background task")
            self._registration.background.append(BackgroundTask(function, leader_only))
            return function

        return register

    def on_disengage(self, handler: DisengageHandlerT) -> DisengageHandlerT:
        """Register an async function (a decorator) that is called after each disengagement of a cluster.

        Its reconciles have ended, and those of the next engagement of the name wait: `cluster.disengage_reason` is
        why. Not called at the end of the program. An error is logged.
        """
        self._registration.require_open()
        check_async(handler, "a handler of disengagements", "cluster")

        async def ended(cluster: EngagedCluster) -> None:
            task = asyncio.current_task()
            try:
                await handler(cluster)
            except (SystemExit, GeneratorExit) as error:  # as of a reconciler: a library must not end the process
                if isinstance(error, GeneratorExit) and closed_from_outside(task):
                    raise
                raise not_an_exception(error) from None

        self._clusters.on_disengage(ended)
        return handler

    # --- life cycle ---

    def _watchdog(self) -> LoopWatchdog:
        return LoopWatchdog(
            self._shared.metrics.loop_delay.observe,
            blocked=lambda found: log_with_stack(
                log,
                logging.WARNING,
                found.stack,
                "the event loop has been blocked for %.1f s by a call that does not await (%s): every cluster waits. "
                "Make the call async, or the reconciler a plain function, which runs in a thread",
                found.seconds,
                found.task,
            ),
            was_blocked=lambda seconds: log.warning(
                "the event loop was blocked for %.1f s, in which nothing was reconciled", seconds
            ),
            blocked_s=BLOCKED_S,
        )

    async def run(self, *, election: Election | None = None) -> None:
        """Run until canceled. It returns or raises after all reconciles have ended.

        With `election`, reconciles run only while this replica leads. Caches are kept up to date before that too, so
        that reconciles can start at once. Raises LeadershipLost.
        """
        self._registration.close()
        self._loop = asyncio.get_running_loop()
        fence = election if isinstance(election, FencedElection) else None
        self._engaged.begin(
            (Controller(spec, reconciler, self._shared) for spec, reconciler in self._registration.reconcilers),
            is_leader=lambda: fence is None or fence.is_leader,
        )
        self._shared.metrics.state.sources.append(self._engaged)
        try:
            with unwrap_single_error(), self._watchdog():
                async with self._client or nullcontext(), asyncio.TaskGroup() as tasks:
                    leading = self._lead if election is None else partial(election.run, self._lead)
                    self._leading = tasks.create_task(self._in_background(leading), name="leader election")
                    helpers = [
                        self._leading,
                        tasks.create_task(self._log_summaries(), name="log repeated failures"),
                        tasks.create_task(self._resync_periodically(), name="resync"),
                        tasks.create_task(self._follow_discovery(), name="failure of discovery"),
                        *self._start_background(tasks, leader_only=False),
                    ]
                    await self._clusters.run()
                    for helper in helpers:
                        helper.cancel()
        finally:
            self._shared.metrics.state.sources.remove(self._engaged)
            self._loop = None
            for controller in self._engaged.controllers:
                controller.close()

    async def _lead(self) -> None:
        """Reconcile until canceled."""
        for controller in self._engaged.controllers:
            controller.resume()
        running: Sequence[asyncio.Task[None]] = ()
        try:
            with unwrap_single_error():
                async with asyncio.TaskGroup() as tasks:
                    self._start_background(tasks, leader_only=True)
                    try:
                        await asyncio.Event().wait()
                    finally:  # before the group waits for the background tasks, whose cleanup may take long
                        running = self._engaged.pause()
                        for task in running:
                            task.cancel()
        finally:
            for task in running:
                await wait_uninterrupted(task)
            await self._engaged.flush_events()  # while this replica leads, since only then it may write

    def _start_background(self, tasks: asyncio.TaskGroup, *, leader_only: bool) -> list[asyncio.Task[object]]:
        return [
            tasks.create_task(self._in_background(background.function), name=f"background {background.function!r}")
            for background in self._registration.background
            if background.leader_only == leader_only
        ]

    async def _in_background(self, function: Callable[[], Coroutine[Any, Any, object]]) -> object:
        try:
            return await function()
        except asyncio.CancelledError as cancelled:
            if cancelled_from_outside():
                raise
            error = RuntimeError(f"{function!r} was canceled, but not by the controllers")
            self._fail(error)
            raise error from cancelled
        except Exception as error:
            self._fail(error)
            raise
        except (GeneratorExit, KeyboardInterrupt):
            raise
        except BaseException as raised:  # noqa: BLE001  (the author's code)
            failure = not_an_exception(raised)
            self._fail(failure)
            raise failure from None

    async def _follow_discovery(self) -> None:
        if isinstance(self._clusters, Fleet):
            self._fail(await self._clusters.failed())

    def _fail(self, error: Exception) -> None:
        self._failure = self._failure or error
        self._failed.notify()

    async def failed(self) -> Exception:
        """Wait until an error ends the controllers, and return it. `run` raises it once all reconciles, which are
        canceled, have ended."""
        await self._failed.wait_for(lambda: self._failure is not None)
        assert self._failure is not None
        return self._failure

    async def drain(self, within: timedelta) -> None:
        """Start no further reconciles, wait for the running ones for up to `within`, and stop leading.

        From then on another replica can take over, while this replica still releases its clusters.
        """
        running = self._engaged.pause()
        if running:
            await asyncio.wait(running, timeout=within.total_seconds())
        if self._leading is not None:
            self._leading.cancel()
            await asyncio.wait([self._leading])

    def enqueue(self, target: ReconcileTarget, *, controller: str | None = None) -> None:
        """Reconcile an object, for a reason outside of its cluster: a timer, a queue, a webhook. Safe in any thread.

        `target.cluster` has to be set. Ignored unless the controllers run and `view` has that cluster: not from its
        engagement, but from when its caches begin to be filled.
        `controller`: the name of the controller, required if there are several.
        """
        if target.cluster is None:
            raise ValueError(f"{target!r} has no cluster: set it to the name of an engaged cluster")
        names = [spec.name for spec, _ in self._registration.reconcilers]
        if (controller is None and len(names) != 1) or (controller is not None and controller not in names):
            known = f"pass one of {', '.join(map(repr, names))}" if names else "no controller is registered"
            raise ValueError(f"controller={controller!r}: {known}")
        target, loop = checked_target(target), self._loop
        if loop is not None:
            with suppress(RuntimeError):  # the event loop was closed
                loop.call_soon_threadsafe(self._enqueue, target, controller)

    def _enqueue(self, target: ReconcileTarget, name: str | None) -> None:
        for controller in self._engaged.controllers:
            if name in (None, controller.spec.name):
                controller.enqueue(target)

    # --- health: safe in any thread ---

    def health(self) -> Health:
        """Return the state of discovery, caches, clusters and queues. Safe in any thread."""
        return self._health.health()

    def failing(self) -> Iterator[FailingObject]:
        """Return the objects whose last reconcile failed. Safe in any thread."""
        return self._health.failing()

    # --- periodic work ---

    async def _log_summaries(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL_S)
            for failures, _, what in self._shared.failures.summaries(asyncio.get_running_loop().time()):
                log.error("%s (%d times since it was last logged)", what, failures)

    async def _resync_periodically(self) -> None:
        if self._resync is None:
            return
        while True:
            await asyncio.sleep(self._resync.total_seconds())
            await self._engaged.resync()


def _predicates(on: Predicates[Any]) -> tuple[Predicate[Any], ...]:
    check_options("", on=on)
    given = (on,) if isinstance(on, str) or callable(on) else tuple(on)
    for predicate in given:
        if callable(predicate):
            check_plain(predicate, "a predicate (on=)", "change")
        elif predicate not in ("generation", "labels", "annotations"):
            raise ValueError(f"on={predicate!r}: write generation, labels, annotations, or a function")
    return given
