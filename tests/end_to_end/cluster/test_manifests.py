"""Overlays, components and the chart in pods, where no other test of this directory runs them."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.end_to_end.cluster.node import Node
from tests.end_to_end.cluster.parts import ROOT
from tests.end_to_end.cluster.pods import operator, started, watcher
from tests.end_to_end.cluster.test_operators import await_change, configured, restarts
from tests.end_to_end.cluster.test_pods import (
    DEFINITION,
    OF_PROMETHEUS,
    ended,
    engage,
    eventually,
    make_tenant,
    running,
)
from tests.end_to_end.real.builds import source_directory
from tests.end_to_end.real.publishing import INVENTORY_API, PROFILES_DEFINITION
from tests.tooling.deploy.manifests import DEPLOY, manifests
from tests.tooling.release import helm
from tools.release import Commit, chart

CORE = "milo-system"


@pytest.fixture(autouse=True)
def definitions(node: Node) -> Iterator[None]:
    """Install the definitions of clusters and profiles, and delete the clusters of other tests."""
    profiles = source_directory(INVENTORY_API) / PROFILES_DEFINITION
    projects = ROOT / "sandbox/src/milo_sandbox/crds/projects.yaml"
    given = "\n---\n".join(path.read_text() for path in (DEFINITION, projects, profiles))
    node.kubectl("apply", "-f", "-", given=given)
    node.kubectl("wait", "--for=condition=Established", "-f", "-", given=given)
    node.kubectl("delete", "projectcontrolplanes", "--all")
    yield
    node.kubectl("delete", "projectcontrolplanes", "--all")


def test_publishing_overlay_creates_and_deletes_the_cluster_profile_of_a_cluster(node: Node) -> None:
    with running(node, DEPLOY / "overlays" / "publishing") as namespace:
        engage(node, "alpha")
        eventually(lambda: ended(node, "-n", namespace, "get", "clusterprofile", "alpha"))
        node.kubectl("delete", "projectcontrolplane", "alpha")
        eventually(lambda: not node.get("-n", namespace, "clusterprofiles")["items"])


def test_all_components_that_can_be_combined_work_in_one_pod(node: Node, tmp_path: Path) -> None:
    """The components that a daemon with an issuer can have at the same time, on a StatefulSet."""
    issuer = {"name": "project", "type": "kubeconfig-secret"}
    publishers = ("cluster-profiles", "argocd-clusters", "flux-kubeconfigs", "flux-configmaps")
    components = (
        "sidecar",
        "state",
        "client",
        "prometheus-monitoring",
        "milo-alert-labels",
        "prometheus-cluster-names",
    )
    objects = configured(
        tmp_path / "operator", "components", {"kubeconfigs": {"issuers": [issuer]}}, kind="StatefulSet",
        components=(*components, *(f"publish-{publisher}" for publisher in publishers)),
        roles=("project-control-plane", "kubeconfig-secret"),
    )  # fmt: skip
    objects = [obj for obj in objects if obj["kind"] not in OF_PROMETHEUS]
    [workload] = [obj for obj in objects if obj["kind"] == "StatefulSet"]
    [caller] = [
        container for container in workload["spec"]["template"]["spec"]["containers"] if container["name"] == "caller"
    ]
    caller["volumeMounts"].append({"name": "milo-discovery-client", "mountPath": "/opt/milo-discovery"})
    execute = ["-n", "components", "exec", "example-operator-0", "-c", "caller", "--"]
    metrics = "import socket as s, urllib.request as r; "
    metrics += "print(r.urlopen(f'http://{s.gethostbyname(s.gethostname())}:9464/metrics').read().decode())"
    with started(node, objects):
        namespace = make_tenant(node, "alpha")
        written = (
            "clusterprofile/alpha",
            "secret/alpha-argocd-cluster",
            "secret/alpha-kubeconfig",
            "configmap/alpha-kubeconfig",
        )
        eventually(lambda: ended(node, "-n", "components", "get", *written))
        assert "alpha" in node.kubectl(*execute, "/opt/milo-discovery/milo-discovery", "list")
        assert 'milo_discoveryd_cluster_info{cluster="alpha"' in node.kubectl(*execute, "python3", "-c", metrics)
        node.kubectl("-n", "components", "delete", "pod", "example-operator-0")
        eventually(lambda: "alpha" in ended(node, *execute, "/opt/milo-discovery/milo-discovery", "list"))
        assert set(restarts(node, "components").values()) == {0}
        node.kubectl("delete", "namespace", namespace)


def test_daemon_reads_projects_of_the_core_api_with_a_kubeconfig(node: Node, tmp_path: Path) -> None:
    """The overlay `core-control-plane` grants the rights at the core API. The node's API server stands for the core
    Milo API, and the kubeconfig is that of another user.
    """
    rights = yaml.safe_dump_all(manifests(DEPLOY / "overlays" / "core-control-plane"))
    project = {"apiVersion": "resourcemanager.miloapis.com/v1alpha1", "kind": "Project", "metadata": {"name": "alpha"}}
    project["spec"] = {"ownerRef": {"kind": "Organization", "name": "acme"}}
    objects = operator(
        tmp_path / "operator", "core", [watcher("changes")], components=("sidecar", "core-kubeconfig"), roles=()
    )
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "milo-discoveryd-kubeconfig", "namespace": "core"},
    }
    secret["stringData"] = {"kubeconfig": (node.files / "etc/kubernetes/discovery.conf").read_text()}
    objects.insert(1, secret)
    node.kubectl("apply", "-f", "-", given=rights)
    try:
        with started(node, objects):
            node.kubectl("apply", "-f", "-", given=yaml.safe_dump(project))
            condition = {
                "type": "Ready",
                "status": "True",
                "reason": "Ready",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }
            status = json.dumps({"status": {"conditions": [condition | {"message": ""}]}})
            node.kubectl("patch", "project", "alpha", "--subresource=status", "--type=merge", "--patch", status)
            await_change(node, "core", "changes", ("ENGAGED", "alpha"))
    finally:
        node.kubectl("delete", "project", "alpha", "--ignore-not-found")
        node.kubectl("delete", "-f", "-", given=rights)


def test_helm_release_works_after_another_release_is_uninstalled(node: Node, tmp_path: Path) -> None:
    chart(tmp_path, DEPLOY, Commit())
    [archive] = (tmp_path / "chart").glob("*.tgz")
    for file in (archive, helm()):
        shutil.copy(file, node.files)

    def command(*arguments: str) -> None:
        subprocess.run(node.enter("/helm", *arguments), check=True, stdout=subprocess.DEVNULL)

    def followed(release: str, cluster: str) -> bool:
        logs = ["-n", f"{release}-system", "logs", "deployment/milo-discoveryd", "-c", "changes", "--tail=-1"]
        return f'"{cluster}"' in ended(node, *logs)

    for release in ("first", "second"):
        given = ("--namespace", f"{release}-system", "--create-namespace", "--set", "monitoring.enabled=false")
        command("install", release, f"/{archive.name}", *given, "--wait", "--timeout", "180s")
    try:
        engage(node, "alpha")
        eventually(lambda: followed("first", "alpha") and followed("second", "alpha"))
        command("uninstall", "first", "--namespace", "first-system", "--wait")
        node.kubectl("-n", "second-system", "delete", "pod", "--all")  # a new pod needs the rights from its start
        engage(node, "beta")
        eventually(lambda: followed("second", "beta"))
    finally:
        command("uninstall", "second", "--namespace", "second-system", "--wait")
        node.kubectl("delete", "namespace", "first-system", "second-system")
