"""The settings of the kind `declarative`: validation, and which issuers may serve the clusters."""

from typing import Any

import pytest

from milo_discoveryd.model.resource import Resource
from milo_discoveryd.schema.fields import InvalidError, parse_group
from milo_discoveryd.sources.declarative import DeclarativeKind
from milo_discoveryd.sources.kind import IssuerTraits, SourceOptions

SHARED = IssuerTraits("token-file")
SECRET = {"name": "{metadata.name}", "namespace": "fleet"}
NAMESPACED = {"version": "v1", "plural": "things", "namespaced": True}


def a_kind(**differing: Any) -> DeclarativeKind:
    """Return a kind with cluster-scoped objects; `differing` are settings that replace or complete the valid ones."""
    valid = {"resource": {"version": "v1", "plural": "things"}, "endpoint": {"template": "https://{spec.host}"}}
    return parse_group(DeclarativeKind, {**valid, **differing})


@pytest.mark.parametrize(
    ("ready", "expected"),
    [
        ({}, ""),
        ({"ready": {"condition": "Available"}}, "condition Available is True"),
        ({"ready": {"field": "status.phase", "values": ["A", "B"]}}, "field status.phase is 'A' or 'B'"),
    ],
)
def test_readiness_description_names_the_configured_condition_or_field(ready: dict[str, Any], expected: str) -> None:
    assert a_kind(**ready).ready_when == expected


@pytest.mark.parametrize(
    ("differing", "path", "words"),
    [
        ({"resource": {"version": "", "plural": "things"}}, "resource.version", "must be"),
        ({"resource": {"version": "v1", "plural": "things", "kind": "Thing"}}, "resource.kind", "is not a setting"),
        ({"resource": {"plural": "things"}}, "resource.version", "is missing"),
        ({"resource": {"version": "v1", "plural": "things", "namespace": "x"}}, "resource", "is not namespaced"),
        ({"name": "{metadata.nam}"}, "name", "of the metadata only"),
        ({"ready": {"field": "status", "condition": "Ready"}}, "ready", "the settings `condition` and `field`"),
        ({"ready": {}}, "ready", "the settings `condition` and `field`"),
        ({"ca": "spec ca"}, "ca", "is not the path of a field"),
        ({"endpoint": {"template": "https://{spec.host"}}, "endpoint.template", "unbalanced brace"),
        ({"endpoint": {"template": "https://{spek.host}"}}, "endpoint.template", "must begin with one of"),
        ({"endpoint": {"template": "http://{spec.host}"}}, "endpoint.template", "must begin with https://"),
        ({"endpoint": {"field": "spec.url", "secret_key": "value"}}, "endpoint", "the settings `template`, `field`, "),
        ({"endpoint": {"field": "spec.url", "hosts": ["*"]}}, "endpoint.hosts.0", "must be a host"),
        (
            {"endpoint": {"field": "spec.url", "hosts": ["10.0.0.1/8"]}},
            "endpoint.hosts.0",
            "a network such as 10.0.0.0/8",
        ),
        ({"endpoint": {"secret_key": "a key"}, "secret": SECRET}, "endpoint.secret_key", "must be a key of a Secret"),
        ({"secret": {"namespace": "x"}}, "secret.name", "is missing"),
        ({"secret": {"name": "a", "namespace": "../x"}}, "secret", "namespace: '../x' is not a DNS label"),
    ],
)
def test_invalid_setting_of_a_declarative_source_is_refused_with_its_path(
    differing: dict[str, Any], path: str, words: str
) -> None:
    with pytest.raises(InvalidError, match=words) as refused:
        a_kind(**differing)
    assert [".".join(map(str, complaint.path)) for complaint in refused.value.complaints] == [path]


@pytest.mark.parametrize(
    ("differing", "words"),
    [
        ({"secret": {"name": "{spec.secret}"}}, "is required, because the objects are cluster-scoped"),
        (
            {"resource": NAMESPACED, "secret": {"name": "a", "namespace": "{spec.namespace}"}},
            "a namespaced object can only name Secrets in the object's namespace",
        ),
        ({"secret": {**SECRET, "label_selector": "c"}}, "the selectors have no effect without endpoint.secret_key"),
        ({"secret": {**SECRET, "field_selector": "c"}}, "the selectors have no effect without endpoint.secret_key"),
        ({"endpoint": {"secret_key": "value"}}, "endpoint.secret_key: requires `secret`"),
    ],
)
def test_secret_setting_that_conflicts_with_other_settings_is_refused(differing: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        a_kind(**differing)


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
    endpoint: dict[str, Any], is_accepted: bool
) -> None:
    kind = a_kind(endpoint=endpoint, secret=SECRET)
    assert ("endpoint.hosts" in kind.refusal(SHARED)) is not is_accepted
    assert kind.refusal(IssuerTraits("kubeconfig-secret", is_of_cluster=True)) == ""
    assert kind.refusal(IssuerTraits("kubeconfig-request")) == ""


@pytest.mark.parametrize("template", ["{secret}", "of-{secret_namespace}"])
def test_secret_placeholders_of_an_issuer_require_the_secret_setting_of_the_source(template: str) -> None:
    issuer = IssuerTraits("kubeconfig-secret", (template,), is_of_cluster=True)
    assert a_kind().refusal(issuer) == "{secret} and {secret_namespace} require the source's setting `secret`"
    assert a_kind(secret=SECRET).refusal(issuer) == ""


@pytest.mark.parametrize(
    ("resource", "secret", "watched"),
    [
        ({"namespaced": True}, {}, ""),
        ({"namespaced": True, "namespace": "fleet"}, {}, "fleet"),
        ({}, {"namespace": "fleet"}, "fleet"),
        ({}, {"namespace": "{spec.namespace}"}, ""),
    ],
)
def test_endpoint_secrets_are_watched_in_the_namespaces_that_objects_can_refer_to(
    resource: dict[str, Any], secret: dict[str, Any], watched: str
) -> None:
    selectors = {"label_selector": "of=secrets", "field_selector": "type=Opaque"}
    kind = a_kind(
        resource={"version": "v1", "plural": "things", "label_selector": "of=objects", **resource},
        endpoint={"secret_key": "value"},
        secret={"name": "{metadata.name}", **secret, **selectors},
    )
    _, secrets = kind.follow(SourceOptions()).watches
    assert secrets.resource == Resource("", "v1", "secrets", namespaced=True, namespace=watched, **selectors)


def test_secrets_are_not_watched_if_they_do_not_contain_endpoints() -> None:
    (objects,) = a_kind(secret=SECRET).follow(SourceOptions()).watches
    assert objects.resource.plural == "things"


def test_secret_key_placeholder_of_an_issuer_requires_the_secret_key_setting() -> None:
    issuer = IssuerTraits("kubeconfig-secret", templates=("{secret_key}",), is_of_cluster=True)
    assert a_kind(secret=SECRET).refusal(issuer) == "{secret_key} requires the source's setting `secret.key`"
    assert not a_kind(secret={**SECRET, "key": "{metadata.name}-kubeconfig"}).refusal(issuer)
