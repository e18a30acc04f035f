"""One cluster instead of a fleet: the same controllers, without a daemon.

The kubeconfig is read again periodically, and after a 401, so files and tokens in it may be renewed. Another current
context or server has no effect before a restart.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from milo_discovery.api_clients import ApiClients
from milo_discovery.api_errors import ApiError, Unreachable
from milo_discovery.cluster_api import IDLE_S, USER_AGENT, ClusterApi
from milo_discovery.engaged_cluster import EngagedCluster
from milo_discovery.errors import ClusterNotFound, DiscoveryError
from milo_discovery.fleet import RESTARTS, DiscoveryState, attempt
from milo_discovery.local_kubeconfig import LocalAccess, default_source, issue, read
from milo_discovery.model import Cluster, ClusterReport, Engagement, Kubeconfig
from milo_kube.api_server import Pools
from milo_kube.backoff import StreamBackoff
from milo_kube.task_groups import cancelled_from_outside

log = logging.getLogger("milo_controllers")


class SingleCluster:
    """A cluster that is engaged for as long as it runs.

    `kubeconfig` is the path of a file; by default that of `KUBECONFIG`, the service account of the pod, or
    `~/.kube/config`, whichever exists first.
    """

    def __init__(
        self, kubeconfig: str | os.PathLike[str] | None = None, *, context: str | None = None, name: str = "cluster"
    ) -> None:
        self._source = default_source(None if kubeconfig is None else Path(kubeconfig), context)
        self._name = name
        self.discovery = DiscoveryState(connected=True, synced=False, since=datetime.now(UTC))
        self._cluster: Cluster | None = None
        self._handler: Callable[[EngagedCluster], Awaitable[None]] | None = None
        self._has_run = False

    @property
    def clusters(self) -> Mapping[str, object]:
        """The cluster, by its name."""
        return {self._name: self._cluster}

    def on_engage(self, handler: Callable[[EngagedCluster], Awaitable[None]], /) -> object:
        """Register the handler, which is called again if it fails. Called by Controllers."""
        if self._handler is not None:
            raise RuntimeError("a SingleCluster has only one Controllers: create another SingleCluster")
        self._handler = handler
        return handler

    async def find(self, _project: str, /) -> Cluster | None:
        """Return the cluster: all writes that its API server asks about are to it."""
        found = await read(self._source)
        return Cluster(name=self._name, endpoint=found.access.server)

    def on_disengage(self, handler: Callable[[EngagedCluster], Awaitable[None]], /) -> object:
        """Accept a handler, which is never called: the cluster is engaged for as long as the program runs."""
        return handler

    async def run(self) -> None:
        """Run until canceled. Raises UnusableKubeconfig."""
        if self._has_run:
            raise RuntimeError("a SingleCluster can run only once: create a new SingleCluster")
        self._has_run = True
        engaged = self._engaged(await read(self._source))
        try:
            async with asyncio.TaskGroup() as tasks:
                if self._handler is not None:
                    tasks.create_task(self._handled(self._handler, engaged), name=f"cluster {self._name}")
                self.discovery = replace(self.discovery, synced=True)
        finally:
            engaged.disengage()

    async def _handled(self, handler: Callable[[EngagedCluster], Awaitable[None]], engaged: EngagedCluster) -> None:
        """Call the handler until it returns or is canceled."""
        backoff = StreamBackoff(RESTARTS)
        clock = asyncio.get_running_loop().time
        while True:
            began = clock()
            error = await attempt(handler, engaged)
            if error is None:
                return
            stack = None if isinstance(error, DiscoveryError) else error
            if cancelled_from_outside():
                log.error("cluster %s failed during its cleanup: %s", self._name, error, exc_info=stack)
                return
            delay_s = backoff.failed(ran=timedelta(seconds=clock() - began)).total_seconds()
            log.error("cluster %s failed; restarting it in %.1f s: %s", self._name, delay_s, error, exc_info=stack)
            await asyncio.sleep(delay_s)

    async def issue_kubeconfig(self, name: str, *, ttl: timedelta | None = None, incarnation: str = "") -> Kubeconfig:
        """Return the current kubeconfig. The arguments apply only to a daemon, and are ignored."""
        return await issue(name, self._source)

    async def get(self, name: str) -> ClusterReport:
        """Return the state of the cluster, which does not change. Raises ClusterNotFound for another name."""
        if self._cluster is None or name != self._name:
            raise ClusterNotFound(f"there is no daemon that could report on cluster {name!r}", code="NOT_FOUND")
        return ClusterReport(cluster=self._cluster, engagement=Engagement(engaged=True))

    @asynccontextmanager
    async def requests(self) -> AsyncIterator[OwnCluster]:
        """Yield a client of the cluster, for leader election. Raises UnusableKubeconfig."""
        found = await read(self._source)
        engaged = self._engaged(found)
        async with engaged.credentials() as credentials:
            api = ClusterApi(self._name, credentials, Pools(user_agent=USER_AGENT, idle_s=IDLE_S), proxy=found.proxy)
            try:
                yield OwnCluster(api, found.namespace or "default")
            finally:
                await api.aclose()
                engaged.disengage()

    def _engaged(self, found: LocalAccess) -> EngagedCluster:
        self._cluster = Cluster(name=self._name, endpoint=found.access.server)
        return EngagedCluster(self._cluster, None, ApiClients(self), proxy=found.proxy)


class OwnCluster:
    """A client of the API server of the operator's own cluster."""

    def __init__(self, api: ClusterApi, namespace: str) -> None:
        self._api = api
        self.namespace = namespace
        """The namespace of the pod, or of the kubeconfig's context."""

    async def request(self, method: str, path: str, body: object = None) -> tuple[int, dict[str, Any]]:
        """Return the status and the JSON body of the response. Raises OSError."""
        try:
            return 200, await self._api.send(method, path, (), body)
        except ApiError as error:
            return error.status, {"message": str(error)}
        except Unreachable as error:
            raise ConnectionError(str(error)) from error
