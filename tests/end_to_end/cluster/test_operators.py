"""Operators beside the daemon: several of them, updates, full disks, and tokens of their service accounts."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.end_to_end.cluster.node import Node
from tests.end_to_end.cluster.pods import ACCOUNT, IMAGE, container, operator, started, watcher
from tests.end_to_end.cluster.test_pods import DEFINITION, ended, engage, eventually

CONFIGURATION = {"name": "configuration", "mountPath": "/etc/milo-discoveryd", "readOnly": True}
ROTATED = "milo-discoveryd:rotated"


@pytest.fixture(autouse=True)
def clusters(node: Node) -> Iterator[None]:
    """The definition, and no cluster of another test."""
    node.kubectl("apply", "-f", "-", given=DEFINITION.read_text())
    node.kubectl("wait", "--for=condition=Established", "-f", "-", given=DEFINITION.read_text())
    yield
    node.kubectl("delete", "projectcontrolplanes", "--all")


def changes(node: Node, namespace: str, name: str) -> list[tuple[str, str]]:
    """Return the clusters that a watcher logged as engaged and disengaged."""
    logs = ended(node, "-n", namespace, "logs", "deployment/example-operator", "-c", name, "--tail=-1")
    lines = (json.loads(line) for line in logs.splitlines() if line.startswith("{"))
    found = [(each["type"].removeprefix("TYPE_"), each["cluster"]["name"]) for each in lines]
    return [(what, cluster) for what, cluster in found if what in {"ENGAGED", "DISENGAGED"}]


def pod(node: Node, namespace: str) -> Any:
    [found] = node.get("-n", namespace, "pods")["items"]
    return found


def restarts(node: Node, namespace: str) -> dict[str, int]:
    status = pod(node, namespace)["status"]
    containers = (*status["containerStatuses"], *status["initContainerStatuses"])
    return {each["name"]: each["restartCount"] for each in containers}


def test_two_operators_share_a_daemon_and_a_third_has_its_own(node: Node, tmp_path: Path) -> None:
    both = operator(tmp_path / "both", "both", [watcher("first"), watcher("second")])
    alone = operator(tmp_path / "alone", "alone", [watcher("third")])
    all_of_them = [("both", "first"), ("both", "second"), ("alone", "third")]
    with started(node, both), started(node, alone):
        engage(node, "alpha")
        for namespace, name in all_of_them:
            eventually(lambda at=namespace, of=name: ("ENGAGED", "alpha") in changes(node, at, of))
        node.kubectl("delete", "namespace", "alone")
        node.kubectl("delete", "projectcontrolplane", "alpha")
        for name in ("first", "second"):
            eventually(lambda of=name: ("DISENGAGED", "alpha") in changes(node, "both", of))


def test_new_version_of_the_daemon_disengages_nothing_of_an_operator_that_runs(node: Node, tmp_path: Path) -> None:
    """Only the sidecar's image changes in the pod, so the kubelet restarts the daemon alone."""
    tag = ["ctr", "--namespace", "k8s.io", "images", "tag", "--force", f"docker.io/library/{IMAGE}"]
    subprocess.run(node.enter(*tag, f"docker.io/library/{ROTATED}"), check=True)
    with started(node, operator(tmp_path / "operator", "updated", [watcher("changes")])):
        engage(node, "alpha")
        eventually(lambda: changes(node, "updated", "changes"))
        name = pod(node, "updated")["metadata"]["name"]
        node.kubectl("-n", "updated", "set", "image", f"pod/{name}", f"milo-discoveryd={ROTATED}")
        eventually(lambda: restarts(node, "updated")["milo-discoveryd"] == 1)
        engage(node, "beta")
        eventually(lambda: ("ENGAGED", "beta") in changes(node, "updated", "changes"))
        assert changes(node, "updated", "changes") == [("ENGAGED", "alpha"), ("ENGAGED", "beta")]
        assert restarts(node, "updated") == {"milo-discoveryd": 1, "changes": 0}


