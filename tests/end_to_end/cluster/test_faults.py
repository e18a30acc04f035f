"""The overlay `standalone`: a forwarded port, killed processes of the node, and little memory."""

import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.end_to_end.cluster.node import Node
from tests.end_to_end.cluster.test_pods import DEFINITION, OF_PROMETHEUS, ended, engage, eventually
from tests.tooling.deploy.manifests import DEPLOY, manifests

NAMESPACE = "milo-system"
PROJECTS = [f"project-{number:04}" for number in range(1000)]


class Standalone:
    """The overlay `standalone`, whose daemon has 64 MiB."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def start(self) -> None:
        self.node.kubectl("apply", "-f", "-", given=DEFINITION.read_text())
        self.node.kubectl("wait", "--for=condition=Established", "-f", "-", given=DEFINITION.read_text())
        objects = [
            manifest
            for manifest in manifests(DEPLOY / "overlays" / "standalone")
            if manifest["kind"] not in OF_PROMETHEUS
        ]
        [pod] = [obj["spec"]["template"]["spec"] for obj in objects if obj["kind"] == "Deployment"]
        [daemon] = pod["initContainers"]
        daemon["resources"]["limits"]["memory"] = "64Mi"
        daemon["resources"]["requests"]["memory"] = "64Mi"
        self.node.kubectl("create", "namespace", NAMESPACE)
        self.node.kubectl("apply", "-f", "-", given=yaml.safe_dump_all(objects))
        self.kubectl("wait", "--for=condition=Available", "deployment", "--all", "--timeout=180s")

    def kubectl(self, *arguments: str) -> str:
        return self.node.kubectl("-n", NAMESPACE, *arguments)

    def changes(self) -> str:
        return self.kubectl("logs", "deployment/milo-discoveryd", "-c", "changes", "--tail=-1")

    def containers(self) -> list[Any]:
        [pod] = self.node.get("-n", NAMESPACE, "pods")["items"]
        return [*pod["status"]["containerStatuses"], *pod["status"]["initContainerStatuses"]]


@pytest.fixture(scope="module")
def standalone(node: Node) -> Iterator[Standalone]:
    standalone = Standalone(node)
    standalone.start()
    yield standalone
    node.kubectl("delete", "namespace", NAMESPACE)
    node.kubectl("delete", "-f", "-", given=DEFINITION.read_text())  # also deletes all projects


def test_status_page_answers_through_a_forwarded_port(standalone: Standalone) -> None:
    forward = standalone.node.enter("kubectl", "-n", NAMESPACE, "port-forward", "deployment/milo-discoveryd", "9464")
    request = "printf 'GET / HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n' | socat -t 5 - TCP:127.0.0.1:9464"
    with subprocess.Popen(forward, stdout=subprocess.PIPE, text=True) as forwarding:
        try:
            assert forwarding.stdout is not None
            assert forwarding.stdout.readline().startswith("Forwarding from 127.0.0.1:9464")
            page = subprocess.run(
                standalone.node.enter("sh", "-c", request), capture_output=True, text=True, check=True
            ).stdout
        finally:
            forwarding.terminate()
    assert page.splitlines()[0].split()[1] == "200"
    assert "<title>milo-discoveryd" in page


def test_no_cluster_is_disengaged_while_kubelet_and_containerd_are_restarted(standalone: Standalone) -> None:
    engage(standalone.node, "alpha")
    eventually(lambda: "alpha" in standalone.changes())
    kill = (
        "for each in $(grep -lxE 'kubelet|containerd' /proc/[0-9]*/comm); do kill -9 $(echo $each | cut -d/ -f3); done"
    )
    subprocess.run(standalone.node.enter("sh", "-c", kill), check=True)
    engage(standalone.node, "beta")
    logs = ["-n", NAMESPACE, "logs", "deployment/milo-discoveryd", "-c", "changes", "--tail=-1"]
    changes = eventually(lambda: "beta" in (text := ended(standalone.node, *logs)) and text)
    assert "DISENGAGED" not in changes
    assert {container["restartCount"] for container in standalone.containers()} == {0}
    assert all(container["state"].get("running") for container in standalone.containers())


@pytest.mark.timeout(600)
def test_daemon_with_64_mib_of_memory_follows_a_thousand_projects(standalone: Standalone) -> None:
    engage(standalone.node, *PROJECTS)
    eventually(lambda: set(re.findall(r"project-\d{4}\b", standalone.changes())) >= set(PROJECTS), within_s=300)
    assert {container["restartCount"] for container in standalone.containers()} == {0}
