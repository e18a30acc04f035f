"""Credentials, and valid bearer tokens."""

import pytest

from milo_kube.credential import Credential, CredentialError, Secret, ascii_pem, for_url, token_of


def test_token_is_stripped() -> None:
    assert token_of(" t1\n", "the file") == Secret("t1")


@pytest.mark.parametrize("text", ["", " \n", "t1\nt2", "t\0", "t t", "tökén"])
def test_token_unsafe_for_header_is_rejected_and_not_shown(text: str) -> None:
    with pytest.raises(CredentialError, match=r"^the file ") as raised:
        token_of(text, "the file")
    assert not text.strip() or text not in str(raised.value)


def test_credential_equality_ignores_expiry() -> None:
    one, other = (Credential(token=Secret("t"), expires_at=expires_at) for expires_at in (1.0, 2.0))
    assert one == other
    assert not one != other  # noqa: SIM202 - `!=` is tested separately from `==`
    assert one != Credential(token=Secret("u"), expires_at=1.0)
    assert one != "t"
    assert hash(one) == hash(other)


@pytest.mark.parametrize(
    "url", ["http://milo", "http://10.0.0.1:8080", "http:///", "ftp://milo", "http://127.0.0.1.test"]
)
def test_credential_is_not_sent_without_tls(url: str) -> None:
    with pytest.raises(CredentialError, match="does not use TLS"):
        for_url(Credential(token=Secret("t")), url, plain_loopback=True)
    assert for_url(Credential(), url, plain_loopback=False) == Credential()


@pytest.mark.parametrize("url", ["https://milo", "http://127.0.0.1:1", "http://[::1]:1", "http://localhost"])
def test_credential_is_sent_over_tls_or_to_loopback(url: str) -> None:
    assert for_url(Credential(token=Secret("t")), url, plain_loopback=True) == Credential(token=Secret("t"))


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://[::1]:1", "http://localhost"])
def test_credential_is_sent_to_loopback_without_tls_only_if_configured(url: str) -> None:
    credential = Credential(token=Secret("t"))
    assert for_url(credential, url, plain_loopback=True) == credential
    with pytest.raises(CredentialError, match="does not use TLS"):
        for_url(credential, url, plain_loopback=False)


def test_characters_of_pem_beyond_ascii_become_line_breaks() -> None:
    assert ascii_pem("# schlüssel\n-----BEGIN".encode()) == "# schl\nssel\n-----BEGIN"
    assert ascii_pem(b"--\xe9---BEGIN") == "--\n---BEGIN"