def test_daemon_goes_on_while_the_volume_of_its_state_is_full(node: Node, tmp_path: Path) -> None:
    objects = operator(tmp_path / "operator", "full", [watcher("changes")], components=("sidecar", "state"))
    [deployment] = [each for each in objects if each["kind"] == "Deployment"]
    for volume in deployment["spec"]["template"]["spec"]["volumes"]:
        if volume["name"] == "milo-discovery-state":
            volume["emptyDir"] = {"medium": "Memory", "sizeLimit": "1Mi"}
    daemon = ["-n", "full", "exec", "deployment/example-operator", "-c", "milo-discoveryd", "--", "python3", "-c"]
    fill = "import shutil; shutil.copyfileobj(open('/dev/zero', 'rb'), open('/var/lib/milo-discoveryd/filling', 'wb'))"
    logs = ["-n", "full", "logs", "deployment/example-operator", "-c", "milo-discoveryd"]
    with started(node, objects):
        assert not ended(node, *daemon, fill)
        engage(node, "alpha")
        eventually(lambda: ("ENGAGED", "alpha") in changes(node, "full", "changes"))
        eventually(lambda: "No space left on device" in node.kubectl(*logs))
        node.kubectl(*daemon, "import os; os.remove('/var/lib/milo-discoveryd/filling')")
        engage(node, "beta")
        eventually(lambda: "state written again" in node.kubectl(*logs))
        assert set(restarts(node, "full").values()) == {0}


def test_callers_are_identified_by_projected_tokens(node: Node, tmp_path: Path) -> None:
    address = "unix:///run/milo-discovery/daemon/discovery.sock"
    user = f"system:serviceaccount:tokens:{ACCOUNT}"
    configuration = {
        "listen": [{"address": address, "tokens": True}],
        "rights": [{"name": "operators", "who": {"user": user}, "clusters": {"names": ["alpha"]}}],
    }
    objects = configured(
        tmp_path / "operator", "tokens", configuration, roles=("project-control-plane", "token-review")
    )
    listed = ["-n", "tokens", "exec", "deployment/example-operator", "-c", "caller", "--", "milo-discovery", "list"]
    with started(node, objects):
        engage(node, "alpha", "beta")
        found = eventually(lambda: "alpha" in (text := ended(node, *listed)) and text)
        assert "beta" not in found
        assert not ended(node, *listed[:-2], "env", "-u", "MILO_DISCOVERY_TOKEN_FILE", *listed[-2:])


def configured(directory: Path, namespace: str, configuration: Any, **options: Any) -> list[dict[str, Any]]:
    """Return an operator that calls with a projected token, beside a daemon with a configuration file."""
    token = {"serviceAccountToken": {"audience": "milo-discovery", "expirationSeconds": 600, "path": "token"}}
    volumes = [
        {"name": "token", "projected": {"sources": [token]}},
        {"name": "configuration", "configMap": {"name": "configuration"}},
    ]
    mounted = {"name": "token", "mountPath": "/var/run/token", "readOnly": True}
    caller = container(
        "caller", "sleep", "infinity", mounts=[mounted], MILO_DISCOVERY_TOKEN_FILE="/var/run/token/token"
    )
    objects = operator(directory, namespace, [caller], volumes=volumes, **options)
    [deployment] = [each for each in objects if each["kind"] == "Deployment"]
    [daemon] = deployment["spec"]["template"]["spec"]["initContainers"]
    daemon["volumeMounts"] += [CONFIGURATION, mounted]
    given = {each["name"]: each for each in daemon["env"]}
    given["MILO_DISCOVERYD_CONFIG"] = {"name": "MILO_DISCOVERYD_CONFIG", "value": "/etc/milo-discoveryd/config.yaml"}
    if "listen" in configuration:
        given["MILO_DISCOVERYD_LISTEN"] = {"name": "MILO_DISCOVERYD_LISTEN", "value": ""}
    daemon["env"] = [*given.values()]
    metadata = {"name": "configuration", "namespace": namespace}
    data = {"config.yaml": yaml.safe_dump(configuration)}
    objects.insert(1, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
    return objects
