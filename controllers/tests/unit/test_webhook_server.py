"""The certificate of the server of webhooks, while its files are replaced."""

import ssl
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from milo_controllers.webhook_server import WebhookServer, _ServerCertificate
from milo_kube.credential import CredentialError
from tests.support.certificates import LOOPBACK, Authority, Pair


def presented(server: ssl.SSLContext, authority: Authority, *, curve: str | None = None) -> bytes | None:
    """Return the certificate that a client is presented in a handshake."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context(cadata=authority.pem.decode())
    if curve is not None:
        client.set_ecdh_curve(curve)
    ours = client.wrap_bio(to_client, to_server, server_hostname="localhost")
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    for side in (ours, theirs, ours, theirs, ours):
        with suppress(ssl.SSLWantReadError):
            side.do_handshake()
    return ours.getpeercert(binary_form=True)


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def first(authority: Authority, tmp_path: Path) -> Pair:
    found = authority.issue(*LOOPBACK)
    found.write(tmp_path, "tls")
    return found


@pytest.fixture
def certificate(first: Pair, tmp_path: Path) -> _ServerCertificate:
    made = _ServerCertificate(WebhookServer(tmp_path / "tls.crt", tmp_path / "tls.key"))
    assert made.load()
    return made


def replace(directory: Path, name: str, content: bytes) -> None:
    (directory / "new").write_bytes(content)
    (directory / "new").rename(directory / name)


def test_certificate_whose_files_are_replaced_again_while_it_is_loaded_is_presented(
    authority: Authority, certificate: _ServerCertificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second, third = authority.issue(*LOOPBACK), authority.issue(*LOOPBACK)

    load = ssl.SSLContext.load_cert_chain

    def replacing(*arguments: Any, **options: Any) -> None:
        load(*arguments, **options)
        replace(tmp_path, "tls.key", third.key)

    replace(tmp_path, "tls.crt", second.certificate)
    replace(tmp_path, "tls.key", second.key)
    with monkeypatch.context() as racing:
        racing.setattr(ssl.SSLContext, "load_cert_chain", replacing)
        assert certificate.load()
    assert presented(certificate.context, authority) == second.der
    with pytest.raises(CredentialError, match="cannot be used for webhooks"):
        certificate.load()
    assert presented(certificate.context, authority) == second.der
    replace(tmp_path, "tls.crt", third.certificate)
    assert certificate.load()
    assert presented(certificate.context, authority) == third.der


def test_keys_are_agreed_on_by_elliptic_curves_alone(
    authority: Authority, certificate: _ServerCertificate, first: Pair
) -> None:
    """As in the daemon: each recorded ClientHello for 8,192 bits took the loop 160 ms."""
    assert presented(certificate.context, authority, curve="prime256v1") == first.der
    with pytest.raises(ssl.SSLError):
        presented(certificate.context, authority, curve="ffdhe8192")
