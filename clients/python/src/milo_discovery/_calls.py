"""The service's unary calls without I/O, shared by the async and the blocking client.

Each call is a generator: it yields requests, is sent the responses, and returns the result. A client that runs one
throws the error of a failed request into it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from google.protobuf.message import Message

from milo_discovery import _convert
from milo_discovery._convert import FilterOptions
from milo_discovery._gen import discovery_pb2 as pb
from milo_discovery._kubeconfig_access import read_access, read_exec_access
from milo_discovery.errors import ClusterNotFound, PreconditionFailed
from milo_discovery.model import (
    Cluster,
    ClusterReport,
    Kubeconfig,
    KubeconfigFormat,
    Listing,
    ServerInfo,
)

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class UnaryRequest:
    """A request, and the name of the method that it is for."""

    method: str
    message: Message


UnaryCall = Generator[UnaryRequest, Any, ResultT]


def list_clusters(options: FilterOptions) -> UnaryCall[Listing]:
    """Read all pages of one listing."""
    request = pb.ListClustersRequest(filter=_convert.filter_message(options))
    pages: list[pb.ListClustersResponse] = [(yield UnaryRequest("ListClusters", request))]
    while pages[-1].next_page_token:
        request.page_token = pages[-1].next_page_token
        pages.append((yield UnaryRequest("ListClusters", request)))
    return _convert.listing(pages)


def get_cluster(name: str) -> UnaryCall[ClusterReport]:
    return _convert.cluster_report((yield UnaryRequest("GetCluster", pb.GetClusterRequest(name=name))))


def get_server_info() -> UnaryCall[ServerInfo]:
    return _convert.server_info((yield UnaryRequest("GetServerInfo", pb.GetServerInfoRequest())))


def issue_kubeconfig(
    name: str,
    *,
    ttl: timedelta | None,
    kubeconfig_format: KubeconfigFormat = KubeconfigFormat.EMBEDDED,
    incarnation: str = "",
) -> UnaryCall[Kubeconfig]:
    """Issue a kubeconfig. Raises UnusableKubeconfig if it is not of the requested format."""
    request = pb.IssueKubeconfigRequest(
        cluster=name,
        ttl=None if ttl is None else _convert.duration_message(ttl),
        format=pb.KubeconfigFormat.ValueType(kubeconfig_format.value),
        incarnation=incarnation,
    )
    kubeconfig = _convert.kubeconfig((yield UnaryRequest("IssueKubeconfig", request)).kubeconfig)
    if kubeconfig_format is KubeconfigFormat.EXEC:
        read_exec_access(kubeconfig.kubeconfig, name)
    else:
        read_access(kubeconfig.kubeconfig)
    return kubeconfig


def release_cluster(name: str, incarnation: str, subscriber: str) -> UnaryCall[None]:
    request = pb.ReleaseClusterRequest(cluster=name, incarnation=incarnation, subscriber=subscriber)
    yield UnaryRequest("ReleaseCluster", request)


def end_subscription(subscriber: str) -> UnaryCall[None]:
    yield UnaryRequest("EndSubscription", pb.EndSubscriptionRequest(subscriber=subscriber))


class ClusterReference:
    """A reference to one cluster, and never to a later cluster of the same name, for which kubeconfigs are issued.

    The daemon identifies clusters by incarnation, and another daemon assigns other incarnations. Where the daemon does
    not know the incarnation, the UID decides whether it is the same cluster. A reference by name alone means whichever
    cluster has the name.
    """

    def __init__(self, current: Callable[[], Cluster | str], ttl: timedelta | None) -> None:
        self._current = current
        self._ttl = ttl
        self._newer: Cluster | None = None

    def issue_kubeconfig(self) -> UnaryCall[Kubeconfig]:
        referenced = self._current()
        if isinstance(referenced, str):
            return (yield from issue_kubeconfig(referenced, ttl=self._ttl))
        incarnation = (self._newer or referenced).incarnation
        try:
            return (yield from issue_kubeconfig(referenced.name, ttl=self._ttl, incarnation=incarnation))
        except PreconditionFailed as error:
            if error.reason != "OTHER_INCARNATION":
                raise
        report = yield from get_cluster(referenced.name)
        if report.cluster is None or not report.engagement.engaged or report.cluster.uid != referenced.uid:
            raise ClusterNotFound(
                f"cluster {referenced.name!r} with UID {referenced.uid!r} is no longer engaged",
                code="NOT_FOUND",
                reason="NOT_ENGAGED",
            )
        self._newer = report.cluster
        return (yield from issue_kubeconfig(referenced.name, ttl=self._ttl, incarnation=report.cluster.incarnation))
