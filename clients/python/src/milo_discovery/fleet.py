"""One task for each engaged cluster: started when it is engaged, cancelled when it is disengaged.

What the context given to Engage is in multicluster-runtime, the task is here: it ends when the cluster is gone, and all
that the handler holds ends with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType, TracebackType
from typing import Literal, Self, TypeVar, Unpack

from milo_discovery._backoff import Backoff, BackoffPolicy
from milo_discovery._group import one_error_as_itself
from milo_discovery._signal import Signal
from milo_discovery._wire import WatchOptions
from milo_discovery.client import DiscoveryClient
from milo_discovery.engaged import EngagedCluster
from milo_discovery.errors import ClusterNotFound, HandlerFailed
from milo_discovery.events import Event, Mark, Refreshed, Synced
from milo_discovery.model import EventType

log = logging.getLogger("milo_discovery.fleet")

HandlerT = TypeVar("HandlerT", bound=Callable[[EngagedCluster], Awaitable[None]])

OnError = Literal["restart", "raise"] | Callable[[EngagedCluster, Exception], bool]
"""What follows when a handler raises. "restart": the error is logged, and the handler started again after a back-off;
"raise": the Fleet ends with HandlerFailed; a function: it is told, and says whether to start the handler again."""


@dataclass(frozen=True, slots=True)
class _Member:
    cluster: EngagedCluster
    task: asyncio.Task[None] | None


class Fleet:
    """The engaged clusters, and a task of its handler for each of them.

    A handler that returns is done with its cluster; it isn't called again while the same cluster is engaged. UPDATED
    doesn't restart it: `cluster.updated()` waits for changes. A cluster that comes back is a new call, which begins
    when the one before has ended.
    """

    def __init__(
        self,
        client: DiscoveryClient,
        *,
        on_error: OnError = "restart",
        backoff: BackoffPolicy | None = None,
        **options: Unpack[WatchOptions],
    ) -> None:
        self._client = client
        self._on_error = on_error
        self._backoff_policy = backoff or BackoffPolicy(
            initial=timedelta(seconds=1), maximum=timedelta(minutes=1), healthy=timedelta(minutes=2)
        )
        self._options = options
        self._handler: Callable[[EngagedCluster], Awaitable[None]] | None = None
        self._members: dict[str, _Member] = {}
        self._unfinished: dict[str, set[asyncio.Task[None]]] = {}
        self._state: Literal["new", "running", "synced", "ended"] = "new"
        self._signal = Signal()
        self._background: tuple[asyncio.TaskGroup, asyncio.Task[None]] | None = None

    def on_engage(self, handler: HandlerT) -> HandlerT:
        """A decorator: this is called with each cluster that is engaged, and cancelled when it is disengaged."""
        if self._handler is not None or self._state != "new":
            raise RuntimeError("a Fleet has one handler, from before it runs")
        self._handler = handler
        return handler

    @property
    def clusters(self) -> Mapping[str, EngagedCluster]:
        """The engaged clusters by name, as of now."""
        return MappingProxyType({name: member.cluster for name, member in self._members.items()})

    def get(self, name: str) -> EngagedCluster:
        """The engaged cluster of this name, the same one as its handler has. ClusterNotFound if there is none."""
        member = self._members.get(name)
        if member is None:
            raise ClusterNotFound(f"cluster {name!r} is not engaged", code="NOT_FOUND")
        return member.cluster

    async def synced(self) -> None:
        """Wait until the Fleet holds all clusters that were engaged when it began."""
        await self._signal.until(lambda: self._state in {"synced", "ended"})
        if self._state == "ended":
            raise RuntimeError("the Fleet has ended")

    async def run(self) -> None:
        """Run until cancelled. Raises what no retry mends, and HandlerFailed where the Fleet was asked for that.

        It returns, or raises, only when every handler has ended.
        """
        if self._state != "new":
            raise RuntimeError("a Fleet runs once")
        self._state = "running"
        try:
            with one_error_as_itself():
                async with self._client.watch(**self._options) as watch, asyncio.TaskGroup() as tasks:
                    async with aclosing(watch.feed()) as feed:
                        async for item in feed:
                            self._take(item, tasks)
                    # The client was closed: nobody will say what becomes of these.
                    for name in tuple(self._members):
                        self._disengage(name)
        finally:
            self._state = "ended"
            for member in self._members.values():
                member.cluster.disengage()
            self._members.clear()
            self._signal.notify()

    async def __aenter__(self) -> Self:
        tasks = asyncio.TaskGroup()
        await tasks.__aenter__()
        self._background = tasks, tasks.create_task(self.run(), name="milo-discovery fleet")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._background is not None
        tasks, running = self._background
        running.cancel()
        with one_error_as_itself():
            await tasks.__aexit__(kind, error, trace)

    def _take(self, item: Event | Mark, tasks: asyncio.TaskGroup) -> None:
        match item:
            case Event(type=EventType.ENGAGED):
                self._engage(EngagedCluster(item.cluster, item.kubeconfig, self._client), tasks)
            case Event(type=EventType.DISENGAGED):
                self._disengage(item.cluster.name)
            case Event():
                self._members[item.cluster.name].cluster.refresh(item.cluster, item.kubeconfig)
            case Refreshed():
                self._members[item.cluster.name].cluster.refresh(item.cluster)
            case Synced() if self._state == "running":
                self._state = "synced"
                self._signal.notify()

    def _engage(self, cluster: EngagedCluster, tasks: asyncio.TaskGroup) -> None:
        if self._handler is None:
            self._members[cluster.name] = _Member(cluster, None)
            return
        unfinished = self._unfinished.setdefault(cluster.name, set())
        work = self._work(self._handler, cluster, tuple(unfinished))
        task = tasks.create_task(work, name=f"cluster {cluster.name}")
        unfinished.add(task)
        task.add_done_callback(lambda done: self._finished(cluster.name, done))
        self._members[cluster.name] = _Member(cluster, task)

    def _disengage(self, name: str) -> None:
        member = self._members.pop(name)
        member.cluster.disengage()
        if member.task is not None:
            member.task.cancel()

    def _finished(self, name: str, task: asyncio.Task[None]) -> None:
        unfinished = self._unfinished[name]
        unfinished.discard(task)
        if not unfinished:
            del self._unfinished[name]

    async def _work(
        self,
        handler: Callable[[EngagedCluster], Awaitable[None]],
        cluster: EngagedCluster,
        earlier: tuple[asyncio.Task[None], ...],
    ) -> None:
        """Call the handler until it returns, is cancelled, or has failed for good."""
        if earlier:
            # Another engagement of this name is still cleaning up; the two must not meet.
            await asyncio.wait(earlier)
        backoff = Backoff(self._backoff_policy)
        clock = asyncio.get_running_loop().time
        while True:
            began = clock()
            error = await _attempt(handler, cluster)
            if error is None:
                return
            delay = backoff.failed(ran=timedelta(seconds=clock() - began))
            # An error out of a cancelled handler comes from its cleaning up, and leaves nothing to start again.
            over = _cancelled_by_its_fleet()
            if not self._again(cluster, error, None if over else delay) or over:
                return
            await asyncio.sleep(delay.total_seconds())

    def _again(self, cluster: EngagedCluster, error: Exception, delay: timedelta | None) -> bool:
        if self._on_error == "raise":
            raise HandlerFailed(cluster.name) from error
        if self._on_error != "restart":
            return self._on_error(cluster, error)
        if delay is None:
            log.error("handler of cluster %s failed at its end", cluster.name, exc_info=error)
        else:
            seconds = delay.total_seconds()
            log.error("handler of cluster %s failed; again in %.1f s", cluster.name, seconds, exc_info=error)
        return True


async def _attempt(handler: Callable[[EngagedCluster], Awaitable[None]], cluster: EngagedCluster) -> Exception | None:
    """Call the handler; the error it ended with, if any. Only the Fleet's own cancellation passes through."""
    try:
        await handler(cluster)
    except asyncio.CancelledError as cancelled:
        if _cancelled_by_its_fleet():
            raise
        error = RuntimeError("the handler was cancelled, and not by its Fleet")
        error.__cause__ = cancelled
        return error
    except Exception as error:  # noqa: BLE001  (the top of a task: what follows is what `on_error` says)
        return error
    return None


def _cancelled_by_its_fleet() -> bool:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling() > 0
