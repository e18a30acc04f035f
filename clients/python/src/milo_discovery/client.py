"""The asyncio client."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar, Unpack

import grpc

from milo_discovery import _api_clients, _wire
from milo_discovery._address import CHANNEL_OPTIONS, target
from milo_discovery._backoff import BackoffPolicy
from milo_discovery._credentials import ClientCredentials
from milo_discovery._gen import discovery_pb2 as pb
from milo_discovery._gen.discovery_pb2_grpc import DiscoveryServiceStub
from milo_discovery._lane import Lanes
from milo_discovery._status import lost_connection, status_error
from milo_discovery._subscription import Subscription
from milo_discovery._wire import FilterOptions, WatchOptions
from milo_discovery.model import Cluster, ClusterReport, Kubeconfig, KubeconfigFormat, Listing, ServerInfo
from milo_discovery.watch import Watch

if TYPE_CHECKING:
    from kubernetes.aio.client import ApiClient as AioApiClient
    from kubernetes.client import ApiClient

    from milo_discovery._gen.discovery_pb2_grpc import DiscoveryServiceAsyncStub

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


def open_channel(place: str, credentials: ClientCredentials) -> grpc.aio.Channel:
    """A channel to a gRPC target, with what a neighbour on the same machine needs."""
    shown = credentials.channel_credentials()
    if shown is None:
        return grpc.aio.insecure_channel(place, options=CHANNEL_OPTIONS)
    return grpc.aio.secure_channel(place, shown, options=CHANNEL_OPTIONS)


class DiscoveryClient:
    """A client of the daemon at `address`: `unix:///path` or `HOST:PORT`.

    Without one it takes MILO_DISCOVERY_ADDRESS, or unix:///run/milo-discovery/discovery.sock. `timeout` is for single
    calls, in which the daemon isn't waited for: where nobody answers they fail with Unavailable. Watches wait and
    go on trying, by `backoff`. `credentials` say who the client is; without them the environment does. `connect` makes
    a channel, for those who want interceptors in it.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        timeout: timedelta | None = timedelta(seconds=10),
        backoff: BackoffPolicy | None = None,
        credentials: ClientCredentials | None = None,
        connect: Callable[[str], grpc.aio.Channel] | None = None,
    ) -> None:
        self._target = target(address)
        self._credentials = ClientCredentials.from_environment() if credentials is None else credentials
        self._credentials.check(self._target)
        self._timeout = timeout
        self._backoff = backoff or BackoffPolicy()
        self._connect = connect or (lambda place: open_channel(place, self._credentials))
        self._lanes = Lanes(lambda: self._connect(self._target))
        self._watches: set[Watch] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End all watches, and the connection."""
        for watch in tuple(self._watches):
            await watch.close()
        channel = self._lanes.close()
        if channel is not None:
            await channel.close()

    def watch(self, **options: Unpack[WatchOptions]) -> Watch:
        """Follow the fleet, or the part of it that the options name. Each watch has a connection of its own."""
        subscription = Subscription(options, self._backoff)
        watch = Watch(
            subscription, lambda: self._connect(self._target), self._watches.discard, self._credentials.metadata
        )
        self._watches.add(watch)
        return watch

    async def list(self, **options: Unpack[FilterOptions]) -> Listing:
        """The engaged clusters, ordered by name. Unavailable until the daemon has a complete view."""
        request = pb.ListClustersRequest(filter=_wire.filter_message(options))
        pages = [await self._call(lambda stub: stub.ListClusters, request)]
        while pages[-1].next_page_token:
            request.page_token = pages[-1].next_page_token
            pages.append(await self._call(lambda stub: stub.ListClusters, request))
        return _wire.listing(pages)

    async def get(self, name: str) -> ClusterReport:
        """What the daemon knows of a name, engaged or not. ClusterNotFound only for one that it has never seen."""
        return _wire.cluster_report(await self._call(lambda stub: stub.GetCluster, pb.GetClusterRequest(name=name)))

    async def server_info(self) -> ServerInfo:
        """The daemon itself."""
        return _wire.server_info(await self._call(lambda stub: stub.GetServerInfo, pb.GetServerInfoRequest()))

    async def issue_kubeconfig(
        self,
        name: str,
        *,
        ttl: timedelta | None = None,
        kubeconfig_format: KubeconfigFormat = KubeconfigFormat.EMBEDDED,
        incarnation: str = "",
    ) -> Kubeconfig:
        """A short-lived kubeconfig for an engaged cluster; with `incarnation`, only for just that one."""
        request = _wire.issue_request(name, ttl, kubeconfig_format, incarnation)
        return _wire.kubeconfig((await self._call(lambda stub: stub.IssueKubeconfig, request)).kubeconfig)

    def api_client(
        self, cluster: Cluster | str, *, ttl: timedelta | None = None, proxy: str | None = None
    ) -> AbstractAsyncContextManager[AioApiClient]:
        """For `async with`: a client of `kubernetes.aio` for the cluster's control plane, with ever fresh credentials.

        Given a Cluster, it is for just that one, and never for a later one of the same name.
        """
        return _api_clients.aio_client(self, lambda: cluster, ttl=ttl, proxy=proxy)

    def sync_api_client(
        self, cluster: Cluster | str, *, ttl: timedelta | None = None, proxy: str | None = None
    ) -> AbstractAsyncContextManager[ApiClient]:
        """For `async with`: as `api_client`, but a client of `kubernetes`, to be used in threads beside the loop."""
        return _api_clients.blocking_client_on_a_loop(self, lambda: cluster, ttl=ttl, proxy=proxy)

    async def _call(
        self,
        method: Callable[[DiscoveryServiceAsyncStub], grpc.aio.UnaryUnaryMultiCallable[_Request, _Response]],
        request: _Request,
    ) -> _Response:
        metadata = self._credentials.metadata()
        until = None if self._timeout is None else time.monotonic() + self._timeout.total_seconds()
        while True:
            limit = None if until is None else until - time.monotonic()
            lane = self._lanes.enter()
            try:
                response = await method(DiscoveryServiceStub(lane.channel))(request, timeout=limit, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                failure = status_error(error.code(), error.details(), error.trailing_metadata())
                if not lost_connection(failure) or not self._lanes.failed(lane):
                    raise failure from error
            else:
                self._lanes.answered(lane)
                return response
            finally:
                spent = self._lanes.leave(lane)
                if spent is not None:
                    await spent.close()
