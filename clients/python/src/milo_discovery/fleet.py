"""One task per engaged cluster: started when the cluster is engaged, canceled when it is disengaged.

The task corresponds to the context that multicluster-runtime passes to Engage: its cancellation ends all work on the
cluster. A draining cluster is released to the daemon only after the task has ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, Literal, Protocol, TypeVar, Unpack, runtime_checkable

from milo_discovery._grpc_status import NOT_RETRYABLE
from milo_discovery.api_clients import ApiClients
from milo_discovery.engaged_cluster import EngagedCluster
from milo_discovery.errors import ClusterNotFound, DiscoveryError, HandlerFailed
from milo_discovery.events import Connected, Disconnected, Event, Refreshed, StreamNotice, Synced
from milo_discovery.model import (
    Cluster,
    ClusterReport,
    DisengageReason,
    EngagementReason,
    EventType,
    SourceFreshness,
)
from milo_discovery.options import WatchOptions
from milo_kube.backoff import BackoffPolicy, StreamBackoff
from milo_kube.change_signal import ChangeSignal
from milo_kube.failure_log import INTERVAL_S, FailureLog
from milo_kube.task_groups import RunsInBackground, cancelled_from_outside, unwrap_single_error
from milo_kube.user_code import not_an_exception

log = logging.getLogger("milo_discovery.fleet")

HandlerT = TypeVar("HandlerT", bound=Callable[[EngagedCluster], Awaitable[None]])

OnError = Literal["restart", "raise"] | Callable[[EngagedCluster, Exception], bool]
"""What happens when a handler raises. "restart": log the error and restart the handler after a backoff. "raise": end
the Fleet with HandlerFailed. A function: called with the error, returns whether to restart the handler."""


class ClusterFeed(Protocol):
    """The events of a watch, and the release of draining clusters."""

    @property
    def subscriber(self) -> str: ...
    async def release(self, cluster: Cluster) -> None: ...
    def feed(self) -> AsyncGenerator[Event | StreamNotice, None]: ...


@runtime_checkable
class ReportsFreshness(Protocol):
    """A feed that also tells how current the daemon's view of its sources is."""

    @property
    def freshness(self) -> SourceFreshness: ...
    async def freshness_changed(self, since: SourceFreshness) -> SourceFreshness: ...


@runtime_checkable
class ReportsOwnership(Protocol):
    """A feed that also tells whether the daemon owns its clusters."""

    @property
    def is_owner(self) -> bool: ...


class FleetClient(Protocol):
    """The part of a DiscoveryClient that a Fleet uses."""

    @property
    def api_clients(self) -> ApiClients: ...
    async def end_subscription(self, subscriber: str) -> None: ...
    async def get(self, name: str) -> ClusterReport: ...
    def watch(self, **options: Unpack[WatchOptions]) -> AbstractAsyncContextManager[ClusterFeed]: ...


OnDrain = Literal["cancel", "wait"]
"""What happens to the handler of a cluster that is about to be disengaged. "cancel": it is canceled at once. "wait":
it finishes its work and returns (see `EngagedCluster.drained`), and is canceled if it is still running at the
deadline."""

_END_LIMIT_S = 1.0
RESTARTS = BackoffPolicy(initial=timedelta(seconds=1), maximum=timedelta(minutes=1), healthy=timedelta(minutes=2))
"""When a handler that failed is restarted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscoveryState:
    """The state of the connection to the daemon."""

    connected: bool
    """Whether the engaged clusters are followed. After a reconnect without a resume, not before their snapshot."""
    synced: bool
    """Whether the engaged clusters are known: not before the first complete view has arrived. After OWNERSHIP_LOST, not
    before the next one, and not after the end of the Fleet."""
    since: datetime
    """Since when they are followed, or when the daemon was last heard."""
    problem: str = ""
    """Why they are not followed; empty if they are."""
    freshness: SourceFreshness = field(default_factory=SourceFreshness)
    """How current the daemon's view of its sources is, as last received."""


