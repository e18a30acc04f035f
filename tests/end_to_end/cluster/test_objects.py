"""The overlay with a publisher of objects and a NATS server, unchanged, and readers in other namespaces."""

import json
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from milo_discoveryd import __version__
from tests.end_to_end.cluster import parts
from tests.end_to_end.cluster.__main__ import say
from tests.end_to_end.cluster.node import Node
from tests.end_to_end.cluster.pods import container, started
from tests.end_to_end.cluster.test_examples import image
from tests.end_to_end.cluster.test_pods import DEFINITION, OF_PROMETHEUS, ended, eventually, make_tenant
from tests.tooling.deploy.manifests import DEPLOY, manifests, of_kind

pytestmark = pytest.mark.timeout(900)

OVERLAY = DEPLOY / "overlays" / "objects"
NAMESPACE = "milo-system"
PUBLISHER = "deployment/milo-discoveryd"
NATS_MONITOR = f"/api/v1/namespaces/{NAMESPACE}/pods/nats-0:8222/proxy"
PROJECTS = ("web", "app")
LABELS = {"readers": {"discovery.miloapis.com/subscriber": "true"}, "elsewhere": {}}
"""Labels of the readers' namespaces: NATS admits the first alone."""
READER = f"""\
import asyncio, json
from milo_objects import Kind, Objects
from milo_objects.jetstream import NatsOptions
from milo_objects.nats_source import NatsSource

async def main():
    source = NatsSource(NatsOptions(servers=("nats://nats.{NAMESPACE}:4222",)))
    async with Objects(source, [Kind("v1/namespaces")]) as objects:
        async for _ in objects.changes():
            names = {{name: [] for name in objects.clusters}}
            for name, found in names.items():
                found += [each.object.name for each in objects.list("v1/namespaces", name)]
            view = objects.view("v1/namespaces")
            line = {{"found": names, "complete": view.is_complete, "stale": view.stale_since is not None}}
            print(json.dumps(line | {{"problem": objects.fleet.problem}}), flush=True)

asyncio.run(main())
"""
"""Logs the namespaces of all projects at each change."""


@pytest.fixture(scope="module")
def projects(node: Node) -> Iterator[None]:
    """Projects whose API server is the cluster's, with kubeconfigs of an identity that may view it."""
    node.kubectl("apply", "-f", "-", given=DEFINITION.read_text())
    node.kubectl("wait", "--for=condition=Established", "-f", "-", given=DEFINITION.read_text())
    node.kubectl("delete", "projectcontrolplanes", "--all")
    namespaces = [make_tenant(node, name) for name in PROJECTS]
    accounts = [f"--serviceaccount={namespace}:default" for namespace in namespaces]
    node.kubectl("create", "clusterrolebinding", "projects", "--clusterrole=view", *accounts)
    yield
    node.kubectl("delete", "clusterrolebinding", "projects")
    node.kubectl("delete", "projectcontrolplanes", "--all")
    node.kubectl("delete", "namespace", *namespaces)


def load_nats(node: Node, directory: Path) -> None:
    """Load the overlay's image of NATS, which contains the server alone, like the published one."""
    shutil.copy(Path(sysconfig.get_path("scripts"), "nats-server"), directory)
    image(directory, "COPY nats-server /", "/nats-server")
    node.load(parts.images({"nats": directory}, say))
    [nats] = server()["template"]["spec"]["containers"]
    names = [f"docker.io/library/{name}" for name in (f"nats:{__version__}", nats["image"])]
    subprocess.run(node.enter("ctr", "--namespace", "k8s.io", "images", "tag", "--force", *names), check=True)


def server() -> Any:
    """Return the specification of the StatefulSet of NATS."""
    [found] = of_kind(OVERLAY, "StatefulSet")
    return found["spec"]


def volume(node: Node) -> dict[str, Any]:
    """Return a volume for the claim of NATS: the node has no StorageClass."""
    path = "/var/lib/nats"
    subprocess.run(node.enter("mkdir", "-p", path), check=True)
    [claim] = server()["volumeClaimTemplates"]
    any_node = {"key": "kubernetes.io/hostname", "operator": "Exists"}
    spec = {
        "capacity": claim["spec"]["resources"]["requests"],
        "accessModes": claim["spec"]["accessModes"],
        "local": {"path": path},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [any_node]}]}},
    }
    return {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "nats"}, "spec": spec}


