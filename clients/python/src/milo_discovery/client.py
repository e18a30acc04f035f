"""The asyncio client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

import grpc
from google.protobuf.message import Message

from milo_discovery import _convert
from milo_discovery._channel import open_aio_channel
from milo_discovery._grpc_status import status_error_of_call, understood
from milo_discovery._shared_channel import SharedChannel
from milo_discovery._subscription import StreamSubscription
from milo_discovery.address import grpc_target
from milo_discovery.api_clients import ApiClients
from milo_discovery.client_credentials import ClientCredentials
from milo_discovery.errors import CallFailed
from milo_discovery.kubeconfig_access import read_access, read_exec_access
from milo_discovery.model import (
    Cluster,
    ClusterReport,
    Kubeconfig,
    KubeconfigFormat,
    Listing,
    ServerInfo,
)
from milo_discovery.options import FilterOptions, WatchOptions
from milo_discovery.v1 import discovery_pb2 as pb
from milo_discovery.v1.discovery_pb2_grpc import DiscoveryServiceStub
from milo_discovery.watch import Watch
from milo_kube.backoff import BackoffPolicy
from milo_kube.task_groups import cancelled_from_outside
from milo_kube.termination import interrupt_on_sigterm

if TYPE_CHECKING:
    from kubernetes.aio.client import ApiClient as AioApiClient
    from kubernetes.client import ApiClient

DEFAULT_TIMEOUT = timedelta(seconds=10)
# gRPC immediately fails calls whose timeout is longer than 292 years, such as timedelta.max.
_LONGEST_S = timedelta(days=365).total_seconds()


class DiscoveryClient:
    """A client of the daemon at `address`: `unix:///path` or `HOST:PORT`.

    The default address is MILO_DISCOVERY_ADDRESS, or unix:///run/milo-discovery/discovery.sock. `timeout` applies to
    unary calls, which fail with Unavailable if the daemon is unreachable. Watches reconnect, with the delays of
    `backoff`. `credentials` are read from the environment by default. `connect` opens a channel to a gRPC target, for
    example to add interceptors. A client belongs to the event loop that first uses it. As a context manager in the main
    thread it handles SIGTERM like Ctrl-C, unless the program has a handler of its own.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        timeout: timedelta | None = DEFAULT_TIMEOUT,
        backoff: BackoffPolicy | None = None,
        credentials: ClientCredentials | None = None,
        connect: Callable[[str], grpc.aio.Channel] | None = None,
    ) -> None:
        self._target = grpc_target(address)
        self._credentials = ClientCredentials.from_environment() if credentials is None else credentials
        self._credentials.check(self._target)
        self._timeout = timeout
        self._backoff = backoff or BackoffPolicy()
        self._connect_to = connect or (lambda target: open_aio_channel(target, self._credentials))
        self._shared_channel = SharedChannel(self._connect)
        self._watches: set[Watch] = set()
        self.api_clients = ApiClients(self)
        """A factory of API clients, for use within this package."""
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> Self:
        interrupt_on_sigterm()
        self._require_own_loop()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all watches and channels."""
        if self._loop not in {None, asyncio.get_running_loop()}:
            return  # watches and channels belong to another event loop, and cannot be closed on this one
        for watch in tuple(self._watches):
            await watch.close()
        for channel in self._shared_channel.close():
            await channel.close()

    def watch(self, **options: Unpack[WatchOptions]) -> Watch:
        """Watch the clusters that the options select; all by default. Each watch has its own connection."""
        watch = Watch(
            StreamSubscription(options, self._backoff),
            self._connect,
            self._watches.discard,
            self._credentials.metadata,
            self.release,
            connect_in_thread=partial(self._connect_to, self._target),
        )
        self._watches.add(watch)
        return watch

    async def list(self, **options: Unpack[FilterOptions]) -> Listing:
        """Return the engaged clusters, ordered by name. Raises Unavailable until the daemon is synced."""
        request = pb.ListClustersRequest(filter=_convert.filter_message(options))
        pages: list[pb.ListClustersResponse] = [await self._call("ListClusters", request)]
        while pages[-1].next_page_token:
            request.page_token = pages[-1].next_page_token
            pages.append(await self._call("ListClusters", request))
        return _convert.listing(pages)

    async def get(self, name: str) -> ClusterReport:
        """Return what the daemon knows about a cluster, engaged or not. Raises ClusterNotFound for an unknown name."""
        return _convert.cluster_report(await self._call("GetCluster", pb.GetClusterRequest(name=name)))

    async def server_info(self) -> ServerInfo:
        """Return the daemon's version, state and limits."""
        return _convert.server_info(await self._call("GetServerInfo", pb.GetServerInfoRequest()))

    async def issue_kubeconfig(
        self,
        name: str,
        *,
        ttl: timedelta | None = None,
        kubeconfig_format: KubeconfigFormat = KubeconfigFormat.EMBEDDED,
        incarnation: str = "",
    ) -> Kubeconfig:
        """Issue a short-lived kubeconfig for an engaged cluster; with `incarnation`, only for that incarnation.

        Raises UnusableKubeconfig if the daemon returns anything but a kubeconfig of the requested format.
        """
        request = pb.IssueKubeconfigRequest(
            cluster=name,
            ttl=None if ttl is None else _convert.duration_message(ttl),
            format=pb.KubeconfigFormat.ValueType(kubeconfig_format.value),
            incarnation=incarnation,
        )
        kubeconfig = _convert.kubeconfig((await self._call("IssueKubeconfig", request)).kubeconfig)
        if kubeconfig_format is KubeconfigFormat.EXEC:
            read_exec_access(kubeconfig.kubeconfig, name)
        else:
            read_access(kubeconfig.kubeconfig)
        return kubeconfig

    async def release(self, cluster: Cluster, *, subscriber: str) -> None:
        """Confirm that a subscriber has finished its work on a draining cluster. A repeated call is a no-op.

        Raises PreconditionFailed if the cluster is not draining or has another incarnation now, or the subscriber is
        unknown.
        """
        request = pb.ReleaseClusterRequest(cluster=cluster.name, incarnation=cluster.incarnation, subscriber=subscriber)
        await self._call("ReleaseCluster", request)

    async def end_subscription(self, subscriber: str) -> None:
        """Notify the daemon that a subscriber has finished all its work, so that no draining cluster waits for it."""
        await self._call("EndSubscription", pb.EndSubscriptionRequest(subscriber=subscriber))

    def api_client(
        self, cluster: Cluster | str, *, ttl: timedelta | None = None, proxy: str | None = None
    ) -> AbstractAsyncContextManager[AioApiClient]:
        """Return an async context manager that yields a `kubernetes.aio` client with renewed credentials.

        Given a Cluster rather than a name, the client sends no requests to a later cluster of the same name.
        """
        return self.api_clients.open_aio(lambda: cluster, ttl=ttl, proxy=proxy)

    def sync_api_client(
        self, cluster: Cluster | str, *, ttl: timedelta | None = None, proxy: str | None = None
    ) -> AbstractAsyncContextManager[ApiClient]:
        """Return an async context manager like `api_client`, for a blocking `kubernetes` client used in threads."""
        return self.api_clients.open_blocking(lambda: cluster, ttl=ttl, proxy=proxy)

    def _connect(self) -> grpc.aio.Channel:
        self._require_own_loop()
        return self._connect_to(self._target)

    def _require_own_loop(self) -> None:
        """Bind the client to the running event loop. gRPC's asyncio channels cannot move to another one."""
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise RuntimeError("this DiscoveryClient belongs to another event loop: create one per asyncio.run()")

    async def _call(self, method: str, request: Message) -> Any:
        self._require_own_loop()
        metadata = self._credentials.metadata()
        deadline = None if self._timeout is None else time.monotonic() + self._timeout.total_seconds()
        while True:
            connection = self._shared_channel.acquire()
            send = getattr(DiscoveryServiceStub(connection.channel), method)
            left = None if deadline is None else min(deadline - time.monotonic(), _LONGEST_S)
            try:
                response = await send(request, timeout=left, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                failure = status_error_of_call(error)
                if not self._shared_channel.should_retry(connection, failure):
                    raise failure from error
            except asyncio.CancelledError:
                if cancelled_from_outside():
                    raise
                raise CallFailed("the client was closed during the call", code="CANCELLED") from None
            else:
                connection.has_succeeded = True
                return understood(response)
            finally:
                unused = self._shared_channel.release(connection)
                if unused is not None:
                    await unused.close()
