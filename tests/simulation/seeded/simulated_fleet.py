"""The clusters of a subscriber on virtual time: a stream of engagements, and API servers with faults."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from milo_discovery import DisengageReason
from milo_discovery.errors import StreamBroken
from milo_discovery.events import Connected, Disconnected, Event, Refreshed, StreamNotice, Synced
from milo_discovery.model import Cluster, EventType
from milo_kube.api_request import Answer
from tests.simulation.seeded.api import Api
from tests.simulation.seeded.watch_faults import WatchFaultInjector
from tests.simulation.seeded.world import World


@dataclass
class SimulatedCluster:
    """An API server with its faults."""

    api: Api
    world: World

    def strike(self, random: Random) -> None:
        """Inject a fault into an open watch."""
        WatchFaultInjector(self.api, self.world, random).strike()

    def heal(self) -> None:
        """End all faults; another list is the only way to correct lost or invented events."""
        self.api.fault_rate = self.api.down_until = 0.0
        for opened in self.api.open:
            opened.mute = opened.without_bookmarks = False
        self.world.server.version += 1
        self.world.server.compact()
        self.api.cut()
        self.api.ring()


class SimulatedClusterApi:
    """A ClusterApi that sends requests to a simulated API server instead of over HTTP."""

    servers: dict[str, SimulatedCluster]

    def __init__(self, name: str, *_arguments: object, **_options: object) -> None:
        self.name = name
        self._api = self.servers[name].api

    async def get(self, path: str, query: Any = (), *, timeout_s: float, **_options: object) -> Answer:
        return await self._api.get(path, query, timeout_s=timeout_s)

    def stream(
        self, path: str, query: Any = (), *, connect_timeout_s: float, silence_s: float | None, accept: str = ""
    ) -> AbstractAsyncContextManager[Any]:
        return self._api.stream(path, query, connect_timeout_s=connect_timeout_s, silence_s=silence_s)

    async def aclose(self) -> None:
        pass


class SimulatedDiscovery:
    """A stream of engagements, in place of a daemon."""

    def __init__(self) -> None:
        self.api_clients = self
        self.subscriber = "simulation"
        self._items: asyncio.Queue[Event | StreamNotice] = asyncio.Queue()
        self.engaged: dict[str, int] = {}
        self._engagements = 0
        self._restarts = 0

    def engage(self, name: str) -> None:
        self._engagements += 1
        self.engaged[name] = self._engagements
        self._items.put_nowait(Event(type=EventType.ENGAGED, cluster=_cluster(name, self._engagements)))

    def disengage(self, name: str, reason: DisengageReason = DisengageReason.DELETED) -> None:
        cluster = _cluster(name, self.engaged.pop(name))
        self._items.put_nowait(Event(type=EventType.DISENGAGED, cluster=cluster, reason=reason))

    def restart(self) -> None:
        """Restart the daemon: it assigns other incarnations to the same engagements."""
        self._restarts += 1
        self._items.put_nowait(Disconnected(error=StreamBroken("the daemon ended the stream")))
        self._items.put_nowait(Connected(resumed=False))
        for name, number in self.engaged.items():
            cluster = replace(_cluster(name, number), incarnation=f"{number} after restart {self._restarts}")
            self._items.put_nowait(Refreshed(cluster=cluster))
        self.synced()

    def synced(self) -> None:
        self._items.put_nowait(Synced(clusters=len(self.engaged)))

    @asynccontextmanager
    async def watch(self, **_options: Any) -> AsyncIterator["SimulatedDiscovery"]:
        yield self

    async def feed(self) -> AsyncGenerator[Event | StreamNotice, None]:
        while True:
            yield await self._items.get()

    async def release(self, *_arguments: Any) -> None: ...

    async def end_subscription(self, _subscriber: str) -> None: ...

    @asynccontextmanager
    async def renewer(self, *_arguments: Any, **_options: Any) -> AsyncIterator[None]:
        yield None


def _cluster(name: str, number: int) -> Cluster:
    return Cluster(name=name, uid=f"{number}", incarnation=f"{number}")
