"""The work of a subscriber that confirms releases, as a Fleet does it: one handler per cluster, which ends before the
release."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import Protocol

from milo_discovery import Event, EventType, Refreshed
from milo_discovery.events import StreamNotice
from milo_discovery.model import Cluster
from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.server.calls.grpc_errors import CallError

CLEANUPS_S = (0.0, 0.0, 0.5, 5.0, 40.0)
"""Durations of cleanups; the longest one exceeds the time that the daemon waits."""
RETRY_S = 1.0


class Releasing(Protocol):
    async def release(self, request: pb.ReleaseClusterRequest) -> None: ...

    async def issue_while_draining(self, cluster: Cluster, who: str) -> str | None:
        """Return what is wrong with the response, or None."""


@dataclass
class Handler:
    """The handler of one cluster."""

    cluster: Cluster
    ending: asyncio.Task[None] | None = None


class Worker:
    def __init__(
        self, who: str, daemon: Callable[[], Releasing | None], random: Random, note: Callable[..., None]
    ) -> None:
        self.who = who
        self.handlers: dict[str, Handler] = {}
        self.broken: list[str] = []
        self.released = 0
        self._daemon = daemon
        self._random = random
        self._note = note
        self._known: dict[str, Cluster] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def process(self, items: Iterable[Event | StreamNotice]) -> None:
        """Process events of the session."""
        for item in items:
            if not isinstance(item, Event | Refreshed):
                continue
            cluster, handler = item.cluster, self.handlers.get(item.cluster.name)
            if isinstance(item, Event) and item.type is EventType.DISENGAGED:
                self._known.pop(cluster.name)
                if handler is not None and handler.ending is None:
                    del self.handlers[cluster.name]  # canceled, and ended at once
                continue
            self._known[cluster.name] = cluster
            if isinstance(item, Event) and item.type is EventType.KUBECONFIG:
                continue
            if handler is not None and handler.ending is None:
                handler.cluster = cluster
            if cluster.draining is not None:
                self._drain(cluster, handler)
            elif isinstance(item, Event) and item.type is EventType.ENGAGED:
                self._begin(cluster, handler)

    def _begin(self, cluster: Cluster, before: Handler | None) -> None:
        if before is None:
            self.handlers[cluster.name] = Handler(cluster)

    def _drain(self, cluster: Cluster, handler: Handler | None) -> None:
        if handler is not None and handler.ending is not None:
            return  # the cluster is released when the cleanup has ended
        task = asyncio.create_task(self._end(cluster.name, handler), name=f"{self.who} ends {cluster.name}")
        if handler is not None:
            handler.ending = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end(self, name: str, handler: Handler | None) -> None:
        if handler is not None:
            await self._check_credential(name)
            await asyncio.sleep(self._random.choice(CLEANUPS_S))
            await self._check_credential(name)
            del self.handlers[name]
            self._note(self.who, "has ended its work on", name)
        while (cluster := self._known.get(name)) is not None and cluster.draining is not None:
            if (daemon := self._daemon()) is not None:
                request = pb.ReleaseClusterRequest(cluster=name, incarnation=cluster.incarnation, subscriber=self.who)
                self._note(self.who, "releases", name, cluster.incarnation)
                try:
                    await daemon.release(request)
                except CallError as error:
                    self._note(self.who, "is refused the release:", error.reason)
                else:
                    self.released += 1
                    if self._known.get(name) == cluster:
                        return
            await asyncio.sleep(RETRY_S)
        if cluster is not None and name not in self.handlers:
            self._begin(cluster, None)  # the cluster was engaged again while the handler was ending

    async def _check_credential(self, name: str) -> None:
        daemon, cluster = self._daemon(), self._known.get(name)
        if daemon is None or cluster is None or cluster.draining is None:
            return
        problem = await daemon.issue_while_draining(cluster, self.who)
        if problem is not None:
            self.broken.append(f"draining: {self.who}: {name}: {problem}")

    def stop(self) -> None:
        for task in [*self._tasks]:
            task.cancel()
