"""Kubernetes API clients for control planes, as context managers."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from milo_discovery._cluster_reference import ClusterReference, Current, KubeconfigIssuer
from milo_discovery._connection_credential import ConnectionCredential, certificate_file
from milo_discovery.credentials import AsyncRenewer, LoopBridge, PushedKubeconfigs
from milo_discovery.extras import needs_extra
from milo_discovery.kubeconfig_access import KubeconfigAccess
from milo_discovery.model import ClusterReport

TransportT = TypeVar("TransportT")


def transport_key(access: KubeconfigAccess, proxy: str | None) -> Hashable:
    """Return the key by which connections are shared. A token is sent per request, so it is not part of the key."""
    # NO_PROXY can make the proxy depend on the server.
    proxied = proxy and (proxy, access.server)
    return access.authorities, access.tls_server_name, access.certificate, access.key, proxied


@dataclass(slots=True)
class _Shared(Generic[TransportT]):
    transport: TransportT
    users: int = 0


class SharedTransports(Generic[TransportT]):
    """Reference-counted transports. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shared: dict[Hashable, _Shared[TransportT]] = {}

    def acquire(self, key: Hashable, create: Callable[[], TransportT]) -> TransportT:
        """Return the transport for the key, and create it if it does not exist."""
        with self._lock:
            shared = self._shared.get(key)
            if shared is None:
                shared = self._shared[key] = _Shared(create())
            shared.users += 1
            return shared.transport

    def release(self, key: Hashable) -> TransportT | None:
        """Drop one user of the transport. Return the transport, for the caller to close, if that was its last user."""
        with self._lock:
            shared = self._shared[key]
            shared.users -= 1
            if shared.users:
                return None
            del self._shared[key]
            return shared.transport


if TYPE_CHECKING:
    from kubernetes.aio.client import ApiClient as AioApiClient
    from kubernetes.client import ApiClient


class ApiClients:
    """A factory of API clients whose credentials are renewed on the running event loop."""

    def __init__(self, issuer: KubeconfigIssuer) -> None:
        self._issuer = issuer
        self._transports: SharedTransports[Any] = SharedTransports()
        self._pools: SharedTransports[Any] = SharedTransports()

    @asynccontextmanager
    async def open_aio(
        self,
        current: Current,
        *,
        pushed: PushedKubeconfigs | None = None,
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
        pushed: PushedKubeconfigs | None = None,
        ttl: timedelta | None = None,
        proxy: str | None = None,
    ) -> AsyncIterator[ApiClient]:
        """Open a blocking `kubernetes` client, for use in threads other than that of the event loop."""
        module = _kubernetes_module("milo_discovery._kubernetes_sync")
        async with self.renewer(current, pushed, ttl) as renewer:
            credential = ConnectionCredential(renewer.cache.current)
            access = credential.made_with.access
            key = transport_key(access, proxy)
            # Clients that are created from a copy of the configuration read the file again for each connection.
            with certificate_file(access) as certificate:
                pool = self._pools.acquire(key, lambda: module.create_pool(access, certificate, proxy))
                try:
                    with module.RenewingSyncApiClient(LoopBridge(renewer), credential, pool, certificate, proxy) as api:
                        yield api
                finally:
                    unused = self._pools.release(key)
                    if unused is not None:
                        unused.clear()

    def renewer(self, current: Current, pushed: PushedKubeconfigs | None, ttl: timedelta | None) -> AsyncRenewer:
        """Return a context manager that keeps a cluster's credential renewed while its body runs."""
        referenced = current()
        name = referenced if isinstance(referenced, str) else referenced.name
        return AsyncRenewer(name, ClusterReference(self._issuer, current, ttl).issue_kubeconfig, pushed)

    async def report(self, name: str) -> ClusterReport:
        """Return what the daemon knows of a cluster."""
        return await self._issuer.get(name)


def _kubernetes_module(name: str) -> Any:
    with needs_extra("kubernetes"):
        return import_module(name)
