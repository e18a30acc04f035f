"""A reference to one cluster, for which kubeconfigs are issued."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Protocol

from milo_discovery.errors import ClusterNotFound, PreconditionFailed
from milo_discovery.model import Cluster, ClusterReport, Kubeconfig

Current = Callable[[], Cluster | str]
"""Returns the last known state of the cluster, or only its name."""


class KubeconfigIssuer(Protocol):
    """The methods of the client that a ClusterReference calls to issue kubeconfigs."""

    async def issue_kubeconfig(
        self, name: str, *, ttl: timedelta | None = None, incarnation: str = ""
    ) -> Kubeconfig: ...

    async def get(self, name: str) -> ClusterReport: ...


class ClusterReference:
    """A reference to a cluster. A name refers to the cluster that has the name now, a Cluster only to that one cluster.

    Kubeconfigs for a Cluster are issued for its incarnation. If the daemon reports a different incarnation, because it
    was restarted or is a different daemon, the UID decides whether the cluster is the same.
    """

    def __init__(self, issuer: KubeconfigIssuer, current: Current, ttl: timedelta | None) -> None:
        self._issuer = issuer
        self._current = current
        self._ttl = ttl
        self._newer: Cluster | None = None

    async def issue_kubeconfig(self) -> Kubeconfig:
        referenced = self._current()
        if isinstance(referenced, str):
            return await self._issuer.issue_kubeconfig(referenced, ttl=self._ttl)
        incarnation = (self._newer or referenced).incarnation
        try:
            return await self._issuer.issue_kubeconfig(referenced.name, ttl=self._ttl, incarnation=incarnation)
        except PreconditionFailed as error:
            if error.reason != "OTHER_INCARNATION":
                raise
        report = await self._issuer.get(referenced.name)
        if report.cluster is None or not report.engagement.engaged or report.cluster.uid != referenced.uid:
            raise ClusterNotFound(
                f"cluster {referenced.name!r} with UID {referenced.uid!r} is no longer engaged",
                code="NOT_FOUND",
                reason="NOT_ENGAGED",
            )
        self._newer = report.cluster
        return await self._issuer.issue_kubeconfig(
            referenced.name, ttl=self._ttl, incarnation=report.cluster.incarnation
        )
