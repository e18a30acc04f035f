"""Reading what the daemon writes."""

from __future__ import annotations

import base64
import json

import pytest

from milo_discovery import UnusableKubeconfig
from milo_discovery._kubeconfig_access import KubeconfigAccess, read_access

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
        text(token=5),  # type: ignore[arg-type]  # that is what is wrong
        (b"[" * 100_000),
    ],
)
def test_malformed_kubeconfig_is_refused_without_quoting_it(content: bytes):
    with pytest.raises(UnusableKubeconfig) as refused:
        read_access(content)
    assert CANARY not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


def test_repr_omits_secrets():
    assert CANARY not in repr(read_access(text(token=CANARY)))
