"""The settings of mode `declarative`, and the shipped definitions."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from milo_discoveryd.config import Settings, load
from milo_discoveryd.daemon_errors import ConfigError
from milo_discoveryd.model.resource import Resource
from milo_discoveryd.sources.declarative import DeclarativeKind

DEFINITIONS = sorted((Path(__file__).parents[3] / "deploy" / "sources").glob("*.yaml"))
VALID = """\
mode: declarative
declarative:
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
def test_shipped_definition_is_valid(path: Path) -> None:
    settings = load({}, {}, path)
    (source,) = settings.sources
    assert isinstance(source.settings, DeclarativeKind) == (source.kind == "declarative")
    assert settings.kubeconfigs.issuers


@pytest.mark.parametrize(
    ("before", "after", "line", "words"),
    [
        ("plural: things", "plural: things\n    kind: Thing", 6, "kind: .*is not a setting"),
        ("version: v1", "version: ''", 4, "version"),
        ('"https://{spec.host}"', '"https://{spec.host"', 7, "unbalanced brace"),
        ('"https://{spec.host}"', '"https://{spek.host}"', 7, "must begin with one of"),
        ('"https://{spec.host}"', '"http://{spec.host}"', 7, "must begin with https://"),
        ("    version: v1\n", "", 3, "version: is missing"),
        ("  endpoint:", "  name: '{metadata.nam}'\n  endpoint:", 6, "of the metadata only"),
        ("  endpoint:", "  ready: {field: status, condition: Ready}\n  endpoint:", 6, "either condition or field"),
        ("  endpoint:", "  ca: spec ca\n  endpoint:", 6, "is not the path of a field"),
        (
            "    template:",
            "    field: spec.url\n    template:",
            6,
            "exactly one of template, field, kubeconfig and secret_key",
        ),
        ("    template:", "    hosts: ['*']\n    template:", 7, "must be a host"),
        ("    plural: things", "    plural: things\n    namespace: x", 3, "is not namespaced"),
        ("  endpoint:", "  secret: {namespace: x}\n  endpoint:", 6, "name: is missing"),
        (
            "  endpoint:",
            "  secret: {name: '{spec.secret}'}\n  endpoint:",
            2,
            "is required, because the objects are cluster-scoped",
        ),
        (
            "    plural: things",
            "    plural: things\n    namespaced: true\n  secret: {name: a, namespace: '{spec.namespace}'}",
            2,
            "a namespaced object can only name Secrets in the object's namespace",
        ),
        (
            "  endpoint:",
            "  secret: {name: a, namespace: '../x'}\n  endpoint:",
            6,
            "namespace: '../x' is not a DNS label",
        ),
        (
            "  endpoint:",
            "  secret: {name: a, namespace: b, label_selector: c}\n  endpoint:",
            2,
            "the selectors have no effect without endpoint.secret_key",
        ),
        (
            "  endpoint:",
            "  secret: {name: a, namespace: b, field_selector: c}\n  endpoint:",
            2,
            "the selectors have no effect without endpoint.secret_key",
        ),
        ('template: "https://{spec.host}"', "secret_key: value", 2, "endpoint.secret_key: needs secret"),
    ],
)
def test_invalid_declaration_is_refused_with_its_line(
    tmp_path: Path, before: str, after: str, line: int, words: str
) -> None:
    assert before in VALID
    with pytest.raises(ConfigError, match=words) as refused:
        loaded(tmp_path, VALID.replace(before, after, 1))
    assert f"line {line} key declarative" in str(refused.value)


def test_declarative_mode_and_declarative_setting_require_each_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs mode: declarative"):
        loaded(tmp_path, VALID.replace("mode: declarative", "mode: project"))
    with pytest.raises(ConfigError, match="needs the setting declarative"):
        loaded(tmp_path, "mode: declarative")


@pytest.mark.parametrize(
    ("endpoint", "is_accepted"),
    [
        ({"template": "https://{spec.host}"}, False),
        ({"field": "spec.url"}, False),
        ({"kubeconfig": "data[value]"}, False),
        ({"secret_key": "value"}, False),
        ({"secret_key": "value", "hosts": ["*.example.com"]}, True),
        ({"field": "spec.url", "hosts": ["kcp.example.com"]}, True),
        ({"template": "https://kcp.example.com/clusters/{metadata.name}"}, True),
        ({"template": "https://kcp.example.com{metadata.name}"}, False),
    ],
)
def test_shared_credential_requires_endpoint_hosts_if_objects_choose_the_host(
    tmp_path: Path, endpoint: dict[str, Any], is_accepted: bool
) -> None:
    document = yaml.safe_load(VALID)
    document["declarative"] |= {"endpoint": endpoint, "secret": {"name": "{metadata.name}", "namespace": "fleet"}}
    document["kubeconfigs"] = {"issuers": [{"name": "shared", "type": "token-file", "path": "/token"}]}
    text = yaml.safe_dump(document)
    if is_accepted:
        assert loaded(tmp_path, text).title == "declarative"
    else:
        with pytest.raises(ConfigError, match=r"shared.*endpoint\.hosts"):
            loaded(tmp_path, text)


def test_kubeconfig_request_source_requires_declarative_mode(tmp_path: Path) -> None:
    source = {"name": "x", "type": "kubeconfig-request", "subresource": "s", "api_version": "v1", "kind": "K"}
    with pytest.raises(ConfigError, match="x: it posts to the objects of a source of the kind declarative"):
        loaded(tmp_path, yaml.safe_dump({"kubeconfigs": {"issuers": [source]}}))


def test_secret_placeholders_of_credential_issuer_require_declared_secret(tmp_path: Path) -> None:
    source = "{name: s, type: kubeconfig-secret, secret: '{secret}', namespace_template: '{secret_namespace}'}"
    credentials = f"kubeconfigs: {{issuers: [{source}]}}\n"
    with pytest.raises(ConfigError, match=r"s: \{secret\} and \{secret_namespace\} need"):
        loaded(tmp_path, VALID + credentials)
    named = "  secret: {name: '{spec.secretRef.name}', namespace: '{spec.secretRef.namespace}'}\n"
    assert loaded(tmp_path, VALID + named + credentials).title == "declarative"


@pytest.mark.parametrize(
    ("resource", "secret", "watched"),
    [
        ({"namespaced": True}, {}, ""),
        ({"namespaced": True, "namespace": "fleet"}, {}, "fleet"),
        ({}, {"namespace": "fleet"}, "fleet"),
        ({}, {"namespace": "{spec.namespace}"}, ""),
    ],
)
def test_endpoint_secrets_are_watched_in_the_namespaces_that_objects_can_name(
    tmp_path: Path, resource: dict[str, Any], secret: dict[str, Any], watched: str
) -> None:
    document = yaml.safe_load(VALID)
    declared = document["declarative"]
    declared["resource"] |= {**resource, "label_selector": "of=objects"}
    selectors = {"label_selector": "of=secrets", "field_selector": "type=Opaque"}
    declared |= {"endpoint": {"secret_key": "value"}, "secret": {"name": "{metadata.name}", **secret, **selectors}}
    (source,) = loaded(tmp_path, yaml.safe_dump(document)).sources
    assert isinstance(source.settings, DeclarativeKind)
    assert source.settings.secrets == Resource(
        "",
        "v1",
        "secrets",
        namespaced=True,
        namespace=watched,
        label_selector="of=secrets",
        field_selector="type=Opaque",
    )