def readers() -> Iterator[dict[str, Any]]:
    """Yield a reader in each namespace, which knows nothing but the address of NATS."""
    for namespace, labels in LABELS.items():
        yield {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}}
        reader = container("reader", "python3", "-c", READER) | {"volumeMounts": [], "env": []}
        spec = {"terminationGracePeriodSeconds": 1, "containers": [reader], "automountServiceAccountToken": False}
        yield {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "reader", "namespace": namespace}, "spec": spec}


def read(node: Node) -> Any:
    """Return what the reader logged last."""
    logs = ended(node, "-n", "readers", "logs", "reader").splitlines()
    lines = [line for line in logs if line.startswith("{")]
    return json.loads(lines[-1]) if lines else {"found": {}, "complete": False}


def namespaces(node: Node, project: str) -> set[str]:
    return set(read(node)["found"].get(project, ()))


@pytest.fixture(scope="module")
def overlay(node: Node, projects: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The overlay in a namespace that admits restricted pods alone, and the readers."""
    load_nats(node, tmp_path_factory.mktemp("nats"))
    enforced = {"pod-security.kubernetes.io/enforce": "restricted"}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": enforced}}
    shipped = [dict(obj) for obj in manifests(OVERLAY) if obj["kind"] not in OF_PROMETHEUS]
    with started(node, [namespace, volume(node), *shipped, *readers()]):
        yield


def messages(node: Node) -> int:
    """Return how many messages NATS stores."""
    found: int = json.loads(node.kubectl("get", "--raw", f"{NATS_MONITOR}/jsz"))["messages"]
    return found


def statuses(node: Node) -> Iterator[dict[str, Any]]:
    """Yield the status of each container of the overlay."""
    for pod in node.get("-n", NAMESPACE, "pods")["items"]:
        yield from (*pod["status"].get("initContainerStatuses", ()), *pod["status"]["containerStatuses"])


@pytest.mark.usefixtures("overlay")
def test_reader_of_nats_sees_namespaces_of_projects_and_whether_a_publisher_is_heard(node: Node) -> None:
    eventually(lambda: (found := read(node))["complete"] and found["found"].keys() == {*PROJECTS})
    assert read(node)["problem"] == ""
    assert all({"default", "kube-system"} <= namespaces(node, project) for project in PROJECTS)
    assert {status["restartCount"] for status in statuses(node)} == {0}
    node.kubectl("create", "namespace", "team")
    try:
        eventually(lambda: all("team" in namespaces(node, project) for project in PROJECTS))
        node.kubectl("-n", NAMESPACE, "scale", PUBLISHER, "--replicas=0")
        eventually(lambda: read(node)["stale"])  # after 30 s without a publisher
        assert "no publisher has been heard since" in read(node)["problem"]
        assert "team" in namespaces(node, "web")
        stored = messages(node)
        node.kubectl("-n", NAMESPACE, "delete", "pod", "nats-0")
        node.kubectl("-n", NAMESPACE, "rollout", "status", "statefulset/nats", "--timeout=120s")
        assert messages(node) == stored
    finally:
        node.kubectl("delete", "namespace", "team")
    node.kubectl("-n", NAMESPACE, "scale", PUBLISHER, "--replicas=1")
    eventually(lambda: not read(node)["stale"] and not any("team" in namespaces(node, name) for name in PROJECTS))


@pytest.mark.usefixtures("overlay")
def test_network_policy_lets_only_namespaces_with_the_label_of_subscribers_reach_nats(node: Node) -> None:
    if subprocess.run(node.enter("ipset", "list"), capture_output=True, check=False).returncode:
        pytest.skip("this kernel has no ipset, with which kube-router enforces network policies")
    connect = f"import socket; print(socket.create_connection(('nats.{NAMESPACE}', 4222), 5).recv(5))"
    admitted, refused = (["-n", namespace, "exec", "reader", "--", "python3", "-c", connect] for namespace in LABELS)
    eventually(lambda: not ended(node, *refused) and "INFO" in ended(node, *admitted))
