"""The settings of mode `declarative`, and the shipped definitions."""

from pathlib import Path

import pytest
import yaml

from milo_discoveryd.config import Settings, load
from milo_discoveryd.daemon_errors import ConfigError
from milo_discoveryd.sources.declarative import DeclarativeKind

DEFINITIONS = sorted((Path(__file__).parents[3] / "deploy" / "sources").glob("*.yaml"))
VALID = """\
mode: declarative
settings:
  resource:
    version: v1
    plural: things
  endpoint:
    template: "https://{spec.host}"
"""


def loaded(tmp_path: Path, text: str) -> Settings:
    (tmp_path / "config.yaml").write_text(text)
    return load({}, {}, tmp_path / "config.yaml")


@pytest.mark.parametrize("path", DEFINITIONS, ids=lambda path: path.stem)
def test_source_definition_in_deploy_directory_is_valid(path: Path) -> None:
    settings = load({}, {}, path)
    (source,) = settings.sources
    assert isinstance(source.settings, DeclarativeKind) == (source.kind == "declarative")
    assert settings.kubeconfigs.issuers


@pytest.mark.parametrize(
    ("before", "after", "line", "words"),
    [
        ("plural: things", "plural: things\n    kind: Thing", 6, "kind: .*is not a setting"),
        ("    version: v1\n", "", 3, "version: is missing"),
        ('"https://{spec.host}"', '"https://{spec.host"', 7, "unbalanced brace"),
        ('template: "https://{spec.host}"', "secret_key: value", 2, "endpoint.secret_key: requires `secret`"),
    ],
)
def test_invalid_declaration_is_rejected_with_line_number(
    tmp_path: Path, before: str, after: str, line: int, words: str
) -> None:
    assert before in VALID
    with pytest.raises(ConfigError, match=words) as refused:
        loaded(tmp_path, VALID.replace(before, after, 1))
    assert f"line {line} key settings" in str(refused.value)


def test_declarative_mode_and_its_settings_require_each_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"line 3 key settings\.resource: is not a setting of kind project"):
        loaded(tmp_path, VALID.replace("mode: declarative", "mode: project"))
    with pytest.raises(ConfigError, match='"declarative" requires `settings`: resource is missing'):
        loaded(tmp_path, "mode: declarative")


def test_shared_credential_requires_endpoint_hosts_if_objects_choose_the_host(tmp_path: Path) -> None:
    shared = "kubeconfigs: {issuers: [{name: shared, type: token-file, path: /token}]}\n"
    with pytest.raises(ConfigError, match=r"shared.*endpoint\.hosts"):
        loaded(tmp_path, VALID + shared)
    assert loaded(tmp_path, VALID + "    hosts: ['*.example.com']\n" + shared).title == "declarative"


def test_kubeconfig_request_issuer_requires_declarative_mode(tmp_path: Path) -> None:
    source = {"name": "x", "type": "kubeconfig-request", "subresource": "s", "api_version": "v1", "kind": "K"}
    with pytest.raises(
        ConfigError, match="x: an issuer of type kubeconfig-request serves only sources of kind declarative"
    ):
        loaded(tmp_path, yaml.safe_dump({"kubeconfigs": {"issuers": [source]}}))


def test_secret_placeholders_of_credential_issuer_require_declared_secret(tmp_path: Path) -> None:
    source = "{name: s, type: kubeconfig-secret, secret: '{secret}', namespace_template: '{secret_namespace}'}"
    credentials = f"kubeconfigs: {{issuers: [{source}]}}\n"
    with pytest.raises(ConfigError, match=r"s: \{secret\} and \{secret_namespace\} require"):
        loaded(tmp_path, VALID + credentials)
    named = "  secret: {name: '{spec.secretRef.name}', namespace: '{spec.secretRef.namespace}'}\n"
    assert loaded(tmp_path, VALID + named + credentials).title == "declarative"
