"""EngagedCluster, the argument of a Fleet's handler: one engagement of a cluster."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import TYPE_CHECKING

from milo_discovery._session import cluster_content
from milo_discovery.api_clients import ApiClients
from milo_discovery.credentials import AsyncRenewer, PushedKubeconfigs
from milo_discovery.errors import ClusterNotFound
from milo_discovery.model import Cluster, DisengageReason, Draining, Kubeconfig
from milo_kube.change_signal import ChangeSignal

if TYPE_CHECKING:
    from kubernetes.aio.client import ApiClient as AioApiClient
    from kubernetes.client import ApiClient


class EngagedCluster:
    """One engagement of a cluster. It is the same object from ENGAGED to DISENGAGED, and reflects updates."""

    __slots__ = (
        "__weakref__",
        "_api_clients",
        "_current",
        "_engaged",
        "_is_owned",
        "_is_reported",
        "_kubeconfig",
        "_reason",
        "_signal",
        "name",
        "proxy",
        "uid",
    )

    def __init__(
        self,
        cluster: Cluster,
        kubeconfig: Kubeconfig | None,
        api_clients: ApiClients,
        *,
        proxy: str | None = None,
        is_owned: Callable[[], bool] = lambda: True,
    ) -> None:
        """`is_owned`: whether a daemon of a shard group still owns its clusters."""
        self.name = cluster.name
        self.uid = cluster.uid
        self.proxy = proxy
        """The URL of the proxy through which the cluster is reached, if any."""
        self._current = cluster
        self._kubeconfig = kubeconfig
        self._api_clients = api_clients
        self._is_owned = is_owned
        self._engaged = True
        self._reason: DisengageReason | None = None
        self._is_reported = False
        self._signal = ChangeSignal()

    def __repr__(self) -> str:
        return f"<EngagedCluster {self.name!r} uid={self.uid!r}{'' if self.engaged else ' disengaged'}>"

    @property
    def current(self) -> Cluster:
        """The current state of the cluster, or its last state before the disengagement."""
        return self._current

    @property
    def kubeconfig(self) -> Kubeconfig | None:
        """The newest kubeconfig that the stream delivered for the present endpoint of the cluster.

        None without `include_kubeconfigs`, or before the first one arrives.
        """
        return self._kubeconfig

    @property
    def engaged(self) -> bool:
        """Whether the cluster is still engaged.

        False as soon as the daemon's ownership has expired, also if the event loop has not noticed yet, as after a
        suspension of the process.
        """
        return self._engaged and self._is_owned()

    @property
    def disengage_reason(self) -> DisengageReason | None:
        """Why the cluster was disengaged; None while it is engaged, and at the end of the program."""
        return self._reason

    @property
    def is_end_reported(self) -> bool:
        """Whether an event has reported the disengagement. Otherwise, a snapshot has shown it: perhaps that of another
        daemon with clusters of the same names."""
        return self._is_reported

    @property
    def draining(self) -> Draining | None:
        """Why the engagement is about to end, and when at the latest; None if the cluster is not draining."""
        return self._current.draining

    async def drained(self) -> None:
        """Wait until the cluster starts to drain or is disengaged. Then finish the work and return from the handler.

        For a Fleet with `on_drain="wait"`. With "cancel", the handler is canceled as soon as the cluster drains.
        """
        await self._signal.wait_for(lambda: not self._engaged or self._current.draining is not None)

    async def read(self) -> Cluster:
        """Ask the daemon for the state of the cluster. It can be newer than `current`.

        Nothing orders the daemon's stream and the watches of a cluster: an object may be seen to be deleted before
        `current.deletion_requested_at` is set. Raises ClusterNotFound if the cluster is no longer engaged.
        """
        self._require_engaged()
        report = await self._api_clients.report(self.name)
        self._require_engaged()
        if report.cluster is None or not report.engagement.engaged or report.cluster.uid != self.uid:
            raise ClusterNotFound(f"cluster {self.name!r} is no longer engaged", code="NOT_FOUND")
        return report.cluster

    async def updated(self, since: Cluster | None = None) -> Cluster:
        """Wait until the cluster differs from `since` (by default, from its current state), and return it.

        Pass the Cluster that you last worked with, so that no change is missed, however long the work took. Raises
        ClusterNotFound once the cluster is disengaged.
        """
        before = since or self._current
        await self._signal.wait_for(
            lambda: not self._engaged or cluster_content(self._current) != cluster_content(before)
        )
        if not self._engaged:
            raise self._not_engaged()
        return self._current

    async def renewed(self, since: Kubeconfig | None = None) -> Kubeconfig:
        """Wait until the kubeconfig differs from `since` (by default, from the current one), and return it."""
        before = since or self._kubeconfig
        await self._signal.wait_for(lambda: not self._engaged or self._kubeconfig not in {None, before})
        if not self._engaged:
            raise self._not_engaged()
        assert self._kubeconfig is not None
        return self._kubeconfig

    def api_client(
        self, *, ttl: timedelta | None = None, proxy: str | None = None
    ) -> AbstractAsyncContextManager[AioApiClient]:
        """Return an async context manager that yields a `kubernetes.aio` client with renewed credentials.

        With `include_kubeconfigs` the stream delivers the credentials; otherwise they are requested when they are due.
        Once the cluster is disengaged, requests raise ClusterNotFound. A redirect is an error.
        """
        return self._api_clients.open_aio(
            lambda: self._current, pushed=self._pushed, ttl=ttl, proxy=proxy or self.proxy
        )

    def sync_api_client(
        self, *, ttl: timedelta | None = None, proxy: str | None = None
    ) -> AbstractAsyncContextManager[ApiClient]:
        """Return an async context manager like `api_client`, for a blocking `kubernetes` client used in threads."""
        return self._api_clients.open_blocking(
            lambda: self._current, pushed=self._pushed, ttl=ttl, proxy=proxy or self.proxy
        )

    def credentials(self) -> AbstractAsyncContextManager[AsyncRenewer]:
        """Return an async context manager that yields the renewed credential itself, for use by controllers."""
        return self._api_clients.renewer(lambda: self._current, pushed=self._pushed, ttl=None)

    def refresh(self, cluster: Cluster, kubeconfig: Kubeconfig | None = None) -> None:
        """Replace the state of the cluster and, if set, the kubeconfig. Called by the Fleet."""
        if cluster.endpoint != self._current.endpoint:
            self._kubeconfig = None  # the former endpoint may belong to another cluster by now
        self._current = cluster
        self._kubeconfig = kubeconfig or self._kubeconfig
        self._signal.notify()

    def disengage(self, reason: DisengageReason | None = None, *, is_reported: bool = False) -> None:
        """End the engagement. Called by the Fleet."""
        self._engaged, self._reason, self._is_reported = False, reason, is_reported
        self._signal.notify()

    @property
    def _pushed(self) -> PushedKubeconfigs:
        return PushedKubeconfigs(self._pushed_kubeconfig, self.renewed, lambda: self._current.endpoint)

    def _pushed_kubeconfig(self) -> Kubeconfig | None:
        self._require_engaged()  # a credential must not be used after the engagement, even if it is still valid
        return self._kubeconfig

    def _require_engaged(self) -> None:
        if not self.engaged:
            raise self._not_engaged()

    def _not_engaged(self) -> ClusterNotFound:
        return ClusterNotFound(f"cluster {self.name!r} is no longer engaged", code="NOT_FOUND")
