"""The contents of the published objects: ClusterProfiles, Secrets for Argo CD and Flux, and ConfigMaps for Flux."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from milo_discovery.kubeconfig_access import KubeconfigAccess, exec_arguments, render_kubeconfig
from milo_discovery.model import Cluster, ConnectivityState
from milo_kube.kubeconfig import SERVER_VARIABLE
from milo_kube.rfc3339 import rfc3339
from milo_publishing.objects import Document, PublishedResource, Rendered, copied_labels

_PROPERTY_DOMAIN = "discovery.miloapis.com"
_EXEC_EXTENSION = "client.authentication.k8s.io/exec"
_EXEC_VERSION = "client.authentication.k8s.io/v1"
_CLUSTER_MANAGER_LABEL = "x-k8s.io/cluster-manager"
_MAX_PROPERTY_LENGTH = 1024
_EPOCH = "1970-01-01T00:00:00Z"
# Condition status, reason and message by the result of the daemon's probes.
_HEALTH = {
    ConnectivityState.REACHABLE: ("True", "Reachable", "milo-discoveryd can reach the control plane"),
    ConnectivityState.UNREACHABLE: ("False", "Unreachable", "milo-discoveryd cannot reach the control plane"),
}
_SECRETS = PublishedResource(api_version="v1", plural="secrets", kind="Secret")
_NOT_PROBED = ("Unknown", "NotProbed", "milo-discoveryd has not probed the control plane")


class Renderer(Protocol):
    """A renderer of the published objects of one kind."""

    publication: ClassVar[str]
    resource: ClassVar[PublishedResource]
    suffix: ClassVar[str]
    """Suffix of object names, after the name of the cluster."""
    embeds_credentials: ClassVar[bool]
    """Whether the objects contain a credential, which is renewed, or only the server and its CA."""

    def render(self, cluster: Cluster, access: KubeconfigAccess | None) -> Rendered | None:
        """Return the content; None if it needs the cluster's server and CA, and `access` is None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterProfiles:
    """ClusterProfiles of the Cluster Inventory API (KEP-4322)."""

    publication: ClassVar[str] = "cluster-profiles"
    resource: ClassVar[PublishedResource] = PublishedResource(
        api_version="multicluster.x-k8s.io/v1alpha1", plural="clusterprofiles", kind="ClusterProfile"
    )
    suffix: ClassVar[str] = ""
    embeds_credentials: ClassVar[bool] = False

    cluster_manager: str
    access_provider: str
    copy_labels: Sequence[str] = ()

    def render(self, cluster: Cluster, access: KubeconfigAccess | None) -> Rendered:
        manager = {"clusterManager": {"name": self.cluster_manager}}
        return Rendered(
            body={"spec": {"displayName": cluster.name, **manager}},
            required={"spec": manager},
            labels={**copied_labels(cluster, self.copy_labels), _CLUSTER_MANAGER_LABEL: self.cluster_manager},
            status={
                "conditions": [_health(cluster)],
                "properties": _properties(cluster),
                "accessProviders": [] if access is None else [self._access_provider(cluster, access)],
            },
        )

    def _access_provider(self, cluster: Cluster, access: KubeconfigAccess) -> Document:
        # The plugin reads the cluster's name from the extension. Arguments in the profile cannot work: the library of
        # KEP-4322 appends the arguments of each profile to one shared list.
        extension = {"name": _EXEC_EXTENSION, "extension": {"clusterName": cluster.name}}
        server: Document = {"server": access.server, "extensions": [extension]}
        if access.authorities is not None:
            server["certificate-authority-data"] = _encoded(access.authorities)
        if access.tls_server_name is not None:
            server["tls-server-name"] = access.tls_server_name
        return {"name": self.access_provider, "cluster": server}


