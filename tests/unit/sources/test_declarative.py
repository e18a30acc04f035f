"""The kind `declarative`: clusters from objects, and validation of untrusted fields."""

import base64
import json
from typing import Any

import pytest

from milo_discoveryd.model.cluster import DeclaredTarget, Target
from milo_discoveryd.model.contributions import ObjectContribution
from milo_discoveryd.model.observation import Malformed, NotReady, Ready
from milo_discoveryd.schema.fields import parse_group
from milo_discoveryd.sources.declarative import (
    SECRETS,
    DeclarativeKind,
    DeclaredObject,
    DeclaredObjects,
    SecretObject,
    StatedServer,
)
from milo_discoveryd.sources.kind import SourceOptions
from milo_discoveryd.sources.reading import MalformedError, Metadata
from tests.support.certificates import CA
from tests.support.giant_keys import GiantPair

CLUSTERS: dict[str, Any] = {
    "resource": {"group": "example.com", "version": "v1", "plural": "clusters", "namespaced": True},
    "name": "{metadata.namespace}.{metadata.name}",
    "ready": {"condition": "Ready"},
    "endpoint": {"template": "https://{spec.host}:{spec.port}/base"},
    "organization": "{metadata.labels[org]}",
}


def a_mode(**differing: Any) -> DeclaredObjects:
    return DeclaredObjects(parse_group(DeclarativeKind, {**CLUSTERS, **differing}), SourceOptions())


def an_object(spec: Any = None, *, ready: str = "True", name: str = "alpha", **fields: Any) -> DeclaredObject:
    metadata = Metadata(name=name, namespace="team", uid="1", resourceVersion="7", labels={"org": "acme"})
    status = fields.pop("status", {"conditions": [{"type": "Ready", "status": ready}]})
    given = {"host": "a.example", "port": 6443} if spec is None else spec
    return DeclaredObject(metadata, spec=given, status=status, **fields)


def secret(data: dict[str, str] | None, name: str = "alpha-kubeconfig") -> SecretObject:
    return SecretObject(Metadata(name=name, namespace="team", uid="2", resourceVersion="8"), data)


def content(mode: DeclaredObjects, obj: DeclaredObject) -> Any:
    [contribution] = mode.contributions(obj)
    return contribution.content


def problem(mode: DeclaredObjects, obj: DeclaredObject) -> str:
    """Return why the object's cluster cannot be used."""
    seen = content(mode, obj)
    assert isinstance(seen, Malformed)
    assert (seen.name, seen.uid) == ("team.alpha", "1")
    return seen.message


def endpoint(mode: DeclaredObjects, obj: DeclaredObject) -> str:
    seen = content(mode, obj)
    assert isinstance(seen, Ready)
    return seen.target.endpoint


def test_declarative_object_becomes_a_cluster() -> None:
    seen = content(a_mode(), an_object())
    assert seen == Ready(
        "1",
        "7",
        DeclaredTarget(
            name="team.alpha",
            uid="1",
            place=("https://a.example:6443/base",),
            organization="acme",
            labels=(("org", "acme"),),
            object_namespace="team",
            object_name="alpha",
        ),
    )


def test_not_ready_declarative_object_names_the_field_that_is_not_ready() -> None:
    seen = content(a_mode(), an_object(ready="False"))
    assert isinstance(seen, NotReady)
    assert (seen.name, seen.message) == (
        "team.alpha",
        "status.conditions[type=Ready].status is 'False' instead of 'True'",
    )


@pytest.mark.parametrize(("phase", "is_ready"), [("Ready", True), ("Active", True), ("", False), (None, False)])
def test_declarative_readiness_is_read_from_a_string_field(phase: str | None, is_ready: bool) -> None:
    mode = a_mode(ready={"field": "status.phase", "values": ["Ready", "Active"]})
    assert isinstance(content(mode, an_object(status={"phase": phase})), Ready) is is_ready


def test_declarative_readiness_is_read_from_a_boolean_field() -> None:
    assert isinstance(content(a_mode(ready={"field": "status.ready"}), an_object(status={"ready": True})), Ready)


