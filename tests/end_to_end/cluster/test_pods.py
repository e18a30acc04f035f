"""The manifests in pods of a real kubelet."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.end_to_end.cluster.__main__ import say
from tests.end_to_end.cluster.node import Node
from tests.end_to_end.cluster.parts import ROOT
from tests.end_to_end.real import kubeconfig
from tests.end_to_end.real.process import ProcessError
from tests.tooling.deploy.manifests import DEPLOY, OPERATOR, manifests

DEFINITION = ROOT / "sandbox/src/milo_sandbox/crds/projectcontrolplanes.yaml"
OF_PROMETHEUS = {"PodMonitor", "PrometheusRule"}
TERMINATE = "import os, signal; os.kill(1, signal.SIGTERM)"


def applied(node: Node, directory: Path) -> str:
    """Apply a kustomization, except objects of the Prometheus operator's kinds; return its namespace."""
    objects = [manifest for manifest in manifests(directory) if manifest["kind"] not in OF_PROMETHEUS]
    [namespace] = {obj["metadata"]["namespace"] for obj in objects if obj["kind"] == "Deployment"}
    if not any(obj["kind"] == "Namespace" for obj in objects):
        objects.insert(0, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    node.kubectl("apply", "-f", "-", given=yaml.safe_dump_all(objects))
    return str(namespace)


@contextmanager
def running(node: Node, directory: Path) -> Iterator[str]:
    namespace = applied(node, directory)
    try:
        node.kubectl("-n", namespace, "wait", "--for=condition=Available", "deployment", "--all", "--timeout=180s")
        yield namespace
    finally:
        node.kubectl("delete", "namespace", namespace)


def eventually(holds: Callable[[], Any], within_s: float = 120.0) -> Any:
    ends = time.monotonic() + within_s
    while not (found := holds()):
        assert time.monotonic() < ends
        time.sleep(0.2)
    return found


def terminated(node: Node, namespace: str, container: str) -> dict[str, Any] | None:
    """Return the last terminated state of the container in the only pod; None until it is ready again."""
    [pod] = node.get("-n", namespace, "pods")["items"]
    [found] = [status for status in pod["status"]["containerStatuses"] if status["name"] == container]
    state: dict[str, Any] | None = found["lastState"].get("terminated")
    return state if found["ready"] else None


def test_demo_pod_prints_changes_and_terminates_on_sigterm_as_pid_1(node: Node) -> None:
    with running(node, DEPLOY / "overlays" / "demo") as namespace:
        logs = ["-n", namespace, "logs", "deployment/demo", "-c", "subscriber"]
        eventually(lambda: "ENGAGED" in node.kubectl(*logs))
        node.kubectl("-n", namespace, "exec", "deployment/demo", "-c", "subscriber", "--", "python3", "-c", TERMINATE)
        ended = eventually(lambda: terminated(node, namespace, "subscriber"))
        assert ended["exitCode"] == 130


def test_daemon_in_a_pod_engages_clusters_and_resolves_kubernetes_service_names(node: Node) -> None:
    node.kubectl("apply", "-f", "-", given=DEFINITION.read_text())
    node.kubectl("wait", "--for=condition=Established", "-f", "-", given=DEFINITION.read_text())
    with running(node, DEPLOY / "overlays" / "standalone") as namespace:
        engage(node, "alpha")
        logs = ["-n", namespace, "logs", "deployment/milo-discoveryd", "-c", "changes"]
        eventually(lambda: "ENGAGED" in node.kubectl(*logs))
        resolve = "import socket; print(socket.gethostbyname('kubernetes.default.svc.cluster.local'))"
        pod = ["-n", namespace, "exec", "deployment/milo-discoveryd", "-c", "milo-discoveryd", "--", "python3"]
        assert node.kubectl(*pod, "-c", resolve).strip() == "10.96.0.1"


def engage(node: Node, *names: str) -> None:
    """Create control planes that are ready."""
    node.kubectl("apply", "-f", "-", given=yaml.safe_dump_all(map(control_plane, names)))
    condition = {"type": "ControlPlaneReady", "status": "True", "reason": "Ready", "message": ""}
    status = {"conditions": [{**condition, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}
    ready = [{key: value for key, value in control_plane(name).items() if key != "spec"} for name in names]
    given = yaml.safe_dump_all({**obj, "status": status} for obj in ready)
    node.kubectl("apply", "--server-side", "--subresource=status", "-f", "-", given=given)


def control_plane(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "infrastructure.miloapis.com/v1alpha1",
        "kind": "ProjectControlPlane",
        "metadata": {"name": name},
        "spec": {},
    }


def test_kubeconfig_of_a_tenant_has_the_server_named_in_the_tenants_secret(node: Node) -> None:
    """Uses the Go operator's manifests. The tenant's API server is that of the cluster, whose address is only in the
    Secret, and in no setting.
    """
    node.kubectl("apply", "-f", "-", given=DEFINITION.read_text())
    objects = manifests(OPERATOR)
    [pod] = [obj["spec"]["template"]["spec"] for obj in objects if obj["kind"] == "Deployment"]
    pod["terminationGracePeriodSeconds"] = 1  # `sleep` ignores SIGTERM
    [manager] = pod["containers"]
    manager |= {"image": "milo-discoveryd:0.1.0", "command": ["sleep", "infinity"]}
    [daemon] = pod["initContainers"]
    daemon["image"] = "milo-discoveryd:0.1.0"
    for unused in ("args", "livenessProbe", "readinessProbe"):
        del manager[unused]
    namespace = "greeting-system"
    node.kubectl("apply", "-f", "-", given=yaml.safe_dump_all(objects))
    try:
        node.kubectl("wait", "--for=condition=Established", "-f", "-", given=DEFINITION.read_text())
        # `milo-discoveryd check` requests a credential for the first control plane.
        node.kubectl("delete", "projectcontrolplanes", "--all")
        namespace_of_tenant = make_tenant(node, "tenant")
        node.kubectl("-n", namespace, "rollout", "status", "deployment", "--timeout=180s")
        pod = ["-n", namespace, "exec", "deployment/greeting-operator", "-c", "milo-discoveryd", "--"]
        checked = eventually(lambda: ended(node, *pod, "milo-discoveryd", "check"))
        assert f"authenticated as system:serviceaccount:{namespace_of_tenant}:default" in checked
        issued = node.kubectl(*pod, "milo-discovery", "kubeconfig", "tenant")
        assert yaml.safe_load(issued)["clusters"][0]["cluster"]["server"] == "https://10.96.0.1"
    finally:
        node.kubectl("delete", "-f", "-", given=yaml.safe_dump_all(objects))


def make_tenant(node: Node, name: str) -> str:
    """Create a control plane whose kubeconfig Secret has the node's API server; return the Secret's namespace."""
    engage(node, name)
    namespace = f"project-{node.get('projectcontrolplane', name)['metadata']['uid']}"
    node.kubectl("create", "namespace", namespace)
    path = node.files / "tmp-kubeconfig"
    kubeconfig.write(
        path,
        server="https://10.96.0.1",
        authority=(node.files / "etc/kubernetes/ca.crt").read_bytes(),
        user={"token": eventually(lambda: ended(node, "-n", namespace, "create", "token", "default").strip())},
    )
    secret = ["create", "secret", "generic", "kubeconfig", f"--from-file=kubeconfig=/{path.name}"]
    node.kubectl("-n", namespace, *secret)
    return namespace


def ended(node: Node, *command: str) -> str:
    """Return the output of a command; empty while the command fails."""
    try:
        return node.kubectl(*command)
    except ProcessError:
        return ""


def test_deleting_one_operator_does_not_remove_the_permissions_of_another_operator(node: Node) -> None:
    def may_read(account: str) -> bool:
        verb = ["list", "projectcontrolplanes.infrastructure.miloapis.com"]
        try:
            return node.kubectl("auth", "can-i", *verb, "--as", f"system:serviceaccount:{account}").strip() == "yes"
        except ProcessError:  # kubectl auth can-i fails if the answer is no
            return False

    first, second = DEPLOY / "examples" / "operator", OPERATOR
    for directory in (first, second):
        applied(node, directory)
    try:
        eventually(
            lambda: may_read("example-operator:example-operator") and may_read("greeting-system:greeting-operator")
        )
        node.kubectl("delete", "-f", "-", given=yaml.safe_dump_all(manifests(first)))
        eventually(lambda: not may_read("example-operator:example-operator"))
        assert may_read("greeting-system:greeting-operator")
    finally:
        node.kubectl("delete", "-f", "-", given=yaml.safe_dump_all(manifests(second)))


def test_second_node_leaves_the_mounts_links_and_sysctls_of_the_host_unchanged(node: Node) -> None:
    def host() -> tuple[str, str, list[str]]:
        settings = ("vm/overcommit_memory", "kernel/panic", "net/ipv4/ip_forward")
        links = subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True, check=False).stdout
        return (
            Path("/proc/self/mounts").read_text(),
            links,
            [Path("/proc/sys", setting).read_text() for setting in settings],
        )

    before = host()
    second = Node(f"beside-{os.getpid()}")
    second.up(say)
    cgroups = second.cgroups()
    try:
        assert node.get("nodes")["items"][0]["metadata"]["uid"] != second.get("nodes")["items"][0]["metadata"]["uid"]
        assert host() == before
    finally:
        second.down()
    assert second.process is None
    assert not any(cgroup.exists() for cgroup in cgroups)
    assert host() == before
