"""The objects of a source's clusters, whose names lead to credentials."""

import msgspec

from milo_discoveryd.credentials import kubernetes_api
from milo_discoveryd.credentials.kubernetes_api import TIMEOUT_S, KubernetesApi
from milo_discoveryd.daemon_errors import BackendError
from milo_discoveryd.model.cluster import Cluster, DeclaredTarget, Target
from milo_discoveryd.model.resource import Resource
from milo_kube.http.errors import TransportError


class _IdentityMetadata(msgspec.Struct, frozen=True):
    uid: str = ""


class _IdentifiedObject(msgspec.Struct, frozen=True):
    metadata: _IdentityMetadata = _IdentityMetadata()


_READ_OBJECT = msgspec.json.Decoder(_IdentifiedObject)


class ClusterObjects:
    def __init__(self, api: KubernetesApi, origin: str, resource: Resource) -> None:
        """`api` is the API server that the source watches."""
        self._api = api
        self._origin = origin
        self.resource = resource

    def path(self, target: Target) -> str:
        if isinstance(target, DeclaredTarget):
            return self.resource.object_path(target.object_namespace, target.object_name)
        if self.resource.namespaced:
            raise BackendError(
                f"the object of {target.name} has not been received from the API server yet; retry", of_cluster=True
            )
        return self.resource.object_path("", target.local_name)

    async def confirm(self, cluster: Cluster) -> None:
        """Raise BackendError unless the object of the cluster's incarnation exists.

        What its names led to before this call was its own. While the source is stale, it does not know that the object
        was deleted, and that somebody else's has its names.
        """
        path = self.path(cluster.target)
        try:
            answer = await self._api.get(path, timeout_s=TIMEOUT_S)
        except TransportError as error:
            raise kubernetes_api.unanswered(error) from error
        plural = self.resource.plural
        if answer.status not in (200, 404):
            rule = f"get {plural} in {self.resource.group or 'the core group'}"
            kubernetes_api.refuse(self._origin, answer, "confirm that the object of a cluster exists", rule)
        found = kubernetes_api.read(self._origin, answer, _READ_OBJECT, of_cluster=True)
        if answer.status == 404 or found.metadata.uid != cluster.object_uid:
            problem = f"the object of {cluster.target.name} in {plural} was deleted: its names may be another one's"
            raise BackendError(problem, of_cluster=True, reason="missing")
