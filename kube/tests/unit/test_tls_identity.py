"""TLS identities and contexts."""

import ssl
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from milo_kube import key_sizes
from milo_kube.credential import ClientCertificate, CredentialError, Secret
from milo_kube.tls_identity import TlsIdentity
from tests.support.giant_keys import GiantPair


def pair(chain: bytes, key: bytes) -> TlsIdentity:
    return TlsIdentity(authorities=None, certificate=ClientCertificate(chain=chain, key=Secret(key.decode())))


def test_tls_identity_is_equal_for_same_ca_and_certificate() -> None:
    assert TlsIdentity(authorities=b"A", certificate=None) == TlsIdentity(authorities=b"A", certificate=None)
    assert pair(b"C", b"K") == pair(b"C", b"K")
    assert pair(b"C", b"K") != pair(b"C", b"L")


def test_tls_context_trusts_only_given_ca() -> None:
    context = TlsIdentity(authorities=trustme.CA().cert_pem.bytes(), certificate=None).context()
    assert context.cert_store_stats()["x509_ca"] == 1
    assert context.check_hostname


def test_tls_context_offers_elliptic_curves_alone() -> None:
    """Otherwise the server chooses a finite field, of 10,000 bits if it likes."""
    context = TlsIdentity(authorities=None, certificate=None).context()
    offered = {cipher["kea"] for cipher in context.get_ciphers()}
    assert offered == {"kx-any", "kx-ecdhe"}  # any: TLS 1.3
    assert context.options & ssl.OP_NO_RENEGOTIATION


def test_tls_context_without_ca_trusts_system_cas() -> None:
    context = TlsIdentity(authorities=None, certificate=None).context()
    assert context.cert_store_stats() == ssl.create_default_context().cert_store_stats()
    assert context.check_hostname


def test_tls_context_without_the_system_cas_is_refused_if_there_are_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle.pem"
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    system = TlsIdentity(authorities=None, certificate=None)
    bundle.write_bytes(b"")
    assert system.context().cert_store_stats()["x509"] == 0
    bundle.write_bytes(trustme.CA().cert_pem.bytes())
    assert system.context().cert_store_stats()["x509"] == 1
    with monkeypatch.context() as exhausted:
        exhausted.setattr(ssl.SSLContext, "load_default_certs", lambda _: None)
        with pytest.raises(CredentialError, match=r"the system's CAs in .*bundle.pem could not be loaded"):
            system.context()


@pytest.mark.parametrize(
    "authorities", [b"", b"PEM", b"\xff", b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"]
)
def test_invalid_ca_is_rejected(authorities: bytes) -> None:
    with pytest.raises(CredentialError, match="the certificate authority is not a list of PEM certificates"):
        TlsIdentity(authorities=authorities, certificate=None).context()


def test_mismatched_or_encrypted_key_is_rejected() -> None:
    authority = trustme.CA()
    ours, other = authority.issue_cert(common_name="a"), authority.issue_cert(common_name="b")
    chain, key = ours.cert_chain_pems[0].bytes(), ours.private_key_pem.bytes()
    encrypted = load_pem_private_key(key, None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password")
    )
    pair(chain, key).context()
    for wrong in (other.private_key_pem.bytes(), b"KEY"):
        with pytest.raises(CredentialError, match="do not match, or are not PEM"):
            pair(chain, wrong).context()
    with pytest.raises(CredentialError, match='its key has a PEM block "ENCRYPTED PRIVATE KEY" instead of'):
        pair(chain, encrypted).context()


def test_giant_rsa_key_is_not_loaded() -> None:
    large, giant = GiantPair(8_192), GiantPair(8_193)
    pair(large.certificate, large.key).context()
    for chain, key in ((giant.certificate, giant.key), (large.certificate, giant.key), (giant.certificate, large.key)):
        with pytest.raises(CredentialError, match="has an RSA key with numbers of 8193 bits"):
            pair(chain, key).context()


def test_characters_beyond_ascii_hide_no_certificate_from_the_limits_of_its_key() -> None:
    hidden = GiantPair(20_000).certificate.replace(b"-----", b"--\xe9---")
    assert key_sizes.check(hidden, key_sizes.RECEIVED_BITS) == []
    with pytest.raises(CredentialError, match="not a list of PEM certificates"):
        TlsIdentity(authorities=hidden, certificate=None).context()


def test_ca_bundle_comments_may_be_non_ascii() -> None:
    bundle = "# Prüfstelle\n".encode() + trustme.CA().cert_pem.bytes()
    context = TlsIdentity(authorities=bundle, certificate=None).context()
    assert context.cert_store_stats()["x509_ca"] == 1
