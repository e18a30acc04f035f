"""Kubernetes API clients for control planes, as context managers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any

from milo_discovery._cluster_reference import ClusterReference, Current, KubeconfigIssuer
from milo_discovery._connection_credential import ConnectionCredential, certificate_file
from milo_discovery._credential_renewal import AsyncRenewer, LoopBridge, PushedKubeconfig
from milo_discovery._extras import needs_extra
from milo_discovery._shared_transports import SharedTransports, transport_key

if TYPE_CHECKING:
    from kubernetes.aio.client import ApiClient as AioApiClient
    from kubernetes.client import ApiClient


class ApiClients:
    """The factory of API clients whose credentials are renewed on the running event loop."""

    def __init__(self, issuer: KubeconfigIssuer) -> None:
        self._issuer = issuer
        self._transports: SharedTransports[Any] = SharedTransports()
        self._pools: SharedTransports[Any] = SharedTransports()

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
        module = _kubernetes_module("milo_discovery._kubernetes_sync")
        async with self.renewer(current, pushed, ttl) as renewer:
            credential = ConnectionCredential(renewer.cache.current)
            access = credential.made_with.access
            key = transport_key(access, proxy)
            # Clients that are made from a copy of the configuration read the file for each connection.
            with certificate_file(access) as certificate:
                pool = self._pools.acquire(key, lambda: module.create_pool(access, certificate, proxy))
                try:
                    with module.RenewingSyncApiClient(LoopBridge(renewer), credential, pool, certificate, proxy) as api:
                        yield api
                finally:
                    unused = self._pools.release(key)
                    if unused is not None:
                        unused.clear()

    def renewer(self, current: Current, pushed: PushedKubeconfig | None, ttl: timedelta | None) -> AsyncRenewer:
        """Return the renewer of a cluster's credential, which works while its context is entered."""
        return AsyncRenewer(ClusterReference(self._issuer, current, ttl).issue_kubeconfig, pushed)


def _kubernetes_module(name: str) -> Any:
    with needs_extra("kubernetes"):
        return import_module(name)
