"""Tests of strict parsing of the kubeconfigs that the daemon issues."""

from __future__ import annotations

import base64
import json

import pytest

from milo_discovery import UnusableKubeconfig
from milo_discovery.kubeconfig_access import KubeconfigAccess, read_access, read_exec_access, render_kubeconfig
from milo_kube.act_as import ActAs
from tests.support.certificates import Authority
from tests.support.giant_keys import GiantPair

from .kubeconfigs import text

CANARY = "canary-5f1d"


def test_kubeconfig_with_a_token_is_read():
    content = text("https://a", authorities=b"PEM", tls_server_name="name.test", token="t")
    assert read_access(content) == KubeconfigAccess(
        server="https://a", authorities="PEM", tls_server_name="name.test", token="t"
    )


def test_kubeconfig_with_a_client_certificate_is_read():
    encoded = {key: base64.b64encode(key.encode()).decode() for key in ("certificate", "key")}
    access = read_access(text(client_certificate_data=encoded["certificate"], client_key_data=encoded["key"]))
    assert (access.certificate, access.key, access.token) == ("certificate", "key", None)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"apiVersion: v1",
        b"[]",
        b"{}",
        text(),
        text("", token=CANARY),
        text(client_certificate_data="!" + CANARY, client_key_data="!"),
        text(client_certificate_data=base64.b64encode(b"c").decode()),
        json.dumps({**json.loads(text(token=CANARY)), "current-context": "other"}).encode(),
        json.dumps({**json.loads(text(token=CANARY)), "users": CANARY}).encode(),
        text("api.test:6443", token=CANARY),
        text("ftp://api.test", token=CANARY),
        text("https://", token=CANARY),
        text("https://api.test:port", token=CANARY),
        text(token=CANARY + "\n"),
        text(token=CANARY + "\u00e9"),
        text(token=5),  # type: ignore[arg-type]  # not a string
        (b"[" * 100_000),
    ],
)
def test_malformed_kubeconfig_is_refused_without_quoting_it(content: bytes):
    with pytest.raises(UnusableKubeconfig) as refused:
        read_access(content)
    assert CANARY not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


def test_kubeconfig_access_repr_omits_secrets():
    assert CANARY not in repr(read_access(text(token=CANARY)))


def changed(content: bytes, part: str, **fields: object) -> bytes:
    document = json.loads(content)
    target = document if part == "config" else document[f"{part}s"][0][part]
    target.update({key.replace("_", "-"): value for key, value in fields.items()})
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("part", "fields"),
    [
        ("config", {"extensions": []}),
        ("cluster", {"proxy_url": "http://elsewhere"}),
        ("cluster", {"insecure_skip_tls_verify": True}),
        ("cluster", {"certificate_authority": "/etc/passwd"}),
        ("user", {"exec": {"command": "/bin/sh"}}),
        ("user", {"auth_provider": {"name": "oidc"}}),
        ("user", {"tokenFile": "/etc/passwd"}),
        ("user", {"as": "someone", "as_uid": "1"}),
        ("user", {"as_groups": ["system:masters"]}),
        ("user", {"as": "someone", "as_groups": [1]}),
        ("user", {"as": "someone", "as_user_extra": {"a": "b"}}),
        ("user", {"as": "a\r\nb"}),
        ("context", {"namespace": "kube-system"}),
    ],
)
def test_kubeconfig_with_unsupported_field_is_rejected(part: str, fields: dict[str, object]):
    with pytest.raises(UnusableKubeconfig, match="the kubeconfig is not of the form that the daemon writes"):
        read_access(changed(text(token=CANARY), part, **fields))


def test_kubeconfig_with_giant_rsa_key_is_rejected():
    giant, small = GiantPair(20_000), Authority().issue()
    for fields in (
        {"client_certificate_data": small.certificate, "client_key_data": giant.key},
        {"client_certificate_data": giant.certificate, "client_key_data": giant.key},
    ):
        data = {name: base64.b64encode(pem).decode() for name, pem in fields.items()}
        with pytest.raises(UnusableKubeconfig, match="has an RSA key with numbers of 20000 bits"):
            read_access(changed(text(token=None), "user", **data))
    ca = base64.b64encode(giant.certificate).decode()
    with pytest.raises(UnusableKubeconfig, match="certificate-authority-data that has an RSA key"):
        read_access(changed(text(token=CANARY), "cluster", certificate_authority_data=ca))


def test_impersonated_user_of_a_kubeconfig_is_read():
    acting = ActAs(user="shop", groups=("a", "b"), extra=(("example.com/why", ("c", "d")),))
    content = changed(text(token=CANARY), "user", **acting.fields())
    access = read_access(content)
    assert access.act_as == acting
    assert read_access(json.dumps(render_kubeconfig("alpha", access)).encode()) == access
    assert acting.headers() == [
        ("Impersonate-User", "shop"),
        ("Impersonate-Group", "a"),
        ("Impersonate-Group", "b"),
        ("Impersonate-Extra-example.com%2Fwhy", "c"),
        ("Impersonate-Extra-example.com%2Fwhy", "d"),
    ]


def test_kubeconfig_with_second_cluster_user_or_context_is_rejected():
    document = json.loads(text(token=CANARY))
    for kind in ("clusters", "users", "contexts"):
        with pytest.raises(UnusableKubeconfig):
            read_access(json.dumps({**document, kind: document[kind] * 2}).encode())


def test_rendered_kubeconfig_round_trips():
    access = read_access(text("https://a", authorities=b"PEM", tls_server_name="name.test", token="t"))
    assert read_access(json.dumps(render_kubeconfig("alpha", access)).encode()) == access


def exec_kubeconfig(**fields: object) -> bytes:
    call = {"apiVersion": "client.authentication.k8s.io/v1", "command": "milo-discovery"}
    return text(exec={**call, "args": ["credential", "--cluster", "alpha"], **fields})  # type: ignore[arg-type]


def test_server_of_an_exec_kubeconfig_is_read():
    assert read_exec_access(exec_kubeconfig(), "alpha") == KubeconfigAccess(server="https://alpha.test")


@pytest.mark.parametrize(
    "fields",
    [{"command": "/bin/sh"}, {"command": "./milo-discovery"}, {"args": ["sync", "--dir", "/"]}, {"stdin": "x"}],
)
def test_exec_kubeconfig_of_another_plugin_is_refused(fields: dict[str, object]):
    with pytest.raises(UnusableKubeconfig):
        read_exec_access(exec_kubeconfig(**fields), "alpha")


def test_exec_kubeconfig_for_another_cluster_is_refused():
    with pytest.raises(UnusableKubeconfig):
        read_exec_access(exec_kubeconfig(), "beta")