def test_declarative_object_without_a_readiness_rule_is_ready() -> None:
    mode = a_mode(ready=None)
    assert isinstance(content(mode, an_object(status=None)), Ready)


@pytest.mark.parametrize(
    ("host", "expected"), [("10.0.0.1", "10.0.0.1"), ("fd00::1", "[fd00::1]"), ("a.example", "a.example")]
)
def test_endpoint_template_accepts_host_names_and_ip_addresses(host: str, expected: str) -> None:
    assert endpoint(a_mode(), an_object({"host": host, "port": "443"})) == f"https://{expected}:443/base"


@pytest.mark.parametrize(
    "spec",
    [
        {"host": "evil.example/", "port": 1},
        {"host": "user@evil.example", "port": 1},
        {"host": "evil.example#", "port": 1},
        {"host": "a.example\n", "port": 1},
        {"host": "A.EXAMPLE", "port": 1},
        {"host": "a.example", "port": "1@evil.example"},
        {"host": "a.example", "port": 99999},
        {"host": "a.example"},
        {"host": ["a.example"], "port": 1},
        {},
        "text",
    ],
)
def test_object_with_invalid_values_for_its_endpoint_is_malformed(spec: Any) -> None:
    assert problem(a_mode(), an_object(spec))


@pytest.mark.parametrize(
    "url",
    [
        "http://a.example",
        "https://",
        "https://user:password@a.example",
        "https://a.example?x=1",
        "https://a.example#x",
        "https://a.example/../x",
        "https://a.example/%2e",
        "https://a.example:port",
        "https://a.example:99999",
        "https://[::1",
        "https://[fe80::1%25eth0]",
        "ftp://a.example",
        "a.example:0x1",
        "user@a.example",
        "fe80::1%eth0",
        "//a.example",
        7,
    ],
)
def test_invalid_endpoint_url_is_rejected(url: Any) -> None:
    assert problem(a_mode(endpoint={"field": "spec.url"}), an_object({"url": url}))


@pytest.mark.parametrize(
    ("stated", "port", "expected"),
    [
        ("10.0.0.1:6443", 443, "https://10.0.0.1:6443"),
        ("34.1.2.3", 443, "https://34.1.2.3"),
        ("34.1.2.3", 6443, "https://34.1.2.3:6443"),
        ("fd00::1", 6443, "https://[fd00::1]:6443"),
        ("[fd00::1]:8443", 6443, "https://[fd00::1]:8443"),
        ("a.example", 443, "https://a.example"),
        ("https://a.example/base", 6443, "https://a.example:6443/base"),
        ("https://a.example:443", 6443, "https://a.example:443"),
    ],
)
def test_endpoint_without_scheme_or_port_is_completed(stated: str, port: int, expected: str) -> None:
    mode = a_mode(endpoint={"field": "spec.url", "port": port})
    assert endpoint(mode, an_object({"url": stated})) == expected


@pytest.mark.parametrize(
    ("host", "is_accepted"),
    [
        ("10.1.2.3", True),
        ("11.1.2.3", False),
        ("fd00::1", True),
        ("::ffff:10.1.2.3", True),
        ("a.example", False),
        ("b.example", True),
    ],
)
def test_configured_endpoint_hosts_may_be_networks_or_names(host: str, is_accepted: bool) -> None:
    mode = a_mode(endpoint={"field": "spec.url", "hosts": ["10.0.0.0/8", "fd00::/8", "b.example"]})
    assert isinstance(content(mode, an_object({"url": host})), Ready if is_accepted else Malformed)


def argo_secret(config: Any, server: str = "https://a.example:6443") -> DeclaredObject:
    data = {"name": "alpha", "server": server, "config": json.dumps(config)}
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    return an_object(data=encoded)


def test_fields_are_read_from_decoded_secret_data_and_from_json_in_it() -> None:
    mode = a_mode(ready=None, endpoint={"field": "stringData[server]"}, ca="stringData[config].tlsClientConfig.caData")
    config = {"bearerToken": "t", "tlsClientConfig": {"caData": base64.b64encode(CA.encode()).decode()}}
    seen = content(mode, argo_secret(config))
    assert (seen.target.endpoint, seen.target.authorities) == ("https://a.example:6443", CA.encode())
    assert problem(mode, argo_secret({"tlsClientConfig": {"insecure": True}})) == (
        "the field stringData[config].tlsClientConfig.caData is not set to a nonempty string"
    )
    mode = a_mode(ready=None, endpoint={"field": "stringData[server]"})
    assert "is not base64-encoded text" in problem(mode, an_object(data={"server": "!"}))


