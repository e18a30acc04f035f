"""The ready-made source definitions: with each, a daemon in a pod engages a cluster.

The objects are those that the platforms write. Their CustomResourceDefinitions accept every field.
"""

import copy
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from tests.end_to_end.cluster.node import ADDRESS, Node
from tests.end_to_end.cluster.pods import ACCOUNT, operator, started, watcher
from tests.end_to_end.cluster.test_operators import CONFIGURATION
from tests.end_to_end.cluster.test_pods import ended, eventually
from tests.end_to_end.process.watching import adapted
from tests.end_to_end.real import kubeconfig
from tests.end_to_end.real.conftest import NAMESPACE
from tests.end_to_end.real.platforms import CLUSTER, PLATFORMS, Platform, Workload, conditions, encoded
from tests.tooling.deploy.manifests import DEPLOY

SECRET = f"{CLUSTER}-access"
FURTHER = (
    Platform("kubeconfig-directory", None, cluster=f"files#{CLUSTER}"),
    Platform(
        "kubeconfig-secrets",
        None,
        metadata={"labels": {"sigs.k8s.io/multicluster-runtime-kubeconfig": "true"}},
        cluster=SECRET,
    ),
    Platform(
        "cluster-profile",
        None,
        status=lambda of: {
            "conditions": conditions("ControlPlaneHealthy"),
            "accessProviders": [
                {
                    "name": "fleet",
                    "cluster": {"server": of.server.url, "certificate-authority-data": of.authorities},
                }
            ],
        },
    ),
    Platform(
        "gardener",
        None,
        status=lambda of: {
            "conditions": conditions("APIServerAvailable"),
            "advertisedAddresses": [{"name": "external", "url": of.server.url}],
        },
    ),
    Platform(
        "kcp",
        None,
        spec=lambda of: {"URL": of.server.url},
        status=lambda _: {"phase": "Ready"},
        cluster=CLUSTER,
    ),
)
TRIED = {platform.name: platform for platform in (*PLATFORMS, *FURTHER)}


def cluster_itself(node: Node, directory: Path) -> Workload:
    """Return the node's API server, which stands for the API server of each platform's cluster."""
    pem, token = (node.files / "etc/kubernetes/ca.crt").read_bytes(), node.kubectl("create", "token", "default").strip()
    url = f"https://{ADDRESS}:6443"
    file = kubeconfig.write(directory / "kubeconfig", server=url, authority=pem, user={"token": token})
    authority = SimpleNamespace(pem=pem)
    given = {"url": url, "authority": authority, "kubeconfig": file, "kubeconfig_as": lambda *_: file, "token": token}
    server: Any = SimpleNamespace(**given)
    return Workload(server, Path("/usr/local/bin/plugin"))


def settings(platform: Platform, cluster: Workload) -> dict[str, Any]:
    """Return the shipped definition, adapted where it says `yours`."""
    found = adapted(platform.name, **platform.changes(cluster))
    endpoint = found.get("settings", {}).get("endpoint", {})
    endpoint |= {"hosts": [cluster.host]} if "hosts" in endpoint else {}
    return found


def resource(name: str) -> dict[str, Any]:
    """Return the resource of a definition; empty for files."""
    found: dict[str, Any] = adapted(name).get("settings", {}).get("resource", {})
    return found


def definition(of: dict[str, Any]) -> dict[str, Any]:
    """Return a CustomResourceDefinition of the resource that accepts every field."""
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": of["version"], "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    scope = "Namespaced" if of.get("namespaced") else "Cluster"
    names = {"plural": of["plural"], "kind": of["plural"].title()}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{of['plural']}.{of['group']}"},
        "spec": {"group": of["group"], "scope": scope, "names": names, "versions": [version]},
    }


def objects_of_platforms(cluster: Workload) -> Iterator[dict[str, Any]]:
    """Yield the object of each platform, and one Secret with what all platforms write into theirs."""
    secret: dict[str, Any] = {"apiVersion": "v1", "kind": "Secret", "data": {}}
    labels: dict[str, str] = {}
    for name, platform in TRIED.items():
        data = platform.secret(cluster) if platform.secret else {}
        secret["data"] |= {key: encoded(value) for key, value in data.items()}
        labels |= platform.metadata.get("labels", {})
        if "group" in (of := resource(name)):
            yield {
                "apiVersion": f"{of['group']}/{of['version']}",
                "kind": of["plural"].title(),
                "metadata": {"name": CLUSTER, **({"namespace": NAMESPACE} if of.get("namespaced") else {})},
                "spec": platform.spec(cluster),
                "status": platform.status(cluster),
            }
    [kind] = {platform.secret_type for platform in PLATFORMS} - {"Opaque"}
    yield secret | {"type": kind, "metadata": {"name": SECRET, "namespace": NAMESPACE, "labels": labels}}


