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
from milo_discovery.model import Cluster, Kubeconfig

if TYPE_CHECKING:
    from kubernetes.aio.client import ApiClient as AioApiClient
    from kubernetes.client import ApiClient

Current = Callable[[], Cluster | str]
"""Returns the cluster as last known, or a name."""
RunCall = Callable[[UnaryCall[Kubeconfig]], Awaitable[Kubeconfig]]
RunBlockingCall = Callable[[UnaryCall[Kubeconfig]], Kubeconfig]


@asynccontextmanager
async def aio_client(
    run: RunCall,
    current: Current,
    *,
    pushed: PushedKubeconfig | None = None,
    ttl: timedelta | None = None,
    proxy: str | None = None,
) -> AsyncIterator[AioApiClient]:
    """Open a `kubernetes.aio` client."""
    module = _kubernetes_module("milo_discovery._kubernetes_aio")
    async with _renewer(run, current, pushed, ttl) as renewer:
        credential = ConnectionCredential(renewer.cache.current)
        with certificate_file(credential.made_with.access) as certificate:
            api = module.RenewingApiClient(renewer, credential, certificate, proxy)
        async with api:
            yield api


@asynccontextmanager
async def blocking_client_on_a_loop(
    run: RunCall,
    current: Current,
    *,
    pushed: PushedKubeconfig | None = None,
    ttl: timedelta | None = None,
    proxy: str | None = None,
) -> AsyncIterator[ApiClient]:
    """Open a blocking `kubernetes` client whose credentials are renewed on the running event loop."""
    module = _kubernetes_module("milo_discovery._kubernetes_sync")
    async with _renewer(run, current, pushed, ttl) as renewer:
        with _blocking(module, LoopBridge(renewer), ConnectionCredential(renewer.cache.current), proxy) as api:
            yield api


@contextmanager
def blocking_client(
    run: RunBlockingCall, cluster: Cluster | str, *, ttl: timedelta | None = None, proxy: str | None = None
) -> Iterator[ApiClient]:
    """Open a blocking `kubernetes` client."""
    module = _kubernetes_module("milo_discovery._kubernetes_sync")
    reference = ClusterReference(lambda: cluster, ttl)
    renewer = ThreadRenewer(lambda: run(reference.issue_kubeconfig()))
    try:
        renewer.access()
        with _blocking(module, renewer, ConnectionCredential(renewer.cache.current), proxy) as api:
            yield api
    finally:
        renewer.close()


@asynccontextmanager
async def _renewer(
    run: RunCall, current: Current, pushed: PushedKubeconfig | None, ttl: timedelta | None
) -> AsyncIterator[AsyncRenewer]:
    reference = ClusterReference(current, ttl)
    renewer = AsyncRenewer(lambda: run(reference.issue_kubeconfig()), pushed)
    try:
        await renewer.access()
        yield renewer
    finally:
        await renewer.close()


@contextmanager
def _blocking(
    module: Any, access: BlockingAccess, credential: ConnectionCredential, proxy: str | None
) -> Iterator[ApiClient]:
    # urllib3 reads the file for each new connection, so it has to outlive the client.
    with (
        certificate_file(credential.made_with.access) as certificate,
        module.RenewingApiClient(access, credential, certificate, proxy) as api,
    ):
        yield api


def _kubernetes_module(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "kubernetes":
            raise
        raise ImportError(
            "API clients need the kubernetes package: pip install './clients/python[kubernetes]'", name=error.name
        ) from error