def test_field_path_into_a_string_that_is_not_json_finds_nothing() -> None:
    mode = a_mode(endpoint={"field": "spec.url.inside"})
    assert problem(mode, an_object({"url": "[" * 5000})) == "the field spec.url.inside is not set to a nonempty string"


@pytest.mark.parametrize(
    ("host", "is_accepted"),
    [
        ("a.example.com", True),
        ("deep.a.example.com", True),
        ("exact.test", True),
        ("example.com", False),
        ("b.test", False),
    ],
)
def test_endpoint_host_must_be_among_configured_hosts(host: str, is_accepted: bool) -> None:
    mode = a_mode(endpoint={"field": "spec.url", "hosts": ["*.example.com", "exact.test"]})
    if is_accepted:
        assert endpoint(mode, an_object({"url": f"https://{host}/clusters/x/"})) == f"https://{host}/clusters/x"
    else:
        assert problem(mode, an_object({"url": f"https://{host}"})).endswith("is not among endpoint.hosts")


@pytest.mark.parametrize("name", ["", "..", "Alpha", "a/b", "a#b", "x" * 254])
def test_object_name_that_is_not_a_dns_name_is_refused(name: str) -> None:
    with pytest.raises(MalformedError):
        a_mode().contributions(an_object(name=name))


@pytest.mark.parametrize("ca", [CA, base64.b64encode(CA.encode()).decode()])
def test_ca_field_is_read_as_pem_or_base64(ca: str) -> None:
    seen = content(a_mode(ca="spec.ca"), an_object({"host": "a.example", "port": 1, "ca": ca}))
    assert seen.target.authorities == CA.encode()


@pytest.mark.parametrize("ca", ["", "PEM", "!", "-----BEGIN CERTIFICATE-----\n", 1])
def test_object_with_invalid_ca_is_malformed(ca: Any) -> None:
    assert problem(a_mode(ca="spec.ca"), an_object({"host": "a.example", "port": 1, "ca": ca}))


def test_object_with_ca_that_has_a_giant_rsa_key_is_malformed() -> None:
    giant = {"host": "a.example", "port": 1, "ca": CA + GiantPair(4_097).certificate.decode()}
    assert "spec.ca has an RSA key with numbers of 4097 bits" in problem(a_mode(ca="spec.ca"), an_object(giant))


def kubeconfig(server: str = "https://a.example", **cluster: Any) -> dict[str, str]:
    document = {
        "current-context": "x",
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [
            {"name": "other", "cluster": {"server": "https://other"}},
            {"name": "c", "cluster": {"server": server, **cluster}},
        ],
        "users": [{"name": "u", "user": {"token": "CANARY"}}],
    }
    return {"value": base64.b64encode(json.dumps(document).encode()).decode()}


def test_endpoint_and_ca_are_read_from_kubeconfig_of_object() -> None:
    mode = a_mode(endpoint={"kubeconfig": "data[value]"})
    data = kubeconfig(**{"certificate-authority-data": base64.b64encode(CA.encode()).decode()})
    target = content(mode, an_object(data=data)).target
    assert (target.endpoint, target.authorities) == ("https://a.example", CA.encode())
    assert content(mode, an_object(data=kubeconfig())).target.authorities is None
    assert "CANARY" not in repr(target)


