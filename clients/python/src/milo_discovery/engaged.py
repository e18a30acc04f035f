"""A cluster while it is engaged, as its handler sees it."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import TYPE_CHECKING

from milo_discovery import _api_clients
from milo_discovery._session import visible
from milo_discovery._signal import Signal
from milo_discovery.errors import ClusterNotFound
from milo_discovery.model import Cluster, Kubeconfig

if TYPE_CHECKING:
    from kubernetes.aio.client import ApiClient as AioApiClient
    from kubernetes.client import ApiClient

    from milo_discovery.client import DiscoveryClient


class EngagedCluster:
    """One engagement: the same from ENGAGED to DISENGAGED, whatever is updated or renewed between."""

    def __init__(self, cluster: Cluster, kubeconfig: Kubeconfig | None, client: DiscoveryClient) -> None:
        self.name = cluster.name
        self.uid = cluster.uid
        self._current = cluster
        self._kubeconfig = kubeconfig
        self._client = client
        self._engaged = True
        self._signal = Signal()

    def __repr__(self) -> str:
        return f"<EngagedCluster {self.name!r} uid={self.uid!r}{'' if self._engaged else ' disengaged'}>"

    @property
    def current(self) -> Cluster:
        """The cluster as it is now, or was when it was disengaged."""
        return self._current

    @property
    def kubeconfig(self) -> Kubeconfig | None:
        """The newest kubeconfig, where the Fleet asked for them."""
        return self._kubeconfig

    @property
    def engaged(self) -> bool:
        """It still is."""
        return self._engaged

    async def updated(self, since: Cluster | None = None) -> Cluster:
        """Wait until it differs from `since`, which is what it is now if not given. ClusterNotFound once it is gone.

        Hand in what you last worked with, and no change is missed, however long the work took.
        """
        before = visible(since or self._current)
        await self._signal.until(lambda: not self._engaged or visible(self._current) != before)
        self._require_engaged()
        return self._current

    async def renewed(self, since: Kubeconfig | None = None) -> Kubeconfig:
        """Wait until its kubeconfig differs from `since`, which is the newest if not given."""
        before = since or self._kubeconfig
        await self._signal.until(lambda: not self._engaged or self._kubeconfig != before)
        self._require_engaged()
        assert self._kubeconfig is not None  # one that was there doesn't go before its cluster
        return self._kubeconfig

    def api_client(
        self, *, ttl: timedelta | None = None, proxy: str | None = None
    ) -> AbstractAsyncContextManager[AioApiClient]:
        """For `async with`: a client of `kubernetes.aio` for its control plane, with ever fresh credentials.

        Where the Fleet asked for kubeconfigs it takes those, and otherwise asks the daemon when it needs one.
        """
        return _api_clients.aio_client(self._client, lambda: self._current, newest=self._newest, ttl=ttl, proxy=proxy)

    def sync_api_client(
        self, *, ttl: timedelta | None = None, proxy: str | None = None
    ) -> AbstractAsyncContextManager[ApiClient]:
        """For `async with`: as `api_client`, but a client of `kubernetes`, to be used in threads beside the loop."""
        return _api_clients.blocking_client_on_a_loop(
            self._client, lambda: self._current, newest=self._newest, ttl=ttl, proxy=proxy
        )

    def refresh(self, cluster: Cluster, kubeconfig: Kubeconfig | None = None) -> None:
        """For its Fleet: this is what it is from now on."""
        self._current = cluster
        self._kubeconfig = kubeconfig or self._kubeconfig
        self._signal.notify()

    def disengage(self) -> None:
        """For its Fleet: it is over."""
        self._engaged = False
        self._signal.notify()

    def _newest(self) -> Kubeconfig | None:
        return self._kubeconfig

    def _require_engaged(self) -> None:
        if not self._engaged:
            raise ClusterNotFound(f"cluster {self.name!r} is not engaged any more", code="NOT_FOUND")
