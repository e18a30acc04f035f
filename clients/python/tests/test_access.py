"""Reading what the daemon writes."""

from __future__ import annotations

import base64
import json

import pytest

from milo_discovery import UnusableKubeconfig
from milo_discovery._access import Access, read

from .kubeconfigs import text

CANARY = "canary-5f1d"


def test_a_token_with_all_that_is_needed_to_use_it():
    content = text("https://a", authorities=b"PEM", tls_server_name="name.test", token="t")
    assert read(content) == Access(server="https://a", authorities="PEM", tls_server_name="name.test", token="t")


def test_a_certificate_with_its_key():
    encoded = {key: base64.b64encode(key.encode()).decode() for key in ("certificate", "key")}
    access = read(text(client_certificate_data=encoded["certificate"], client_key_data=encoded["key"]))
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
def test_anything_else_is_refused_without_quoting_it(content: bytes):
    with pytest.raises(UnusableKubeconfig) as refused:
        read(content)
    assert CANARY not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


def test_secrets_stay_out_of_its_representation():
    assert CANARY not in repr(read(text(token=CANARY)))