@pytest.mark.parametrize(
    "data",
    [
        None,
        {},
        {"value": "!"},
        {"value": base64.b64encode(b"[").decode()},
        {"value": base64.b64encode(b"{}").decode()},
        {"value": base64.b64encode(b"current-context: x").decode()},
        kubeconfig("http://plain"),
        kubeconfig(**{"certificate-authority-data": "!"}),
        kubeconfig(**{"certificate-authority": "/etc/ssl/ca.pem"}),
        kubeconfig(**{"insecure-skip-tls-verify": True}),
        kubeconfig(**{"tls-server-name": "b.example"}),
        kubeconfig(**{"proxy-url": "http://proxy"}),
    ],
)
def test_kubeconfig_without_a_usable_server_is_refused_without_quoting_it(data: Any) -> None:
    assert "CANARY" not in problem(a_mode(endpoint={"kubeconfig": "data[value]"}), an_object(data=data))


def test_declarative_organization_is_optional() -> None:
    seen = content(a_mode(organization="{metadata.labels[none]}"), an_object())
    assert seen.target.organization == ""
    assert content(a_mode(organization=None), an_object()).target.organization == ""
    assert (
        content(
            a_mode(organization="{spec.team}"), an_object({"host": "a", "port": 1, "team": "a\nb"})
        ).target.organization
        == ""
    )


def test_declarative_cluster_claimed_by_two_objects_is_malformed() -> None:
    mode = a_mode()
    contributions = [ObjectContribution(0, f"team/{name}", name, "1", 0, content(mode, an_object())) for name in "ab"]
    assert isinstance(mode.reduce("team.alpha", contributions, ""), Malformed)


def test_restored_declarative_cluster_with_disallowed_endpoint_is_malformed() -> None:
    mode = a_mode(endpoint={"field": "spec.url", "hosts": ["a.example"]})
    stored = Target(name="team.alpha", uid="1", place=("https://a.example",))
    assert mode.restored_place(stored) == ("https://a.example",)
    with pytest.raises(MalformedError):
        mode.restored_place(Target(name="team.alpha", uid="1", place=("https://evil.example",)))
    with pytest.raises(MalformedError):
        mode.restored_place(Target(name="../x", uid="1", place=("https://a.example",)))


def test_declarative_object_refers_to_the_secret_with_its_credentials() -> None:
    named = a_mode(secret={"name": "{spec.secretRef.name}"})
    spec = {"host": "a.example", "port": 6443, "secretRef": {"name": "alpha-admin", "namespace": "elsewhere"}}
    assert content(named, an_object(spec)).target.secret == ("team", "alpha-admin")
    assert content(a_mode(), an_object(spec)).target.secret == ("", "")
    assert problem(named, an_object()) == (
        "the field spec.secretRef.name is not set to a nonempty string, an integer or a Boolean"
    )


def test_cluster_scoped_object_specifies_the_namespace_of_its_secret() -> None:
    resource = {**CLUSTERS["resource"], "namespaced": False}
    references = {"name": "{spec.secretRef.name}", "namespace": "{spec.secretRef.namespace}"}
    mode = a_mode(resource=resource, secret=references)
    spec = {"host": "a.example", "port": 6443, "secretRef": {"name": "alpha-admin", "namespace": "fleet"}}
    assert content(mode, an_object(spec)).target.secret == ("fleet", "alpha-admin")


@pytest.mark.parametrize(
    ("name", "namespace"), [("../x", "fleet"), ("a/b", "fleet"), ("a", "x/y"), ("a", "x.y"), ("a", "..")]
)
def test_secret_reference_with_invalid_name_or_namespace_is_malformed(name: str, namespace: str) -> None:
    resource = {**CLUSTERS["resource"], "namespaced": False}
    references = {"name": "{spec.secretRef.name}", "namespace": "{spec.secretRef.namespace}"}
    spec = {"host": "a.example", "port": 6443, "secretRef": {"name": name, "namespace": namespace}}
    assert "is not a DNS" in problem(a_mode(resource=resource, secret=references), an_object(spec))


def test_declarative_object_specifies_the_key_in_its_secret() -> None:
    mode = a_mode(secret={"name": "{spec.secret.name}", "key": "{spec.secret.key}"})
    spec: dict[str, Any] = {"host": "a.example", "port": 6443, "secret": {"name": "admin", "key": "admin_Creds.1"}}
    seen = content(mode, an_object(spec))
    assert (seen.target.secret, seen.target.secret_key) == (("team", "admin"), "admin_Creds.1")
    spec["secret"]["key"] = "../x"
    assert problem(mode, an_object(spec)) == "the field spec.secret.key is not a key of a Secret"