@dataclass(frozen=True, slots=True, kw_only=True)
class ArgoCdClusters:
    """Secrets that register clusters in Argo CD, which calls the exec plugin for credentials."""

    publication: ClassVar[str] = "argocd-clusters"
    resource: ClassVar[PublishedResource] = _SECRETS
    suffix: ClassVar[str] = "-argocd-cluster"
    embeds_credentials: ClassVar[bool] = False

    plugin_command: str
    plugin_environment: Mapping[str, str] = field(default_factory=dict)
    argocd_project: str = ""
    copy_labels: Sequence[str] = ()

    def render(self, cluster: Cluster, access: KubeconfigAccess | None) -> Rendered | None:
        if access is None:
            return None
        tls: Document = {"insecure": False}
        if access.authorities is not None:
            tls["caData"] = _encoded(access.authorities)
        if access.tls_server_name is not None:
            tls["serverName"] = access.tls_server_name
        plugin = {
            "apiVersion": _EXEC_VERSION,
            "command": self.plugin_command,
            "args": exec_arguments(cluster.name),
            "env": {**self.plugin_environment, SERVER_VARIABLE: access.server},
        }
        config = json.dumps({"execProviderConfig": plugin, "tlsClientConfig": tls}, sort_keys=True)
        data = {"name": cluster.name, "server": access.server, "config": config}
        if self.argocd_project:
            data["project"] = self.argocd_project
        labels = {**copied_labels(cluster, self.copy_labels), "argocd.argoproj.io/secret-type": "cluster"}
        return _secret(data, labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class FluxKubeconfigs:
    """Secrets with kubeconfigs that Flux reads by `spec.kubeConfig.secretRef`. Each holds a short-lived credential."""

    publication: ClassVar[str] = "flux-kubeconfigs"
    resource: ClassVar[PublishedResource] = _SECRETS
    suffix: ClassVar[str] = "-kubeconfig"
    embeds_credentials: ClassVar[bool] = True

    copy_labels: Sequence[str] = ()

    def render(self, cluster: Cluster, access: KubeconfigAccess | None) -> Rendered | None:
        if access is None:
            return None
        kubeconfig = json.dumps(render_kubeconfig(cluster.name, access), sort_keys=True)
        return _secret({"value": kubeconfig}, copied_labels(cluster, self.copy_labels))


@dataclass(frozen=True, slots=True, kw_only=True)
class FluxConfigMaps:
    """ConfigMaps that Flux reads by `spec.kubeConfig.configMapRef`, without a credential.

    Flux authenticates with a token of a service account of its own cluster.
    """

    publication: ClassVar[str] = "flux-configmaps"
    resource: ClassVar[PublishedResource] = PublishedResource(api_version="v1", plural="configmaps", kind="ConfigMap")
    suffix: ClassVar[str] = "-kubeconfig"
    embeds_credentials: ClassVar[bool] = False

    audiences: Sequence[str] = ()
    service_account: str = ""
    copy_labels: Sequence[str] = ()

    def render(self, cluster: Cluster, access: KubeconfigAccess | None) -> Rendered | None:
        if access is None:
            return None
        data = {
            "provider": "generic",
            "address": access.server,
            "ca.crt": access.authorities or "",
            "audiences": "\n".join(self.audiences),
            "serviceAccountName": self.service_account,
        }
        body = {"data": {key: value for key, value in data.items() if value}}
        return Rendered(body=body, required={}, labels=copied_labels(cluster, self.copy_labels))


def _secret(data: Mapping[str, str], labels: Mapping[str, str]) -> Rendered:
    encoded = {key: _encoded(value) for key, value in data.items()}
    return Rendered(body={"type": "Opaque", "data": encoded}, required={"type": "Opaque"}, labels=labels)


def _health(cluster: Cluster) -> Document:
    status, reason, message = _HEALTH.get(cluster.connectivity.state, _NOT_PROBED)
    if cluster.connectivity.state is ConnectivityState.UNREACHABLE and cluster.connectivity.message:
        message = f"{message}: {cluster.connectivity.message}"
    elif cluster.connectivity.state is ConnectivityState.UNKNOWN and cluster.connectivity.message:
        reason, message = "HostProbed", cluster.connectivity.message
    since = cluster.connectivity.since or cluster.engaged_at
    return {
        "type": "ControlPlaneHealthy",
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": _EPOCH if since is None else rfc3339(since),
    }


def _properties(cluster: Cluster) -> list[Document]:
    values = {
        "organization": cluster.organization,
        "suspended": str(cluster.suspended).lower(),
        "uid": cluster.uid,
    }
    return [
        {"name": f"{_PROPERTY_DOMAIN}/{name}", "value": value[:_MAX_PROPERTY_LENGTH]}
        for name, value in values.items()
        if value
    ]


def _encoded(value: str) -> str:
    return base64.b64encode(value.encode()).decode()
