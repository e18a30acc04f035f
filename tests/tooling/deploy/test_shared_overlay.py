"""The shared daemon, and the component of its operators: addresses, ports, names and files that must agree."""

import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from milo_discoveryd.config import Settings, load
from tests.tooling.deploy.manifests import DEPLOY, Manifest, daemon, environment, of_kind, pod, with_components

SHARED = DEPLOY / "overlays" / "shared"


@pytest.fixture
def settings() -> Settings:
    return load({}, {}, SHARED / "config.yaml")


@pytest.fixture
def operator(tmp_path: Path) -> Path:
    """The kustomization of an operator with the component."""
    directory = with_components(tmp_path / "operator")
    kustomization: dict[str, Any] = yaml.safe_load((directory / "kustomization.yaml").read_text())
    kustomization["components"] = [os.path.relpath(SHARED / "client", directory.resolve())]
    (directory / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return directory


def single(directory: Path, kind: str, name: str) -> Manifest:
    [found] = [manifest for manifest in of_kind(directory, kind) if manifest["metadata"]["name"] == name]
    return found


def mounted(directory: Path, container: Manifest) -> dict[str, str]:
    """Return the name of the Secret at each mount path of a container."""
    secrets = {volume["name"]: volume.get("secret", {}).get("secretName", "") for volume in pod(directory)["volumes"]}
    return {mount["mountPath"]: secrets[mount["name"]] for mount in container["volumeMounts"]}


def test_service_and_network_policy_lead_to_the_tls_listener(settings: Settings) -> None:
    [listener] = [listener for listener in settings.listen if listener.tls is not None]
    [service] = of_kind(SHARED, "Service")
    ports = {port["name"]: port["containerPort"] for port in daemon(SHARED)["ports"]}
    assert {ports[port["targetPort"]] for port in service["spec"]["ports"]} == {urlsplit(f"//{listener.address}").port}
    policy = single(SHARED, "NetworkPolicy", "milo-discoveryd-operators")
    assert [port["port"] for port in policy["spec"]["ingress"][0]["ports"]] == [ports["discovery"]]
    [deployment] = of_kind(SHARED, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()


def test_daemon_reads_its_listeners_from_the_file_and_its_certificate_from_the_secret(settings: Settings) -> None:
    assert "MILO_DISCOVERYD_LISTEN" not in {
        variable["name"] for variable in daemon(SHARED)["env"] if "value" in variable
    }, "the variable would override the file"
    [tls] = [listener.tls for listener in settings.listen if listener.tls is not None]
    certificate = single(SHARED, "Certificate", "milo-discoveryd")
    for file in (tls.certificate, tls.key, tls.client_ca):
        assert mounted(SHARED, daemon(SHARED))[str(file.parent)] == certificate["spec"]["secretName"]


def test_operator_calls_the_service_with_a_certificate_that_a_rule_names(operator: Path, settings: Settings) -> None:
    [container] = pod(operator)["containers"]
    variables = environment(operator, container)
    [service] = of_kind(SHARED, "Service")
    host = f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc"
    assert variables["MILO_DISCOVERY_ADDRESS"] == f"{host}:{service['spec']['ports'][0]['port']}"
    assert single(SHARED, "Certificate", "milo-discoveryd")["spec"]["dnsNames"] == [host]
    certificate = single(operator, "Certificate", "milo-discovery")
    for name in ("CA", "CERTIFICATE", "KEY"):
        directory = str(Path(variables[f"MILO_DISCOVERY_{name}_FILE"]).parent)
        assert mounted(operator, container)[directory] == certificate["spec"]["secretName"]
    names = {san for rule in settings.rights for san in rule.who.san}
    assert names == {f"dns:{name}" for name in certificate["spec"]["dnsNames"]}
