"""The member of a shard group, its fleet digest and its fenced issuers, from settings and the pod's environment."""

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from milo_discoveryd.config import Settings, SourceSettings, load
from milo_discoveryd.config.settings import KubeconfigSettings, ShardingSettings
from milo_discoveryd.credentials.issuers.passthrough import TokenFileSettings
from milo_discoveryd.credentials.issuers.settings import IssuerSettings
from milo_discoveryd.daemon_errors import ConfigError, StartError
from milo_discoveryd.sharding.group import ShardGroup
from milo_discoveryd.sources.kubeconfig_files import KubeconfigDirectoryKind
from milo_discoveryd.telemetry.metrics import Metrics
from milo_discoveryd.wiring import upstreams
from milo_discoveryd.wiring.configured_source import ConfiguredSource
from milo_discoveryd.wiring.issuers import Issuers
from milo_discoveryd.wiring.sharding import fleet_digest, is_stable, lease_client, shard_group
from milo_kube.upstream import load_in_cluster
from tests.unit.sharding.fleets import fleet_of_one_source

KUBECONFIG = """
current-context: c
contexts: [{name: c, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {server: "https://leases.example.com"}}]
users: [{name: u, user: {token: t}}]
"""


async def built(tmp_path: Path, environ: dict[str, str], **sharding: Any) -> ShardGroup:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(KUBECONFIG)
    settings = Settings(sharding=ShardingSettings(kubeconfig=kubeconfig, **sharding))
    async with AsyncExitStack() as stack:
        return shard_group(settings, environ, fleet_of_one_source(), Metrics().leases, stack, sources=[], fencing=list)


async def test_shard_group_member_is_named_after_its_pod(tmp_path: Path) -> None:
    group = await built(tmp_path, {"POD_NAME": "dns-1", "POD_NAMESPACE": "operators"}, group="dns", weight=2.0)
    assert (group.member.name, group.member.weight) == ("dns-1", 2.0)
    assert group.member.holder.startswith("dns-1.")
    assert group.status().group == "dns"


async def test_member_name_setting_takes_precedence_over_pod_name(tmp_path: Path) -> None:
    group = await built(tmp_path, {"POD_NAME": "dns-1"}, group="dns", member="other", namespace="operators")
    assert group.member.name == "other"


