"""A fleet in memory, for tests of operators without a daemon."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Unpack

from milo_discovery.api_clients import ApiClients
from milo_discovery.errors import ClusterNotFound, StreamBroken
from milo_discovery.events import Connected, Disconnected, Event, Refreshed, StreamNotice, Synced
from milo_discovery.kubeconfig_access import render_kubeconfig
from milo_discovery.model import (
    Cluster,
    ClusterReport,
    DisengageReason,
    Draining,
    Engagement,
    EngagementReason,
    EventType,
    Kubeconfig,
)
from milo_discovery.options import WatchOptions
from milo_discovery.testing.control_plane import ControlPlane

_LIFETIME = timedelta(minutes=5)


class FakeDiscovery:
    """A fake DiscoveryClient for one Fleet; the test engages and disengages the clusters.

    Each ENGAGED event has a kubeconfig, as with `include_kubeconfigs`; filters are ignored.
    """

    def __init__(self, *control_planes: ControlPlane) -> None:
        """Create a fleet in which the clusters of the given control planes are engaged from the start."""
        self.api_clients = ApiClients(self)
        self._feed: asyncio.Queue[Event | StreamNotice] = asyncio.Queue()
        self._engaged: dict[str, tuple[Cluster, ControlPlane]] = {}
        self._lost: dict[str, tuple[Cluster, ControlPlane]] = {}
        self._incarnations = 0
        self._uids: dict[str, str] = {}
        """The UID that each cluster last had."""
        self._confirms_releases = True
        self.lifetimes: dict[str, timedelta] = {}
        """The lifetime of new kubeconfigs, by engaged cluster."""
        self.issued = 0
        """The number of kubeconfigs issued on request, not counting those that events delivered."""
        self.released: list[str] = []
        """The clusters that the Fleet has released after `drain`."""
        for control_plane in control_planes:
            self.engage(control_plane)
        self._feed.put_nowait(Synced(clusters=len(control_planes)))

    def engage(self, control_plane: ControlPlane, *, lifetime: timedelta = _LIFETIME, **fields: Any) -> Cluster:
        """Engage a cluster; one of the same name is replaced. `lifetime`: that of its kubeconfigs. `fields`: fields of
        the Cluster, such as `labels` or `uid`, which is another one by default if the cluster replaces one."""
        self._incarnations += 1
        name = control_plane.project
        self._lost.pop(name, None)
        if name in self._engaged:
            self.disengage(name, DisengageReason.REPLACED)
            self._uids[name] = f"uid-{name}-{self._incarnations}"
        uid = self._uids.get(name, f"uid-{name}")
        given = {"uid": uid, "endpoint": control_plane.access().server, **fields}
        cluster = Cluster(name=name, incarnation=f"{self._incarnations}", **given)
        self._uids[name] = cluster.uid
        self._engaged[name] = cluster, control_plane
        self.lifetimes[name] = lifetime
        kubeconfig = self._kubeconfig(name)
        self._feed.put_nowait(Event(type=EventType.ENGAGED, cluster=cluster, kubeconfig=kubeconfig))
        return cluster

    def update(self, name: str, **fields: Any) -> Cluster:
        """Change fields of an engaged cluster."""
        cluster, control_plane = self._engaged[name]
        cluster = replace(cluster, **fields)
        self._engaged[name] = cluster, control_plane
        self._feed.put_nowait(Event(type=EventType.UPDATED, cluster=cluster))
        return cluster

    def disengage(self, name: str, reason: DisengageReason = DisengageReason.DELETED) -> None:
        """Disengage a cluster. Its control plane keeps running."""
        cluster, _ = self._engaged.pop(name)
        self._feed.put_nowait(Event(type=EventType.DISENGAGED, cluster=cluster, reason=reason))

    def drain(self, name: str, reason: DisengageReason = DisengageReason.NOT_READY) -> None:
        """Begin a planned disengagement, which ends when the Fleet has released the cluster: at once if it does not
        confirm releases. Its deadline is in an hour: `disengage`, with the same reason, ends it as the daemon does.
        """
        if not self._confirms_releases:
            self.disengage(name, reason)
            return
        deadline = datetime.now(UTC) + timedelta(hours=1)
        self.update(name, draining=Draining(reason=reason, deadline=deadline))

    def lose_ownership(self) -> None:
        """Disengage all clusters, as when the daemon of a shard group cannot renew its Lease.

        `restart` engages them again, as other incarnations.
        """
        lost = tuple(self._engaged.values())
        self._lost, self._engaged = self._lost | self._engaged, {}
        for cluster, _ in lost:
            self._feed.put_nowait(
                Event(type=EventType.DISENGAGED, cluster=cluster, reason=DisengageReason.OWNERSHIP_LOST)
            )
        error = StreamBroken("the daemon's ownership of its clusters has expired")
        self._feed.put_nowait(Disconnected(error=error))

    def restart(self) -> None:
        """Restart the daemon: the stream breaks, and another one has the same clusters, with other incarnations.

        They stay engaged, except those that `lose_ownership` disengaged.
        """
        self._feed.put_nowait(Disconnected(error=StreamBroken("the daemon ended the stream")))
        self._feed.put_nowait(Connected(resumed=False))
        lost, self._lost = self._lost, {}
        for name, (before, control_plane) in (self._engaged | lost).items():
            self._incarnations += 1
            cluster = replace(before, incarnation=f"{self._incarnations}")
            self._engaged[name] = cluster, control_plane
            if name in lost:
                kubeconfig = self._kubeconfig(name)
                self._feed.put_nowait(Event(type=EventType.ENGAGED, cluster=cluster, kubeconfig=kubeconfig))
            else:
                self._feed.put_nowait(Refreshed(cluster=cluster))
        self._feed.put_nowait(Synced(clusters=len(self._engaged)))

    def renew(self, name: str) -> None:
        """Deliver a new kubeconfig for an engaged cluster."""
        cluster, _ = self._engaged[name]
        self._feed.put_nowait(Event(type=EventType.KUBECONFIG, cluster=cluster, kubeconfig=self._kubeconfig(name)))

    def watch(self, **options: Unpack[WatchOptions]) -> AbstractAsyncContextManager[_Feed]:
        """Return the feed for a Fleet."""
        self._confirms_releases = options.get("confirm_releases", False)
        return _opened(_Feed(self._feed, self._release, "fleet" if self._confirms_releases else ""))

    async def end_subscription(self, subscriber: str) -> None:
        """Do nothing: there is no daemon to notify."""

    def _release(self, cluster: Cluster) -> None:
        known = self._engaged.get(cluster.name)
        if known is not None and known[0].incarnation == cluster.incarnation and known[0].draining is not None:
            self.released.append(cluster.name)
            self.disengage(cluster.name, known[0].draining.reason)

    async def issue_kubeconfig(self, name: str, *, ttl: timedelta | None = None, incarnation: str = "") -> Kubeconfig:
        """Issue a kubeconfig for an engaged cluster; `ttl` and `incarnation` are ignored. Raises ClusterNotFound."""
        if name not in self._engaged:
            raise ClusterNotFound(f"cluster {name!r} is not engaged", code="NOT_FOUND")
        self.issued += 1
        return self._kubeconfig(name)

    async def get(self, name: str) -> ClusterReport:
        """Return the report of an engaged cluster. Raises ClusterNotFound."""
        if name not in self._engaged:
            raise ClusterNotFound(f"cluster {name!r} is not known", code="NOT_FOUND")
        engagement = Engagement(engaged=True, reason=EngagementReason.ENGAGED)
        return ClusterReport(cluster=self._engaged[name][0], engagement=engagement)

    def _kubeconfig(self, name: str) -> Kubeconfig:
        _, control_plane = self._engaged[name]
        now, lifetime = datetime.now(UTC), self.lifetimes[name]
        return Kubeconfig(
            cluster=name,
            kubeconfig=json.dumps(render_kubeconfig(name, control_plane.access())).encode(),
            issued_at=now,
            refresh_after=now + 0.8 * lifetime,
            expires_at=now + lifetime,
        )


class _Feed:
    def __init__(
        self, queue: asyncio.Queue[Event | StreamNotice], release: Callable[[Cluster], None], subscriber: str
    ) -> None:
        self._queue = queue
        self._release = release
        self.subscriber = subscriber

    async def release(self, cluster: Cluster) -> None:
        self._release(cluster)

    async def feed(self) -> AsyncGenerator[Event | StreamNotice, None]:
        while True:
            yield await self._queue.get()


@asynccontextmanager
async def _opened(feed: _Feed) -> AsyncIterator[_Feed]:
    yield feed