@dataclass(slots=True)
class _Member:
    cluster: EngagedCluster
    task: asyncio.Task[None] | None = None
    is_cancelled: bool = False
    releasing: asyncio.Task[None] | None = None

    def cancel(self) -> None:
        """Cancel the handler once: a second cancellation would interrupt its cleanup."""
        if self.task is not None and not self.is_cancelled:
            self.is_cancelled = True
            self.task.cancel()


class Fleet(RunsInBackground):
    """The engaged clusters, with a handler that runs in a task per cluster.

    A handler that returns is not called again while the same cluster is engaged. An update does not restart it:
    `cluster.updated()` waits for changes. A cluster that is engaged again gets a new call, which begins after the
    previous one has ended.

    A planned disengagement waits for the handler: it begins with `cluster.draining`, the handler is ended according to
    `on_drain`, and the Fleet then releases the cluster. The cluster's credentials work until then, but at most until
    the deadline.
    """

    def __init__(
        self,
        client: FleetClient,
        *,
        on_error: OnError = "restart",
        on_drain: OnDrain = "cancel",
        backoff: BackoffPolicy | None = None,
        **options: Unpack[WatchOptions],
    ) -> None:
        self._client = client
        self._on_error = on_error
        self._on_drain = on_drain
        self._backoff_policy = backoff or RESTARTS
        self._options = options
        self._handler: Callable[[EngagedCluster], Awaitable[None]] | None = None
        self._disengage_handler: Callable[[EngagedCluster], Awaitable[None]] | None = None
        self._members: dict[str, _Member] = {}
        self._unfinished: dict[str, set[asyncio.Task[None]]] = {}
        self._state: Literal["new", "running", "synced", "ended"] | Exception = "new"
        """An Exception is why the Fleet ends or has ended."""
        self._signal = ChangeSignal()
        self.discovery = DiscoveryState(
            connected=False, synced=False, since=datetime.now(UTC), problem="not connected yet"
        )
        """The state of the connection to the daemon."""
        self._failures = FailureLog()
        self._summary_timer: asyncio.TimerHandle | None = None

    def on_engage(self, handler: HandlerT) -> HandlerT:
        """Register the handler (a decorator): called for each engaged cluster, canceled when it is disengaged."""
        if self._handler is not None or self._state != "new":
            raise RuntimeError("a Fleet has only one handler, which must be registered before the Fleet runs")
        self._handler = handler
        return handler

    def on_disengage(self, handler: HandlerT) -> HandlerT:
        """Register a function (a decorator) that is called after each disengagement, with `cluster.disengage_reason`.

        It is called when the handler of the engagement has ended, and before that of the next one of the name begins,
        but not at the end of the program. An error is logged.
        """
        if self._disengage_handler is not None or self._state != "new":
            raise RuntimeError("a Fleet has only one on_disengage, which must be registered before the Fleet runs")
        self._disengage_handler = handler
        return handler

    @property
    def clusters(self) -> Mapping[str, EngagedCluster]:
        """The currently engaged clusters by name."""
        return MappingProxyType({name: member.cluster for name, member in tuple(self._members.items())})

    def get(self, name: str) -> EngagedCluster:
        """Return the engaged cluster of this name, the same object that its handler got. Raises ClusterNotFound."""
        member = self._members.get(name)
        if member is None:
            raise ClusterNotFound(f"cluster {name!r} is not engaged", code="NOT_FOUND")
        return member.cluster

    async def find(self, name: str, /) -> Cluster | None:
        """Return a cluster as the daemon knows it, if it, or another daemon of its shard group, has engaged it.

        Raises Unavailable if the daemon does not answer, and other errors of its call.
        """
        if not name:
            return None
        try:
            report = await self._client.get(name)
        except ClusterNotFound:
            return None
        is_owned = report.engagement.engaged or report.engagement.reason is EngagementReason.UNASSIGNED
        # A daemon of a shard group may know no more than the name of a cluster that another one has engaged.
        return (report.cluster or Cluster(name=name)) if is_owned else None

    async def synced(self) -> None:
        """Wait until the Fleet has received the first complete view."""
        await self._signal.wait_for(lambda: self._state not in ("new", "running"))
        if self._state != "synced":
            raise RuntimeError("the Fleet has ended")

    async def discovery_changed(self, since: DiscoveryState) -> DiscoveryState:
        """Wait until `discovery` differs from `since`, and return it."""
        await self._signal.wait_for(lambda: self.discovery != since)
        return self.discovery

    async def failed(self) -> Exception:
        """Wait until an error that a retry cannot fix ends the Fleet, and return it. `run` raises it once all handlers,
        which are canceled, have ended."""
        await self._signal.wait_for(lambda: isinstance(self._state, Exception))
        assert isinstance(self._state, Exception)
        return self._state

    async def run(self) -> None:
        """Run until canceled. Raises errors that a retry cannot fix, and HandlerFailed with on_error="raise".

        It returns or raises only after all handlers have ended.
        """
        if self._state != "new":
            raise RuntimeError("a Fleet can run only once: create a new Fleet")
        options = self._options.copy()
        options.setdefault("confirm_releases", self._handler is not None)
        subscriber = ""
        following: asyncio.Task[None] | None = None
        self._state = "running"
        try:
            with unwrap_single_error():
                async with self._client.watch(**options) as watch, asyncio.TaskGroup() as tasks:
                    subscriber = watch.subscriber
                    if isinstance(watch, ReportsFreshness):
                        following = tasks.create_task(self._follow_freshness(watch), name="freshness of discovery")
                    try:
                        async with aclosing(watch.feed()) as feed:
                            async for item in feed:
                                self._apply(item, watch, tasks)
                    except Exception as error:
                        self._fail(error)
                        raise
                    finally:
                        if not isinstance(self._state, Exception):
                            self._connected(False, "the Fleet has ended")
                    if following is not None:
                        following.cancel()
                    # The client was closed, so no more events will arrive.
                    subscriber = ""
                    self._lose_view()
                    for name in tuple(self._members):
                        self._disengage(name)
        finally:
            if not isinstance(self._state, Exception):
                self._state = "ended"
            self._log_failure_summaries(final=True)
            self._lose_view()
            for member in self._members.values():
                member.cluster.disengage()
            self._members.clear()
            self._signal.notify()
            if subscriber:
                await self._end_subscription(subscriber)

    async def _follow_freshness(self, watch: ReportsFreshness) -> None:
        seen = watch.freshness
        while True:
            self.discovery = replace(self.discovery, freshness=seen)
            self._signal.notify()
            seen = await watch.freshness_changed(since=seen)

    async def _end_subscription(self, subscriber: str) -> None:
        """Notify the daemon that all handlers have ended, which it would otherwise detect only after a while."""
        with suppress(DiscoveryError, TimeoutError):
            async with asyncio.timeout(_END_LIMIT_S):
                await self._client.end_subscription(subscriber)

    def _apply(self, item: Event | StreamNotice, watch: ClusterFeed, tasks: asyncio.TaskGroup) -> None:
        match item:
            case Event(type=EventType.ENGAGED):
                self._engage(self._engagement(item, watch), tasks)
                self._drain(item.cluster.name, watch, tasks)
            case Event(type=EventType.DISENGAGED):
                if item.reason is DisengageReason.OWNERSHIP_LOST:
                    self._lose_view()  # first: another thread sees that a cluster is missing
                is_snapshot = self.discovery.synced and not self.discovery.connected
                cluster = self._disengage(item.cluster.name, item.reason, is_reported=not is_snapshot)
                if self._disengage_handler is not None:
                    previous = self._unfinished_tasks(cluster.name)
                    handling = self._handle_disengagement(self._disengage_handler, cluster, previous)
                    self._start(cluster, handling, tasks)
            case Event(type=EventType.KUBECONFIG):
                self._members[item.cluster.name].cluster.refresh(item.cluster, item.kubeconfig)
            case Event() | Refreshed():
                self._members[item.cluster.name].cluster.refresh(item.cluster)
                self._drain(item.cluster.name, watch, tasks)
            case Synced():
                # What the same batch said of the sources: which of them are not in this view.
                freshness = watch.freshness if isinstance(watch, ReportsFreshness) else SourceFreshness()
                self.discovery = replace(self.discovery, synced=True, freshness=freshness)
                if not self.discovery.connected:
                    self._connected(True)
                if self._state == "running":
                    self._state = "synced"
                self._signal.notify()
            case Connected(resumed=resumed):
                log.info("connected to the daemon")
                is_current = resumed or not self.discovery.synced
                self._connected(is_current, "" if is_current else "the daemon has not sent its clusters yet")
            case Disconnected(error=error):
                log.warning("no stream from the daemon; retrying: %s", error)
                self._connected(False, str(error), at=item.heard_at)

    def _lose_view(self) -> None:
        """Record that clusters can be missing."""
        self.discovery = replace(self.discovery, synced=False)
        self._signal.notify()

    def _connected(self, connected: bool, problem: str = "", *, at: datetime | None = None) -> None:
        since = at or datetime.now(UTC) if connected != self.discovery.connected else self.discovery.since
        self.discovery = replace(self.discovery, connected=connected, since=since, problem=problem)
        self._signal.notify()

    def _engagement(self, event: Event, watch: ClusterFeed) -> EngagedCluster:
        feed = watch if isinstance(watch, ReportsOwnership) else None
        return EngagedCluster(
            event.cluster,
            event.kubeconfig,
            self._client.api_clients,
            is_owned=lambda: feed is None or feed.is_owner,
        )

    def _engage(self, cluster: EngagedCluster, tasks: asyncio.TaskGroup) -> None:
        if self._handler is None or cluster.draining is not None:
            self._members[cluster.name] = _Member(cluster)
            return
        handling = self._run_handler(self._handler, cluster, self._unfinished_tasks(cluster.name))
        self._members[cluster.name] = _Member(cluster, self._start(cluster, handling, tasks))

    def _start(
        self, cluster: EngagedCluster, handling: Coroutine[Any, Any, None], tasks: asyncio.TaskGroup
    ) -> asyncio.Task[None]:
        """Start a task that the next handler of the same cluster name awaits."""
        task = tasks.create_task(handling, name=f"cluster {cluster.name}")
        self._unfinished.setdefault(cluster.name, set()).add(task)
        task.add_done_callback(lambda done: self._finished(cluster.name, done))
        return task

    def _unfinished_tasks(self, name: str) -> tuple[asyncio.Task[None], ...]:
        return tuple(self._unfinished.get(name, ()))

    def _drain(self, name: str, watch: ClusterFeed, tasks: asyncio.TaskGroup) -> None:
        """End the handler of a draining cluster, and start its release. The daemon awaits a release each time that it
        sends the cluster."""
        member = self._members[name]
        if member.cluster.draining is None:
            return
        if self._on_drain == "cancel":
            member.cancel()
        if member.releasing is None or member.releasing.done():
            member.releasing = tasks.create_task(self._release(member.cluster, watch), name=f"release {name}")

    async def _release(self, cluster: EngagedCluster, watch: ClusterFeed) -> None:
        """Release a draining cluster once its handlers have ended."""
        while unfinished := self._unfinished.get(cluster.name):
            await asyncio.wait(tuple(unfinished))
        backoff = StreamBackoff(BackoffPolicy())
        released: Cluster | None = None
        while released is None or released.incarnation != cluster.current.incarnation:
            released = cluster.current
            try:
                await watch.release(released)
            except (*NOT_RETRYABLE, ClusterNotFound) as error:
                # If another daemon has taken over, it sends the cluster again with its own incarnation.
                log.info("cluster %s was not released: %s", cluster.name, error)
            except Exception as error:
                if isinstance(error, DiscoveryError):
                    log.debug("release of cluster %s failed; retrying: %s", cluster.name, error)
                else:
                    log.exception("release of cluster %s failed; retrying", cluster.name)
                released = None
                await asyncio.sleep(backoff.failed(ran=timedelta()).total_seconds())

    def _disengage(
        self, name: str, reason: DisengageReason | None = None, *, is_reported: bool = False
    ) -> EngagedCluster:
        member = self._members.pop(name)
        member.cluster.disengage(reason, is_reported=is_reported)
        member.cancel()
        if member.releasing is not None:
            member.releasing.cancel()
        return member.cluster

    async def _handle_disengagement(
        self,
        handler: Callable[[EngagedCluster], Awaitable[None]],
        cluster: EngagedCluster,
        previous: tuple[asyncio.Task[None], ...],
    ) -> None:
        if previous:
            await asyncio.wait(previous)
        error = await attempt(handler, cluster)
        if error is not None:
            log.error("on_disengage of cluster %s failed", cluster.name, exc_info=error)

    def _finished(self, name: str, task: asyncio.Task[None]) -> None:
        unfinished = self._unfinished[name]
        unfinished.discard(task)
        if not unfinished:
            del self._unfinished[name]
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            self._fail(error)  # of `on_error`: it ends the task group, and so the Fleet

    def _fail(self, error: Exception) -> None:
        if not isinstance(self._state, Exception):
            self._state = error
            self._connected(False, str(error))
        self._signal.notify()

    async def _run_handler(
        self,
        handler: Callable[[EngagedCluster], Awaitable[None]],
        cluster: EngagedCluster,
        previous: tuple[asyncio.Task[None], ...],
    ) -> None:
        """Call the handler until it returns, is canceled, or fails without a restart."""
        if previous:
            # The handler of a previous engagement of this name is still cleaning up; the two must not overlap.
            await asyncio.wait(previous)
        backoff = StreamBackoff(self._backoff_policy)
        clock = asyncio.get_running_loop().time
        while cluster.draining is None:
            began = clock()
            error = await attempt(handler, cluster)
            if error is None:
                return
            delay = backoff.failed(ran=timedelta(seconds=clock() - began))
            # If the handler was canceled or its cluster drains, the error is from its cleanup, and there is no restart.
            is_ending = cancelled_from_outside() or cluster.draining is not None
            if not self._should_restart(cluster, error, None if is_ending else delay) or is_ending:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(delay.total_seconds()):
                    await cluster.drained()  # its release waits for this task

    def _should_restart(self, cluster: EngagedCluster, error: Exception, delay: timedelta | None) -> bool:
        if self._on_error == "raise":
            raise HandlerFailed(cluster.name) from error
        if self._on_error != "restart":
            return self._on_error(cluster, error)
        self._log_failure(cluster.name, error, delay)
        return True

    def _log_failure(self, name: str, error: Exception, delay: timedelta | None) -> None:
        """Log the first failure of a kind with its cause; count repeated ones, and log the counts periodically."""
        loop = asyncio.get_running_loop()
        if not self._failures.is_new(name, error, loop.time()):
            return
        what = " during its cleanup" if delay is None else f"; restarting it in {delay.total_seconds():.1f} s"
        if isinstance(error, DiscoveryError):  # such as an expired kubeconfig: the stack says nothing more
            log.error("handler of cluster %s failed%s: %s", name, what, error)
        else:
            log.error("handler of cluster %s failed%s", name, what, exc_info=error)
        if self._summary_timer is None:
            self._summary_timer = loop.call_later(INTERVAL_S, self._log_failure_summaries)

    def _log_failure_summaries(self, *, final: bool = False) -> None:
        loop = asyncio.get_running_loop()
        summaries = self._failures.summaries(loop.time(), final=final)
        for failures, clusters, _ in summaries:
            log.error("handler failures repeated: %d in %d clusters", failures, clusters)
        if self._summary_timer is not None:
            self._summary_timer.cancel()
            self._summary_timer = None
        if not final and self._failures:
            self._summary_timer = loop.call_later(INTERVAL_S, self._log_failure_summaries)


async def attempt(handler: Callable[[EngagedCluster], Awaitable[None]], cluster: EngagedCluster) -> Exception | None:
    """Call the handler and return its error. Only a cancellation by the Fleet is raised."""
    try:
        await handler(cluster)
    except asyncio.CancelledError as cancelled:
        if cancelled_from_outside():
            raise
        error = RuntimeError("the handler was canceled, but not by its Fleet")
        error.__cause__ = cancelled
        return error
    except Exception as error:  # noqa: BLE001  (the top of a task: `on_error` decides)
        return error
    except (GeneratorExit, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001  (for example, the panic of an extension in Rust)
        return not_an_exception(error)
    return None