BY_SECRET: dict[str, Any] = {
    "endpoint": {"secret_key": "value", "hosts": ["*.example", "b"]},
    "secret": {"name": "{metadata.name}-kubeconfig"},
}


def reduced(mode: DeclaredObjects, obj: DeclaredObject, *secrets: tuple[str, StatedServer]) -> Any:
    """Return the observation of the cluster that an object and Secrets describe."""
    [contribution] = mode.contributions(obj)
    contributions = [ObjectContribution(0, "team/alpha", "1", "7", 0, contribution.content, contribution.needs)]
    contributions += [ObjectContribution(SECRETS, key, "2", "8", 0, server) for key, server in secrets]
    return mode.reduce(contribution.cluster, contributions, "")


def test_endpoint_and_ca_are_read_from_the_secret_that_an_object_refers_to() -> None:
    mode = a_mode(**BY_SECRET)
    data = kubeconfig(**{"certificate-authority-data": base64.b64encode(CA.encode()).decode()})
    server = mode.server(secret(data))
    assert server == StatedServer("https://a.example", CA.encode())
    [contribution] = mode.contributions(an_object())
    assert contribution.needs == ((SECRETS, "team/alpha-kubeconfig"),)
    others = StatedServer("https://b", None)
    seen = reduced(mode, an_object(), ("team/beta-kubeconfig", others), ("team/alpha-kubeconfig", server))
    assert isinstance(seen, Ready)
    assert (seen.uid, seen.version, seen.target.endpoint) == ("1", "7", "https://a.example")
    assert isinstance(seen.target, DeclaredTarget)
    assert (seen.target.authorities, seen.target.secret) == (CA.encode(), ("team", "alpha-kubeconfig"))


def test_ca_of_the_object_takes_precedence_over_ca_of_its_secret() -> None:
    mode = a_mode(**BY_SECRET, ca="spec.ca")
    seen = reduced(mode, an_object({"ca": CA}), ("team/alpha-kubeconfig", StatedServer("https://b", b"another")))
    assert seen.target.authorities == CA.encode()


def test_object_whose_secret_is_missing_is_not_ready() -> None:
    seen = reduced(a_mode(**BY_SECRET), an_object(), ("team/beta-kubeconfig", StatedServer("https://b", None)))
    assert isinstance(seen, NotReady)
    assert (seen.name, seen.uid, seen.version) == ("team.alpha", "1", "7")
    assert seen.message == "there is no kubeconfig under the key 'value' of Secret team/alpha-kubeconfig"
    assert seen.fields is not None
    assert (seen.fields.organization, seen.fields.labels) == ("acme", (("org", "acme"),))


def test_object_that_is_not_ready_or_is_deleted_needs_no_secret() -> None:
    mode = a_mode(**BY_SECRET)
    [contribution] = mode.contributions(an_object(ready="False"))
    assert contribution.needs == ()
    assert isinstance(reduced(mode, an_object(ready="False")), NotReady)
    assert mode.reduce("team.alpha", [], "") is None
    [contribution] = a_mode().contributions(an_object())
    assert contribution.needs == ()


@pytest.mark.parametrize("data", [None, {}, {"other": "x"}, {"value": ""}])
def test_secret_without_the_configured_key_gives_no_server(data: Any) -> None:
    assert a_mode(**BY_SECRET).server(secret(data)) is None


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"value": "!"}, "does not contain a base64-encoded kubeconfig"),
        (kubeconfig("https://evil.test"), "is not among endpoint.hosts"),
        (kubeconfig("http://b"), "is not of the form https://"),
        (kubeconfig(**{"tls-server-name": "b"}), "tls-server-name"),
    ],
)
def test_kubeconfig_of_a_secret_without_a_usable_server_is_refused_without_quoting_it(data: Any, words: str) -> None:
    with pytest.raises(MalformedError, match=words) as refused:
        a_mode(**BY_SECRET).server(secret(data))
    assert str(refused.value).startswith("the key 'value' of Secret team/alpha-kubeconfig")
    assert "CANARY" not in str(refused.value)