async def test_leases_can_be_reached_through_a_plain_http_proxy_on_loopback(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(KUBECONFIG.replace("https://leases.example.com", "http://127.0.0.1:8001"))
    sharding = ShardingSettings(kubeconfig=kubeconfig, namespace="operators")
    async with AsyncExitStack() as stack:
        lease_client(Settings(sharding=sharding, plain_loopback=True), "dns", {}, stack)
        with pytest.raises(ConfigError, match="plain_loopback"):
            lease_client(Settings(sharding=sharding), "dns", {}, stack)


@pytest.mark.parametrize("name", ["view", "Upper", "-a", "a_b"])
async def test_invalid_shard_group_member_name_is_rejected(tmp_path: Path, name: str) -> None:
    with pytest.raises(StartError, match=r"sharding\.member"):
        await built(tmp_path, {"POD_NAMESPACE": "operators"}, group="dns", member=name)


async def test_shard_group_namespace_must_be_set_outside_of_a_pod(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"sharding\.namespace"):
        await built(tmp_path, {}, group="dns", member="a")


@pytest.mark.parametrize(
    ("name", "stable"), [("dns-0", True), ("dns-12", True), ("dns-7d9f4c-x2kfp", False), ("dns-7d9f4c-24567", False)]
)
def test_member_name_of_a_stateful_set_pod_is_stable(name: str, *, stable: bool) -> None:
    assert is_stable(name) is stable


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Callable[[str, str], str]:
    """Return a function that writes a kubeconfig with a name and a server, and returns its path."""

    def write(name: str, server: str) -> str:
        path = tmp_path / name
        path.write_text(KUBECONFIG.replace("https://leases.example.com", server))
        return str(path)

    return write


def digest(environ: Mapping[str, str] | None = None, **given: object) -> str:
    settings = load(given, {}, None)
    return fleet_digest([ConfiguredSource(source, settings, environ or {}) for source in settings.sources])


def test_fleet_digest_depends_on_the_settings_that_define_the_clusters(kubeconfig: Callable[[str, str], str]) -> None:
    at: dict[str, object] = {"discovery_kubeconfig": kubeconfig("milo", "https://milo.example.com")}
    ours = digest(**at, label_selector="env=prod")
    assert ours == digest(**at, label_selector="env=prod", heartbeat_interval="5s")
    assert ours not in {digest(**at), digest(**at, label_selector="env=prod", mode="project-control-plane")}
    single = digest(**at, mode="single")
    assert single != digest(**at, mode="single", settings={"labels": "a=b"})


def test_fleet_digest_depends_on_the_watched_server_and_not_on_its_kubeconfig(
    kubeconfig: Callable[[str, str], str],
) -> None:
    clusters = kubeconfig("clusters", "https://clusters.example.com")

    def watching(discovery_kubeconfig: str) -> str:
        return digest(discovery_kubeconfig=discovery_kubeconfig, project_kubeconfig=clusters)

    ours = watching(kubeconfig("one", "https://milo.example.com"))
    assert ours == watching(kubeconfig("two", "https://milo.example.com/"))
    assert ours != watching(kubeconfig("one", "https://other.example.com")), "the path is the same"
    organization = "/apis/resourcemanager.miloapis.com/v1alpha1/organizations/nasa/control-plane"
    assert ours != watching(kubeconfig("one", f"https://milo.example.com{organization}"))


def test_fleet_digest_in_mode_single_depends_on_the_server_of_the_cluster(
    kubeconfig: Callable[[str, str], str],
) -> None:
    one, two = (digest(mode="single", project_kubeconfig=kubeconfig("c", f"https://{host}")) for host in "ab")
    assert one != two


def test_fleet_digest_of_files_depends_only_on_their_path(tmp_path: Path) -> None:
    def of(path: Path) -> str:
        kind = KubeconfigDirectoryKind(path=str(path))
        source = SourceSettings(name="files", kind="kubeconfig-directory", settings=kind)
        return fleet_digest([ConfiguredSource(source, Settings(), {})])

    ours = of(tmp_path)
    (tmp_path / "a-file-that-other-members-read-later").write_text(KUBECONFIG)
    assert ours == of(tmp_path)
    assert ours != of(tmp_path / "other")


def test_fleet_digest_is_equal_in_all_pods_of_one_cluster_and_differs_between_clusters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of(pod: str, host: str) -> str:
        account = tmp_path / pod
        account.mkdir()
        for file in ("token", "ca.crt"):
            (account / file).write_text(f"{file} of {pod}")
        monkeypatch.setattr(upstreams, "load_in_cluster", partial(load_in_cluster, service_account=account))
        return digest({"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": "443", "POD_NAME": pod})

    assert of("a", "10.96.0.1") == of("b", "10.96.0.1") != of("c", "10.97.0.1")


def credential_issuers(*issuers: IssuerSettings) -> Issuers:
    sharding = ShardingSettings(group="dns", member="a")
    settings = Settings(kubeconfigs=KubeconfigSettings(issuers=issuers), sharding=sharding)
    return Issuers(settings, [], {}, AsyncExitStack(), run="r")


def test_fencing_of_credentials_that_cannot_be_revoked_is_rejected(tmp_path: Path) -> None:
    file = TokenFileSettings(name="file", type="token-file", path=tmp_path / "token")
    with pytest.raises(ConfigError, match=r"sharding\.fence_credentials: kubeconfigs of file cannot be revoked"):
        credential_issuers(file).fencing()


def test_credential_issuer_that_callers_cannot_use_needs_no_fence(tmp_path: Path) -> None:
    file = TokenFileSettings(name="file", type="token-file", path=tmp_path / "token", hand_out=False)
    assert credential_issuers(file).fencing() == []
