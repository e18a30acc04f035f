"""Operators beside the daemon: several of them, updates, full disks, and tokens of their service accounts."""

import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import yaml

from tests.end_to_end.cluster.node import Node
from tests.end_to_end.cluster.pods import ACCOUNT, IMAGE, container, operator, started, watcher
from tests.end_to_end.cluster.test_pods import DEFINITION, ended, engage, eventually
from tests.end_to_end.real.certificates import Authority
from tests.tooling.deploy.manifests import DEPLOY, manifests

CONFIGURATION = {"name": "configuration", "mountPath": "/etc/milo-discoveryd", "readOnly": True}
ROTATED = "milo-discoveryd:rotated"
ENDPOINT = """\
import http.server, json, os, signal, ssl, urllib.parse, urllib.request

signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount/"
REVIEWS = "https://kubernetes.default.svc/apis/authentication.k8s.io/v1/tokenreviews"

class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        form = urllib.parse.parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview"}
        review["spec"] = {"token": form["subject_token"][0], "audiences": ["milo-discovery"]}
        headers = {"Authorization": "Bearer " + open(ACCOUNT + "token").read(), "Content-Type": "application/json"}
        request = urllib.request.Request(REVIEWS, json.dumps(review).encode(), headers)
        context = ssl.create_default_context(cafile=ACCOUNT + "ca.crt")
        with urllib.request.urlopen(request, context=context) as answer:
            user = json.load(answer)["status"]["user"]["username"]
        body = {"access_token": "of-" + user, "token_type": "Bearer", "expires_in": 600}
        body["issued_token_type"] = "urn:ietf:params:oauth:token-type:access_token"
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

server = http.server.HTTPServer(("127.0.0.1", 8443), Handler)
tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
tls.load_cert_chain("/etc/milo-discoveryd/tls.crt", "/etc/milo-discoveryd/tls.key")
server.socket = tls.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""
"""A token endpoint that lets the API server verify the subject token."""


@pytest.fixture(autouse=True)
def clusters(node: Node) -> Iterator[None]:
    """Install the definition of the clusters; delete all clusters afterwards."""
    node.kubectl("apply", "-f", "-", given=DEFINITION.read_text())
    node.kubectl("wait", "--for=condition=Established", "-f", "-", given=DEFINITION.read_text())
    yield
    node.kubectl("delete", "projectcontrolplanes", "--all")


def changes(node: Node, namespace: str, name: str) -> list[tuple[str, str]]:
    """Return the engagements and disengagements that a watcher logged, in order."""
    logs = ended(node, "-n", namespace, "logs", "deployment/example-operator", "-c", name, "--tail=-1")
    lines = (json.loads(line) for line in logs.splitlines() if line.startswith("{"))
    found = [(line["type"].removeprefix("TYPE_"), line["cluster"]["name"]) for line in lines]
    return [(what, cluster) for what, cluster in found if what in {"ENGAGED", "DISENGAGED"}]


def await_change(node: Node, namespace: str, name: str, change: tuple[str, str]) -> None:
    eventually(lambda: change in changes(node, namespace, name))


def pod(node: Node, namespace: str) -> Any:
    [found] = node.get("-n", namespace, "pods")["items"]
    return found


def restarts(node: Node, namespace: str) -> dict[str, int]:
    status = pod(node, namespace)["status"]
    containers = (*status["containerStatuses"], *status["initContainerStatuses"])
    return {container_status["name"]: container_status["restartCount"] for container_status in containers}


def test_two_operators_share_a_daemon_and_a_third_operator_has_a_separate_daemon(node: Node, tmp_path: Path) -> None:
    both = operator(tmp_path / "both", "both", [watcher("first"), watcher("second")])
    alone = operator(tmp_path / "alone", "alone", [watcher("third")])
    all_of_them = [("both", "first"), ("both", "second"), ("alone", "third")]
    with started(node, both), started(node, alone):
        engage(node, "alpha")
        for namespace, name in all_of_them:
            await_change(node, namespace, name, ("ENGAGED", "alpha"))
        node.kubectl("delete", "namespace", "alone")
        node.kubectl("delete", "projectcontrolplane", "alpha")
        for name in ("first", "second"):
            await_change(node, "both", name, ("DISENGAGED", "alpha"))


def test_update_of_the_daemon_disengages_no_cluster_of_a_running_operator(node: Node, tmp_path: Path) -> None:
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
        await_change(node, "updated", "changes", ("ENGAGED", "beta"))
        assert changes(node, "updated", "changes") == [("ENGAGED", "alpha"), ("ENGAGED", "beta")]
        assert restarts(node, "updated") == {"milo-discoveryd": 1, "changes": 0}


def test_daemon_continues_while_its_state_volume_is_full(node: Node, tmp_path: Path) -> None:
    objects = operator(tmp_path / "operator", "full", [watcher("changes")], components=("sidecar", "state"))
    [deployment] = [obj for obj in objects if obj["kind"] == "Deployment"]
    for volume in deployment["spec"]["template"]["spec"]["volumes"]:
        if volume["name"] == "milo-discovery-state":
            volume["emptyDir"] = {"medium": "Memory", "sizeLimit": "1Mi"}
    daemon = ["-n", "full", "exec", "deployment/example-operator", "-c", "milo-discoveryd", "--", "python3", "-c"]
    fill = "import shutil; shutil.copyfileobj(open('/dev/zero', 'rb'), open('/var/lib/milo-discoveryd/filling', 'wb'))"
    logs = ["-n", "full", "logs", "deployment/example-operator", "-c", "milo-discoveryd"]
    with started(node, objects):
        assert not ended(node, *daemon, fill)
        engage(node, "alpha")
        await_change(node, "full", "changes", ("ENGAGED", "alpha"))
        eventually(lambda: "No space left on device" in node.kubectl(*logs))
        node.kubectl(*daemon, "import os; os.remove('/var/lib/milo-discoveryd/filling')")
        engage(node, "beta")
        eventually(lambda: "state written again" in node.kubectl(*logs))
        assert set(restarts(node, "full").values()) == {0}


def test_callers_are_identified_by_projected_tokens(node: Node, tmp_path: Path) -> None:
    user = f"system:serviceaccount:tokens:{ACCOUNT}"
    configuration = {
        "listen": [{"address": "unix:///run/milo-discovery/daemon/discovery.sock", "tokens": True}],
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


def test_daemon_exchanges_its_projected_token_for_the_credential_of_clusters(node: Node, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.server("endpoint", "localhost")
    issuer = {
        "name": "workload",
        "type": "token-exchange",
        "token_url": "https://localhost:8443/token",
        "ca_file": "/etc/milo-discoveryd/ca.crt",
        "subject_token_file": "/var/run/token/token",
    }
    configuration = {"kubeconfigs": {"issuers": [issuer]}}
    roles = ("project-control-plane", "token-review")
    objects = configured(
        tmp_path / "operator",
        "exchange",
        configuration,
        roles=roles,
        more={
            "ca.crt": authority.pem.decode(),
            "tls.crt": certificate.read_text(),
            "tls.key": key.read_text(),
        },
    )
    [deployment] = [obj for obj in objects if obj["kind"] == "Deployment"]
    endpoint = container("endpoint", "python3", "-c", ENDPOINT, mounts=[CONFIGURATION])
    deployment["spec"]["template"]["spec"]["containers"].append(endpoint)
    issue = ["-n", "exchange", "exec", "deployment/example-operator", "-c", "caller", "--"]
    with started(node, objects):
        engage(node, "alpha")
        found = eventually(lambda: ended(node, *issue, "milo-discovery", "credential", "--cluster", "alpha"))
        assert json.loads(found)["status"]["token"] == f"of-system:serviceaccount:exchange:{ACCOUNT}"


def test_tokens_requested_with_shipped_manifests_are_valid_until_disengagement(node: Node, tmp_path: Path) -> None:
    rights = [dict(manifest) for manifest in manifests(DEPLOY / "base/rbac/token-request")]
    [namespace] = [manifest["metadata"]["name"] for manifest in rights if manifest["kind"] == "Namespace"]
    [role] = [manifest["metadata"]["name"] for manifest in rights if manifest["kind"] == "Role"]
    group = "rbac.authorization.k8s.io"
    rights += [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "operators", "namespace": namespace}},
        {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": {"name": role, "namespace": namespace},
            "roleRef": {"apiGroup": group, "kind": "Role", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": "requests"}],
        },
    ]
    issuer = {"name": "operators", "type": "token-request", "namespace": namespace, "service_account": "operators"}
    objects = configured(tmp_path / "operator", "requests", {"kubeconfigs": {"issuers": [issuer]}})
    issue = ["-n", "requests", "exec", "deployment/example-operator", "-c", "caller", "--"]

    def user_of(token: str) -> str:
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}
        return node.kubectl("create", "-f", "-", "-o", "jsonpath={.status.user.username}", given=json.dumps(review))

    with started(node, [*rights, *objects]):
        engage(node, "alpha")
        found = eventually(lambda: ended(node, *issue, "milo-discovery", "credential", "--cluster", "alpha"))
        token = json.loads(found)["status"]["token"]
        assert user_of(token) == f"system:serviceaccount:{namespace}:operators"
        create = ["-n", namespace, "create", "secret", "generic", "other", "--dry-run=server"]
        assert ended(node, *create)
        eventually(lambda: not ended(node, *create, "--from-literal=key=value"))
        node.kubectl("delete", "projectcontrolplane", "alpha")
        eventually(lambda: not user_of(token))


def test_network_policy_lets_only_the_monitoring_namespace_reach_the_metrics(node: Node, tmp_path: Path) -> None:
    if subprocess.run(node.enter("ipset", "list"), capture_output=True, check=False).returncode:
        pytest.skip("this kernel has no ipset, with which kube-router enforces network policies")
    both = ("monitoring", "elsewhere")
    objects = operator(tmp_path / "operator", "policed", [watcher("changes")], components=("sidecar", "network-policy"))
    objects += [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}} for namespace in both]
    caller = container("caller", "sleep", "infinity") | {"volumeMounts": []}
    spec = {"terminationGracePeriodSeconds": 1, "containers": [caller]}
    objects += [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "caller", "namespace": namespace}, "spec": spec}
        for namespace in both
    ]
    with started(node, objects):
        url = f"http://{pod(node, 'policed')['status']['podIP']}:9464/metrics"
        fetch = f"import urllib.request; print(urllib.request.urlopen('{url}', timeout=5).status)"
        answers = [["-n", namespace, "exec", "caller", "--", "python3", "-c", fetch] for namespace in both]
        for namespace in both:
            node.kubectl("-n", namespace, "wait", "--for=condition=Ready", "pod/caller", "--timeout=120s")
        eventually(lambda: not ended(node, *answers[1]) and ended(node, *answers[0]).strip() == "200")


def configured(
    directory: Path,
    namespace: str,
    configuration: Any,
    *,
    more: Mapping[str, str] = MappingProxyType({}),
    **options: Any,
) -> list[dict[str, Any]]:
    """Return an operator that calls with a projected token, beside a daemon with a configuration file."""
    token = {"serviceAccountToken": {"audience": "milo-discovery", "expirationSeconds": 600, "path": "token"}}
    volumes = [
        {"name": "token", "projected": {"sources": [token]}},
        {"name": "configuration", "configMap": {"name": "configuration"}},
    ]
    mounted = {"name": "token", "mountPath": "/var/run/token", "readOnly": True}
    caller = container(
        "caller", "sleep", "infinity", mounts=[mounted], variables={"MILO_DISCOVERY_TOKEN_FILE": "/var/run/token/token"}
    )
    objects = operator(directory, namespace, [caller], volumes=volumes, **options)
    [workload] = [obj for obj in objects if obj["kind"] in {"Deployment", "StatefulSet"}]
    pod = workload["spec"]["template"]["spec"]
    pod["terminationGracePeriodSeconds"] = 1  # `sleep` ignores SIGTERM
    [daemon] = [
        init_container for init_container in pod["initContainers"] if init_container["name"] == "milo-discoveryd"
    ]
    daemon["volumeMounts"] += [CONFIGURATION, mounted]
    given = {variable["name"]: variable for variable in daemon["env"]}
    given["MILO_DISCOVERYD_CONFIG"] = {"name": "MILO_DISCOVERYD_CONFIG", "value": "/etc/milo-discoveryd/config.yaml"}
    if "listen" in configuration:
        given["MILO_DISCOVERYD_LISTEN"] = {"name": "MILO_DISCOVERYD_LISTEN", "value": ""}
    daemon["env"] = [*given.values()]
    metadata = {"name": "configuration", "namespace": namespace}
    data = {"config.yaml": yaml.safe_dump(configuration), **more}
    objects.insert(1, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
    return objects
