"""Platforms with clusters: the published CRD of each platform, and one ready cluster as the platform reports it."""

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from tests.end_to_end.real.builds import GoProgram, source_directory
from tests.end_to_end.real.conftest import NAMESPACE
from tests.end_to_end.real.servers import RealApi

Document = dict[str, Any]
_CRDS = Path(__file__).parent / "crds"
_CNRM = "apiextensions.k8s.io_v1_customresourcedefinition_containerclusters.container.cnrm.cloud.google.com.yaml"
_HYPERSHIFT = "cmd/install/assets/hypershift-operator/zz_generated.crd-manifests/hostedclusters-Default.crd.yaml"
_KARMADA_CLUSTER = "com.github.karmada-io.karmada.pkg.apis.cluster.v1alpha1.Cluster"
_METADATA = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
CLUSTER = "alpha"
USER = "platform-admin"
TOKEN_USER = "admin"
"""The user of the static token of the workload's server."""


@dataclass(frozen=True)
class Workload:
    """The API server of a workload cluster, as platforms describe it."""

    server: RealApi
    plugin: Path

    @property
    def host(self) -> str:
        return self.server.url.removeprefix("https://").partition(":")[0]

    @property
    def port(self) -> int:
        return int(self.server.url.rpartition(":")[2])

    @property
    def token(self) -> str:
        return self.server.token

    @property
    def authorities(self) -> str:
        """The CA as base64 of PEM."""
        return encoded(self.server.authority.pem)

    @property
    def kubeconfig(self) -> bytes:
        """A kubeconfig with a client certificate."""
        return self.server.kubeconfig_as(USER, "system:masters").read_bytes()

    def write_plugin(self) -> None:
        """Write an exec credential plugin that prints the token."""
        ends = datetime.now(UTC) + timedelta(minutes=30)
        status = {"token": self.token, "expirationTimestamp": f"{ends:%Y-%m-%dT%H:%M:%SZ}"}
        credential = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}
        self.plugin.write_text(f"#!/bin/sh\ncat <<'END'\n{json.dumps(credential)}\nEND\n")
        self.plugin.chmod(0o755)


@dataclass(frozen=True)
class Platform:
    name: str
    """The name of the shipped source definition."""
    definition: Callable[[], Document] | None
    """Returns the CustomResourceDefinition of the objects; None for a built-in resource."""
    spec: Callable[[Workload], Document] = lambda _: {}
    status: Callable[[Workload], Document] = lambda _: {}
    secret: Callable[[Workload], dict[str, bytes]] | None = None
    """The data of the Secret `alpha-access`."""
    secret_type: str = "Opaque"
    changes: Callable[[Workload], Document] = lambda _: {}
    """Settings that the shipped definition leaves to its user, by their path."""
    cluster: str = f"{NAMESPACE}.{CLUSTER}"
    user: str = USER
    metadata: Document = field(default_factory=dict)


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def published(module: str, version: str, file: str, *, name: str = "", serving: str = "") -> Document:
    """Return a CustomResourceDefinition from a Go module, reduced to one version, which needs no conversion webhook."""
    program = GoProgram(name=module, version=version, module=module, package=".", definition=Path(__file__))
    documents = yaml.safe_load_all((source_directory(program) / file).read_text())
    found = next(
        document
        for document in documents
        if document and document["kind"] == "CustomResourceDefinition" and name in ("", document["metadata"]["name"])
    )
    versions = found["spec"]["versions"]
    [chosen] = [candidate for candidate in versions if candidate["name"] == serving] if serving else versions[:1]
    spec = {key: value for key, value in found["spec"].items() if key != "conversion"}
    return {
        "apiVersion": found["apiVersion"],
        "kind": found["kind"],
        "metadata": {"name": found["metadata"]["name"]},
        "spec": {**spec, "versions": [{**chosen, "served": True, "storage": True}]},
    }


def cluster_api() -> Document:
    return published(
        "sigs.k8s.io/cluster-api", "v1.11.2", "config/crd/bases/cluster.x-k8s.io_clusters.yaml", serving="v1beta2"
    )


