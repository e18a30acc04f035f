"""Issuers from settings: identities that they do not issue, and the servers that they request credentials from."""

import json
from collections.abc import Callable
from contextlib import AsyncExitStack, nullcontext
from pathlib import Path
from typing import Any

import pytest

from milo_discoveryd.config import Settings, load
from milo_discoveryd.credentials.issuers.kubeconfig_secret import KubeconfigSecretIssuer
from milo_discoveryd.daemon_errors import ConfigError
from milo_discoveryd.wiring.configured_source import ConfiguredSource
from milo_discoveryd.wiring.issuers import Issuers

PROVIDER_PATH = "/apis/resourcemanager.miloapis.com/v1alpha1/projects/provider/control-plane"
OWN = {"name": "own", "type": "project-kubeconfig"}
PLUGIN = {"apiVersion": "client.authentication.k8s.io/v1", "command": "login", "args": ["milo"]}


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., str]:
    def write(name: str, server: str = "https://milo.example.com", **user: Any) -> str:
        """Write a kubeconfig and return its path."""
        document = {
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": server}}],
            "users": [{"name": "u", "user": user}],
        }
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(document))
        return str(file)

    (tmp_path / "token").write_text("discovery")
    (tmp_path / "other-token").write_text("projects")
    (tmp_path / "copied-token").write_text("discovery")
    return write


def settings(directory: Path, issuing: dict[str, Any], **others: Any) -> Settings:
    config = directory / "config.yaml"
    given = {"exec_plugins": ["*"], "kubeconfigs": {"issuers": [issuing]}, "http_listen": "off", **others}
    config.write_text(json.dumps(given))
    return load({}, {}, config)


def make(configured: Settings) -> None:
    sources = [ConfiguredSource(source, configured, {}) for source in configured.sources]
    Issuers(configured, sources, {}, AsyncExitStack(), run="r")


@pytest.mark.parametrize(
    ("discovery", "project"),
    [
        ({"tokenFile": "token"}, {"tokenFile": "token"}),
        ({"tokenFile": "token"}, {"tokenFile": "copied-token"}),
        ({"tokenFile": "missing"}, {"tokenFile": "missing"}),
        ({"tokenFile": "token"}, {"token": "discovery"}),
        ({"token": "discovery"}, {"token": "discovery"}),
        ({"exec": PLUGIN}, {"exec": PLUGIN}),
    ],
)
@pytest.mark.parametrize("is_link", [False, True])
def test_discovery_identity_is_not_issued_without_share_discovery_identity(
    tmp_path: Path, files: Callable[..., str], discovery: dict[str, Any], project: dict[str, Any], *, is_link: bool
) -> None:
    """A kubeconfig at another path can contain the same identity."""
    given = {"discovery_kubeconfig": files("discovery", **discovery), "project_kubeconfig": files("project", **project)}
    if is_link:
        (tmp_path / "link").symlink_to(tmp_path / "discovery")
        given["project_kubeconfig"] = str(tmp_path / "link")
    with pytest.raises(ConfigError, match="share_discovery_identity: true"):
        make(settings(tmp_path, OWN, **given))
    make(settings(tmp_path, OWN | {"share_discovery_identity": True}, **given))
    make(settings(tmp_path, OWN | {"hand_out": False}, **given))


@pytest.mark.parametrize(
    ("discovery", "project"),
    [
        ({"tokenFile": "token"}, {"tokenFile": "other-token"}),
        ({"token": "discovery"}, {"tokenFile": "other-token"}),
        ({"tokenFile": "missing"}, {"tokenFile": "token"}),
        ({"exec": PLUGIN}, {"exec": PLUGIN | {"args": ["projects"]}}),
        ({"exec": PLUGIN}, {"exec": PLUGIN | {"env": [{"name": "USER", "value": "projects"}]}}),
        ({"exec": PLUGIN}, {"tokenFile": "token"}),
    ],
)
def test_project_identity_that_differs_from_the_discovery_identity_is_issued(
    tmp_path: Path, files: Callable[..., str], discovery: dict[str, Any], project: dict[str, Any]
) -> None:
    given = {"discovery_kubeconfig": files("discovery", **discovery), "project_kubeconfig": files("project", **project)}
    make(settings(tmp_path, OWN, **given))


