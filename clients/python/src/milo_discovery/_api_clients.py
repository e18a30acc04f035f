"""API clients of control planes, for as long as a block lasts: asked for by the clients and by engaged clusters."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any

from milo_discovery._identity import Identity, certificate_file
from milo_discovery._renewal import LoopRenewal, Newest, ThreadAccess, ThreadRenewal, ThroughLoop
from milo_discovery.errors import ClusterNotFound, PreconditionFailed
from milo_discovery.model import Cluster, ClusterReport, Kubeconfig

if TYPE_CHECKING:
    from kubernetes.aio.client import ApiClient as AioApiClient
    from kubernetes.client import ApiClient

    from milo_discovery.client import DiscoveryClient
    from milo_discovery.sync import SyncDiscoveryClient

Subject = Callable[[], Cluster | str]
"""Whose control plane: a cluster as last known, or just a name, which is whichever cluster has it."""


@asynccontextmanager
async def aio_client(
    client: DiscoveryClient,
    subject: Subject,
    *,
    newest: Newest | None = None,
    ttl: timedelta | None = None,
    proxy: str | None = None,
) -> AsyncIterator[AioApiClient]:
    package = _package("milo_discovery._kubernetes_aio")
    async with _renewing(client, subject, newest, ttl) as renewal:
        identity = Identity(renewal.credentials.current)
        with certificate_file(identity.made_with.access) as certificate:
            api = package.FreshApiClient(renewal, identity, certificate, proxy)
        async with api:
            yield api


@asynccontextmanager
async def blocking_client_on_a_loop(
    client: DiscoveryClient,
    subject: Subject,
    *,
    newest: Newest | None = None,
    ttl: timedelta | None = None,
    proxy: str | None = None,
) -> AsyncIterator[ApiClient]:
    package = _package("milo_discovery._kubernetes_sync")
    async with _renewing(client, subject, newest, ttl) as renewal:
        with _blocking(package, ThroughLoop(renewal), Identity(renewal.credentials.current), proxy) as api:
            yield api


@contextmanager
def blocking_client(
    client: SyncDiscoveryClient, cluster: Cluster | str, *, ttl: timedelta | None = None, proxy: str | None = None
) -> Iterator[ApiClient]:
    package = _package("milo_discovery._kubernetes_sync")
    asking = _Asking(lambda: cluster)

    def issue() -> Kubeconfig:
        name, incarnation = asking.whom()
        try:
            return client.issue_kubeconfig(name, ttl=ttl, incarnation=incarnation)
        except PreconditionFailed as error:
            asking.consider(error)
            asking.found(client.get(name))
        return client.issue_kubeconfig(name, ttl=ttl, incarnation=asking.whom()[1])

    renewal = ThreadRenewal(issue)
    try:
        renewal.access()
        with _blocking(package, renewal, Identity(renewal.credentials.current), proxy) as api:
            yield api
    finally:
        renewal.close()


@asynccontextmanager
async def _renewing(
    client: DiscoveryClient, subject: Subject, newest: Newest | None, ttl: timedelta | None
) -> AsyncIterator[LoopRenewal]:
    asking = _Asking(subject)

    async def issue() -> Kubeconfig:
        name, incarnation = asking.whom()
        try:
            return await client.issue_kubeconfig(name, ttl=ttl, incarnation=incarnation)
        except PreconditionFailed as error:
            asking.consider(error)
            asking.found(await client.get(name))
        return await client.issue_kubeconfig(name, ttl=ttl, incarnation=asking.whom()[1])

    renewal = LoopRenewal(issue, newest)
    try:
        await renewal.access()
        yield renewal
    finally:
        await renewal.close()


@contextmanager
def _blocking(package: Any, access: ThreadAccess, identity: Identity, proxy: str | None) -> Iterator[ApiClient]:
    # The file is read with each new connection.
    with (
        certificate_file(identity.made_with.access) as certificate,
        package.FreshApiClient(access, identity, certificate, proxy) as api,
    ):
        yield api


class _Asking:
    """Asks for the cluster that is meant, and not for a later one of the same name.

    The daemon knows clusters by incarnation, and another daemon has other ones. So where an incarnation isn't known any
    more, the UID tells whether it is the same cluster.
    """

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._newer: Cluster | None = None

    def whom(self) -> tuple[str, str]:
        """Name and incarnation."""
        subject = self._subject()
        if isinstance(subject, str):
            return subject, ""
        return subject.name, (self._newer or subject).incarnation

    def consider(self, refusal: PreconditionFailed) -> None:
        """Raises it again, unless it says that the incarnation is another one."""
        if refusal.reason != "OTHER_INCARNATION":
            raise refusal

    def found(self, report: ClusterReport) -> None:
        subject = self._subject()
        assert not isinstance(subject, str), "an incarnation was asked for"
        if report.cluster is None or not report.engagement.engaged or report.cluster.uid != subject.uid:
            gone = f"cluster {subject.name!r} with UID {subject.uid!r} is not engaged any more"
            raise ClusterNotFound(gone, code="NOT_FOUND", reason="NOT_ENGAGED")
        self._newer = report.cluster


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "kubernetes":
            raise
        raise ImportError(
            "API clients need the package kubernetes: pip install 'milo-discovery-client[kubernetes]'", name=error.name
        ) from error
