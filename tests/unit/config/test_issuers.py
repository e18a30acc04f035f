"""Settings of credential issuers, and messages about invalid ones."""

import json
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

from milo_discoveryd.config import load
from milo_discoveryd.credentials.issuers.datum_service_account import DatumServiceAccountSettings
from milo_discoveryd.credentials.issuers.exec_command import ExecSettings
from milo_discoveryd.credentials.issuers.issuer import Issuer
from milo_discoveryd.credentials.issuers.kubeconfig_file import KubeconfigFileIssuer
from milo_discoveryd.credentials.issuers.kubeconfig_secret import KubeconfigSecretSettings
from milo_discoveryd.credentials.issuers.settings import ISSUERS, IssuerContext, IssuerSettings, RequiredFile
from milo_discoveryd.daemon_errors import ConfigError

GOOD: list[dict[str, Any]] = [
    {"name": "datum", "type": "datum-service-account", "key_file": "/k.json", "ca_file": "/ca.pem", "audiences": "a,b"},
    {"name": "tr", "type": "token-request", "namespace": "milo", "service_account": "operators", "audiences": ["x"]},
    {"name": "cc", "type": "client-certificate", "ca_certificate": "/c", "ca_key": "/k", "common_name": "op:{name}"},
    {"name": "ex", "type": "exec", "command": "/bin/datumctl", "args": ["auth", "token"], "env": {"A": "b"}},
    {"name": "tf", "type": "token-file", "path": "/token", "label_selector": "env=prod"},
    {"name": "ks", "type": "kubeconfig-secret", "key": "value", "allow_long_lived": "true", "hand_out": "no"},
    {"name": "pk", "type": "project-kubeconfig", "share_discovery_identity": True},
]


def loaded(tmp_path: Path, *given: object, **settings: object) -> tuple[IssuerSettings, ...]:
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps({"kubeconfigs": {"issuers": given}, **settings}))
    return load({}, {}, file).kubeconfigs.issuers


def test_credential_issuer_types_are_parsed(tmp_path: Path) -> None:
    found = loaded(tmp_path, *GOOD)
    assert [issuer.type for issuer in found] == [issuer["type"] for issuer in GOOD]
    datum, _, _, exec_, token_file, secret, _ = found
    assert isinstance(datum, DatumServiceAccountSettings)
    assert datum.audiences == ("a", "b")
    assert isinstance(exec_, ExecSettings)
    assert (exec_.args, exec_.env) == (("auth", "token"), {"A": "b"})
    assert token_file.label_selector == "env=prod"
    assert isinstance(secret, KubeconfigSecretSettings)
    assert (secret.allow_long_lived, secret.hand_out, secret.namespace_template) == (True, False, "project-{uid}")


class Theirs(IssuerSettings, frozen=True, kw_only=True):
    directory: RequiredFile

    def issuer(self, context: IssuerContext) -> Issuer:
        return KubeconfigFileIssuer(self.name, {}, allow_long_lived=bool(context.served))


def test_issuer_type_of_another_package_is_found_by_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = {"name": "theirs", "type": "vault", "directory": "/vault"}
    with pytest.raises(ConfigError, match=r'\[0\].type: "vault" must be one of client-certificate, .*, token-request'):
        loaded(tmp_path, theirs)
    found = EntryPoints([EntryPoint("vault", f"{__name__}:Theirs", ISSUERS.entry_points)])
    monkeypatch.setattr("importlib.metadata.entry_points", found.select)
    assert loaded(tmp_path, theirs) == (Theirs(name="theirs", type="vault", directory=Path("/vault")),)
    with pytest.raises(ConfigError, match=r'"magic" must be one of client-certificate, .*, vault'):
        loaded(tmp_path, {"name": "a", "type": "magic"})