def test_discovery_kubeconfig_that_projects_use_by_default_is_not_issued(
    tmp_path: Path, files: Callable[..., str]
) -> None:
    with pytest.raises(ConfigError, match="set project_kubeconfig to a kubeconfig of another user"):
        make(settings(tmp_path, OWN, discovery_kubeconfig=files("discovery", tokenFile="token")))


def test_discovery_identity_of_another_cluster_source_is_not_issued(tmp_path: Path, files: Callable[..., str]) -> None:
    one, other = files("one", tokenFile="token"), files("other", tokenFile="other-token")
    sources = [
        {"name": "a", "kind": "project", "discovery_kubeconfig": one, "project_kubeconfig": other},
        {"name": "b", "kind": "project", "discovery_kubeconfig": other, "project_kubeconfig": one},
    ]
    with pytest.raises(ConfigError, match=r"own would issue the credential that discovery uses \(.*/other\)"):
        make(settings(tmp_path, OWN | {"sources": ["a"]}, sources=sources))


@pytest.mark.parametrize(
    ("subject", "is_refused"),
    [
        ({"common_name": "project:{name}"}, True),
        ({"common_name": "project:{uid}", "organizations": ["projects", "p:{name}"]}, True),
        ({"common_name": "project:{uid}"}, False),
        ({"common_name": "operator"}, False),
        ({"common_name": "project:{name}", "sources": ["a"]}, False),
    ],
)
def test_certificate_issuer_may_use_cluster_names_for_one_source_only(
    tmp_path: Path, files: Callable[..., str], subject: dict[str, Any], is_refused: bool
) -> None:
    file = files("one", tokenFile="token")
    sources = [{"name": name, "kind": "project", "discovery_kubeconfig": file} for name in ("a", "b")]
    issuing = {
        "name": "own",
        "type": "client-certificate",
        "sources": ["a", "b"],
        "ca_certificate": file,
        "ca_key": file,
    }
    expected = pytest.raises(ConfigError, match=r"same identity .*: use \{uid\}") if is_refused else nullcontext()
    with expected:
        make(settings(tmp_path, issuing | subject, sources=sources))


def test_discovery_with_a_credential_issuer_does_not_use_the_user_of_its_kubeconfig(
    tmp_path: Path, files: Callable[..., str]
) -> None:
    kubeconfig = files("discovery", tokenFile="token")
    own_of_daemon = {"name": "daemon", "type": "token-file", "path": str(tmp_path / "other-token")}
    given: dict[str, Any] = {"discovery_kubeconfig": kubeconfig, "credentials": "daemon"}
    make(settings(tmp_path, OWN, **given, kubeconfigs={"issuers": [OWN, own_of_daemon]}))


def test_single_mode_issues_its_identity_without_share_discovery_identity(
    tmp_path: Path, files: Callable[..., str]
) -> None:
    make(settings(tmp_path, OWN, mode="single", project_kubeconfig=files("project", tokenFile="token")))


DECLARED = {
    "kind": "declarative",
    "settings": {
        "resource": {"version": "v1", "plural": "clusters"},
        "endpoint": {"template": "https://{metadata.name}.example.com", "hosts": ["*.example.com"]},
    },
}


@pytest.mark.parametrize(
    "issuing",
    [
        {"type": "kubeconfig-secret"},
        {"type": "kubeconfig-request", "subresource": "admin", "api_version": "v1", "kind": "Request"},
        {"type": "token-request", "namespace": "n", "service_account": "s"},
    ],
    ids=lambda issuing: str(issuing["type"]),
)
@pytest.mark.parametrize("count", [1, 2])
def test_issuer_requests_credentials_from_the_server_of_its_source_or_of_its_own_kubeconfig(
    tmp_path: Path, files: Callable[..., str], monkeypatch: pytest.MonkeyPatch, issuing: dict[str, Any], count: int
) -> None:
    """The default is the source's discovery server, not the daemon's own cluster; another kubeconfig can be set."""
    one, other, third = (files(name, token=name) for name in ("one", "other", "third"))
    sources = [
        {"name": "a", "discovery_kubeconfig": one, **DECLARED},
        {"name": "b", "discovery_kubeconfig": other, **DECLARED},
    ][-count:]
    opened: list[str] = []

    def opens(kubeconfig: Path | None, *_: Any) -> tuple[None, str]:
        opened.append(str(kubeconfig))
        return None, ""

    monkeypatch.setattr("milo_discoveryd.wiring.issuers.open_upstream", opens)
    issuing = {"name": "i", "sources": ["b"], **issuing}
    make(settings(tmp_path, issuing, sources=sources))
    make(settings(tmp_path, issuing | {"kubeconfig": third}, sources=sources))
    assert opened == [other, third]