def karmada_clusters() -> Document:
    """Return a CustomResourceDefinition with the schema that Karmada's aggregated API server publishes."""
    program = GoProgram(
        name="karmada",
        version="v1.13.0",
        module="github.com/karmada-io/karmada",
        package=".",
        definition=Path(__file__),
    )
    swagger = json.loads((source_directory(program) / "api/openapi-spec/swagger.json").read_text())["definitions"]

    def inlined(schema: Document) -> Document:
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            return {"type": "object"} if name == _METADATA else inlined(swagger[name])
        kept = {key: schema[key] for key in ("type", "required", "enum") if key in schema}
        if "properties" in schema:
            kept["properties"] = {key: inlined(subschema) for key, subschema in schema["properties"].items()}
        for key in ("items", "additionalProperties"):
            if isinstance(schema.get(key), dict):
                kept[key] = inlined(schema[key])
        return kept if "type" in kept else {**kept, "x-kubernetes-preserve-unknown-fields": True}

    names = {"kind": "Cluster", "listKind": "ClusterList", "plural": "clusters", "singular": "cluster"}
    version = {
        "name": "v1alpha1",
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "schema": {"openAPIV3Schema": inlined(swagger[_KARMADA_CLUSTER])},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "clusters.cluster.karmada.io"},
        "spec": {"group": "cluster.karmada.io", "scope": "Cluster", "names": names, "versions": [version]},
    }


def _own(file: str) -> Document:
    document: Document = yaml.safe_load((_CRDS / file).read_text())
    return document


def conditions(condition: str) -> list[Document]:
    since = "2026-01-01T00:00:00Z"
    return [{"type": condition, "status": "True", "reason": "Ready", "message": "", "lastTransitionTime": since}]


def _port(of: Workload) -> Document:
    return {"settings__endpoint__port": of.port}


