"""The asyncio client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

import grpc

from milo_discovery import _calls
from milo_discovery._api_clients import AsyncApiClients
from milo_discovery._backoff import BackoffPolicy
from milo_discovery._calls import ResultT, UnaryCall, UnaryRequest
from milo_discovery._channel import open_aio_channel
from milo_discovery._client_base import DEFAULT_TIMEOUT, ClientBase, time_left
from milo_discovery._client_credentials import ClientCredentials
from milo_discovery._convert import FilterOptions, WatchOptions
from milo_discovery._gen.discovery_pb2_grpc import DiscoveryServiceStub
from milo_discovery._grpc_status import status_error_of_call
from milo_discovery._subscription import Subscription
from milo_discovery._task_groups import cancelled_from_outside
from milo_discovery.errors import CallFailed, StatusError
from milo_discovery.model import (
    Cluster,
    ClusterReport,
    Kubeconfig,
    KubeconfigFormat,
    Listing,
    ServerInfo,
)
from milo_discovery.watch import Watch

if TYPE_CHECKING:
    from kubernetes.aio.client import ApiClient as AioApiClient
    from kubernetes.client import ApiClient


class DiscoveryClient(ClientBase[grpc.aio.Channel, Watch]):
    """A client of the daemon at `address`: `unix:///path` or `HOST:PORT`.

    The default address is MILO_DISCOVERY_ADDRESS, or unix:///run/milo-discovery/discovery.sock. `timeout` applies to
    unary calls, which fail with Unavailable if the daemon is not reached. Watches reconnect, with the delays of
    `backoff`. `credentials` are read from the environment by default. `connect` opens a channel to a gRPC target, for
    example to add interceptors. A client belongs to the event loop that first uses it.
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
        super().__init__(
            address,
            timeout=timeout,
            backoff=backoff,
            credentials=credentials,
            connect=connect,
            open_channel=open_aio_channel,
        )
        self.api_clients = AsyncApiClients(self._run)
        """The factory of API clients, for use within this package."""
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> Self:
        self._require_own_loop()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all watches and connections."""
        if self._loop not in {None, asyncio.get_running_loop()}:
            return  # they ended with their event loop
        for watch in tuple(self._watches):
            await watch.close()
        channel = self._shared_channel.close()
        if channel is not None:
            await channel.close()

    def watch(self, **options: Unpack[WatchOptions]) -> Watch:
        """Watch the clusters that the options select; all by default. Each watch has its own connection."""
        watch = Watch(
            Subscription(options, self._backoff),
            self._connect,
            self._watches.discard,
            self._credentials.metadata,
            self.release,
        )
        self._watches.add(watch)
        return watch

    async def list(self, **options: Unpack[FilterOptions]) -> Listing:
        """Return the engaged clusters, ordered by name. Raises Unavailable until the daemon is synced."""
        return await self._run(_calls.list_clusters(options))

    async def get(self, name: str) -> ClusterReport:
        """Return what the daemon knows of a name, engaged or not. Raises ClusterNotFound if it never saw the name."""
        return await self._run(_calls.get_cluster(name))

    async def server_info(self) -> ServerInfo:
        """Return the daemon's version, state and limits."""
        return await self._run(_calls.get_server_info())

    async def issue_kubeconfig(
        self,
        name: str,
        *,
        ttl: timedelta | None = None,
        kubeconfig_format: KubeconfigFormat = KubeconfigFormat.EMBEDDED,
        incarnation: str = "",
    ) -> Kubeconfig:
        """Issue a short-lived kubeconfig for an engaged cluster; with `incarnation`, only for that incarnation."""
        return await self._run(
            _calls.issue_kubeconfig(name, ttl=ttl, kubeconfig_format=kubeconfig_format, incarnation=incarnation)
        )

    async def release(self, cluster: Cluster, *, subscriber: str) -> None:
        """Confirm that a subscriber has ended its work on a draining cluster. A repeated call is a no-op.

        Raises PreconditionFailed if the cluster is not draining, or has another incarnation now.
        """
        await self._run(_calls.release_cluster(cluster.name, cluster.incarnation, subscriber))

    async def end_subscription(self, subscriber: str) -> None:
        """Notify the daemon that a subscriber has ended all its work, so that no draining cluster waits for it."""
        await self._run(_calls.end_subscription(subscriber))

    def api_client(
        self, cluster: Cluster | str, *, ttl: timedelta | None = None, proxy: str | None = None
    ) -> AbstractAsyncContextManager[AioApiClient]:
        """Return an async context manager: a `kubernetes.aio` client for the cluster, with renewed credentials.

        Given a Cluster rather than a name, it never works in a later cluster of the same name.
        """
        return self.api_clients.open_aio(lambda: cluster, ttl=ttl, proxy=proxy)

    def sync_api_client(
        self, cluster: Cluster | str, *, ttl: timedelta | None = None, proxy: str | None = None
    ) -> AbstractAsyncContextManager[ApiClient]:
        """Return an async context manager like `api_client`, for a blocking `kubernetes` client used in threads."""
        return self.api_clients.open_blocking(lambda: cluster, ttl=ttl, proxy=proxy)

    async def _run(self, call: UnaryCall[ResultT]) -> ResultT:
        try:
            request = next(call)
            while True:
                try:
                    response = await self._send(request)
                except StatusError as error:
                    request = call.throw(error)
                else:
                    request = call.send(response)
        except StopIteration as returned:
            result: ResultT = returned.value
            return result

    def _connect(self) -> grpc.aio.Channel:
        self._require_own_loop()
        return super()._connect()

    def _require_own_loop(self) -> None:
        """Bind the client to the running event loop. gRPC's asyncio channels cannot move to another one."""
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise RuntimeError("this DiscoveryClient belongs to another event loop: create one per asyncio.run()")

    async def _send(self, request: UnaryRequest) -> Any:
        self._require_own_loop()
        metadata, deadline = self._credentials.metadata(), self._deadline()
        while True:
            connection = self._shared_channel.acquire()
            method = getattr(DiscoveryServiceStub(connection.channel), request.method)
            try:
                response = await method(request.message, timeout=time_left(deadline), metadata=metadata)
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
                return response
            finally:
                unused = self._shared_channel.release(connection)
                if unused is not None:
                    await unused.close()