@pytest.mark.parametrize(
    ("mode", "namespace", "expected"),
    [
        ("project-control-plane", "project-{uid}", True),
        ("project-control-plane", "project-{name}", True),
        ("project-control-plane", "shared", False),
        ("project", "project-{uid}", False),
    ],
)
def test_kubeconfig_secret_determines_the_server_only_in_a_namespace_of_the_control_plane(
    tmp_path: Path,
    files: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    namespace: str,
    *,
    expected: bool,
) -> None:
    monkeypatch.setattr("milo_discoveryd.wiring.issuers.open_upstream", lambda *_: (None, ""))
    issuing = {"name": "i", "type": "kubeconfig-secret", "namespace_template": namespace, "secret": "of-{name}"}
    configured = settings(tmp_path, issuing, mode=mode, discovery_kubeconfig=files("discovery", token="t"))
    sources = [ConfiguredSource(source, configured, {}) for source in configured.sources]
    [assigned] = Issuers(configured, sources, {}, AsyncExitStack(), run="r").assignments()
    assert isinstance(assigned.issuer, KubeconfigSecretIssuer)
    assert assigned.issuer.states_server == expected


HOSTS_OF_CLUSTERS = {
    "resource": {"group": "example.com", "version": "v1", "plural": "clusters"},
    "endpoint": {"field": "spec.host"},
}
FOLLOWED_PROJECTS = {"services": ["a"], "follow_projects": True}


@pytest.mark.parametrize(
    ("kind", "kind_settings", "place", "expected"),
    [
        ("declarative", HOSTS_OF_CLUSTERS, {"namespace_template": "n", "secret": "{object}"}, "clusters"),
        ("project", {}, {"namespace_template": "project-{name}"}, "projects"),
        ("project", {}, {}, None),
        ("service-consumer", {"services": ["a"]}, {"namespace_template": "project-{name}"}, None),
        ("service-consumer", FOLLOWED_PROJECTS, {"namespace_template": "project-{name}"}, "projects"),
    ],
)
def test_secrets_whose_names_another_object_may_have_are_read_only_while_the_object_of_the_cluster_exists(
    tmp_path: Path,
    files: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    kind_settings: dict[str, Any],
    place: dict[str, str],
    expected: str | None,
) -> None:
    monkeypatch.setattr("milo_discoveryd.wiring.issuers.open_upstream", lambda *_: (None, ""))
    server = f"https://milo.example.com{PROVIDER_PATH if kind == 'service-consumer' else ''}"
    source = {
        "kind": kind,
        "discovery_kubeconfig": files("discovery", server, tokenFile="token"),
        "credentials": "identity",
        "settings": kind_settings,
    }
    identity = {"name": "identity", "type": "token-file", "path": str(tmp_path / "token"), "hand_out": False}
    of_clusters = {"name": "i", "type": "kubeconfig-secret", **place}
    issuers = {"kubeconfigs": {"issuers": [of_clusters, identity]}}
    configured = settings(tmp_path, {}, sources=[source], **issuers)
    sources = [ConfiguredSource(source, configured, {}) for source in configured.sources]
    [assigned] = Issuers(configured, sources, {}, AsyncExitStack(), run="r").assignments()
    assert isinstance(assigned.issuer, KubeconfigSecretIssuer)
    objects = assigned.issuer.place.objects
    assert (objects and objects.resource.plural) == expected
    assert objects is None or "with credentials of the issuer identity" in objects._origin
    assert objects is None or objects._api.host == "https://milo.example.com"