def test_built_in_issuer_types_declare_whose_credentials_they_issue() -> None:
    """The base class stands for credentials that all clusters of an identity accept."""
    of_cluster = {name for name, issuer in ISSUERS.built_in_groups() if issuer.traits is not IssuerSettings.traits}
    assert of_cluster == {"kubeconfig-secret", "kubeconfig-request", "kubeconfig-file"}
    varying = {
        name for name, issuer in ISSUERS.built_in_groups() if issuer.is_per_cluster is not IssuerSettings.is_per_cluster
    }
    assert varying == {"client-certificate", "exec", "token-request"}


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ({"name": "a"}, "[0]: type is missing"),
        ({"name": "a", "type": "magic"}, '[0].type: "magic" must be one of client-certificate, '),
        ({"name": "a", "type": "token-file"}, "[0].path: is missing"),
        ({"name": "a", "type": "token-file", "path": ""}, '[0].path: "" must be the path of a file'),
        (
            {"name": "a", "type": "token-file", "path": "/t", "pth": "/t"},
            "[0].pth: is not a setting; did you mean path?",
        ),
        ({"name": "A!", "type": "token-file", "path": "/t"}, '[0].name: "A!" must be up to 63 lowercase letters'),
        ({"name": "a", "type": "exec", "command": "datumctl"}, '[0].command: "datumctl" must be the absolute path'),
        ({"name": "a", "type": "exec", "command": "/x", "timeout": "1h"}, '[0].timeout: "1h" must be between'),
        (
            {"name": "a", "type": "exec", "command": "/x", "api_version": "v0"},
            '[0].api_version: "v0" must be one of client.auth',
        ),
        (
            {"name": "a", "type": "kubeconfig-secret", "secret": "A_B"},
            '[0].secret: "A_B" must be a Kubernetes object name',
        ),
        (
            {"name": "a", "type": "kubeconfig-secret", "namespace_template": "{other}"},
            '[0].namespace_template: "{other}" has the unknown placeholder',
        ),
        (
            {"name": "a", "type": "kubeconfig-secret", "allow_long_lived": "maybe"},
            '[0].allow_long_lived: "maybe" must be true or false',
        ),
        (
            {"name": "a", "type": "client-certificate", "ca_certificate": "/c", "ca_key": "/k", "common_name": "{x}"},
            '[0].common_name: "{x}" has the unknown placeholder',
        ),
        (
            {"name": "a", "type": "token-file", "path": "/t", "label_selector": "a in (b"},
            '[0].label_selector: "a in (b" must be a Kubernetes label selector',
        ),
        ("text", "must be a list of mappings"),
    ],
)
def test_invalid_credential_issuer_is_reported_with_file_line_and_key(
    tmp_path: Path, source: object, complaint: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        loaded(tmp_path, source)
    (problem,) = raised.value.problems
    assert f"kubeconfigs.issuers: {complaint}" in problem or complaint in problem
    assert problem.startswith(f"file {tmp_path}/config.yaml line 1 ")


def test_duplicate_and_unknown_credential_issuer_names_are_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has several items with the name "):
        loaded(tmp_path, GOOD[0], GOOD[0])
    with pytest.raises(ConfigError, match=r'"nobody" is not the name of an item of kubeconfigs.issuers; conf'):
        loaded(tmp_path, GOOD[4], credentials="nobody")
    with pytest.raises(ConfigError, match="configured: none"):
        loaded(tmp_path, credentials="nobody")


DECLARATIVE: dict[str, Any] = {
    "mode": "declarative",
    "settings": {
        "resource": {"group": "core.gardener.cloud", "version": "v1beta1", "plural": "shoots"},
        "ready": {"condition": "Ready"},
        "endpoint": {"template": "https://{metadata.name}.example.com", "hosts": ["*.example.com"]},
    },
}


@pytest.mark.parametrize("where", ["max_ttl", "rule"])
@pytest.mark.parametrize(
    ("source", "mode"),
    [
        ({"type": "token-request", "namespace": "milo", "service_account": "operators"}, {}),
        ({"type": "kubeconfig-request", "subresource": "s", "api_version": "v1", "kind": "K"}, DECLARATIVE),
    ],
)
def test_max_ttl_below_ten_minutes_is_rejected_for_token_and_kubeconfig_requests(
    tmp_path: Path, where: str, source: dict[str, str], mode: dict[str, Any]
) -> None:
    source = {"name": "tr", **source}

    def load_with(ttl: str, **rule: Any) -> None:
        file = tmp_path / "config.yaml"
        kubeconfigs: dict[str, Any] = {"issuers": [source, {"name": "tf", "type": "token-file", "path": "/t"}]}
        settings: dict[str, Any] = {"kubeconfigs": kubeconfigs, **mode}
        if where == "max_ttl":
            kubeconfigs |= {"max_ttl": ttl, "default_ttl": "10s"}
        else:
            settings["rights"] = [
                {"name": "few", "who": "everybody", "clusters": "all", "kubeconfigs": True, "max_ttl": ttl, **rule}
            ]
        file.write_text(json.dumps(settings))
        load({}, {}, file)

    load_with("600s")
    with pytest.raises(ConfigError, match="shorter than 600 s, the shortest lifetime that tr"):
        load_with("30s")
    if where == "rule":
        load_with("30s", issuers=["tf"])
