"""The asyncio client."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar, Unpack

import grpc

from milo_discovery import _wire
from milo_discovery._address import CHANNEL_OPTIONS, target
from milo_discovery._backoff import BackoffPolicy
from milo_discovery._gen import discovery_pb2 as pb
from milo_discovery._gen.discovery_pb2_grpc import DiscoveryServiceStub
from milo_discovery._status import status_error
from milo_discovery._wire import FilterOptions, WatchOptions
from milo_discovery.model import ClusterReport, Kubeconfig, KubeconfigFormat, Listing, ServerInfo
from milo_discovery.watch import Watch

if TYPE_CHECKING:
    from milo_discovery._gen.discovery_pb2_grpc import DiscoveryServiceAsyncStub

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


def open_channel(place: str) -> grpc.aio.Channel:
    """A channel to a gRPC target, with what a neighbour on the same machine needs."""
    return grpc.aio.insecure_channel(place, options=CHANNEL_OPTIONS)


class DiscoveryClient:
    """A client of the daemon at `address`: `unix:///path` or `HOST:PORT`.

    Without one it takes MILO_DISCOVERY_ADDRESS, or unix:///run/milo-discovery/discovery.sock. `timeout` is for single
    calls, in which the daemon isn't waited for: where nobody answers they fail with Unavailable. Watches wait and
    go on trying, by `backoff`. `connect` makes a channel, for those who want interceptors in it.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        timeout: timedelta | None = timedelta(seconds=10),
        backoff: BackoffPolicy | None = None,
        connect: Callable[[str], grpc.aio.Channel] = open_channel,
    ) -> None:
        self._target = target(address)
        self._timeout = timeout
        self._backoff = backoff or BackoffPolicy()
        self._connect = connect
        self._channel: grpc.aio.Channel | None = None
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
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    def watch(self, **options: Unpack[WatchOptions]) -> Watch:
        """Follow the fleet, or the part of it that the options name. Each watch has a connection of its own."""
        watch = Watch(
            lambda: self._connect(self._target),
            _wire.watch_request(options),
            silence=_wire.silence(options),
            backoff=self._backoff,
            on_close=self._watches.discard,
        )
        self._watches.add(watch)
        return watch

    async def list(self, **options: Unpack[FilterOptions]) -> Listing:
        """The engaged clusters, ordered by name. Unavailable until the daemon has a complete view."""
        stub = await self._stub()
        request = pb.ListClustersRequest(filter=_wire.filter_message(options))
        pages = [await self._call(stub.ListClusters, request)]
        while pages[-1].next_page_token:
            request.page_token = pages[-1].next_page_token
            pages.append(await self._call(stub.ListClusters, request))
        return _wire.listing(pages)

    async def get(self, name: str) -> ClusterReport:
        """What the daemon knows of a name, engaged or not. ClusterNotFound only for one that it has never seen."""
        stub = await self._stub()
        return _wire.cluster_report(await self._call(stub.GetCluster, pb.GetClusterRequest(name=name)))

    async def server_info(self) -> ServerInfo:
        """The daemon itself."""
        stub = await self._stub()
        return _wire.server_info(await self._call(stub.GetServerInfo, pb.GetServerInfoRequest()))

    async def issue_kubeconfig(
        self,
        name: str,
        *,
        ttl: timedelta | None = None,
        kubeconfig_format: KubeconfigFormat = KubeconfigFormat.EMBEDDED,
        incarnation: str = "",
    ) -> Kubeconfig:
        """A short-lived kubeconfig for an engaged cluster; with `incarnation`, only for just that one."""
        stub = await self._stub()
        request = _wire.issue_request(name, ttl, kubeconfig_format, incarnation)
        return _wire.kubeconfig((await self._call(stub.IssueKubeconfig, request)).kubeconfig)

    async def _call(
        self, method: grpc.aio.UnaryUnaryMultiCallable[_Request, _Response], request: _Request
    ) -> _Response:
        try:
            return await method(request, timeout=None if self._timeout is None else self._timeout.total_seconds())
        except grpc.aio.AioRpcError as error:
            raise status_error(error.code(), error.details(), error.trailing_metadata()) from error

    async def _stub(self) -> DiscoveryServiceAsyncStub:
        """On a channel that hasn't just failed: one that has turns calls away for a while, daemon or no daemon."""
        if self._channel is not None and self._channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            failed, self._channel = self._channel, None
            await failed.close()
        if self._channel is None:
            self._channel = self._connect(self._target)
        return DiscoveryServiceStub(self._channel)
