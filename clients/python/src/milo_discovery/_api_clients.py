"""Kubernetes API clients for control planes, as context managers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any

from milo_discovery._calls import ClusterReference, UnaryCall
from milo_discovery._connection_credential import ConnectionCredential, certificate_file
from milo_discovery._credential_renewal import AsyncRenewer, BlockingAccess, LoopBridge, PushedKubeconfig, ThreadRenewer
from milo_discovery._extras import needs_extra
from milo_discovery._shared_transports import SharedTransports, transport_key
from milo_discovery.model import Cluster, Kubeconfig

if TYPE_CHECKING:
    from kubernetes.aio.client import ApiClient as AioApiClient
    from kubernetes.client import ApiClient

Current = Callable[[], Cluster | str]
"""Returns the cluster as last known, or a name."""


class _BlockingClients:
    """The factory of blocking clients, which share connection pools."""

    def __init__(self) -> None:
        self._transports: SharedTransports[Any] = SharedTransports()

    @contextmanager
    def open(self, access: BlockingAccess, credential: ConnectionCredential, proxy: str | None) -> Iterator[ApiClient]:
        module = _kubernetes_module("milo_discovery._kubernetes_sync")
        connected_with = credential.made_with.access
        key = transport_key(connected_with, proxy)
        # Clients that are made from a copy of the configuration read the file for each connection.
        with certificate_file(connected_with) as certificate:
            pool = self._transports.acquire(key, lambda: module.create_pool(connected_with, certificate, proxy))
            try:
                with module.RenewingApiClient(access, credential, pool, certificate, proxy) as api:
                    yield api
            finally:
                unused = self._transports.release(key)
                if unused is not None:
                    unused.clear()


class AsyncApiClients:
    """The factory of API clients whose credentials are renewed on the running event loop."""

    def __init__(self, run: Callable[[UnaryCall[Kubeconfig]], Awaitable[Kubeconfig]]) -> None:
        self._run = run
        self._transports: SharedTransports[Any] = SharedTransports()
        self._blocking = _BlockingClients()

    @asynccontextmanager
    async def open_aio(
        self,
        current: Current,
        *,
        pushed: PushedKubeconfig | None = None,
        ttl: timedelta | None = None,
        proxy: str | None = None,
    ) -> AsyncIterator[AioApiClient]:
        """Open a `kubernetes.aio` client."""
        module = _kubernetes_module("milo_discovery._kubernetes_aio")
        async with self.renewer(current, pushed, ttl) as renewer:
            credential = ConnectionCredential(renewer.cache.current)
            access = credential.made_with.access
            key = transport_key(access, proxy)
            with certificate_file(access) as certificate:
                transport = self._transports.acquire(key, lambda: module.AioTransport(access, certificate, proxy))
            try:
                async with module.RenewingApiClient(renewer, credential, transport, proxy) as api:
                    yield api
            finally:
                unused = self._transports.release(key)
                if unused is not None:
                    await unused.close()

    @asynccontextmanager
    async def open_blocking(
        self,
        current: Current,
        *,
        pushed: PushedKubeconfig | None = None,
        ttl: timedelta | None = None,
        proxy: str | None = None,
    ) -> AsyncIterator[ApiClient]:
        """Open a blocking `kubernetes` client, for threads beside the event loop."""
        _kubernetes_module("milo_discovery._kubernetes_sync")
        async with self.renewer(current, pushed, ttl) as renewer:
            credential = ConnectionCredential(renewer.cache.current)
            with self._blocking.open(LoopBridge(renewer), credential, proxy) as api:
                yield api

    def renewer(self, current: Current, pushed: PushedKubeconfig | None, ttl: timedelta | None) -> AsyncRenewer:
        """Return the renewer of a cluster's credential, which works while its context is entered."""
        reference = ClusterReference(current, ttl)
        return AsyncRenewer(lambda: self._run(reference.issue_kubeconfig()), pushed)


class ThreadApiClients:
    """The factory of API clients whose credentials are renewed in threads."""

    def __init__(self, run: Callable[[UnaryCall[Kubeconfig]], Kubeconfig]) -> None:
        self._run = run
        self._blocking = _BlockingClients()

    @contextmanager
    def open(
        self, cluster: Cluster | str, *, ttl: timedelta | None = None, proxy: str | None = None
    ) -> Iterator[ApiClient]:
        """Open a blocking `kubernetes` client."""
        _kubernetes_module("milo_discovery._kubernetes_sync")
        reference = ClusterReference(lambda: cluster, ttl)
        renewer = ThreadRenewer(lambda: self._run(reference.issue_kubeconfig()))
        try:
            renewer.access()
            with self._blocking.open(renewer, ConnectionCredential(renewer.cache.current), proxy) as api:
                yield api
        finally:
            renewer.close()


def _kubernetes_module(name: str) -> Any:
    with needs_extra("kubernetes"):
        return import_module(name)
