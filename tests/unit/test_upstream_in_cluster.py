"""The API server of the daemon's own cluster, and the defaults for two kubeconfigs."""

from contextlib import aclosing
from pathlib import Path

import pytest

from milo_discoveryd.daemon_errors import ConfigError
from milo_discoveryd.wiring.upstreams import load_discovery_upstream, load_project_upstream
from milo_kube.credential import Credential, Secret
from milo_kube.upstream import UpstreamError, load_in_cluster

POD = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}


@pytest.fixture
def service_account(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text("t\n")
    (tmp_path / "ca.crt").write_text("PEM")
    return tmp_path


async def test_in_cluster_upstream_has_server_ca_and_token(service_account: Path) -> None:
    upstream = load_in_cluster(POD, service_account)
    assert (upstream.server, upstream.origin) == ("https://10.96.0.1:443", "in-cluster")
    assert upstream.trusted() == b"PEM"
    async with aclosing(upstream):
        assert await upstream.credentials.credential(within_s=20) == Credential(token=Secret("t"))


def test_in_cluster_ipv6_service_host_is_bracketed(service_account: Path) -> None:
    assert (
        load_in_cluster(POD | {"KUBERNETES_SERVICE_HOST": "fd00::1"}, service_account).server == "https://[fd00::1]:443"
    )


def test_in_cluster_service_host_may_be_a_dns_name(service_account: Path) -> None:
    named = load_in_cluster(POD | {"KUBERNETES_SERVICE_HOST": "api.milo"}, service_account)
    assert named.server == "https://api.milo:443"


def test_in_cluster_upstream_outside_a_pod_requires_kubeconfig() -> None:
    with pytest.raises(UpstreamError, match=r"not running in a pod .* --discovery-kubeconfig"):
        load_in_cluster({})


def test_pod_without_service_account_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UpstreamError) as raised:
        load_in_cluster(POD, tmp_path)
    assert len(raised.value.problems) == 2
    assert "automountServiceAccountToken" in raised.value.problems[0]


def kubeconfig(path: Path, server: str) -> Path:
    path.write_text(
        f"""{{current-context: x, contexts: [{{name: x, context: {{cluster: x}}}}],
        clusters: [{{name: x, cluster: {{server: "{server}"}}}}]}}"""
    )
    return path


def test_discovery_and_project_kubeconfigs_have_their_own_servers(tmp_path: Path) -> None:
    discovery = kubeconfig(tmp_path / "discovery", "https://infra")
    project = kubeconfig(tmp_path / "project", "https://milo")
    assert load_discovery_upstream(discovery, {}).server == "https://infra"
    assert load_project_upstream(project, discovery, POD).server == "https://milo"


def test_project_kubeconfig_defaults_to_discovery_kubeconfig_outside_a_cluster(tmp_path: Path) -> None:
    discovery = kubeconfig(tmp_path / "discovery", "https://milo")
    assert load_project_upstream(None, discovery, {}).server == "https://milo"


def test_project_kubeconfig_defaults_to_service_account_inside_a_cluster(tmp_path: Path) -> None:
    discovery = kubeconfig(tmp_path / "discovery", "https://milo")
    with pytest.raises(ConfigError, match="serviceaccount"):
        load_project_upstream(None, discovery, POD)