PLATFORMS: Sequence[Platform] = (
    Platform(
        name="cluster-api",
        definition=cluster_api,
        spec=lambda of: {"controlPlaneEndpoint": {"host": of.host, "port": of.port}},
        status=lambda _: {"initialization": {"controlPlaneInitialized": True}},
        secret=lambda of: {"value": of.kubeconfig},
        changes=lambda _: {"kubeconfigs__issuers__0__secret": "{object}-access"},
    ),
    Platform(
        name="kamaji",
        definition=lambda: published(
            "github.com/clastix/kamaji", "v1.0.0", "config/crd/bases/kamaji.clastix.io_tenantcontrolplanes.yaml"
        ),
        spec=lambda _: {
            "controlPlane": {"service": {"serviceType": "ClusterIP"}},
            "kubernetes": {"version": "v1.33.0", "kubelet": {}},
        },
        status=lambda of: {
            "controlPlaneEndpoint": f"{of.host}:{of.port}",
            "kubeconfig": {"admin": {"secretName": f"{CLUSTER}-access"}},
            "kubernetesResources": {"version": {"status": "Ready"}},
        },
        secret=lambda of: {"admin.conf": of.kubeconfig, "super-admin.conf": b"another"},
    ),
    Platform(
        name="hypershift",
        definition=lambda: published("github.com/openshift/hypershift", "v0.1.60", _HYPERSHIFT),
        spec=lambda _: {
            "etcd": {
                "managementType": "Managed",
                "managed": {"storage": {"type": "PersistentVolume", "persistentVolume": {"size": "8Gi"}}},
            },
            "networking": {"clusterNetwork": [{"cidr": "10.132.0.0/14"}]},
            "platform": {"type": "None"},
            "pullSecret": {"name": "pull"},
            "release": {"image": "quay.io/openshift-release-dev/ocp-release:4.20.0"},
            "services": [
                {"service": service, "servicePublishingStrategy": {"type": "Route"}}
                for service in ("APIServer", "OAuthServer", "Konnectivity", "Ignition")
            ],
        },
        status=lambda of: {
            "controlPlaneEndpoint": {"host": of.host, "port": of.port},
            "kubeconfig": {"name": f"{CLUSTER}-access"},
            "conditions": conditions("Available"),
        },
        secret=lambda of: {"kubeconfig": of.kubeconfig},
    ),
    Platform(
        name="hive",
        definition=lambda: published(
            "github.com/openshift/hive", "v1.1.16", "config/crds/hive.openshift.io_clusterdeployments.yaml"
        ),
        spec=lambda _: {
            "baseDomain": "example.com",
            "clusterName": CLUSTER,
            "installed": True,
            "platform": {},
            "clusterMetadata": {
                "adminKubeconfigSecretRef": {"name": f"{CLUSTER}-access"},
                "clusterID": "1",
                "infraID": "1",
            },
        },
        status=lambda of: {"apiURL": of.server.url},
        secret=lambda of: {"kubeconfig": of.kubeconfig, "raw-kubeconfig": b"another"},
    ),
    Platform(
        name="crossplane-claim",
        definition=lambda: _own("crossplane-claims.yaml"),
        spec=lambda _: {"writeConnectionSecretToRef": {"name": f"{CLUSTER}-access"}},
        status=lambda _: {"conditions": conditions("Ready")},
        secret=lambda of: {"kubeconfig": of.kubeconfig},
        secret_type="connection.crossplane.io/v1alpha1",
    ),
    Platform(
        name="karmada",
        definition=karmada_clusters,
        spec=lambda of: {
            "syncMode": "Push",
            "apiEndpoint": of.server.url,
            "secretRef": {"name": f"{CLUSTER}-access", "namespace": NAMESPACE},
        },
        status=lambda _: {"conditions": conditions("Ready")},
        secret=lambda of: {"token": of.token.encode(), "caBundle": of.server.authority.pem},
        cluster=CLUSTER,
        user=TOKEN_USER,
    ),
    Platform(
        name="argocd",
        definition=None,
        metadata={"labels": {"argocd.argoproj.io/secret-type": "cluster"}},
        secret=lambda of: {
            "name": CLUSTER.encode(),
            "server": of.server.url.encode(),
            "config": json.dumps(
                {"bearerToken": of.token, "tlsClientConfig": {"insecure": False, "caData": of.authorities}}
            ).encode(),
        },
        changes=lambda _: {"settings__resource__namespace": NAMESPACE},
        cluster=f"{CLUSTER}-access",
        user=TOKEN_USER,
    ),
    Platform(
        name="aks",
        definition=lambda: published(
            "sigs.k8s.io/cluster-api-provider-azure",
            "v1.17.0",
            "config/aso/crds.yaml",
            name="managedclusters.containerservice.azure.com",
            serving="v1api20231001",
        ),
        spec=lambda _: {
            "location": "westeurope",
            "owner": {"name": "group"},
            "operatorSpec": {"secrets": {"adminCredentials": {"name": f"{CLUSTER}-access", "key": "of-alpha"}}},
        },
        status=lambda of: {"fqdn": of.host, "conditions": conditions("Ready")},
        secret=lambda of: {"of-alpha": of.kubeconfig},
        changes=_port,
    ),
    Platform(
        name="gke",
        definition=lambda: published(
            "github.com/GoogleCloudPlatform/k8s-config-connector", "v1.125.0", f"config/crds/resources/{_CNRM}"
        ),
        spec=lambda _: {"location": "europe-west1"},
        status=lambda of: {
            "endpoint": of.host,
            "conditions": conditions("Ready"),
            "observedState": {"masterAuth": {"clusterCaCertificate": of.authorities}},
        },
        changes=lambda of: {
            **_port(of),
            "settings__endpoint__hosts": ["127.0.0.0/8"],
            "kubeconfigs__issuers__0__command": str(of.plugin),
        },
        user=TOKEN_USER,
    ),
    Platform(
        name="rancher",
        definition=lambda: _own("rancher-clusters.yaml"),
        status=lambda _: {"clientSecretName": f"{CLUSTER}-access", "conditions": conditions("Ready")},
        secret=lambda of: {
            "token": of.token.encode(),
            "value": of.server.kubeconfig.read_bytes(),
        },
        user=TOKEN_USER,
    ),
)