def daemons(directory: Path, cluster: Workload) -> Iterator[dict[str, Any]]:
    """Yield a Deployment for each definition, and what all of them need."""
    token = {"serviceAccountToken": {"audience": "milo-discovery", "expirationSeconds": 600, "path": "token"}}
    volumes = [
        {"name": "configuration", "configMap": {"name": "configuration"}},
        {"name": "clusters", "secret": {"secretName": SECRET, "items": [{"key": "kubeconfig", "path": CLUSTER}]}},
        {"name": "token", "projected": {"sources": [token]}},
    ]
    mounts = [
        CONFIGURATION,
        {"name": "clusters", "mountPath": "/etc/clusters"},
        {"name": "token", "mountPath": "/var/run/secrets/kcp"},
    ]
    for manifest in operator(directory, NAMESPACE, [watcher("changes")], volumes=volumes, roles=()):
        for name in TRIED if manifest["kind"] == "Deployment" else ():
            workload = copy.deepcopy(manifest)
            workload["metadata"]["name"] = name
            workload["spec"]["selector"] = {"matchLabels": {"definition": name}}
            workload["spec"]["template"]["metadata"]["labels"] = {"definition": name}
            [daemon] = workload["spec"]["template"]["spec"]["initContainers"]
            variables = {
                "MILO_DISCOVERYD_MODE": "",
                "MILO_DISCOVERYD_CONFIG": f"/etc/milo-discoveryd/{name}.yaml",
            }
            daemon["env"] = [variable for variable in daemon["env"] if variable["name"] not in variables]
            daemon["env"] = [*({"name": key, "value": value} for key, value in variables.items()), *daemon["env"]]
            daemon["volumeMounts"] += mounts
            yield workload
        if manifest["kind"] != "Deployment":
            yield manifest
    files = {f"{name}.yaml": yaml.safe_dump(settings(platform, cluster)) for name, platform in TRIED.items()}
    metadata = {"name": "configuration", "namespace": NAMESPACE}
    yield {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": files}
    read = [of for of in map(resource, TRIED) if of]
    rules = [
        {"apiGroups": [of.get("group", "")], "resources": [of["plural"]], "verbs": ["get", "list", "watch"]}
        for of in read
    ]
    group = "rbac.authorization.k8s.io"
    role = {"apiGroup": group, "kind": "ClusterRole", "name": "sources"}
    account = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": NAMESPACE}
    common = {"apiVersion": f"{group}/v1", "metadata": {"name": "sources"}}
    yield common | {"kind": "ClusterRole", "rules": rules}
    yield common | {"kind": "ClusterRoleBinding", "roleRef": role, "subjects": [account]}


def has_engaged(node: Node, name: str, cluster: str) -> bool:
    """Return whether the operator beside the daemon with this definition has received the cluster."""
    return f'"{cluster}"' in ended(node, "-n", NAMESPACE, "logs", f"deployment/{name}", "-c", "changes")


@pytest.mark.timeout(900)
def test_daemon_in_a_pod_engages_a_cluster_from_the_source_definition_of_each_platform(
    node: Node, tmp_path: Path
) -> None:
    """Tests all definitions but `kind`, which is for clusters on a developer's machine."""
    assert {*TRIED, "kind"} == {path.stem for path in (DEPLOY / "sources").glob("*.yaml")}
    cluster = cluster_itself(node, tmp_path)
    definitions = [definition(of) for of in map(resource, TRIED) if "group" in of]
    given = yaml.safe_dump_all(definitions)
    node.kubectl("delete", "--ignore-not-found", "-f", "-", given=given)  # other tests install ClusterProfiles
    node.kubectl("apply", "-f", "-", given=given)
    try:
        node.kubectl("wait", "--for=condition=Established", "-f", "-", given=given)
        daemons_of_all = [*daemons(tmp_path / "operator", cluster)]
        with started(node, [*daemons_of_all[:1], *objects_of_platforms(cluster), *daemons_of_all[1:]]):
            for name, platform in TRIED.items():
                eventually(partial(has_engaged, node, name, platform.cluster))
    finally:
        node.kubectl("delete", "-f", "-", given=given)
